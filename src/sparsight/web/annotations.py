"""Annotations: a dictionary's labels and notes in memory, for tables of thousands of rows.

Other processes write them too (the command line, another page), so each use asks the file how often it was written, and reads it again when
that changed. Reading 131,072 labels takes a second; a change made here is therefore taken over in place.
"""

import threading
from typing import Any

import numpy as np
from jaxtyping import Bool

from sparsight.features import Label, Notes
from sparsight.web.replies import number
from sparsight.web.search import TextIndex

__all__ = ["Annotations", "label_json"]


class Annotations:
    """Labels and notes of one SAE, as they are now."""

    def __init__(self, notes: Notes) -> None:
        self.file = notes
        self._lock = threading.RLock()
        self._read_at = -1
        self._labels: dict[int, Label] = {}
        self._notes: dict[int, str] = {}
        self._text: tuple[list[int], TextIndex] | None = None

    @property
    def labels(self) -> dict[int, Label]:
        """Each latent's best label."""
        self._refresh()
        return self._labels

    @property
    def notes(self) -> dict[int, str]:
        """Each latent's note."""
        self._refresh()
        return self._notes

    @property
    def version(self) -> int:
        """Stays the same as long as nothing is written."""
        return self.file.changes()

    def label(self, latent: int) -> dict[str, Any] | None:
        """A latent's best label for JSON."""
        found = self.labels.get(latent)
        return None if found is None else label_json(found)

    def matching(self, term: str, n_latents: int) -> Bool[np.ndarray, " latents"]:
        """Latents whose label or note holds a term."""
        self._refresh()
        with self._lock:
            if self._text is None:
                texts: dict[int, str] = {latent: label.text for latent, label in self._labels.items()}
                for latent, note in self._notes.items():
                    texts[latent] = f"{texts.get(latent, '')}\n{note}"
                self._text = (list(texts), TextIndex(texts.values()))
            latents, text = self._text
        found = np.zeros(n_latents, bool)
        found[np.array(latents, np.int64)] = text.matching(term)
        return found

    def changed(self, latent: int) -> None:
        """Take over what was just written about one latent here, unless another wrote as well."""
        with self._lock:
            labels, note, now = self.file.labels(latent), self.file.note(latent), self.file.changes()
            if now != self._read_at + 1:
                return
            self._labels = {**self._labels, latent: labels[0]} if labels else _without(self._labels, latent)
            self._notes = {**self._notes, latent: note} if note else _without(self._notes, latent)
            self._text, self._read_at = None, now

    def _refresh(self) -> None:
        now = self.file.changes()
        if now == self._read_at:
            return
        with self._lock:
            if now != self._read_at:
                self._labels, self._notes = self.file.best_labels(), self.file.notes()
                self._text, self._read_at = None, now


def label_json(label: Label) -> dict[str, Any]:
    """A label as the API gives it."""
    scores = {name: number(getattr(label, name)) for name in ("score", "low", "high", "control")}
    return {"text": label.text, "source": label.source, **scores, "n": label.n, "created": label.created}


def _without(table: dict[int, Any], latent: int) -> dict[int, Any]:
    return {key: value for key, value in table.items() if key != latent}
