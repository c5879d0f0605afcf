"""The test of single latents: p and q by hand, a null that is calibrated, and what it takes away from a naive count."""

import numpy as np
import pytest
from scipy import stats

from sparsight.diff import Gaps, Partners, benjamini_hochberg, gap_null, gap_test, latent_gaps, permuted_gaps, rank_p
from sparsight.errors import MetricError

F = 60


def partners(cosine, correlation=None, strength=None):
    correlation = cosine if correlation is None else correlation
    return Partners(
        cosine=np.asarray(cosine, np.float32),
        cosine_latent=np.arange(len(cosine)),
        correlation=np.asarray(correlation, np.float32),
        correlation_latent=np.arange(len(cosine)),
        cosine_there=np.asarray(cosine, np.float32),
        strength=np.zeros(len(cosine), np.float32) if strength is None else np.asarray(strength, np.float32),
    )


def gaps_of(direction, firings, own=0.9):
    n = len(direction)
    return Gaps(
        direction=np.asarray(direction, float),
        activation=np.zeros(n),
        strength=np.zeros(n),
        own=np.full(n, own),
        partner=np.ones(n),
        firings=np.asarray(firings),
    )


def test_benjamini_and_hochberg_by_hand():
    q = benjamini_hochberg(np.array([0.04, np.nan, 0.01, 0.02, 0.5]))
    assert q[[0, 2, 3, 4]] == pytest.approx([0.16 / 3, 0.04, 0.04, 0.5])
    assert np.isnan(q[1])
    assert benjamini_hochberg(np.array([0.04, 0.01, 0.041])) == pytest.approx([0.041, 0.03, 0.041])
    p = np.random.default_rng(0).random(200) ** 3
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))


def test_p_is_the_rank_among_latents_that_fire_about_as_often():
    nulls, null_firings = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]), np.array([1, 2, 3, 100, 200, 300])
    p = rank_p(np.array([0.25, 0.25, 0.95, 0.3]), np.array([1, 1000, 200, 2]), nulls, null_firings, n_strata=2)
    assert p == pytest.approx([2 / 4, 4 / 4, 1 / 4, 2 / 4])


def test_a_gap_is_what_its_own_seeds_find_and_the_others_do_not():
    own, other = [partners([0.9, 0.9]), partners([0.7, 1.0])], [partners([0.3, 0.9]), partners([0.5, 0.9])]
    gaps = latent_gaps(own, other, np.array([50, 5]))
    assert gaps.direction == pytest.approx([0.4, 0.05])
    assert gaps.own == pytest.approx([0.7, 0.9])
    assert gaps.testable(0.7 - 1e-6, 20).tolist() == [True, False]


def test_strength_counts_how_much_stronger_it_is_than_in_the_other_model():
    own, other = [partners([1.0], strength=[0.1])], [partners([1.0], strength=[0.8])]
    assert latent_gaps(own, other, np.array([9])).strength == pytest.approx([0.7])


def seeds_of(rng, chance, n_seeds):
    """Each seed finds a feature by chance: what it found has a match of 1 in seeds that found it, and else of 0.4."""
    found = rng.random((n_seeds, len(chance))) < chance
    return [
        [
            None if s == t else partners(np.where(found[t], 0.98, 0.4) + 0.01 * rng.random(len(chance)))
            for t in range(n_seeds)
        ]
        for s in range(n_seeds)
    ]


@pytest.mark.parametrize(("n_seeds", "null_of"), [(3, "seeds"), (5, "seeds"), (5, "permuted")])
def test_seed_noise_alone_is_not_called_emergent(n_seeds, null_of):
    """A fifth of the features is found by half of the seeds: without a null, many would be called new."""
    chance, firings = np.where(np.arange(F) < F // 5, 0.5, 0.995), np.full(F, 100)
    called, naive = 0, 0
    for repetition in range(40):
        rng = np.random.default_rng(repetition)
        everything = seeds_of(rng, chance, 2 * n_seeds)
        tables = [row[:n_seeds] for row in everything[:n_seeds]]
        own = [each for each in everything[n_seeds][n_seeds:] if each is not None]
        other = [each for each in everything[n_seeds][:n_seeds] if each is not None]
        null = gap_null(tables, [firings] * n_seeds) if null_of == "seeds" else permuted_gaps(own, other, firings)
        test = gap_test(latent_gaps(own, other, firings), null, measure="direction")
        called += bool((test.q <= 0.05).any())
        naive += int((other[0].cosine < 0.7).sum())
    assert naive > 40
    assert called <= 4


def test_what_no_seed_of_the_other_model_has_is_found():
    rng, firings = np.random.default_rng(0), np.full(F, 100)
    new = np.arange(F) >= F - 6
    own = [partners(np.full(F, 0.98)) for _ in range(4)]
    other = [partners(np.where(new, 0.4, 0.98)) for _ in range(5)]
    gaps = latent_gaps(own, other, firings)
    stable = gap_null(seeds_of(rng, np.full(F, 0.999), 5), [firings] * 5)
    for null in (stable, permuted_gaps(own, other, firings)):
        test = gap_test(gaps, null, measure="direction")
        assert (test.q[new] <= 0.05).all()
        assert (test.q[~new] > 0.05).all()
        assert test.least_p < 0.01


def test_the_permuted_null_sees_new_features_where_many_others_are_found_by_half_of_the_seeds():
    """With 5 seeds the null of seeds, split 2 to 2, cannot: too many of its values are as large as any."""
    firings, new, n = np.full(F, 100), np.arange(F) >= F - 6, 60
    chance = np.where(np.arange(F) < F // 5, 0.5, 0.995)
    found, false_share = dict.fromkeys(("seeds", "permuted"), 0), dict.fromkeys(("seeds", "permuted"), 0.0)
    for repetition in range(n):
        everything = seeds_of(np.random.default_rng(repetition), chance, 10)
        own = [with_values(each, new, 0.98) for each in everything[9][5:] if each is not None]
        other = [with_values(each, new, 0.4) for each in everything[9][:5] if each is not None]
        gaps = latent_gaps(own, other, firings)
        nulls = {
            "seeds": gap_null([row[:5] for row in everything[:5]], [firings] * 5),
            "permuted": permuted_gaps(own, other, firings),
        }
        for name, null in nulls.items():
            called = gap_test(gaps, null, measure="direction").q <= 0.05
            found[name] += int((called & new).sum())
            false_share[name] += (called & ~new).sum() / max(1, called.sum()) / n
    assert found["permuted"] == 6 * n
    assert found["seeds"] < 3 * n
    assert max(false_share.values()) <= 0.06


def with_values(each, where, value):
    return partners(np.where(where, value, each.cosine))


def test_a_null_splits_the_seeds_in_every_way():
    seeds = seeds_of(np.random.default_rng(0), np.full(F, 0.9), 5)
    assert len(gap_null(seeds, [np.full(F, 9)] * 5).direction) == 5 * 6 * F
    assert len(gap_null([row[:3] for row in seeds[:3]], [np.full(F, 9)] * 3).direction) == 3 * 2 * F
    assert len(permuted_gaps([partners(np.ones(F))] * 2, [partners(np.ones(F))] * 3, np.full(F, 9)).direction) == 10 * F
    with pytest.raises(MetricError, match="2 seeds is empty"):
        gap_null([row[:2] for row in seeds[:2]], [np.full(F, 9)] * 2)


def test_what_its_own_seeds_do_not_find_again_is_not_tested():
    null = gaps_of(np.linspace(0, 0.1, 100), np.full(100, 50))
    test = gap_test(gaps_of([0.9, 0.9], [50, 50], own=0.5), null, measure="direction")
    assert np.isnan(test.p).all()
    assert test.n_tested == 0
