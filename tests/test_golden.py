"""Golden training numbers: what each architecture reaches after 60 steps on known data. A refactor or a faster kernel must not move them.

The data, the seeds and float32 are fixed, so another machine differs by rounding alone; bfloat16 by a little more. When a change moves them on
purpose, say why in docs/log.md and commit the new numbers with it.
"""

import pytest

from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations
from sparsight.sae import SAEConfig, SAETrainer

GOLDEN_MSE = {
    ("relu", "float32"): 0.25334,
    ("topk", "float32"): 0.40960,
    ("batchtopk", "float32"): 0.39662,
    ("jumprelu", "float32"): 0.41133,
    ("gated", "float32"): 0.16521,
    ("matryoshka", "float32"): 0.41823,
    ("relu", "bfloat16"): 0.25119,
    ("topk", "bfloat16"): 0.40949,
    ("batchtopk", "bfloat16"): 0.39515,
    ("jumprelu", "bfloat16"): 0.41137,
    ("gated", "bfloat16"): 0.16512,
    ("matryoshka", "bfloat16"): 0.41746,
}


def final_mse(architecture: str, precision: str) -> float:
    """Mean of the last ten steps' mse, in normalised units."""
    data = SyntheticActivations(64, 32, mean_active=3)
    config = SAEConfig(
        id="golden",
        architecture=architecture,
        n_latents=96,
        k=4,
        lr=3e-3,
        warmup_steps=10,
        dead_after_tokens=2000,
        precision=precision,
        l1_penalty="decoder-norm",
        l1_coefficient=1.0,
    )
    trainer = SAETrainer(config, 32, 32, total_steps=60, batch_tokens=256)
    losses = []
    for number, batch in enumerate(data.batches(256, 60)):
        x = batch[SYNTHETIC_HOOK_POINT]
        if number == 0:
            trainer.initialize(x)
        losses.append(float(trainer.step(x)["mse"]))
    return sum(losses[-10:]) / 10


@pytest.mark.parametrize(("architecture", "precision"), GOLDEN_MSE)
def test_training_reaches_its_golden_number(architecture: str, precision: str) -> None:
    tolerance = 2e-3 if precision == "float32" else 2e-2
    assert final_mse(architecture, precision) == pytest.approx(GOLDEN_MSE[architecture, precision], rel=tolerance)
