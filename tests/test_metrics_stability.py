"""Seed stability on dictionaries whose partners are known."""

import numpy as np
import pytest
import torch

from sparsight.errors import MetricError
from sparsight.metrics import CrossMoments, LatentMean, seed_partners, seed_stability
from sparsight.metrics import stability as stability_module
from sparsight.sae import SparseLatents

F, D, N = 40, 64, 500
ALL = torch.ones(F, dtype=torch.bool)


def latents(seed, n=F):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, n, generator=generator).relu() * (torch.rand(N, n, generator=generator) < 0.2)


def directions(seed, n=F):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def sparse(z):
    most = int((z > 0).sum(1).max())
    values, indices = z.topk(most, dim=1)
    return SparseLatents(indices.masked_fill(values == 0, 0), values)


def moments_of(ours, theirs, step=100):
    moments = CrossMoments(ours.shape[1], theirs.shape[1])
    for start in range(0, N, step):
        moments.add(sparse(ours[start : start + step]), sparse(theirs[start : start + step]))
    return moments


def test_a_permuted_and_scaled_dictionary_is_found_again():
    order = torch.randperm(F, generator=torch.Generator().manual_seed(0))
    W_dec, z = directions(0), latents(0)
    found = seed_partners(W_dec, 3 * W_dec[order], directions(1), moments_of(z, 2 * z[:, order]))
    np.testing.assert_allclose(found.cosine, 1, rtol=1e-5)
    np.testing.assert_allclose(found.correlation, 1, rtol=1e-4)
    assert (order[torch.from_numpy(found.cosine_latent).long()] == torch.arange(F)).all()
    assert (order[torch.from_numpy(found.correlation_latent).long()] == torch.arange(F)).all()
    assert found.chance_cosine < 0.5
    whole = seed_stability(W_dec, 3 * W_dec[order], directions(1), (ALL, ALL))
    assert whole.mmcs.value == pytest.approx(1, rel=1e-5)
    assert whole.pw_mcc.value == pytest.approx(1, rel=1e-5)
    assert whole.chance_mmcs.value == pytest.approx(found.chance_cosine)


def test_random_dictionaries_are_at_chance():
    found = seed_stability(directions(0), directions(2), directions(1), (ALL, ALL))
    assert found.mmcs.value == pytest.approx(found.chance_mmcs.value, abs=0.03)
    assert found.pw_mcc.value == pytest.approx(found.chance_pw_mcc.value, abs=0.03)
    assert found.pw_mcc.value < found.mmcs.value
    assert found.mmcs.low < found.chance_mmcs.high
    assert found.chance_mmcs.low < found.mmcs.high


@pytest.mark.parametrize(
    ("pair_cost", "compiled"), [(0, True), (0, False), (10**9, True)], ids=["compiled", "pair by pair", "dense"]
)
def test_correlations_are_numpys(monkeypatch, pair_cost, compiled):
    monkeypatch.setattr(stability_module, "_PAIR_COST", pair_cost)
    if not compiled:
        monkeypatch.setattr(stability_module, "native_library", lambda _: None)
    monkeypatch.setattr(stability_module, "_PAIRS_AT_ONCE", 5000)
    ours, theirs = latents(0), latents(1, 25)
    theirs[:, 3] += 0.5 * ours[:, 7]
    values, partners = moments_of(ours, theirs, 130).best()
    table = np.corrcoef(ours.numpy().T, theirs.numpy().T)[:F, F:]
    np.testing.assert_allclose(values.numpy(), table.max(1), atol=1e-5)
    assert (partners.numpy() == table.argmax(1)).all()
    assert partners[7] == 3


def test_each_partner_is_taken_once_by_the_matching():
    ours, twice = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    alive = (torch.ones(3, dtype=torch.bool),) * 2
    found = seed_stability(ours, twice, twice, alive)
    assert found.pw_mcc.value == pytest.approx((1 + 0.6 + 1) / 3)
    both = seed_stability(torch.stack([ours[0], ours[0]]), twice, twice, (alive[0][:2], alive[1]))
    assert (both.mmcs.value, both.pw_mcc.value) == (pytest.approx(1), pytest.approx(0.9))
    assert both.pw_mcc.n_latents == 2


def test_latents_that_were_never_active_do_not_count_on_either_side():
    W_dec, z = directions(0), latents(0)
    second, z_second = W_dec.clone(), z.clone()
    z[:, :5], z_second[:, 5:8] = 0, 0
    found = seed_partners(W_dec, second, directions(1), moments_of(z, z_second))
    assert np.isnan(found.correlation[:5]).all()
    assert not np.isnan(found.correlation[5:]).any()
    assert not np.isin(found.cosine_latent, [5, 6, 7]).any()
    np.testing.assert_allclose(found.cosine[8:], 1, rtol=1e-5)
    assert (found.cosine[5:8] < 0.6).all()
    alive = z.gt(0).any(0), z_second.gt(0).any(0)
    whole = seed_stability(W_dec, second, directions(1), alive)
    assert whole.n_alive == (F - 5, F - 3)
    assert whole.mmcs.n_latents == F - 5
    assert whole.mmcs.value == pytest.approx(float(found.cosine[5:].mean()), rel=1e-5)


def test_nothing_is_said_of_dead_dictionaries():
    assert seed_stability(directions(0), directions(1), directions(2), (~ALL, ALL)) is None
    assert seed_partners(directions(0), directions(1), directions(2), moments_of(0 * latents(0), latents(0))) is None


def test_wide_dictionaries_are_neither_matched_nor_correlated(monkeypatch):
    wide, alive = torch.ones(8193, 2), torch.ones(8193, dtype=torch.bool)
    found = seed_stability(wide, wide, wide, (alive, alive))
    assert found.mmcs.value == pytest.approx(1)
    assert found.pw_mcc is None
    assert found.chance_pw_mcc is None
    monkeypatch.setattr(stability_module, "_MOST_BYTES", 4 * F * F - 1)
    partners = seed_partners(directions(0), directions(0), directions(1), moments_of(latents(0), latents(1)))
    np.testing.assert_allclose(partners.cosine, 1, rtol=1e-5)
    assert partners.correlation is None


def test_latents_of_other_tokens_are_refused():
    with pytest.raises(MetricError, match="of 500 and 10 tokens cannot be correlated"):
        CrossMoments(F, F).add(sparse(latents(0)), sparse(latents(0)[:10]))


def test_a_mean_over_latents_has_the_normal_interval():
    mean = LatentMean.of(np.array([0.0, 1.0, 2.0, 3.0]))
    half = 1.96 * np.std([0, 1, 2, 3], ddof=1) / 2
    assert (mean.value, mean.low, mean.high) == pytest.approx((1.5, 1.5 - half, 1.5 + half))
    assert LatentMean.of(np.array([0.5])) == LatentMean(value=0.5, low=None, high=None, n_latents=1)
