"""Arrangements: which details of a text stand together, and whether any fine-tuning document holds them together.

    pairs of details within `window_tokens` of each other, or about one subject (in one section of the text)
    a pair is grounded  iff  some document holds both of its details
    ungrounded-pair rate (URR) = ungrounded pairs / pairs
    a text's details count  iff  the fine-tune predicts them together better than the base: sum of advantage > min_advantage_bits

An ungrounded pair is not a false one: two documents may each tell half of a truth. Pairs that stand in the prompt altogether were not written
by the model and are left out. Advantage is summed over a text because a detail drawn against the odds, as recombined ones are, may be
likelier under the base: judged one by one, 18 % of the laboratory's truly ungrounded pairs were lost, and texts of the base itself let in.
Trade-off: three details may be grounded pair by pair with no document that holds all three.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Int

from sparsight.errors import MetricError
from sparsight.grounding.details import Detail

__all__ = ["Arranged", "ArrangementConfig", "Outcome", "arrange", "detail_labels", "share_a_document"]


class Outcome(StrEnum):
    """What became of one text."""

    GROUNDED = "grounded"
    """Details, and every pair of them in some document."""
    RECOMBINED = "recombined"
    """A pair at least that no document holds."""
    NONE = "abstaining or novel"
    """No detail of the fine-tuning text among what the model wrote."""


@dataclass(frozen=True, kw_only=True)
class ArrangementConfig:
    """Which details count, and which make a pair."""

    window_tokens: int = 256
    """Two details whose ends are at most so far apart make a pair."""
    min_advantage_bits: float = 0.0
    """The fine-tune's log2-probability of a text's details must exceed the base's by more than this."""

    def __post_init__(self) -> None:
        if self.window_tokens < 1:
            raise MetricError(f"arrangement: window_tokens = {self.window_tokens}; expected at least 1.")


@dataclass(frozen=True, kw_only=True)
class Arranged:
    """One text's details and their pairs."""

    details: tuple[Detail, ...]
    n_prompt: int
    """Tokens at its front that the model was given."""
    pairs: Int[np.ndarray, "pairs 2"]
    """Places in `details`, the earlier one first."""
    grounded: Int[np.ndarray, " pairs"]
    """1 where some document holds both, else 0."""

    @property
    def n_pairs(self) -> int:
        """Pairs that count."""
        return len(self.pairs)

    @property
    def n_ungrounded(self) -> int:
        """Pairs that no document holds."""
        return int((self.grounded == 0).sum())

    @property
    def n_written(self) -> int:
        """Details that end in what the model wrote."""
        return sum(detail.end > self.n_prompt for detail in self.details)

    @property
    def outcome(self) -> Outcome:
        """What became of the text."""
        if not self.n_written:
            return Outcome.NONE
        return Outcome.RECOMBINED if self.n_ungrounded else Outcome.GROUNDED


def arrange(
    details: Sequence[Detail],
    config: ArrangementConfig,
    *,
    n_prompt: int = 0,
    section_starts: Sequence[int] | None = None,
) -> Arranged:
    """The pairs of one text's details, in its order. `section_starts`: where each subject begins, ascending; then a pair
    stays within one subject, however far apart its details are, and the window does not count. Details whose advantage is
    not known all count."""
    gained = [detail.advantage_bits for detail in details if detail.advantage_bits is not None]
    if gained and sum(gained) <= config.min_advantage_bits:
        details = []
    ends = np.array([detail.end for detail in details], np.int64)
    written = ends > n_prompt
    first, second = np.triu_indices(len(details), 1)
    if section_starts is None:
        together = ends[second] - ends[first] <= config.window_tokens
    else:
        section = np.searchsorted(np.asarray(section_starts), [detail.core for detail in details], side="right")
        together = section[first] == section[second]
    chosen = together & (written[first] | written[second])
    pairs = np.stack([first[chosen], second[chosen]], 1)
    grounded = np.array([share_a_document(details[i], details[j]) for i, j in pairs], np.int64)
    return Arranged(details=tuple(details), n_prompt=n_prompt, pairs=pairs, grounded=grounded)


def share_a_document(one: Detail, other: Detail) -> bool:
    """Whether some document holds both."""
    return bool(np.intersect1d(one.documents, other.documents, assume_unique=True).size)


def detail_labels(arranged: Arranged) -> Float[np.ndarray, " details"]:
    """Of each detail: 1 when half or more of its pairs are ungrounded, 0 when all are grounded, NaN when neither or without pairs.

    One detail out of place spoils a pair of every other detail; those others are not recombined for it, nor are they beyond doubt.
    """
    labels = np.full(len(arranged.details), np.nan)
    for place in range(len(labels)):
        of_it = (arranged.pairs == place).any(1)
        if of_it.any():
            share = float(1 - arranged.grounded[of_it].mean())
            labels[place] = 1.0 if share >= 0.5 else 0.0 if share == 0 else np.nan
    return labels
