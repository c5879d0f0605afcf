"""Which latents have no partner in the other model, beyond what two seeds of one model differ by.

For latent i of one SAE, with x the measure of its match in another SAE (cosine, correlation or strength, see `matching`):

    E_i = mean of x over the other seeds of its own model - mean of x over the seeds of the other model

A seed finds some features and misses others, so E_i is often large with nothing behind it. Its null is the same number where nothing changed. Three
of them are here, each sharper than the one before:

    seeds       the other model against itself: for each of its seeds in turn, those beside it are split in every way into some that play the
                latent's own model and some that play the other
    permuted    of the SAE in question itself: if nothing changed, all other SAEs of both models are alike to it, and the division into its own
                model's and the other's is one of many; E of every latent in every division, pooled
    null model  a null fine-tune's latents against the other model's seeds: with the drift that any training causes

p is the rank of E_i among the null's values of latents that fire about as often, q is Benjamini and Hochberg's.

Only latents that every other seed of their own model finds again (cosine and correlation at least `least_own`) are tested, in the null as well:
of the rest nothing can be said. That makes the test sharp, for a feature that all seeds find is seldom missed by several at once by chance. The null
of seeds has fewer seeds on either side than the test (of 3: 1 and 1, of 5: 2 and 2), hence a wider spread and larger p: where a fifth of the features
is found by half of the seeds, one null value in a hundred is as large as any can be. The permuted null has as many as the test, but also the test's
own division: with 3 seeds a model that is 1 in 10, with 4 1 in 35, with 5 1 in 126, so it needs 5.

Trade-off: p cannot fall below 1 / (null values + 1), and values of one latent in several splits hang together, so a lone discovery among thousands
of latents is out of reach of the rank; `least_p` is given with each result.

Sources: Benjamini & Hochberg 1995; pooled permutations: Storey & Tibshirani 2003; the 1 in p's numerator and denominator: Phipson & Smyth 2010.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from math import comb

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.diff.matching import Partners
from sparsight.errors import MetricError

__all__ = [
    "LEAST_PERMUTED",
    "MEASURES",
    "GapTest",
    "Gaps",
    "benjamini_hochberg",
    "gap_null",
    "gap_test",
    "latent_gaps",
    "permuted_gaps",
    "rank_p",
]

MEASURES = ("direction", "activation", "strength")
LEAST_PERMUTED = 5
"""Seeds of each model from which on the permuted null can be used."""
_MOST_DIVISIONS = 500
# fewer null values in a stratum, and the smallest p is too large for one change in a hundred latents
_LEAST_IN_STRATUM = 400


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """E of each latent, by measure, with what decides whether it can be tested. Rows may come of several SAEs."""

    direction: Float[np.ndarray, " n"]
    """By cosine: positive where the other model points nowhere near."""
    activation: Float[np.ndarray, " n"]
    """By correlation: positive where nothing in the other model fires like it."""
    strength: Float[np.ndarray, " n"]
    """By ln of strength, either sign: how much more it adds than its partner by activation in the other model."""
    own: Float[np.ndarray, " n"]
    """Worst match, cosine or correlation, in any other seed of its own model; NaN without one."""
    partner: Float[np.ndarray, " n"]
    """Mean correlation with its partner by activation in the other model."""
    firings: Int[np.ndarray, " n"]
    """Tokens on which it fired."""

    def __getitem__(self, rows: np.ndarray) -> "Gaps":
        return Gaps(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence["Gaps"]) -> "Gaps":
        """One after another."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def testable(self, least_own: float, least_firings: int) -> Bool[np.ndarray, " n"]:
        """Found again by every seed of its own model, and seen often enough."""
        return (self.own >= least_own) & (self.firings >= least_firings)


@dataclass(frozen=True, kw_only=True)
class GapTest:
    """What became of each latent in the test of one measure."""

    p: Float[np.ndarray, " F"]
    """NaN where it was not tested."""
    q: Float[np.ndarray, " F"]
    """NaN where it was not tested."""
    n_tested: int
    n_null: int
    """Null values that the ranks were taken among, over all rates."""
    least_p: float
    """The smallest p that a rank among them can give."""


def latent_gaps(own: Sequence[Partners], other: Sequence[Partners], firings: Int[np.ndarray, " F"]) -> Gaps:
    """E of the latents of one SAE from their partners in the other seeds of its own model and in the other model's seeds.

    Raises MetricError without a seed on either side.
    """
    if not own or not other:
        raise MetricError(
            f"A comparison needs another seed of the latent's own model and one of the other; got {len(own)} and {len(other)}."
        )
    near, far = (_means(side) for side in (own, other))
    worst = np.minimum.reduce([np.fmin(each.cosine, each.correlation) for each in own])
    return Gaps(
        direction=near["cosine"] - far["cosine"],
        activation=near["correlation"] - far["correlation"],
        strength=far["strength"] - near["strength"],
        own=np.where(firings > 0, worst, np.nan),
        partner=far["correlation"],
        firings=firings,
    )


def gap_null(tables: Sequence[Sequence[Partners | None]], firings: Sequence[Int[np.ndarray, " F"]]) -> Gaps:
    """E of every latent of every seed of one model, that model split against itself in every way.

    `tables[s][t]`: partners of seed s's latents in seed t, anything where s = t. Raises MetricError with fewer than 3 seeds.
    """
    n_seeds = len(tables)
    if n_seeds < 3:
        raise MetricError(f"The null of {n_seeds} seeds is empty: 3 seeds of a model at least, 5 better, are expected.")
    parts = []
    for seed in range(n_seeds):
        others = [index for index in range(n_seeds) if index != seed]
        for own in _splits(others):
            sides = ([tables[seed][index] for index in others if (index in own) is wanted] for wanted in (True, False))
            near, far = ([each for each in side if each is not None] for side in sides)
            parts.append(latent_gaps(near, far, firings[seed]))
    return Gaps.joined(parts)


def permuted_gaps(
    own: Sequence[Partners], other: Sequence[Partners], firings: Int[np.ndarray, " F"], *, seed: int = 0
) -> Gaps:
    """E of every latent of one SAE, the other SAEs of both models divided in every way into as many own and other; in 500 of many."""
    seeds, n_own = [*own, *other], len(own)
    if comb(len(seeds), n_own) <= _MOST_DIVISIONS:
        divisions = list(combinations(range(len(seeds)), n_own))
    else:
        rng = np.random.default_rng(seed)
        drawn = [tuple(rng.permutation(len(seeds))[:n_own]) for _ in range(_MOST_DIVISIONS - 1)]
        divisions = [tuple(range(n_own)), *drawn]
    sides = (
        ([seeds[i] for i in division], [each for i, each in enumerate(seeds) if i not in division])
        for division in divisions
    )
    return Gaps.joined([latent_gaps(near, far, firings) for near, far in sides])


def gap_test(
    gaps: Gaps,
    null: Gaps,
    *,
    measure: str,
    least_own: float = 0.7,
    least_firings: int = 10,
    n_strata: int = 4,
) -> GapTest:
    """p and q of each latent: of a positive E, or for strength, of an E of either sign among those that have a partner by activation.

    `n_strata` at most, each of 400 null values at least.
    """
    can, null_can = (each.testable(least_own, least_firings) for each in (gaps, null))
    if measure == "strength":
        can, null_can = can & (gaps.partner >= least_own), null_can & (null.partner >= least_own)
    null = null[null_can]
    values, nulls = getattr(gaps, measure), getattr(null, measure)
    if measure == "strength":
        values, nulls = np.abs(values), np.abs(nulls)
    n_strata = max(1, min(n_strata, len(nulls) // _LEAST_IN_STRATUM))
    p = np.full(len(values), np.nan)
    if can.any() and len(nulls):
        p[can] = rank_p(values[can], gaps.firings[can], nulls, null.firings, n_strata=n_strata)
    return GapTest(
        p=p,
        q=benjamini_hochberg(p),
        n_tested=int(np.isfinite(p).sum()),
        n_null=len(nulls),
        least_p=1 / (len(nulls) // n_strata + 1),
    )


def rank_p(
    values: Float[np.ndarray, " m"],
    firings: Int[np.ndarray, " m"],
    nulls: Float[np.ndarray, " n"],
    null_firings: Int[np.ndarray, " n"],
    *,
    n_strata: int = 4,
) -> Float[np.ndarray, " m"]:
    """(1 + null values at least as large) / (1 + null values), among those of the same stratum of firing frequency.

    The strata hold equally many null values each. NaN among the null counts as larger than all: it proves nothing.
    """
    edges = np.quantile(null_firings, np.arange(1, n_strata) / n_strata)
    strata, null_strata = (np.searchsorted(edges, each, side="right") for each in (firings, null_firings))
    p = np.ones(len(values))
    for stratum in range(n_strata):
        mine, theirs = strata == stratum, np.nan_to_num(nulls[null_strata == stratum], nan=np.inf)
        if not len(theirs):  # ties among the firings left it empty: all null values then
            theirs = np.nan_to_num(nulls, nan=np.inf)
        n_smaller = np.searchsorted(np.sort(theirs), values[mine], side="left")
        p[mine] = (1 + len(theirs) - n_smaller) / (1 + len(theirs))
    return p


def benjamini_hochberg(p: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """q: the least false-discovery rate at which each would be called. NaN stays NaN and does not count."""
    q = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    raw = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
    return q


def _means(side: Sequence[Partners]) -> dict[str, np.ndarray]:
    return {
        name: np.mean([getattr(each, name) for each in side], axis=0) for name in ("cosine", "correlation", "strength")
    }


def _splits(others: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Half of them, in every way; of an odd number the larger half plays the other model, as in the test."""
    return combinations(others, len(others) // 2)
