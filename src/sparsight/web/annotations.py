"""Annotations: a dictionary's labels and notes in memory, for tables of thousands of rows.

Other processes write them too (the command line, another page), so each use asks the file how often it was written, and reads it again when
that changed: at once where reading is quick, else behind the answers, which are then a second or two behind. What is written here
is taken over in place: reading 131,072 labels takes a second, and sorting and searching them has to be prepared.
"""

import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.features import Label, Notes
from sparsight.web.replies import number
from sparsight.web.search import TextIndex

__all__ = ["Annotations", "label_json"]

_QUICK_SECONDS = 0.05


class Annotations:
    """Labels and notes of one SAE, as they are now."""

    def __init__(self, notes: Notes, n_latents: int) -> None:
        self.file = notes
        self._n_latents = n_latents
        self._lock, self._reading = threading.RLock(), threading.Lock()
        self._known, self._read_at, self._seconds, self._generation = _Known(notes, n_latents, empty=True), -1, 0.0, 0

    @property
    def version(self) -> tuple[int, int]:
        """Stays the same as long as nothing is written, here or elsewhere."""
        self._refresh()
        return self.file.changes(), self._generation

    @property
    def labels(self) -> dict[int, Label]:
        """Each latent's best label; for looking up, not for going through."""
        self._refresh()
        return self._known.labels

    @property
    def notes(self) -> dict[int, str]:
        """Each latent's note, likewise."""
        self._refresh()
        return self._known.notes

    def matching(self, term: str, among: Bool[np.ndarray, " latents"]) -> Bool[np.ndarray, " latents"]:
        """Latents, of those `among`, whose label or note holds a term."""
        self._refresh()
        with self._lock:
            return self._known.text.matching(term, among)

    def alphabetical(self, *, descending: bool) -> Int[np.ndarray, " latents"]:
        """All latents by their label, those without last."""
        self._refresh()
        with self._lock:
            labelled = self._known.alphabetical
            rest = np.ones(self._n_latents, bool)
            rest[labelled] = False
            return np.concatenate([labelled[::-1] if descending else labelled, np.flatnonzero(rest)]).astype(np.int32)

    def scores(self) -> Float[np.ndarray, " latents"]:
        """Each label's score; NaN for none."""
        self._refresh()
        with self._lock:
            return self._known.scores.copy()

    @contextmanager
    def change(self, latent: int | None = None) -> Iterator[Notes]:
        """The file, to write about one latent (or only about lists) in the `with` block."""
        with self._lock:
            before = self.file.changes()
            yield self.file
            if before == self._read_at and self.file.changes() == before + 1:
                if latent is not None:
                    self._known.take(latent, self.file)
                self._read_at, self._generation = before + 1, self._generation + 1

    def _refresh(self) -> None:
        if self.file.changes() == self._read_at:
            return
        if self._read_at < 0 or self._seconds < _QUICK_SECONDS:
            with self._lock:
                if self.file.changes() != self._read_at:
                    self._read()
        elif self._reading.acquire(blocking=False):
            threading.Thread(target=self._read_behind, daemon=True, name="labels").start()

    def _read_behind(self) -> None:
        try:
            self._read()
        finally:
            self._reading.release()

    def _read(self) -> None:
        started, now = time.monotonic(), self.file.changes()
        known = _Known(self.file, self._n_latents)
        with self._lock:
            self._known, self._read_at, self._generation = known, now, self._generation + 1
            self._seconds = time.monotonic() - started


class _Known:
    """What was read, ready to be searched and sorted."""

    def __init__(self, notes: Notes, n_latents: int, *, empty: bool = False) -> None:
        self.labels: dict[int, Label] = {} if empty else _within(notes.best_labels(), n_latents)
        self.notes: dict[int, str] = {} if empty else _within(notes.notes(), n_latents)
        self.ranked = sorted((label.text.casefold(), latent) for latent, label in self.labels.items())
        self.alphabetical = np.array([latent for _, latent in self.ranked], np.int32)
        self.scores = np.full(n_latents, np.nan)
        for latent, label in self.labels.items():
            self.scores[latent] = np.nan if label.score is None else label.score
        self.text = TextIndex(self._said(latent) for latent in range(n_latents))

    def take(self, latent: int, file: Notes) -> None:
        """Read one latent again."""
        old = self.labels.pop(latent, None)
        if old is not None:
            place = bisect_left(self.ranked, (old.text.casefold(), latent))
            del self.ranked[place]
            self.alphabetical = np.delete(self.alphabetical, place)
        self.scores[latent] = np.nan
        for label in file.labels(latent)[:1]:
            self.labels[latent] = label
            place = bisect_left(self.ranked, (label.text.casefold(), latent))
            self.ranked.insert(place, (label.text.casefold(), latent))
            self.alphabetical = np.insert(self.alphabetical, place, latent)
            self.scores[latent] = np.nan if label.score is None else label.score
        self.notes.pop(latent, None)
        if note := file.note(latent):
            self.notes[latent] = note
        self.text.replace(latent, self._said(latent))

    def _said(self, latent: int) -> str:
        label = self.labels.get(latent)
        return f"{label.text if label else ''}\t{self.notes.get(latent, '')}"


def label_json(label: Label) -> dict[str, Any]:
    """A label as the API gives it."""
    scores = {name: number(getattr(label, name)) for name in ("score", "low", "high", "control")}
    return {"text": label.text, "source": label.source, **scores, "n": label.n, "created": label.created}


def _within(table: dict[int, Any], n_latents: int) -> dict[int, Any]:
    """Without latents that this dictionary does not have: the file may be another's."""
    return {latent: item for latent, item in table.items() if latent < n_latents}
