"""The oracle of the whole room: a planted dictionary is found again, and not when the training is broken."""

from dataclasses import replace

import pytest

from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations, recovery
from sparsight.sae import SAEConfig, SAETrainer, autograd
from sparsight.sae.kernels import cpu
from sparsight.sae.losses import training_losses

D, N_FEATURES, N_LATENTS, BATCH, STEPS = 48, 64, 128, 512, 400
DATA = SyntheticActivations(N_FEATURES, D, mean_active=3)
# features that fire in fewer than 1 % of tokens are not asked for
IDENTIFIABLE = DATA.features[DATA.probabilities > 0.01]
SETTINGS = {
    "topk": {"k": 3},
    "batchtopk": {"k": 3},
    "matryoshka": {"k": 3, "prefix_widths": (64, 128)},
    "jumprelu": {"l0_coefficient": 0.03},
}


def recovered(architecture):
    cfg = SAEConfig(id="a", architecture=architecture, n_latents=N_LATENTS, lr=5e-3, **SETTINGS[architecture])
    trainer = SAETrainer(cfg, D, D, total_steps=STEPS, batch_tokens=BATCH)
    for i, batch in enumerate(DATA.batches(BATCH, STEPS)):
        x = batch[SYNTHETIC_HOOK_POINT]
        if i == 0:
            trainer.initialize(x)
        trainer.step(x)
    return recovery(trainer.finished().W_dec, IDENTIFIABLE)


@pytest.mark.parametrize("architecture", SETTINGS)
def test_a_planted_dictionary_is_recovered(architecture):
    assert recovered(architecture) >= 0.9


@pytest.mark.parametrize("architecture", SETTINGS)
def test_nothing_is_recovered_when_the_target_is_shuffled_among_tokens(architecture, monkeypatch):
    def shuffled(cfg, weights, batch):
        return training_losses(cfg, weights, replace(batch, target=batch.target.roll(1, 0)))

    def shuffled_decode(active, W_dec, b_dec, target, *rest, **named):
        return decode(active, W_dec, b_dec, target._replace(given=target.given.roll(1, 0)), *rest, **named)

    decode = cpu.decode  # what the closed form uses
    monkeypatch.setattr(autograd, "training_losses", shuffled)
    monkeypatch.setattr(cpu, "decode", shuffled_decode)
    assert recovered(architecture) < 0.7
