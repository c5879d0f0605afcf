"""Runs the language model with activations replaced, and sums the loss per document.

The same held-out pieces go through the model once untouched ("clean") and once for each method, which maps the
activations read at the hook point to what is put in place at the target hook point (the same one, but for a
transcoder). Rows masked away at collection (special tokens, attention sinks) keep their own activation, since no
dictionary was trained on them; how many positions were replaced and how many kept is counted.

Losses are taken at each position that has a next token in the same piece, so never at padding and never across
documents. Columns of the sums: `tokens`, `ce_clean`, and `ce_NAME`, `kl_NAME` for each method (see downstream.py),
grouped by the class of the token at the position.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.activations import ActivationStore, PieceTable
from sparsight.errors import MetricError
from sparsight.lm import LanguageModel, Piece, TokenBatch, make_batches
from sparsight.metrics.classes import CLASS_NAMES, TokenClasses
from sparsight.metrics.downstream import token_cross_entropy, token_kl
from sparsight.metrics.intervals import DocumentSums

__all__ = ["DownstreamSums", "SpliceText", "flat_tokens", "kept_tokens", "measure_downstream", "splice_hooks"]

Method = Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_out"]]

# Rows of id columns read at a time when no activations are wanted.
COLUMN_ROWS = 131_072


def kept_tokens(store: ActivationStore, pieces: PieceTable, split: str = "heldout") -> Bool[np.ndarray, " tokens"]:
    """Which of the pieces' tokens are rows of the store, flat over `pieces.token_ids`."""
    kept = np.zeros(len(pieces.token_ids), bool)
    for batch in store.batches(split, COLUMN_ROWS, hook_points=[], drop_last=False):
        kept[flat_tokens(pieces, batch.piece_ids, batch.positions)] = True
    return kept


def flat_tokens(
    pieces: PieceTable, piece_ids: Int[Tensor, " n"], positions: Int[Tensor, " n"]
) -> Int[np.ndarray, " n"]:
    """Where each row's token lies in `pieces.token_ids`; `positions` are offsets in the document."""
    piece = piece_ids.cpu().numpy()
    return pieces.offsets[piece] + positions.cpu().numpy() - pieces.starts[piece]


@dataclass(frozen=True)
class SpliceText:
    """Held-out pieces to run the model on, and which of their tokens may be replaced."""

    pieces: list[Piece]
    kept: Bool[np.ndarray, " tokens"]
    """Flat over the pieces end to end: True where the activation is replaced."""
    offsets: Int[np.ndarray, " pieces_plus_1"]
    """Start of each piece in `kept`."""

    @classmethod
    def choose(
        cls, store: ActivationStore, n_tokens: int, *, split: str = "heldout", most_documents: bool = False
    ) -> "SpliceText":
        """Whole pieces until they make `n_tokens`: in stored order, or with `most_documents` the first of every document, then the second.

        An interval over documents wants many of them. Raises MetricError when there are no pieces.
        """
        table = store.pieces(split)
        kept = kept_tokens(store, table, split)
        order = (
            np.argsort(_place_in_document(table.document_ids), kind="stable")
            if most_documents
            else np.arange(len(table))
        )
        lengths = np.diff(table.offsets)
        n_pieces = int(np.searchsorted(np.cumsum(lengths[order]), n_tokens)) + 1
        chosen = np.sort(order[:n_pieces])
        if not len(chosen):
            raise MetricError("The held-out split has no text to measure CE on. Collect with heldout_tokens above 0.")
        pieces = [
            Piece(
                document_id=int(table.document_ids[i]),
                row=int(table.rows[i]),
                piece=0,
                start=int(table.starts[i]),
                token_ids=np.asarray(table.tokens(i)),
                heldout=True,
            )
            for i in chosen.tolist()
        ]
        parts = [kept[table.offsets[i] : table.offsets[i + 1]] for i in chosen.tolist()]
        return cls(pieces=pieces, kept=np.concatenate(parts), offsets=np.concatenate([[0], np.cumsum(lengths[chosen])]))

    def batches(self, forward_tokens: int) -> Iterator[tuple[TokenBatch, Bool[Tensor, "rows positions"]]]:
        """Batches, one piece a row, longest first, each with the mask of positions to replace."""
        longest = max(len(piece.token_ids) for piece in self.pieces)
        starts = np.array([piece.start for piece in self.pieces])
        # Padding is to the right, where a causal model cannot see it, so any id will do.
        for batch in make_batches(
            self.pieces, batch_tokens=forward_tokens, pad_id=0, isolation="documents", context_tokens=longest, eos_id=0
        ):
            piece = batch.piece_ids.clamp_min(0).long().numpy()
            flat = self.offsets[piece] + batch.positions.numpy() - starts[piece]
            replace = torch.from_numpy(self.kept[np.clip(flat, 0, len(self.kept) - 1)])
            yield batch, replace & batch.mask & (batch.piece_ids >= 0)


def _place_in_document(document_ids: Int[np.ndarray, " pieces"]) -> Int[np.ndarray, " pieces"]:
    """0 for the first piece of each document, 1 for its second, ..."""
    order = np.argsort(document_ids, kind="stable")
    starts = np.flatnonzero(np.diff(document_ids[order], prepend=document_ids[order[:1]] - 1))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return places


@dataclass(frozen=True)
class DownstreamSums:
    """Losses summed per document, and what was replaced to get them."""

    sums: DocumentSums
    n_pieces: int
    n_replaced: int
    """Positions whose activation was replaced."""
    n_kept: int
    """Real positions that kept their own activation, as they were masked at collection."""


@torch.inference_mode()
def measure_downstream(
    model: LanguageModel,
    text: SpliceText,
    methods: Mapping[str, Method],
    *,
    hook_point: str,
    target_hook_point: str = "",
    classes: TokenClasses | None,
    forward_tokens: int,
    device: torch.device,
) -> DownstreamSums:
    """CE and KL of the clean model and of each method on the same pieces; without `classes` in one group.

    The methods work in float32 on `device`, which need not be the model's.
    """
    columns = ["ce_clean", *(f"{kind}_{name}" for name in methods for kind in ("ce", "kl"))]
    sums = DocumentSums(columns, 1 if classes is None else len(CLASS_NAMES))
    n_replaced = n_kept = 0
    for batch, replace in text.batches(forward_tokens):
        n_replaced += int(replace.sum())
        n_kept += int((batch.mask & ~replace).sum())
        scored, targets = _scored_positions(batch)
        if not scored.any():
            continue
        clean = model.logits(batch)
        clean = clean[scored.to(clean.device)]
        targets = targets.to(clean.device)
        values = {"ce_clean": token_cross_entropy(clean, targets)}
        for name, method in methods.items():
            hooks = splice_hooks(method, replace, hook_point, target_hook_point or hook_point, device)
            logits = model.logits(batch, replace=hooks)
            logits = logits[scored.to(logits.device)]
            values[f"ce_{name}"] = token_cross_entropy(logits, targets)
            values[f"kl_{name}"] = token_kl(clean, logits)
            del logits
        groups = None if classes is None else classes.classify(batch.input_ids[scored], batch.positions[scored])
        sums.add(batch.document_ids[scored], values, groups)
    return DownstreamSums(sums=sums, n_pieces=len(text.pieces), n_replaced=n_replaced, n_kept=n_kept)


def splice_hooks(
    method: Method,
    replace: Bool[Tensor, "rows positions"],
    hook_point: str,
    target_hook_point: str,
    device: torch.device,
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Hooks that put method(activations at hook_point) in place at target_hook_point, where `replace` is True."""
    source: list[Tensor] = []

    def remember(activations: Tensor) -> Tensor:
        source[:] = [activations[replace.to(activations.device)]]
        return activations

    def put(activations: Tensor) -> Tensor:
        where = replace.to(activations.device)
        if hook_point == target_hook_point:
            remember(activations)
        if not source:
            raise MetricError(
                f"{target_hook_point} is computed before {hook_point}, so the one cannot replace the other from it. "
                "A transcoder's target must lie behind its input."
            )
        spliced = activations.clone()
        spliced[where] = method(source.pop().to(device, torch.float32)).to(spliced)
        return spliced

    return (
        {target_hook_point: put} if hook_point == target_hook_point else {hook_point: remember, target_hook_point: put}
    )


def _scored_positions(batch: TokenBatch) -> tuple[Bool[Tensor, "rows positions"], Int[Tensor, " n"]]:
    """Positions with a next token in the same piece, and those next tokens."""
    real = batch.mask & (batch.piece_ids >= 0)
    scored = torch.zeros_like(real)
    scored[:, :-1] = real[:, :-1] & real[:, 1:] & (batch.piece_ids[:, :-1] == batch.piece_ids[:, 1:])
    return scored, batch.input_ids[:, 1:][scored[:, :-1]]
