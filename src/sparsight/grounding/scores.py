"""Which latents tell recombined spans from grounded ones, before anyone looks at what they mean?

    AUC_j   = share of (recombined, grounded) pairs of spans of one stratum in which z_j is larger at the recombined one, ties 1/2
    G_j     = AUC_j - max(AUC of the base SAE's best latent, AUC of the token log-probability, 0.5)
    p_j     = (1 + draws whose largest G over all latents is at least G_j) / (1 + draws)        labels shuffled between entities

A stratum holds spans alike in position, type and frequency (the caller's), so that only what is left can tell them apart. Entities, not
spans, are split into folds: on the others it is decided whether a latent speaks for or against recombination and which base latent is best; on
the fold, AUC is taken; then folds are averaged. In a draw, entities exchange their labels with entities that have as many spans, and
all of it is done again, the largest G being what the best of so many latents reaches by luck (max-T, Westfall & Young 1993). The ceiling is a
linear probe on the raw activations, in the same folds, with draws of its own: "no linear signal at this layer" is an answer.

Trade-off: ranks make every latent comparable and p exact, and a latent that is silent on most spans cannot reach a high AUC, however
telling it is where it speaks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.errors import MetricError

__all__ = [
    "LatentScores",
    "ScoreConfig",
    "Spans",
    "entity_folds",
    "found_again",
    "permuted_labels",
    "score_latents",
    "stratified_auc",
]

_LATENTS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """How latents are judged."""

    n_folds: int = 2
    """Folds of entities."""
    n_splits: int = 5
    """Random splits into folds, averaged."""
    n_permutations: int = 500
    """Draws of labels behind each p."""
    alpha: float = 0.05
    """A latent is found when G > 0 and p is at most this; over all latents together."""
    seed: int = 0
    """Of splits and draws."""

    def __post_init__(self) -> None:
        if self.n_folds < 2 or self.n_splits < 1 or self.n_permutations < 19 or not 0 < self.alpha < 1:
            raise MetricError(
                f"scores: n_folds = {self.n_folds}, n_splits = {self.n_splits}, n_permutations = {self.n_permutations}, alpha = "
                f"{self.alpha}; expected at least 2, 1 and 19, and a level between 0 and 1."
            )


@dataclass(frozen=True, kw_only=True)
class Spans:
    """The spans that are compared; one row each in every table of activations."""

    recombined: Bool[np.ndarray, " n"]
    entities: Int[np.ndarray, " n"]
    """Whom the span is about; never split between folds."""
    strata: Int[np.ndarray, " n"]
    """Position, type and frequency, as one number."""
    log_probability: Float[np.ndarray, " n"]
    """Of the span's tokens under the fine-tune: the baseline."""

    def __post_init__(self) -> None:
        sizes = {len(self.recombined), len(self.entities), len(self.strata), len(self.log_probability)}
        if len(sizes) > 1:
            raise MetricError(f"Spans come with columns of {sorted(sizes)} rows; expected one number of rows.")
        for kind in (True, False):
            n = len(np.unique(self.entities[self.recombined == kind]))
            if n < 4:
                word = "recombined" if kind else "grounded"
                raise MetricError(f"{n} entities have {word} spans; at least 4 are needed. Have more texts written.")

    def __len__(self) -> int:
        return len(self.recombined)


@dataclass(frozen=True, kw_only=True)
class LatentScores:
    """What was found, over all latents of one SAE."""

    auc: Float[np.ndarray, " F"]
    """Held out, oriented on the other folds, so that below 0.5 it did not hold."""
    sign: Int[np.ndarray, " F"]
    """1: larger where recombined, -1: larger where grounded; on all spans."""
    gain: Float[np.ndarray, " F"]
    """G_j."""
    p: Float[np.ndarray, " F"]
    """Of G_j, over all latents together."""
    p_auc: Float[np.ndarray, " F"]
    """The same with AUC_j in place of G_j: what stands without the baselines."""
    base_auc: float | None
    """The base SAE's best latent; None where there is none."""
    log_probability_auc: float
    null_gain: Float[np.ndarray, " draws"]
    """The largest G of each draw."""
    null_auc: Float[np.ndarray, " draws"]
    """The largest AUC of each draw."""
    n_spans: int
    n_entities: int
    alpha: float

    @property
    def found(self) -> Int[np.ndarray, " k"]:
        """Latents with G > 0 and p <= alpha, the largest G first; often none."""
        good = np.flatnonzero((self.gain > 0) & (self.p <= self.alpha))
        return good[np.argsort(-self.gain[good], kind="stable")]

    def to_json(self) -> dict[str, Any]:
        """Those found and those that tell, and the latent of the largest AUC beside what tells without it."""
        best = int(np.argmax(self.auc))
        return {
            "found": self.found.tolist(),
            "telling": self.telling.tolist(),
            "best": best,
            "best_auc": float(self.auc[best]),
            "best_gain": float(self.gain[best]),
            "best_p": float(self.p[best]),
            "best_p_auc": float(self.p_auc[best]),
            "base_auc": self.base_auc,
            "log_probability_auc": self.log_probability_auc,
            "null_auc_95": float(np.quantile(self.null_auc, 0.95)),
            "null_auc_largest": float(self.null_auc.max()),
            "n_spans": self.n_spans,
            "n_entities": self.n_entities,
        }

    @property
    def telling(self) -> Int[np.ndarray, " k"]:
        """Latents with p_auc <= alpha, whatever log-probability and the base tell, the largest AUC first: a set to ablate."""
        good = np.flatnonzero(self.p_auc <= self.alpha)
        return good[np.argsort(-self.auc[good], kind="stable")]


def stratified_auc(
    values: Float[np.ndarray, "n F"], positive: Bool[np.ndarray, " n"], strata: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " F"]:
    """Share of (positive, negative) pairs within a stratum in which the positive's value is larger, ties counting half.

    NaN when no stratum has both.
    """
    ranks, _ = _ranks(values, strata)
    return _aucs(ranks, positive[None].astype(np.float64), strata)[0]


def score_latents(
    z: Float[np.ndarray, "n F"],
    spans: Spans,
    config: ScoreConfig,
    *,
    z_base: Float[np.ndarray, "n G"] | None = None,
) -> LatentScores:
    """Scores every latent. `z`, `z_base`: activations at the spans of the fine-tune's SAE and of the base's, on the same tokens.

    Raises MetricError when rows do not fit or a fold has one kind of span only.
    """
    if len(z) != len(spans) or (z_base is not None and len(z_base) != len(spans)):
        raise MetricError(f"{len(spans)} spans came with {len(z)} rows of activations; expected one row each.")
    draws = np.stack([spans.recombined, *permuted_labels(spans, config)])
    n_labels, folds = len(draws), list(entity_folds(spans, config))
    baseline = np.full(n_labels, 0.5)
    certain = np.mean([_best_held_out(spans.log_probability[:, None], draws, spans, fold) for fold in folds], axis=0)
    base = None if z_base is None else np.mean([_best_held_out(z_base, draws, spans, fold) for fold in folds], axis=0)
    baseline = np.maximum(baseline, certain) if base is None else np.maximum(np.maximum(baseline, certain), base)
    auc, largest = np.zeros(z.shape[1]), np.full(n_labels, -np.inf)
    for start in range(0, z.shape[1], _LATENTS_AT_ONCE):
        block = z[:, start : start + _LATENTS_AT_ONCE]
        held_out = np.mean([_oriented_held_out(block, draws, spans, fold) for fold in folds], axis=0)
        auc[start : start + block.shape[1]] = held_out[0]
        largest = np.maximum(largest, held_out.max(1))
    gain, null_gain, null_auc = auc - baseline[0], (largest - baseline)[1:], largest[1:]
    return LatentScores(
        auc=auc,
        sign=np.where(stratified_auc(z, spans.recombined, spans.strata) >= 0.5, 1, -1),
        gain=gain,
        p=_p_values(gain, null_gain),
        p_auc=_p_values(auc, null_auc),
        base_auc=None if base is None else float(base[0]),
        log_probability_auc=float(certain[0]),
        null_gain=null_gain,
        null_auc=null_auc,
        n_spans=len(spans),
        n_entities=len(np.unique(spans.entities)),
        alpha=config.alpha,
    )


def permuted_labels(spans: Spans, config: ScoreConfig, n: int | None = None) -> list[Bool[np.ndarray, " n"]]:
    """Draws of the labels: entities with equally many spans exchange theirs, in the spans' order of strata. None: as many as asked for."""
    rng = np.random.default_rng((config.seed, 1))
    _, inverse, sizes = np.unique(spans.entities, return_inverse=True, return_counts=True)
    order = np.lexsort((spans.strata, inverse))
    rows = np.split(order, np.cumsum(sizes)[:-1])
    draws = []
    for _ in range(config.n_permutations if n is None else n):
        labels = spans.recombined.copy()
        for size in np.unique(sizes):
            alike = np.flatnonzero(sizes == size)
            for to, source in zip(alike, rng.permutation(alike), strict=True):
                labels[rows[to]] = spans.recombined[rows[source]]
        draws.append(labels)
    return draws


def entity_folds(spans: Spans, config: ScoreConfig) -> Iterator[Bool[np.ndarray, " n"]]:
    """Which spans are held out: entities in `n_folds` parts, `n_splits` times; entities of both kinds are spread alike."""
    rng = np.random.default_rng((config.seed, 0))
    entities, inverse = np.unique(spans.entities, return_inverse=True)
    share = np.bincount(inverse, weights=spans.recombined) / np.bincount(inverse)
    for _ in range(config.n_splits):
        order = np.lexsort((rng.random(len(entities)), share))
        fold = np.empty(len(entities), np.int64)
        fold[order] = (np.arange(len(entities)) + rng.integers(config.n_folds)) % config.n_folds
        for part in range(config.n_folds):
            yield fold[inverse] == part


def _oriented_held_out(values: np.ndarray, draws: np.ndarray, spans: Spans, fold: np.ndarray) -> np.ndarray:
    """[draws, F]: AUC on the fold, turned around where it is below 1/2 on the others."""
    training, held_out = _both(values, draws, spans, fold)
    return np.where(training >= 0.5, held_out, 1 - held_out)


def _best_held_out(values: np.ndarray, draws: np.ndarray, spans: Spans, fold: np.ndarray) -> np.ndarray:
    """[draws]: AUC on the fold of the column that is best on the others, whichever way it speaks."""
    training, held_out = _both(values, draws, spans, fold)
    oriented = np.where(training >= 0.5, held_out, 1 - held_out)
    best = np.abs(training - 0.5).argmax(1)
    return oriented[np.arange(len(draws)), best]


def _both(values: np.ndarray, draws: np.ndarray, spans: Spans, fold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _part(values, draws, spans, ~fold), _part(values, draws, spans, fold)


def _part(values: np.ndarray, draws: np.ndarray, spans: Spans, part: np.ndarray) -> np.ndarray:
    """[draws, F]: AUC on the rows of `part`; 1/2 where the draw leaves no stratum with both kinds."""
    ranks, _ = _ranks(values[part], spans.strata[part])
    found = _aucs(ranks, draws[:, part].astype(np.float64), spans.strata[part])
    if np.isnan(found[0]).any():
        raise MetricError("A fold has no stratum with both kinds of spans. Use fewer folds or coarser strata.")
    return np.nan_to_num(found, nan=0.5)


def _ranks(values: np.ndarray, strata: np.ndarray) -> tuple[Float[np.ndarray, "n F"], list[np.ndarray]]:
    """Rank of each value in its stratum, from 1, ties sharing their mean; and the strata's rows."""
    from scipy.stats import rankdata  # slow to import

    ranks = np.empty(values.shape)
    rows = [np.flatnonzero(strata == each) for each in np.unique(strata)]
    for each in rows:
        ranks[each] = rankdata(values[each], axis=0)
    return ranks, rows


def _aucs(
    ranks: Float[np.ndarray, "n F"], positive: Float[np.ndarray, "draws n"], strata: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "draws F"]:
    """Mann-Whitney's U summed over strata, over the number of pairs."""
    smallest, n_pairs = np.zeros(len(positive)), np.zeros(len(positive))
    for each in np.unique(strata):
        inside = strata == each
        n_positive = positive[:, inside].sum(1)
        smallest += n_positive * (n_positive + 1) / 2
        n_pairs += n_positive * (inside.sum() - n_positive)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive @ ranks - smallest[:, None]) / n_pairs[:, None]


def _p_values(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    ordered = np.sort(null)
    at_least = len(ordered) - np.searchsorted(ordered, values - 1e-12, side="left")
    return (1 + at_least) / (1 + len(ordered))


def found_again(
    found: Sequence[int],
    W_dec: Float[np.ndarray, "F d"],
    others: Sequence[tuple[Sequence[int], np.ndarray]],
    cosine: float,
) -> Int[np.ndarray, " k"]:
    """In how many other seeds each found latent has a found partner at this cosine of directions at least.

    `others`: what was found in each other seed, and its decoder [G, d].
    """
    unit = W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True).clip(1e-12)
    counts = np.zeros(len(found), np.int64)
    for theirs, decoder in others:
        if len(theirs):
            rows = decoder[list(theirs)]
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
            counts += (unit[list(found)] @ rows.T).max(1, initial=-1.0) >= cosine
    return counts
