"""Pieces into the rows of a forward pass.

documents   one piece a row, so no document ever sees another. Rows are sorted by length and batched on a budget of
            rows * padded length, which keeps padding to a few percent.
packed      as in pretraining: no padding, but documents in a row see each other, which recurrent models never undo.

Padding stands on the right, behind the real tokens of a causal model, which cannot see it: no attention mask is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparsight.lm.tokens import Piece

__all__ = ["TokenBatch", "make_batches"]

_ALIGNMENT = 8  # padded lengths are multiples of it: tensor cores like it, and fewer shapes are compiled
_PAD = -1


@dataclass
class TokenBatch:
    """Rows for one forward pass, on the CPU. Padding is on the right."""

    input_ids: Int[Tensor, "rows positions"]
    """int64; padding holds the pad token."""

    mask: Bool[Tensor, "rows positions"]
    """True at real tokens."""

    document_ids: Int[Tensor, "rows positions"]
    """int64; -1 at padding and at the eos between packed documents."""

    positions: Int[Tensor, "rows positions"]
    """int32: token offset in the document; 0 where `document_ids` is -1."""

    piece_ids: Int[Tensor, "rows positions"]
    """int32: index into the pieces given; -1 where `document_ids` is -1."""


def make_batches(
    pieces: Sequence[Piece], *, batch_tokens: int, pad_id: int, isolation: str, context_tokens: int, eos_id: int
) -> list[TokenBatch]:
    """Batches of at most `batch_tokens`, padding included, or of one row where a row alone is longer. Deterministic.

    isolation "documents": one piece a row, longest first, padded to a multiple of 8. "packed": rows of
    `context_tokens` cut from all pieces in a stream, `eos_id` between documents; the eos belongs to no document.
    """
    if isolation == "packed":
        return _packed_batches(
            pieces, batch_tokens=batch_tokens, pad_id=pad_id, row_tokens=context_tokens, eos_id=eos_id
        )
    order = sorted(range(len(pieces)), key=lambda index: -len(pieces[index].token_ids))
    batches = []
    while order:
        longest = len(pieces[order[0]].token_ids)
        padded = -(-longest // _ALIGNMENT) * _ALIGNMENT
        n_rows = max(1, batch_tokens // padded)
        batches.append(_document_batch(pieces, order[:n_rows], padded, pad_id))
        order = order[n_rows:]
    return batches


def _document_batch(pieces: Sequence[Piece], rows: list[int], padded: int, pad_id: int) -> TokenBatch:
    batch = _empty_batch(len(rows), padded, pad_id)
    for row, index in enumerate(rows):
        piece = pieces[index]
        real = slice(len(piece.token_ids))
        batch.input_ids[row, real] = torch.from_numpy(piece.token_ids)
        batch.mask[row, real] = True
        batch.document_ids[row, real] = piece.document_id
        batch.positions[row, real] = torch.arange(piece.start, piece.start + len(piece.token_ids), dtype=torch.int32)
        batch.piece_ids[row, real] = index
    return batch


def _packed_batches(
    pieces: Sequence[Piece], *, batch_tokens: int, pad_id: int, row_tokens: int, eos_id: int
) -> list[TokenBatch]:
    n_tokens = sum(len(piece.token_ids) for piece in pieces) + sum(
        before.document_id != after.document_id for before, after in pairwise(pieces)
    )
    n_rows = -(-n_tokens // row_tokens)
    whole = _empty_batch(n_rows, row_tokens, pad_id)
    stream = {name: value.view(-1) for name, value in vars(whole).items()}
    stream["mask"][:n_tokens] = True
    at = 0
    for index, piece in enumerate(pieces):
        if index and piece.document_id != pieces[index - 1].document_id:
            stream["input_ids"][at] = eos_id
            at += 1
        real = slice(at, at + len(piece.token_ids))
        stream["input_ids"][real] = torch.from_numpy(piece.token_ids)
        stream["document_ids"][real] = piece.document_id
        stream["positions"][real] = torch.arange(piece.start, piece.start + len(piece.token_ids), dtype=torch.int32)
        stream["piece_ids"][real] = index
        at = real.stop
    step = max(1, batch_tokens // row_tokens)
    return [
        TokenBatch(**{name: value[row : row + step] for name, value in vars(whole).items()})
        for row in range(0, n_rows, step)
    ]


def _empty_batch(n_rows: int, n_positions: int, pad_id: int) -> TokenBatch:
    shape = (n_rows, n_positions)
    return TokenBatch(
        input_ids=torch.full(shape, pad_id, dtype=torch.int64),
        mask=torch.zeros(shape, dtype=torch.bool),
        document_ids=torch.full(shape, _PAD, dtype=torch.int64),
        positions=torch.zeros(shape, dtype=torch.int32),
        piece_ids=torch.full(shape, _PAD, dtype=torch.int32),
    )
