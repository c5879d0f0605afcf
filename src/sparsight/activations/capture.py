"""From pieces of text to shuffled windows of activation rows: what the store writes and the live stream serves.

A window is a run of consecutive pieces of one split, about `window_tokens` of them, read by the model in length-bucketed batches, masked,
and given a row order drawn from (seed, split, number). Everything is a function of the recipe and the window's first piece, so a run that
was killed goes on from the last window that counted and makes the same rows. Shuffling reaches as far as a window: documents arrive mixed
from the text, and a window holds hundreds of them.
"""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparsight.activations.batch import SPLITS, ActivationBatch, Chunk, PieceTable
from sparsight.activations.config import CaptureConfig
from sparsight.activations.transfer import SideCopies
from sparsight.artifact import give_back_memory
from sparsight.errors import ActivationError, TextError
from sparsight.lm import (
    ActivationReader,
    Piece,
    TextConfig,
    TextCounts,
    TextCursor,
    TokenBatch,
    iter_pieces,
    make_batches,
)

__all__ = ["Progress", "Window", "WindowBuffer", "capture_windows", "make_buffer"]

_SLACK = 1.02  # the last window takes 2 % more tokens than rows are missing, since masking drops some (0.1-2 % seen)


@dataclass
class Progress:
    """How far a capture has come; all that is needed to go on."""

    next: dict[str, TextCursor] = field(default_factory=lambda: {split: TextCursor() for split in SPLITS})
    """Split -> first piece not yet captured."""
    n_rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    n_windows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    n_pieces: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    seen: dict[int, int] = field(default_factory=dict)
    """Document id -> first row it had; see `iter_pieces`."""

    def commit(self, window: "Window") -> None:
        """Counts a window as captured."""
        self.next[window.split] = window.end
        self.n_rows[window.split] += len(window)
        self.n_windows[window.split] += 1
        self.n_pieces[window.split] += len(window.pieces)


class WindowBuffer:
    """Room for one window's rows at every hook point, allocated once and filled again and again.

    `pinned`: page-locked, for a device to copy into while it computes.
    """

    def __init__(
        self,
        widths: dict[str, int],
        n_rows: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        pinned: bool = False,
    ):
        options: dict[str, Any] = {"dtype": dtype, "device": device, "pin_memory": pinned}
        with torch.inference_mode(False):  # to be filled from any thread, whatever mode the caller is in
            self.rows = {name: torch.empty(n_rows, width, **options) for name, width in widths.items()}
        self.n_rows = n_rows


@dataclass
class Window:
    """Rows of one split, captured together. `order` lists the rows that are kept, shuffled."""

    split: str
    number: int
    rows: dict[str, Tensor]
    """Hook point -> [n_captured, d], in capture order; a view of the buffer, valid until it is filled again."""
    token_ids: Int[Tensor, " n_captured"]
    document_ids: Int[Tensor, " n_captured"]
    positions: Int[Tensor, " n_captured"]
    piece_ids: Int[Tensor, " n_captured"]
    """Index into this window's own `pieces`."""
    order: Int[Tensor, " n"]
    pieces: PieceTable
    start: TextCursor
    """Its first piece."""
    end: TextCursor
    """The piece after its last, within the split."""
    counts: dict[str, int]
    """tokens: read; special, sinks, beyond_wanted: masked or cut, hence not among the rows."""

    def __len__(self) -> int:
        return len(self.order)

    def chunk(self, piece_base: int, skip: int = 0) -> Chunk:
        """The rows in their order, piece ids counted from `piece_base`; a view of the buffer."""
        columns = {"token_ids": self.token_ids, "document_ids": self.document_ids, "positions": self.positions}
        return Chunk(
            ActivationBatch(self.rows, **columns, piece_ids=self.piece_ids.long() + piece_base), self.order, skip
        )


def capture_windows(
    model: ActivationReader,
    text: TextConfig,
    config: CaptureConfig,
    *,
    seed: int,
    progress: Progress,
    splits: Sequence[str] = SPLITS,
    part: tuple[int, int] = (0, 1),
    buffers: Sequence[WindowBuffer] | None = None,
    counts: TextCounts | None = None,
) -> Generator[Window, None, None]:
    """Captures windows until each split has the rows it wants or the text ends; commits a window when the next is asked for.

    `buffers` are used in turn; a window's rows hold until its buffer comes round again. Raises ActivationError on NaN or infinity.
    """
    buffers = buffers or [make_buffer(model, text, config)]
    for turn, (split, pieces, end) in enumerate(_plan_windows(model, text, config, progress, splits, part, counts)):
        missing = config.wanted(split, part) - progress.n_rows[split]
        window = _capture(model, text, config, pieces, buffers[turn % len(buffers)])
        window.split, window.number, window.end = split, progress.n_windows[split], end
        _shuffle(window, missing, seed, part)
        yield window
        progress.commit(window)


def make_buffer(
    model: ActivationReader, text: TextConfig, config: CaptureConfig, device: torch.device | str = "cpu"
) -> WindowBuffer:
    """Room for the largest window that can come: `window_tokens` and one piece more."""
    widths = {name: model.width(name) for name in config.hook_points}
    pinned = model.device.type == "cuda" and torch.device(device).type == "cpu"
    return WindowBuffer(widths, config.window_tokens + text.context_tokens, model.dtype, device, pinned=pinned)


def _plan_windows(
    model: ActivationReader,
    text: TextConfig,
    config: CaptureConfig,
    progress: Progress,
    splits: Sequence[str],
    part: tuple[int, int],
    counts: TextCounts | None,
) -> Iterator[tuple[str, list[Piece], TextCursor]]:
    def missing(split: str) -> int:
        return config.wanted(split, part) - progress.n_rows[split]

    open_splits = {split for split in splits if missing(split) > 0}
    if not open_splits:
        return
    pending: dict[str, list[Piece]] = {split: [] for split in splits}
    sizes = dict.fromkeys(splits, 0)
    start = min(progress.next[split] for split in open_splits)
    with closing(
        iter_pieces(text, model.tokenizer, start=start, seen=progress.seen, part=part, counts=counts)
    ) as pieces:
        for piece in pieces:
            split = "heldout" if piece.heldout else "train"
            if split not in open_splits or TextCursor(piece.row, piece.piece) < progress.next[split]:
                continue
            pending[split].append(piece)
            sizes[split] += len(piece.token_ids)
            if sizes[split] >= min(config.window_tokens, missing(split) * _SLACK):
                yield split, pending[split], piece.after
                pending[split], sizes[split] = [], 0
                if missing(split) <= 0:
                    open_splits.remove(split)
                if not open_splits:
                    return
    for split in sorted(open_splits):
        if pending[split]:
            yield split, pending[split], pending[split][-1].after


def _capture(
    model: ActivationReader, text: TextConfig, config: CaptureConfig, pieces: list[Piece], buffer: WindowBuffer
) -> Window:
    """Reads the pieces and lays their rows into the buffer; split, number, end and order are the caller's."""
    batches = make_batches(
        pieces,
        batch_tokens=text.batch_tokens,
        pad_id=0,  # never seen: padding stands to the right of a causal model's tokens
        isolation=text.isolation,
        context_tokens=text.context_tokens,
        eos_id=_eos_id(model, text),
    )
    columns: dict[str, list[Tensor]] = {"token_ids": [], "document_ids": [], "positions": [], "piece_ids": []}
    n_rows = n_special = 0
    copies = SideCopies(model.device)
    for batch in batches:
        keep = batch.mask & (batch.piece_ids >= 0)
        if config.skip_special:
            special = _is_special(batch, model.special_ids) & keep
            n_special += int(special.sum())
            keep &= ~special
        index = keep.flatten().nonzero().squeeze(1)
        activations = model.read(batch, config.hook_points)
        give_back_memory()
        for name, values in activations.items():
            rows = buffer.rows[name][n_rows : n_rows + len(index)]
            copies.copy(rows, values.flatten(0, 1).index_select(0, index.to(values.device)))
        columns["token_ids"].append(batch.input_ids.flatten()[index].int())
        columns["document_ids"].append(batch.document_ids.flatten()[index])
        columns["positions"].append(batch.positions.flatten()[index])
        columns["piece_ids"].append(batch.piece_ids.flatten()[index])
        n_rows += len(index)
    copies.wait()
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    rows = {name: values[:n_rows] for name, values in buffer.rows.items()}
    _check_finite(rows, joined["document_ids"], joined["positions"])
    kept = torch.arange(n_rows)[~_is_sink(rows, config.sink_norm_multiple)]
    counts = {
        "tokens": sum(len(piece.token_ids) for piece in pieces),
        "special": n_special,
        "sinks": n_rows - len(kept),
    }
    start = TextCursor(pieces[0].row, pieces[0].piece)
    return Window("", -1, rows, **joined, order=kept, pieces=_table(pieces), start=start, end=start, counts=counts)


def _eos_id(model: ActivationReader, text: TextConfig) -> int:
    eos_id: Any = model.tokenizer.eos_token_id
    if text.isolation == "packed" and eos_id is None:
        raise TextError(
            'text.isolation = "packed" needs an end-of-text token, which this tokenizer lacks. Use "documents".'
        )
    return int(eos_id or 0)


def _is_special(batch: TokenBatch, special_ids: frozenset[int]) -> Bool[Tensor, "rows positions"]:
    return torch.isin(batch.input_ids, torch.tensor(sorted(special_ids), dtype=batch.input_ids.dtype))


def _check_finite(rows: dict[str, Tensor], document_ids: Tensor, positions: Tensor) -> None:
    """One reduction a window and hook point; the culprit is looked for only when there is one."""
    for name, values in rows.items():
        if len(values) == 0 or bool(torch.isfinite(values.sum(dtype=torch.float32))):
            continue
        bad = (~torch.isfinite(values)).any(1).cpu().nonzero().squeeze(1)
        if len(bad):
            what = "NaN" if bool(torch.isnan(values[bad[0]]).any()) else "an infinity"
            raise ActivationError(
                f"Activations at {name} hold {what} in document {int(document_ids[bad[0]])}, token {int(positions[bad[0]])} "
                f"({len(bad)} of {len(values)} rows). Windows before this one are kept. "
                "Read the model in float32 (model.dtype), or another hook point."
            )


def _is_sink(rows: dict[str, Tensor], multiple: float) -> Bool[Tensor, " n"]:
    """Rows whose norm at any hook point exceeds the multiple of the median norm there."""
    first = next(iter(rows.values()))
    sink = torch.zeros(len(first), dtype=torch.bool)
    if multiple == 0 or len(first) == 0:
        return sink
    for values in rows.values():
        norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32)
        sink |= (norms > multiple * norms.median()).cpu()
    return sink


def _shuffle(window: Window, missing: int, seed: int, part: tuple[int, int]) -> None:
    """Draws the row order, and cuts it to the rows still missing."""
    key = f"{seed} {part[0]}/{part[1]} {window.split} {window.number}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1)
    n_kept = len(window.order)
    window.order = window.order[torch.randperm(n_kept, generator=generator)][:missing]
    window.counts["beyond_wanted"] = n_kept - len(window.order)


def _table(pieces: Sequence[Piece]) -> PieceTable:
    lengths = [len(piece.token_ids) for piece in pieces]
    return PieceTable(
        np.concatenate([piece.token_ids for piece in pieces]).astype(np.int32),
        np.cumsum([0, *lengths]).astype(np.int64),
        np.array([piece.document_id for piece in pieces], dtype=np.int64),
        np.array([piece.start for piece in pieces], dtype=np.int32),
        np.array([piece.row for piece in pieces], dtype=np.int64),
    )
