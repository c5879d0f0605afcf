"""How well a label tells where a latent is active: balanced accuracy on judged passages, with its interval.

    balanced accuracy = (share of active passages judged active + share of inactive ones judged inactive) / 2

Chance is 0.5 whatever the mix; a judge that always says yes has 0.5. The interval resamples documents, as everywhere. Passages that a
judge gave no answer on are left out and counted. AUC says, over latents, how often a true label scores above a wrong one.

Trade-off: with some 40 passages a latent the interval of one is wide (about 0.15 each way in the middle), and where all judgements are
right the bootstrap knows no doubt: it gives 1.0 to 1.0. Read n beside it, and means over latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["LEAST_PASSAGES", "Score", "auc", "auc_interval", "balanced_accuracy", "mean_interval"]

# Fewer passages of either kind than this say nothing.
LEAST_PASSAGES = 4
N_RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Score:
    """A label's test."""

    value: float | None
    """Balanced accuracy; None with fewer than four passages judged of either kind."""
    low: float | None
    """2.5th percentile over resampled documents."""
    high: float | None
    """97.5th percentile."""
    sensitivity: float | None
    """Share of active passages judged active."""
    specificity: float | None
    """Share of inactive passages judged inactive."""
    n_active: int
    """Active passages judged."""
    n_inactive: int
    """Inactive passages judged."""
    n_unanswered: int
    """Passages that the judge gave no answer on."""

    @property
    def n(self) -> int:
        """Passages judged."""
        return self.n_active + self.n_inactive


def balanced_accuracy(
    truth: Bool[np.ndarray, " n"],
    judged: Sequence[bool | None],
    documents: Int[np.ndarray, " n"],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Score:
    """The score of judgements; None among them is no answer."""
    answered = np.array([answer is not None for answer in judged], bool)
    said = np.array([bool(answer) for answer in judged], bool)[answered]
    truth, documents = truth[answered], documents[answered]
    n_active, n_inactive = int(truth.sum()), int((~truth).sum())
    counts = {"n_active": n_active, "n_inactive": n_inactive, "n_unanswered": int((~answered).sum())}
    if min(n_active, n_inactive) < LEAST_PASSAGES:
        return Score(value=None, low=None, high=None, sensitivity=None, specificity=None, **counts)
    names, where = np.unique(documents, return_inverse=True)
    columns = np.stack([truth & said, truth, ~truth & ~said, ~truth], -1)
    sums = np.zeros((len(names), 4))
    np.add.at(sums, where, columns)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), n_resamples) @ sums
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    low, high = np.percentile((drawn[:, 0] / drawn[:, 1] + drawn[:, 2] / drawn[:, 3]) / 2, (2.5, 97.5))
    hits, _, rejections, _ = sums.sum(0)
    sensitivity, specificity = float(hits / n_active), float(rejections / n_inactive)
    value = (sensitivity + specificity) / 2
    return Score(
        value=value, low=float(low), high=float(high), sensitivity=sensitivity, specificity=specificity, **counts
    )


def auc(true: Float[np.ndarray, " n"], wrong: Float[np.ndarray, " m"]) -> float | None:
    """How often a score of `true` is above one of `wrong`; ties count half. None when either is empty."""
    if not len(true) or not len(wrong):
        return None
    ascending = np.sort(wrong)
    below, up_to = np.searchsorted(ascending, true, "left"), np.searchsorted(ascending, true, "right")
    return float((below + up_to).mean() / 2 / len(wrong))


def auc_interval(
    true: Float[np.ndarray, " n"], wrong: Float[np.ndarray, " n"], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """(low, high) of the AUC, 95 % by resampling latents; `true` and `wrong` are of the same latents."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(true), (n_resamples, len(true)))
    low, high = np.percentile([auc(true[places], wrong[places]) or 0.0 for places in drawn], (2.5, 97.5))
    return float(low), float(high)


def mean_interval(
    values: Float[np.ndarray, " n"], *, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of one number a latent, 95 % by resampling latents; NaN when there is none."""
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(n_resamples)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)
