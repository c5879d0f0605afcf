"""The documents that a model was fine-tuned on, as one suffix array over token ids: where does a run of tokens stand?

    L_i = max { L : text[i : i+L] stands in some document }         the matching statistics of a text
    span i is maximal  iff  i + L_i > (i-1) + L_{i-1}               it is contained in no longer one; neither can it be prolonged

Suffixes that begin with the same tokens lie side by side in the array, so the documents holding a run are one interval of it. All positions of
all texts narrow their intervals together, one token a round: a text of n tokens costs at most (longest match) rounds of two binary searches
over arrays of n numbers. No run crosses from one document into the next.

Source: Manber & Myers 1993 (suffix arrays); Chang & Lawler 1994 (matching statistics); pydivsufsort (libdivsufsort) sorts.
Trade-off: 12 bytes a token in memory (token, row, document), and exact runs only: a paraphrase is not found.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from sparsight.errors import MetricError, TextError

__all__ = ["CorpusIndex", "Matches"]

_LARGEST_TOKEN = 2**31 - 2


@dataclass(frozen=True, kw_only=True)
class Matches:
    """The longest run that begins at each position of one text and stands in the corpus."""

    lengths: Int[np.ndarray, " n"]
    """Tokens; 0 where not even the first one stands in the corpus."""
    low: Int[np.ndarray, " n"]
    """First row of the suffix array that begins with the run."""
    high: Int[np.ndarray, " n"]
    """One past the last such row."""

    @property
    def maximal(self) -> list[tuple[int, int]]:
        """(start, end) of the maximal runs, in order of both."""
        ends = np.arange(len(self.lengths)) + self.lengths
        longer = np.flatnonzero((ends > np.concatenate([[0], ends[:-1]])) & (self.lengths > 0))
        return [(int(start), int(ends[start])) for start in longer]


class CorpusIndex:
    """Documents and their suffix array; numbers of documents are their places in what was given, or the `sources` given with them."""

    def __init__(
        self, documents: Sequence[Int[np.ndarray, " n"]], *, sources: Int[np.ndarray, " documents"] | None = None
    ) -> None:
        """`documents`: token ids from 0 up. `sources`: a number from 0 up for each, the same where several tell of one subject
        and shall count as one document. Raises TextError when there are no tokens, MetricError without pydivsufsort."""
        lengths = np.array([len(document) for document in documents], np.int64)
        if lengths.sum() == 0:
            raise TextError(
                f"The {len(documents)} fine-tuning documents hold no tokens. Give the text that was trained on."
            )
        tokens = np.concatenate([np.asarray(document, np.int64) for document in documents])
        if tokens.min() < 0 or tokens.max() > _LARGEST_TOKEN:
            raise TextError(f"Token ids run from {tokens.min()} to {tokens.max()}; expected 0 to {_LARGEST_TOKEN}.")
        if sources is not None and len(sources) != len(documents):
            raise TextError(f"{len(documents)} documents came with {len(sources)} sources; expected one each.")
        of = np.arange(len(documents)) if sources is None else np.asarray(sources)
        self.n_documents, self.n_tokens = len(np.unique(of)), len(tokens)
        self.counts = np.bincount(tokens)
        # a mark, 0, stands behind each document; no text holds it
        self._tokens = np.zeros(len(tokens) + len(documents), np.uint32)
        self._tokens[np.arange(len(tokens)) + np.repeat(np.arange(len(documents)), lengths)] = tokens + 1
        self._order = _suffix_array(self._tokens)
        self._documents = of[np.searchsorted(np.cumsum(lengths + 1), self._order, side="right")].astype(np.int32)
        self._rows = range(len(self._order))
        self._holders: dict[tuple[int, int], np.ndarray] = {}

    def matches(self, text: Int[np.ndarray, " n"]) -> Matches:
        """The longest run at each position of a text."""
        return self.matches_all([text])[0]

    def matches_all(self, texts: Sequence[Int[np.ndarray, " n"]]) -> list[Matches]:
        """The same for many texts at once, which takes hardly longer."""
        if not len(texts):
            return []
        # a token that no document holds stands behind each text
        query = np.concatenate([np.append(np.asarray(text, np.int64), _LARGEST_TOKEN + 1) for text in texts]) + 1
        low, high = np.zeros(len(query), np.int64), np.full(len(query), len(self._order), np.int64)
        lengths = np.zeros(len(query), np.int64)
        alive, depth = np.arange(len(query)), 0
        while len(alive):
            alive = alive[alive + depth < len(query)]
            wanted = query[alive + depth]
            new_low = self._bound(low[alive], high[alive], wanted, depth)
            new_high = self._bound(new_low, high[alive], wanted + 1, depth)
            found = new_low < new_high
            alive = alive[found]
            low[alive], high[alive] = new_low[found], new_high[found]
            lengths[alive] += 1
            depth += 1
        high = np.where(lengths > 0, high, 0)
        starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
        spans = [slice(start, start + len(text)) for start, text in zip(starts, texts, strict=False)]
        return [Matches(lengths=lengths[span], low=low[span], high=high[span]) for span in spans]

    def documents(self, run: Int[np.ndarray, " n"]) -> Int[np.ndarray, " documents"]:
        """Numbers of the documents that hold a run of tokens, ascending; all of them for an empty one."""
        low, high = 0, len(self._order)
        for depth, token in enumerate(run):
            low, high = self.narrowed(low, high, depth, int(token))
        return self.holders(low, high)

    def narrowed(self, low: int, high: int, depth: int, token: int) -> tuple[int, int]:
        """The rows of low..high, which share their first `depth` tokens, whose next one is `token`; 0 and `n_rows` begin."""

        def at(row: int) -> int:
            return int(self._tokens[min(int(self._order[row]) + depth, len(self._tokens) - 1)])

        low = bisect_left(self._rows, token + 1, low, high, key=at)
        return low, bisect_left(self._rows, token + 2, low, high, key=at)

    @property
    def n_rows(self) -> int:
        """Rows of the suffix array."""
        return len(self._order)

    def holders(self, low: int, high: int) -> Int[np.ndarray, " documents"]:
        """Numbers of the documents that rows low..high of the suffix array lie in, ascending."""
        if (low, high) not in self._holders:
            self._holders[low, high] = np.unique(self._documents[low:high])
        return self._holders[low, high]

    def _bound(self, low: np.ndarray, high: np.ndarray, wanted: np.ndarray, depth: int) -> np.ndarray:
        """First row in [low, high) whose token number `depth` is at least `wanted`; rows of one interval share those before."""
        low, high = low.copy(), high.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            place = np.minimum(self._order[np.minimum(middle, len(self._order) - 1)] + depth, len(self._tokens) - 1)
            less = open_ & (self._tokens[place] < wanted)
            low = np.where(less, middle + 1, low)
            high = np.where(open_ & ~less, middle, high)
        return low


def _suffix_array(tokens: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    try:
        from pydivsufsort import divsufsort
    except ImportError:
        raise MetricError(
            "Looking details up in the fine-tuning text needs pydivsufsort. Run: pip install pydivsufsort"
        ) from None
    return divsufsort(tokens)
