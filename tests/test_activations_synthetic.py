"""The planted dictionary is what it says it is, and its score can be low."""

import pytest
import torch

from sparsight.activations.synthetic import KINDS, SYNTHETIC_HOOK_POINT, SyntheticActivations, recovery
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


def fired(n=40, rows=1024, **options):
    """Who fired on n * rows tokens, and the dictionary."""
    data = SyntheticActivations(24, 16, **options)
    return torch.cat([data.planted(rows, index).magnitudes for index in range(n)]) > 0, data


def deviations(share, expected, n):
    """Binomial standard deviations between a share and what was expected."""
    return ((share - expected) / (expected * (1 - expected) / n).sqrt()).abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fires_at_its_rates(kind):
    data = SyntheticActivations.of_kind(kind, 24, 16, mean_active=3)
    fires = torch.cat([data.planted(1024, index).magnitudes for index in range(40)]) > 0
    assert data.probabilities.sum() == pytest.approx(3, rel=1e-5)
    assert deviations(fires.double().mean(0), data.probabilities.double(), len(fires)) < 4.5


def test_planted_rows_are_the_batches_rows_and_what_they_say():
    data = SyntheticActivations.of_kind("hierarchical", 24, 16, noise=0.0)
    (batch,) = data.batches(64, 4, seed=2, start_batch=3)
    x, magnitudes = data.planted(64, 3, seed=2)
    assert torch.equal(batch[SYNTHETIC_HOOK_POINT], x)
    torch.testing.assert_close(magnitudes @ data.features, x)


def test_features_of_a_group_fire_together_as_the_copula_says():
    multivariate_normal = pytest.importorskip("scipy.stats").multivariate_normal
    fires, data = fired(mean_active=2.4, skew=0.0, correlation=0.8, group_size=4)
    p = 0.1
    level = float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))
    together = multivariate_normal([0, 0], [[1, 0.8], [0.8, 1]]).cdf([level, level])
    expected = (together - p * p) / (p - p * p)
    table = torch.corrcoef(fires.double().T)
    same = (data.groups[:, None] == data.groups) & ~torch.eye(24, dtype=torch.bool)
    assert same.sum() == 24 * 3
    assert (table[same] - expected).abs().max() < 0.03
    assert table[data.groups[:, None] != data.groups].abs().max() < 0.03


def test_a_child_fires_on_its_share_of_the_parents_tokens_and_on_no_other():
    fires, data = fired(mean_active=4, skew=0.0, children=3, child_share=0.3)
    children = (data.parents >= 0).nonzero().squeeze(1)
    assert len(children) == 18
    of_parent = fires[:, data.parents[children]]
    assert not (fires[:, children] & ~of_parent).any()
    share = (fires[:, children] & of_parent).double().sum(0) / of_parent.sum(0)
    assert deviations(share, torch.tensor(0.3), int(of_parent.sum(0).min())) < 4.5


def test_zipfs_rates_fall_with_slope_one():
    fires, _ = fired(mean_active=2.0, skew=1.0)
    ranks = torch.arange(1, 25, dtype=torch.float64).log()
    logs = fires.double().mean(0).log()
    slope = torch.corrcoef(torch.stack([ranks, logs]))[0, 1] * logs.std() / ranks.std()
    assert slope.item() == pytest.approx(-1, abs=0.03)


@pytest.mark.parametrize(
    ("options", "mean", "deviation"),
    [
        ({"magnitude": "exponential", "spread": 0.5}, 1.5, 0.5),
        ({"magnitude": "lognormal", "spread": 0.5}, 1.1331, 0.6039),  # exp(s^2/2), and that times sqrt(exp(s^2) - 1)
        ({"magnitude": "half-normal"}, 1.0, 0.7555),  # sqrt(pi/2 - 1)
    ],
)
def test_magnitudes_and_noise_have_their_distribution(options, mean, deviation):
    data = SyntheticActivations(24, 16, noise=0.3, **options)
    x, magnitudes = data.planted(20_000, 0)
    firing = magnitudes[magnitudes > 0]
    assert firing.mean().item() == pytest.approx(mean, abs=0.02)
    assert firing.std().item() == pytest.approx(deviation, abs=0.03)
    assert (x - magnitudes @ data.features).std().item() == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"correlation": 1.0}, "correlation 1.0 cannot be planted"),
        ({"child_share": 1.5}, "share 1.5"),
        ({"hierarchy": True, "children": 0}, "0 children"),
        ({"hierarchy": True, "correlation": 0.5}, "one or the other"),
        ({"magnitude": "constant"}, "'constant' are unknown; choose from exponential"),
    ],
)
def test_impossible_options_are_refused(options, complaint):
    with pytest.raises(ActivationError, match=complaint):
        SyntheticActivations(24, 16, **options)


def test_an_unknown_kind_is_refused():
    with pytest.raises(
        ActivationError, match="'zipf' are unknown; choose from sparse, correlated, hierarchical, skewed"
    ):
        SyntheticActivations.of_kind("zipf", 24, 16)
