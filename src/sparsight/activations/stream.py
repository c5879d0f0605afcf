"""ActivationStream: the training batches live from the model, without touching the disk.

A preallocated ring of two halves: a thread captures the next window into one half while batches are drawn, shuffled, from the other. The
windows, their order and hence the batches are exactly those that a store would hold and serve in its first epoch, so one pass over either
trains the same SAE. Memory is the two halves, whatever the number of tokens. Resuming reads the half that was in use once more.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from sparsight.activations.batch import ActivationBatch, Chunk, batches_from_chunks
from sparsight.activations.capture import Progress, Window, capture_windows, make_buffer
from sparsight.activations.config import CaptureConfig
from sparsight.errors import TextError
from sparsight.lm import ActivationReader, TextConfig, TextCounts, TextCursor

__all__ = ["ActivationStream"]


class ActivationStream:
    """Training activations captured while they are trained on.

    `state`, from an earlier `state_dict`, says which windows have been served. Raises TextError when the text ends before `n_tokens` rows,
    unless `allow_short`.
    """

    def __init__(
        self,
        model: ActivationReader,
        text: TextConfig,
        config: CaptureConfig,
        *,
        seed: int,
        state: dict[str, Any] | None = None,
    ):
        self.model, self.text, self.config, self.seed = model, text, config, seed
        self.hook_points = {name: model.width(name) for name in config.hook_points}
        self._windows: list[dict[str, Any]] = list(state["windows"]) if state else []
        self._seen = dict(zip(state["seen_ids"].tolist(), state["seen_rows"].tolist(), strict=True)) if state else {}

    @property
    def n_rows(self) -> int:
        """Rows that the stream will serve."""
        return self.config.n_tokens

    @property
    def counts(self) -> dict[str, int]:
        """Tokens read so far, and how many were masked or cut, by reason."""
        names = self._windows[0]["counts"] if self._windows else {}
        return {name: sum(window["counts"][name] for window in self._windows) for name in names}

    def batches(self, batch_tokens: int, *, start_batch: int = 0) -> Iterator[ActivationBatch]:
        """Batches from number `start_batch` on; a last short one is dropped."""
        skip = start_batch * batch_tokens
        known = self._windows
        while self._windows and sum(window["n_rows"] for window in known) > skip:
            known = known[:-1]
        self._windows = known
        skip -= sum(window["n_rows"] for window in known)
        yield from batches_from_chunks(self._chunks(skip), batch_tokens, drop_last=True)

    def state_dict(self) -> dict[str, Any]:
        """The windows begun so far, and the documents met: what `batches` needs to go on in another process."""
        seen = dict(self._seen)
        return {
            "windows": list(self._windows),
            "seen_ids": np.fromiter(seen.keys(), np.int64, len(seen)),
            "seen_rows": np.fromiter(seen.values(), np.int64, len(seen)),
        }

    def _progress(self) -> Progress:
        progress = Progress(seen=self._seen)
        for window in self._windows:
            progress.next["train"] = TextCursor(*window["next"])
            progress.n_rows["train"] += window["n_rows"]
            progress.n_windows["train"] += 1
            progress.n_pieces["train"] += window["n_pieces"]
        return progress

    def _chunks(self, skip: int) -> Iterator[Chunk]:
        progress = self._progress()
        piece_base, served = progress.n_pieces["train"], progress.n_rows["train"]
        for window in self._windows_ahead(progress):
            self._windows = [*self._windows, _summary(window)]
            if skip < len(window):
                yield window.chunk(piece_base, skip)
            skip = max(0, skip - len(window))
            piece_base, served = piece_base + len(window.pieces), served + len(window)
        if served < self.config.n_tokens and not self.config.allow_short:
            raise TextError(
                f"The text ended after {served:,} of the {self.config.n_tokens:,} training tokens asked for. "
                "Ask for fewer (activations.n_tokens), add text, or set activations.allow_short = true."
            )

    def _windows_ahead(self, progress: Progress) -> Iterator[Window]:
        """Captures one window ahead in a thread, into the half of the ring that is not in use."""
        ring = [make_buffer(self.model, self.text, self.config, self.model.device) for _ in range(2)]
        windows = capture_windows(
            self.model,
            self.text,
            self.config,
            seed=self.seed,
            progress=progress,
            splits=("train",),
            buffers=ring,
            counts=TextCounts(),
        )
        with ThreadPoolExecutor(1) as pool:
            ahead: Future[Window | None] = pool.submit(next, windows, None)
            try:
                while (window := ahead.result()) is not None:
                    ahead = pool.submit(next, windows, None)
                    yield window
            finally:
                ahead.cancel()
                pool.submit(windows.close)


def _summary(window: Window) -> dict[str, Any]:
    return {
        "n_rows": len(window),
        "n_pieces": len(window.pieces),
        "next": [window.end.row, window.end.piece],
        "counts": window.counts,
    }
