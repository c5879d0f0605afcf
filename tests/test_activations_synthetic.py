"""The planted dictionary is what it says it is, and its score can be low."""

import pytest
import torch

from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations, recovery
from sparsight.errors import ActivationError
from sparsight.sae import SAEConfig, SAETrainer


def rows(data, n=8, **given):
    return torch.cat([batch[SYNTHETIC_HOOK_POINT] for batch in data.batches(512, n, **given)])


def test_batches_depend_on_seed_and_number_alone():
    data = SyntheticActivations(16, 8)
    whole = list(data.batches(32, 6, seed=3))
    resumed = list(data.batches(32, 6, seed=3, start_batch=4))
    assert [len(whole), len(resumed)] == [6, 2]
    assert torch.equal(whole[4][SYNTHETIC_HOOK_POINT], resumed[0][SYNTHETIC_HOOK_POINT])
    assert torch.equal(whole[5].document_ids, resumed[1].document_ids)
    assert not torch.equal(whole[0][SYNTHETIC_HOOK_POINT], whole[1][SYNTHETIC_HOOK_POINT])
    assert not torch.equal(rows(data, 1, seed=3), rows(data, 1, seed=4))


def test_features_fire_as_often_as_said():
    data = SyntheticActivations(8, 64, mean_active=2, skew=1.0, noise=0.0)
    # eight features in 64 dimensions are independent: least squares finds what fired
    coefficients = rows(data) @ torch.linalg.pinv(data.features)
    fired = (coefficients > 0.5).float().mean(0)
    torch.testing.assert_close(fired, data.probabilities, atol=0.03, rtol=0)
    assert data.probabilities.sum() == pytest.approx(2)
    assert data.probabilities[0] > 4 * data.probabilities[-1]


def test_in_a_hierarchy_a_child_fires_only_with_its_parent():
    data = SyntheticActivations(8, 64, mean_active=3, noise=0.0, hierarchy=True)
    fired = rows(data) @ torch.linalg.pinv(data.features) > 0.5
    assert not (fired[:, 4:] & ~fired[:, :4]).any()
    torch.testing.assert_close(fired.float().mean(0), data.probabilities, atol=0.03, rtol=0)


def test_recovery_is_one_for_the_truth_and_low_for_chance():
    data = SyntheticActivations(64, 32)
    assert recovery(3 * data.features.flip(0), data.features) == pytest.approx(1)
    assert recovery(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), data.features) < 0.5


def test_the_dictionary_shares_no_random_numbers_with_an_untrained_sae_of_the_same_seed():
    data = SyntheticActivations(64, 32, seed=0)
    trainer = SAETrainer(SAEConfig(id="a", n_latents=64, seed=0), 32, 32, total_steps=1, batch_tokens=1)
    assert recovery(trainer.weights["W_dec"].detach(), data.features) < 0.5


def test_an_impossible_dictionary_is_refused():
    with pytest.raises(ActivationError, match="4 features in 2 dimensions, 9 active"):
        SyntheticActivations(4, 2, mean_active=9)
