"""The indexed text as columns by place: what the statistics of latents look up for each activation.

Every number about where a latent is active has a control: the same activations moved half the text away (`half_turn`). That keeps how many
they are and how they crowd together in pieces and documents, and breaks their relation to the tokens they were on.
"""

import numpy as np
from jaxtyping import Bool, Int

from sparsight.activations import PieceTable

__all__ = ["N_POSITION_BINS", "IndexedText"]

N_POSITION_BINS = 8


class IndexedText:
    """Columns over `piece_tokens`, and over the measured of them: the rows that the SAE saw."""

    token_ids: Int[np.ndarray, " tokens"]
    documents: Int[np.ndarray, " tokens"]
    """Documents numbered from 0."""
    next_ids: Int[np.ndarray, " tokens"]
    """The token that follows in the same piece; -1 at its end."""
    position_bins: Int[np.ndarray, " tokens"]
    """Of the offset in the document: 0, 1, 2-3, 4-7, 8-15, 16-31, 32-63, 64 and beyond."""

    def __init__(self, pieces: PieceTable, measured: Bool[np.ndarray, " tokens"]) -> None:
        lengths = np.diff(pieces.offsets)
        ids, numbers = np.unique(pieces.document_ids, return_inverse=True)
        self.n_documents = len(ids)
        self.documents = np.repeat(numbers.astype(np.int32), lengths)
        self.token_ids = pieces.token_ids
        self.n_token_ids = int(pieces.token_ids.max(initial=0)) + 1
        self.next_ids = np.append(pieces.token_ids[1:], -1).astype(np.int32)[: len(pieces.token_ids)]
        self.next_ids[pieces.offsets[1:][lengths > 0] - 1] = -1
        positions = np.arange(len(self.token_ids)) - np.repeat(pieces.offsets[:-1] - pieces.starts, lengths)
        edges = 2 ** np.arange(N_POSITION_BINS - 1)
        self.position_bins = np.searchsorted(edges, positions, side="right").astype(np.uint8)
        self._measured = np.flatnonzero(measured)
        self._ranks = np.cumsum(measured, dtype=np.int32) - 1

    @property
    def n_measured(self) -> int:
        """Tokens that the SAE saw."""
        return len(self._measured)

    def ranks(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """How many measured tokens come before each of these, which are measured."""
        return self._ranks[places]

    def places(self, ranks: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The places of measured tokens: `ranks` undone."""
        return self._measured[ranks]

    def half_turn(self, places: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Measured places moved on by half the measured text, over its end to its start."""
        return self._measured[(self._ranks[places] + self.n_measured // 2) % self.n_measured]

    def position_tokens(self) -> Int[np.ndarray, " bins"]:
        """Measured tokens by bin of position."""
        return np.bincount(self.position_bins[self._measured], minlength=N_POSITION_BINS)

    def next_tokens(self) -> Int[np.ndarray, " ids"]:
        """How often each token follows a measured one."""
        following = self.next_ids[self._measured]
        return np.bincount(following[following >= 0], minlength=self.n_token_ids)
