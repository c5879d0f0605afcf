"""What changes from step to step by plan: learning rate, weight of the sparsity penalty, memory of running means.

`schedule_table` writes all of it out before training, a row per step, so that a step on a device looks its numbers up
by a counter that lies there as well and waits for no host. 20 bytes a step.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.sae.config import SAEConfig

__all__ = ["SCHEDULE", "lr_factor", "schedule_table", "sparsity_weight", "threshold_momentum"]

SCHEDULE = ("step_size", "root_correction", "lr", "sparsity_weight", "threshold_momentum")
"""The table's columns. The first two are what Adam needs of the learning rate and its step number t:
lr / (1 - beta1^t) and 1 / sqrt(1 - beta2^t)."""

# Memory of batchtopk's running threshold in steps: an order statistic of n*k values is hardly noisy, and the threshold falls
# all along a run. In a run of 60 steps 100 steps left 2.9 of 4 latents active, in one of 64 steps 20 left 21.6 of 32.
_THRESHOLD_STEPS = 20
_THRESHOLD_SHARE = 1 / 20  # of all steps, when that is less

# of all steps: a run shorter than its warm-up would never reach the rate that was asked for
_LONGEST_WARMUP = 1 / 5


def lr_factor(cfg: SAEConfig, steps_done: int, total_steps: int) -> float:
    """Of the peak learning rate: rises linearly over warmup_steps, stays, falls to 0 over the last decay_fraction.

    The rise takes at most a fifth of all steps.
    """
    warmup_steps = min(cfg.warmup_steps, _LONGEST_WARMUP * total_steps)
    rising = (steps_done + 1) / warmup_steps if warmup_steps else 1.0
    decay_steps = cfg.decay_fraction * total_steps
    falling = (total_steps - steps_done) / decay_steps if decay_steps else 1.0
    return max(0.0, min(1.0, rising, falling))


def sparsity_weight(cfg: SAEConfig, steps_done: int, total_steps: int) -> float:
    """Of the sparsity penalty: rises linearly from 0 over sparsity_warmup_fraction of the steps."""
    warmup = cfg.sparsity_warmup_fraction * total_steps
    return min(1.0, steps_done / warmup) if warmup else 1.0


def threshold_momentum(steps_done: int, total_steps: int) -> float:
    """Weight of the newest value in batchtopk's running threshold: a plain mean over the first steps."""
    memory = min(_THRESHOLD_STEPS, max(2.0, _THRESHOLD_SHARE * total_steps))
    return max(1 / memory, 1 / (steps_done + 1))


def schedule_table(cfg: SAEConfig, total_steps: int) -> Float[Tensor, "total_steps 5"]:
    """`SCHEDULE` for every step, computed in float64, in float32."""
    beta1, beta2 = cfg.betas
    rows = []
    for done in range(total_steps):
        lr = cfg.lr * lr_factor(cfg, done, total_steps)
        adam = (lr / (1 - beta1 ** (done + 1)), (1 - beta2 ** (done + 1)) ** -0.5)
        rows.append((*adam, lr, sparsity_weight(cfg, done, total_steps), threshold_momentum(done, total_steps)))
    return torch.tensor(rows, dtype=torch.float64).float()
