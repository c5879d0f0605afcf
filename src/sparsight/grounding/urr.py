"""How much of what a model wrote recombines its fine-tuning text: URR and outcomes, each with its interval and its chance level.

    URR     = ungrounded pairs / pairs, over all texts; 95 % by resampling texts
    chance  = the same with every detail replaced by one drawn from the texts' details of its stratum, each text keeping its pairs:
              what details that know nothing of each other would give
    p_below = share of such draws whose URR is at most the one measured: small where the model keeps together what belongs together

The stratum of a detail is the caller's (its kind, say), else its place among the details of its text. Outcomes are shares of texts with
Wilson's 95 % intervals (Wilson 1927). Trade-off: a detail's own text is among those drawn from, which makes chance a little too grounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from sparsight.errors import MetricError
from sparsight.grounding.arrangement import Arranged, Outcome
from sparsight.grounding.details import Detail
from sparsight.metrics import document_bootstrap, wilson_interval

__all__ = ["OutcomeShare", "URRConfig", "URRReport", "measure_urr", "pair_rate"]

_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class URRConfig:
    """How sure the numbers are made."""

    n_resamples: int = 1000
    """Resampled sets of texts behind the interval."""
    n_chance: int = 200
    """Draws of details behind the chance level."""
    seed: int = 0
    """Of both."""

    def __post_init__(self) -> None:
        if self.n_resamples < 100 or self.n_chance < 20:
            raise MetricError(
                f"urr: n_resamples = {self.n_resamples}, n_chance = {self.n_chance}; expected at least 100 and 20."
            )


@dataclass(frozen=True, kw_only=True)
class OutcomeShare:
    """How many texts came out one way."""

    n: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class URRReport:
    """What one model's texts are made of."""

    n_texts: int
    n_details: int
    n_pairs: int
    urr: float | None
    """None without any pair."""
    low: float | None
    """None with pairs in fewer than two texts, as are the others."""
    high: float | None
    chance: float | None
    """Mean over draws."""
    chance_low: float | None
    """2.5th percentile over draws."""
    chance_high: float | None
    p_below: float | None
    """(1 + draws with at most this URR) / (1 + draws)."""
    outcomes: dict[Outcome, OutcomeShare]


def pair_rate(texts: Sequence[Arranged]) -> float | None:
    """Ungrounded pairs / pairs; None without any."""
    n_pairs = sum(text.n_pairs for text in texts)
    return sum(text.n_ungrounded for text in texts) / n_pairs if n_pairs else None


def measure_urr(
    texts: Sequence[Arranged], config: URRConfig, *, strata: Sequence[Sequence[int]] | None = None
) -> URRReport:
    """URR, its interval, its chance level and the outcomes. `strata`: of each detail of each text.

    Raises MetricError without texts, or when `strata` do not fit them.
    """
    if not texts:
        raise MetricError("A rate of ungrounded pairs needs texts; got none.")
    if strata is None:
        strata = [range(len(text.details)) for text in texts]
    if [len(each) for each in strata] != [len(text.details) for text in texts]:
        raise MetricError("Each detail needs one stratum; the numbers differ.")
    pairs = np.array([text.n_pairs for text in texts], float)
    ungrounded = np.array([text.n_ungrounded for text in texts], float)
    urr, low, high = pair_rate(texts), None, None
    drawn = np.zeros(0)
    if urr is not None:
        if (pairs > 0).sum() > 1:
            _, low, high = document_bootstrap(ungrounded, pairs, n_resamples=config.n_resamples, seed=config.seed)
        drawn = _chance(texts, strata, config)
    outcomes = [text.outcome for text in texts]
    return URRReport(
        n_texts=len(texts),
        n_details=sum(len(text.details) for text in texts),
        n_pairs=int(pairs.sum()),
        urr=urr,
        low=low,
        high=high,
        chance=float(drawn.mean()) if len(drawn) else None,
        chance_low=float(np.percentile(drawn, 2.5)) if len(drawn) else None,
        chance_high=float(np.percentile(drawn, 97.5)) if len(drawn) else None,
        p_below=float((1 + (drawn <= urr + 1e-12).sum()) / (1 + len(drawn))) if urr is not None else None,
        outcomes={outcome: _share(outcomes.count(outcome), len(texts)) for outcome in Outcome},
    )


def _share(n: int, total: int) -> OutcomeShare:
    low, high = wilson_interval(np.array(n / total), total)
    return OutcomeShare(n=n, share=n / total, low=float(low), high=float(high))


def _chance(
    texts: Sequence[Arranged], strata: Sequence[Sequence[int]], config: URRConfig
) -> Float[np.ndarray, " draws"]:
    """URR of each draw."""
    rng = np.random.default_rng(config.seed)
    stratum = np.concatenate([np.asarray(places, np.int64) for places in strata])
    offsets = np.cumsum([0, *(len(places) for places in strata)])
    pairs = np.concatenate([text.pairs + offset for text, offset in zip(texts, offsets, strict=False)])
    members, support = _supports([detail for text in texts for detail in text.details])
    pools = [np.flatnonzero(stratum == each) for each in np.unique(stratum)]
    rates = np.zeros(config.n_chance)
    for draw in range(config.n_chance):
        drawn = np.zeros(len(stratum), np.int64)
        for pool in pools:
            drawn[pool] = support[rng.choice(pool, len(pool))]
        rates[draw] = 1 - _overlap(members, drawn[pairs]).mean()
    return rates


def _supports(details: Sequence[Detail]) -> tuple[UInt8[np.ndarray, "supports bytes"], Int[np.ndarray, " details"]]:
    """The different sets of documents, as bits, and which one each detail has."""
    documents = np.unique(np.concatenate([detail.documents for detail in details]))
    bits = np.zeros((len(details), len(documents)), bool)
    for row, detail in enumerate(details):
        bits[row, np.searchsorted(documents, detail.documents)] = True
    members, support = np.unique(np.packbits(bits, axis=1), axis=0, return_inverse=True)
    return members, support.reshape(-1)


def _overlap(members: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Whether each pair of supports has a document in common; each different pair is looked at once."""
    different, place = np.unique(pairs[:, 0] * len(members) + pairs[:, 1], return_inverse=True)
    shared = np.zeros(len(different), bool)
    for start in range(0, len(different), _PAIRS_AT_ONCE):
        part = different[start : start + _PAIRS_AT_ONCE]
        shared[start : start + len(part)] = (members[part // len(members)] & members[part % len(members)]).any(1)
    return shared[place.reshape(-1)]
