"""ActivationBatch: rows of activations with the token each came from. The seam between language models and dictionaries.

`train_saes` takes any iterable of these: from disk, live from a model, or synthetic with a known answer. A row is one token at one or
several hook points; the four id columns say which token of which document it was.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from sparsight.activations.int8 import decode_int8

__all__ = ["COLUMNS", "SPLITS", "ActivationBatch", "Chunk", "PieceTable", "batches_from_chunks"]

SPLITS = ("train", "heldout")
COLUMNS = ("token_ids", "document_ids", "positions", "piece_ids")


@dataclass
class ActivationBatch:
    """n rows, in the order in which they are to be trained on."""

    activations: dict[str, Shaped[Tensor, "n d"]]
    """Hook point -> rows, in the dtype they are kept in."""
    token_ids: Int[Tensor, " n"]
    """The token at which the activation was read."""
    document_ids: Int[Tensor, " n"]
    """Hash of the document's text."""
    positions: Int[Tensor, " n"]
    """Offset of the token in its document."""
    piece_ids: Int[Tensor, " n"]
    """Row of the split's PieceTable: the piece of the document that was one row of the model's input."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, hook_point: str) -> Tensor:
        return self.activations[hook_point]


@dataclass
class Chunk:
    """Many rows and the order in which to hand them out: a shard in memory, or a window of the live stream."""

    rows: ActivationBatch
    order: Int[Tensor, " n"] | None = None
    """Row numbers; None: as they lie."""
    skip: int = 0
    """Leave out this many at the front of the order."""
    scales: dict[str, Float[Tensor, " n"]] = field(default_factory=dict)
    """Of the hook points whose rows are int8; decoded batch by batch, since a chunk of float32 is four times as large."""

    def __len__(self) -> int:
        return (len(self.rows) if self.order is None else len(self.order)) - self.skip

    def batch(self, start: int, stop: int) -> ActivationBatch:
        """Rows start..stop of what is left after `skip`; copied when there is an order."""
        span = slice(self.skip + start, self.skip + stop)
        index = None if self.order is None else self.order[span]

        def take(tensor: Tensor) -> Tensor:
            return tensor[span] if index is None else tensor.index_select(0, index.to(tensor.device))

        activations = {name: take(rows) for name, rows in self.rows.activations.items()}
        for name, scale in self.scales.items():
            activations[name] = decode_int8(activations[name], take(scale))
        return ActivationBatch(
            activations,
            **{name: take(getattr(self.rows, name)) for name in COLUMNS},
        )


def batches_from_chunks(chunks: Iterator[Chunk], batch_tokens: int, *, drop_last: bool) -> Iterator[ActivationBatch]:
    """Cuts chunks of any size into batches of `batch_tokens` rows that run across the chunks' seams.

    A chunk is done with before the next one is asked for, so its memory may be used again; what a batch still needs of it is copied.
    """
    held: list[ActivationBatch] = []
    n_held = 0
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            part = chunk.batch(start, min(start + batch_tokens - n_held, len(chunk)))
            start += len(part)
            n_held += len(part)
            if n_held == batch_tokens:
                yield _join([*held, part])
                held, n_held = [], 0
            else:
                held.append(_copy(part))
    if held and not drop_last:
        yield _join(held)


def _copy(part: ActivationBatch) -> ActivationBatch:
    return ActivationBatch(
        {name: rows.clone() for name, rows in part.activations.items()},
        **{name: getattr(part, name).clone() for name in COLUMNS},
    )


def _join(parts: list[ActivationBatch]) -> ActivationBatch:
    if len(parts) == 1:
        return parts[0]
    return ActivationBatch(
        {name: torch.cat([part.activations[name] for part in parts]) for name in parts[0].activations},
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in COLUMNS},
    )


@dataclass
class PieceTable:
    """The texts behind the rows: every piece of a document that went through the model, masked tokens included."""

    token_ids: Int[np.ndarray, " n_tokens"]
    """All pieces end to end, int32."""
    offsets: Int[np.ndarray, " n_pieces_plus_1"]
    """Piece i is token_ids[offsets[i]:offsets[i+1]], int64."""
    document_ids: Int[np.ndarray, " n_pieces"]
    """int64."""
    starts: Int[np.ndarray, " n_pieces"]
    """Offset of the piece's first token in its document, int32."""
    rows: Int[np.ndarray, " n_pieces"]
    """Number of the document in the source text, before anything was dropped, int64."""

    def __len__(self) -> int:
        return len(self.document_ids)

    def tokens(self, piece_id: int) -> Int[np.ndarray, " n"]:
        """The token ids of one piece."""
        return self.token_ids[self.offsets[piece_id] : self.offsets[piece_id + 1]]

    @classmethod
    def concatenate(cls, tables: "list[PieceTable]") -> "PieceTable":
        """The tables one after another; piece ids of the later ones shift by the number of pieces before them."""
        if not tables:
            none = np.zeros(0, np.int64)
            return cls(none.astype(np.int32), np.zeros(1, np.int64), none, none.astype(np.int32), none)
        bases = np.cumsum([0, *(table.offsets[-1] for table in tables)])
        shifted = [table.offsets[1:] + base for table, base in zip(tables, bases, strict=False)]
        return cls(
            np.concatenate([table.token_ids for table in tables]),
            np.concatenate([np.zeros(1, np.int64), *shifted]),
            np.concatenate([table.document_ids for table in tables]),
            np.concatenate([table.starts for table in tables]),
            np.concatenate([table.rows for table in tables]),
        )
