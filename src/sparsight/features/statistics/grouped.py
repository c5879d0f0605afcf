"""Counting within groups without a loop over them: every array is flat, sorted by group, and groups are numbered.

A latent's statistics are those of one group. Loops over latents would take seconds for each statistic at 100,000 latents, most of them with
a handful of activations; a sort costs with the number of active pairs alone.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

__all__ = ["Counts", "Ranked", "count_items", "log_ratio", "starts_of", "strongest_of_each"]

# Observations of chance added to what was seen and to what was expected: a count of 3 where 0.001 was expected is weak evidence of a large ratio.
_PRIOR_COUNT = 1.0


class Counts(NamedTuple):
    """How often each item occurs in each group, by group and then by item; pairs that never occur are not there."""

    groups: Int[np.ndarray, " pairs"]
    items: Int[np.ndarray, " pairs"]
    counts: Int[np.ndarray, " pairs"]


class Ranked(NamedTuple):
    """The strongest of each group: entry chosen[i] has rank rank[i] (from 0) in group group[i]."""

    group: Int[np.ndarray, " chosen"]
    rank: Int[np.ndarray, " chosen"]
    chosen: Int[np.ndarray, " chosen"]

    def table(self, values: Shaped[np.ndarray, " entries"], shape: tuple[int, int], empty: float) -> np.ndarray:
        """The values of the chosen as [groups, n], `empty` where a group has fewer."""
        table = np.full(shape, empty, values.dtype)
        table[self.group, self.rank] = values[self.chosen]
        return table


def starts_of(groups: Int[np.ndarray, " n"], n_groups: int) -> Int[np.ndarray, " bounds"]:
    """Where each group starts, and at the end n: n_groups + 1 numbers."""
    return np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=n_groups))])


def count_items(groups: Int[np.ndarray, " n"], items: Int[np.ndarray, " n"], n_items: int) -> Counts:
    """Count (group, item) pairs; items are 0 to n_items - 1, both in any order."""
    keys = np.sort(groups.astype(np.int64) * n_items + items)
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    counts = np.diff(np.concatenate([first, [len(keys)]]))
    return Counts(*np.divmod(keys[first], n_items), counts)


def strongest_of_each(groups: Int[np.ndarray, " entries"], scores: Float[np.ndarray, " entries"], n: int) -> Ranked:
    """The n entries of each group with the largest scores, ties in the order given; `groups` ascending."""
    order = np.lexsort((-scores, groups))
    rank = np.arange(len(groups)) - np.searchsorted(groups, groups)
    kept = rank < n
    return Ranked(groups[kept], rank[kept], order[kept])


def log_ratio(seen: Num[np.ndarray, " n"], expected: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """log2 of how many times as often as by chance, shrunk to 0 where little was seen: log2((seen + 1) / (expected + 1))."""
    return np.log2((seen + _PRIOR_COUNT) / (expected + _PRIOR_COUNT))
