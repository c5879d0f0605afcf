"""Seed stability on dictionaries whose partners are known."""

import numpy as np
import pytest
import torch

from sparsight.errors import MetricError
from sparsight.metrics.stability import CrossMoments, best_partners, matched_cosine, seed_stability

F, D, N = 40, 64, 500


def latents(seed, n=F):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N, n, generator=generator).relu() * (torch.rand(N, n, generator=generator) < 0.2)


def directions(seed, n=F):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def moments_of(ours, theirs, step=100):
    moments = CrossMoments(ours.shape[1], theirs.shape[1])
    for start in range(0, N, step):
        moments.add(ours[start : start + step], theirs[start : start + step])
    return moments


def test_a_permuted_and_scaled_dictionary_is_found_again():
    order = torch.randperm(F, generator=torch.Generator().manual_seed(0))
    W_dec, z = directions(0), latents(0)
    found = seed_stability(W_dec, 3 * W_dec[order], directions(1), moments_of(z, 2 * z[:, order]))
    np.testing.assert_allclose(found.cosine, 1, rtol=1e-5)
    np.testing.assert_allclose(found.correlation, 1, rtol=1e-4)
    assert (order[torch.from_numpy(found.cosine_partner)] == torch.arange(F)).all()
    assert (order[torch.from_numpy(found.correlation_partner)] == torch.arange(F)).all()
    assert found.pw_mcc == pytest.approx(1, rel=1e-5)
    assert found.mmcs == pytest.approx(1, rel=1e-5)
    assert found.chance_mmcs < 0.5


def test_random_dictionaries_are_at_chance():
    found = seed_stability(directions(0), directions(2), directions(1), moments_of(latents(0), latents(1)))
    assert found.mmcs == pytest.approx(found.chance_mmcs, abs=0.03)
    assert found.pw_mcc == pytest.approx(found.chance_pw_mcc, abs=0.03)
    assert found.pw_mcc < found.mmcs


def test_correlations_are_numpys():
    ours, theirs = latents(0), latents(1, 25)
    theirs[:, 3] += 0.5 * ours[:, 7]
    values, partners = moments_of(ours, theirs, 130).best()
    table = np.corrcoef(ours.numpy().T, theirs.numpy().T)[:F, F:]
    np.testing.assert_allclose(values.numpy(), table.max(1), atol=1e-5)
    assert (partners.numpy() == table.argmax(1)).all()
    assert partners[7] == 3


def test_each_partner_is_taken_once_by_the_matching():
    ours = torch.eye(3)
    theirs = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    assert best_partners(torch.stack([ours[0], ours[0]]), theirs)[1].tolist() == [0, 0]
    assert matched_cosine(ours, theirs) == pytest.approx((1 + 0.6 + 1) / 3)


def test_dead_latents_do_not_count():
    W_dec, z = directions(0), latents(0)
    second, z_second = W_dec.clone(), z.clone()
    z[:, :5], z_second[:, :5] = 0, 0
    second[:5] = directions(7, 5)
    found = seed_stability(W_dec, second, directions(1), moments_of(z, z_second))
    assert found.n_alive == (F - 5, F - 5)
    assert found.mmcs == pytest.approx(1, rel=1e-5)
    assert np.isnan(found.correlation[:5]).all()
    assert not np.isnan(found.correlation[5:]).any()


def test_what_cannot_be_matched_is_said():
    with pytest.raises(MetricError, match="No latent was active"):
        seed_stability(directions(0), directions(1), directions(2), moments_of(0 * latents(0), latents(0)))
    with pytest.raises(MetricError, match="cannot be correlated"):
        CrossMoments(F, F).add(latents(0), latents(0)[:10])
    assert matched_cosine(torch.ones(9000, 2), torch.ones(9000, 2)) is None
