"""Classes of tokens, so that a mean over all tokens cannot hide a reconstruction that works for a few of them.

    first     the first 4 tokens of a document (offset 0 to 3), whatever they are: models treat them apart
    frequent  the smallest set of most frequent ids that makes at least half of the tokens of the train split
    rare      the ids beyond the smallest set of most frequent ids that makes at least 90 %; so also ids never seen
    middle    all others

Each token belongs to exactly one class, tested in the order first, frequent, rare. Frequencies come from the train
split, so the held-out text has no say in its own classes. Ties in frequency are broken by id. Downstream, a position
has the class of the token whose activation is replaced there, not of the token predicted.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sparsight.errors import MetricError

__all__ = ["CLASS_NAMES", "TokenClasses"]

CLASS_NAMES = ("first", "frequent", "middle", "rare")
FIRST, FREQUENT, MIDDLE, RARE = range(4)
FIRST_TOKENS = 4
FREQUENT_SHARE = 0.5
RARE_SHARE = 0.1


@dataclass(frozen=True)
class TokenClasses:
    """The class of each token id by its frequency in the train split."""

    by_id: Int[Tensor, " ids"]
    """Class per token id; ids beyond the end are rare."""
    n_tokens: int
    """Train tokens the frequencies were counted on."""

    @classmethod
    def from_tokens(cls, token_ids: Int[np.ndarray, " n"]) -> "TokenClasses":
        """Count the tokens of the train split, [n]. Raises MetricError when there are none."""
        if not len(token_ids):
            raise MetricError("Token classes need the tokens of a train split; it is empty. Collect more text.")
        counts = np.bincount(token_ids)
        order = np.lexsort((np.arange(len(counts)), -counts))
        share_before = (np.cumsum(counts[order]) - counts[order]) / len(token_ids)
        by_rank = np.full(len(counts), MIDDLE)
        by_rank[(share_before >= 1 - RARE_SHARE) | (counts[order] == 0)] = RARE
        by_rank[(share_before < FREQUENT_SHARE) & (counts[order] > 0)] = FREQUENT
        by_id = np.empty(len(counts), np.int64)
        by_id[order] = by_rank
        return cls(by_id=torch.from_numpy(by_id), n_tokens=len(token_ids))

    def classify(self, token_ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Class number per token (index into CLASS_NAMES); `positions` are offsets in the document."""
        ids = token_ids.long().cpu()
        known = ids < len(self.by_id)
        classes = torch.where(known, self.by_id[ids.clamp_max(len(self.by_id) - 1)], RARE)
        return torch.where(positions.cpu() < FIRST_TOKENS, FIRST, classes)
