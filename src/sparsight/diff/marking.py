"""How good the labels are, where the truth is planted: what was found of what was there, and how much of what was called was wrong.

    recall            planted features of a kind that some latent of the SAE points at (cosine at least 0.8) and is labelled by / those planted
    false discovery   latents labelled with a change / of them, those that point at a feature of another kind, or at none
    naive             latents without a partner above cosine 0.7 in one SAE of the other model: what is called emergent without a null

Recall by rate is the power of the comparison: read it before believing that nothing was found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sparsight.diff.labelling import LABELS, Labelled
from sparsight.errors import MetricError

__all__ = ["CHANGES", "POINTS_AT", "Marks", "marked", "naive_emergent", "recall_by_rate"]

CHANGES = ("emergent", "rotated", "reweighted")
"""The labels that claim a change."""
POINTS_AT = 0.8
_NAIVE_COSINE = 0.7


@dataclass(frozen=True, kw_only=True)
class Marks:
    """One SAE's labels against the truth."""

    kinds: tuple[str, ...]
    """Of each planted feature."""
    rates: Float[np.ndarray, " n_features"]
    learned: Bool[np.ndarray, " n_features"]
    """Some latent of this SAE points at it."""
    found: Bool[np.ndarray, " n_features"]
    """Some latent that points at it has the label of its kind."""
    called: dict[str, int]
    """Latents with each label that claims a change."""
    wrong: dict[str, int]
    """Of them, those that point at a feature of another kind, or at none."""

    @property
    def n_called(self) -> int:
        """Latents labelled with a change."""
        return sum(self.called.values())

    @property
    def n_wrong(self) -> int:
        """Of them, those labelled wrongly."""
        return sum(self.wrong.values())


def marked(
    labelled: Labelled,
    W_dec: Float[Tensor, "F d"],
    truth: Float[Tensor, "n_features d"],
    kinds: Sequence[str],
    rates: Float[Tensor, " n_features"],
    present: Bool[Tensor, " n_features"],
) -> Marks:
    """`truth` and `present`: the features' directions in the SAE's own model and whether that has them; `kinds` in the words of LABELS.

    Raises MetricError for a kind that is none.
    """
    if not set(kinds) <= set(LABELS):
        raise MetricError(f"Kinds {sorted(set(kinds))} cannot be marked; {', '.join(LABELS)} are expected.")
    cosines = functional.normalize(W_dec, dim=1) @ functional.normalize(truth, dim=1).T
    near = cosines.masked_fill(~present, -1.0).max(dim=1)
    feature = np.where(near.values.numpy() >= POINTS_AT, near.indices.numpy(), -1)
    feature[~np.isfinite(labelled.gaps.own)] = -1  # it never fired
    names = np.array(LABELS)[labelled.label]
    kind_there = np.array([*kinds, "none"])[feature]
    right = names == kind_there
    n = len(kinds)
    return Marks(
        kinds=tuple(kinds),
        rates=rates.numpy(),
        learned=np.bincount(feature[feature >= 0], minlength=n) > 0,
        found=np.bincount(feature[(feature >= 0) & right], minlength=n) > 0,
        called={label: int((names == label).sum()) for label in CHANGES},
        wrong={label: int(((names == label) & ~right).sum()) for label in CHANGES},
    )


def recall_by_rate(marks: Sequence[Marks], kinds: Sequence[str] = CHANGES) -> dict[float, tuple[int, int, int]]:
    """Rate -> (found, learned by the SAE, planted), counted over these SAEs and over the features of these kinds."""
    counts: dict[float, tuple[int, int, int]] = {}
    for mark in marks:
        for kind, rate, learned, found in zip(mark.kinds, mark.rates, mark.learned, mark.found, strict=True):
            if kind in kinds:
                before = counts.get(round(float(rate), 6), (0, 0, 0))
                counts[round(float(rate), 6)] = (before[0] + int(found), before[1] + int(learned), before[2] + 1)
    return dict(sorted(counts.items()))


def naive_emergent(cosine: Float[np.ndarray, " F"]) -> float:
    """Share of the latents alive with no partner above cosine 0.7 in one SAE of the other model; NaN stands for a dead latent."""
    alive = np.isfinite(cosine)
    return float((cosine[alive] < _NAIVE_COSINE).mean()) if alive.any() else float("nan")
