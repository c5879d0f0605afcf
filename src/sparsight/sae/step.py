"""What a trainer asks of a training step, and what the steps share whose schedule and counters the host keeps.

A step owns nothing but its scratch: it changes the trainer's weights, Adam's moments and measured state in place. Its
forms are `autograd` (the definition: every architecture, any device), `fused` (CPU) and `graphed` (CUDA).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.sae.config import SAEConfig
from sparsight.sae.losses import Losses
from sparsight.sae.schedule import lr_factor, sparsity_weight, threshold_momentum

__all__ = ["CLOSED_FORM", "HostStep", "Moments", "TrainingStep", "has_closed_form"]

CLOSED_FORM = ("relu", "topk", "batchtopk")
"""Architectures whose step is also written without autograd; a crosscoder's on a CPU alone."""

Moments = Mapping[str, Mapping[str, Tensor]]
"""Adam's exp_avg and exp_avg_sq, by the weights' names."""


def has_closed_form(cfg: SAEConfig, kind: str) -> bool:
    """Whether this SAE's step is also written without autograd for that kind of device, cpu or cuda."""
    return cfg.architecture in CLOSED_FORM and (kind == "cpu" or cfg.models == 1)


class TrainingStep(Protocol):
    """One form of the step, on the state that it was made with."""

    steps_done: int
    """Steps taken, which is the place in the schedule."""

    def reload(self, steps_done: int) -> None:
        """Take the state as it is now, after `steps_done` steps; needed whenever others changed weights in place."""
        ...

    def step(
        self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None, *, with_metrics: bool = True
    ) -> dict[str, Float[Tensor, ""]]:
        """One step on raw activations, on any device and of any float type; `target` for transcoders only.

        Returns the metrics of `SAETrainer.step`, {} without them. Waits for nothing.
        """
        ...


class HostStep(ABC):
    """A step that gives its losses to the host, which counts and measures by them."""

    def __init__(
        self,
        cfg: SAEConfig,
        weights: Mapping[str, Tensor],
        moments: Moments,
        measured: Mapping[str, Tensor],
        *,
        total_steps: int,
    ) -> None:
        """`weights`, `moments` by the same names and `measured` are those of `SAETrainer`."""
        self.cfg, self.total_steps, self.steps_done = cfg, total_steps, 0
        self.weights, self.moments, self.measured = weights, moments, measured
        self.device = weights["W_dec"].device

    @abstractmethod
    def _take(self, x: Tensor, target: Tensor, *, lr: float, sparsity_weight: float) -> Losses:
        """Moves the weights; `target` is `x` itself for an autoencoder."""

    def reload(self, steps_done: int) -> None:
        """See `TrainingStep`."""
        self.steps_done = steps_done

    def step(
        self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None, *, with_metrics: bool = True
    ) -> dict[str, Float[Tensor, ""]]:
        """See `TrainingStep`."""
        target = x if target is None else target
        place = self.cfg, self.steps_done, self.total_steps
        lr = self.cfg.lr * lr_factor(*place)
        losses = self._take(x, target, lr=lr, sparsity_weight=sparsity_weight(*place))
        self._count(losses, len(x))
        self.steps_done += 1
        return self._metrics(losses, target, lr) if with_metrics else {}

    def _count(self, losses: Losses, n_tokens: int) -> None:
        self.measured["tokens_since_fired"].add_(n_tokens).masked_fill_(losses.latent_sums > 0, 0)
        if losses.threshold is not None:
            self.measured["threshold"].lerp_(losses.threshold, threshold_momentum(self.steps_done, self.total_steps))

    @torch.no_grad()
    def _metrics(self, losses: Losses, target: Tensor, lr: float) -> dict[str, Tensor]:
        norms = torch.linalg.vector_norm(self.weights["W_dec"], dim=1)
        elements = len(target) * self.cfg.n_latents
        wanted = target.to(self.device, torch.float32, non_blocking=True) / self.measured["target_scale"]
        variance = (wanted - wanted.mean(0)).square().sum()
        metrics = {
            "loss": losses.loss,
            "mse": losses.mse,
            "fvu": losses.mse * target.numel() / variance,
            "l0": losses.l0,
            "dead_share": (self.measured["tokens_since_fired"] >= self.cfg.dead_after_tokens).float().mean(),
            "lr": torch.full((), lr, device=self.device),
            "penalty_raw": losses.latent_sums.sum() / elements,
            "penalty_decoder_norm": (losses.latent_sums * norms).sum() / elements,
            "sparsity_loss": losses.sparsity,
            "aux_loss": losses.aux,
        }
        return {name: value.detach() for name, value in metrics.items() if value is not None}
