"""Dictionary: one SAE of a run as it lies on disk, opened once and read from memory, whatever happens to the folder meanwhile.

Its arrays are memory-mapped: a file cut short under a map would end the process by a signal. So each request first compares the files'
sizes and times with those it was opened with (30 stat calls, 0.1 ms), opens anew when an index was rebuilt, and refuses when it is gone
(410) or half there (503). What a race leaves is a file cut within the same millisecond.
"""

import os
import threading
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.artifact import RunDir, read_json
from sparsight.errors import RunError, SparsightError, StoreError
from sparsight.features import Cluster, Column, FeatureIndex, Notes, column_values, columns_of
from sparsight.labels import Falsified, Labeller
from sparsight.recipe import Recipe
from sparsight.sae import SAEConfig
from sparsight.web.annotations import Annotations
from sparsight.web.replies import Refusal
from sparsight.web.search import TextIndex, strongest_passages
from sparsight.web.words import Words

__all__ = ["Dictionary", "Opened"]

_MISSING = ("token", "latent", "cluster")  # kinds whose -1 means none
_SEARCHED_WEIGHTS = 10
_QUERIES_KEPT = 16


class Opened:
    """One version of a feature index, with what is worked out from it when it is first asked for."""

    def __init__(self, index: FeatureIndex, words: Words, notes: Notes) -> None:
        self.index, self.words = index, words
        self.annotations = Annotations(notes, index.n_latents)
        self.columns: dict[str, Column] = {column.name: column for column in columns_of(index)}
        self._kept: dict[Any, np.ndarray] = {}
        self._text: TextIndex | None = None
        self._testing = threading.Lock()
        self._labeller: Labeller | None = None
        self._lock = threading.RLock()
        self._values: dict[str, np.ndarray] = {}
        self._orders: dict[tuple[str, bool], np.ndarray] = {}

    def values(self, name: str) -> np.ndarray:
        """A column as it lies in the index, in memory. Raises Refusal when there is none of this name."""
        if name not in self.columns:
            raise Refusal(404, f"There is no column {name!r} here.", f"There are {', '.join(self.columns)}.")
        with self._lock:
            if name not in self._values:
                self._values[name] = np.ascontiguousarray(column_values(self.index, name))
            return self._values[name]

    def sortable(self, name: str) -> Float[np.ndarray, " latents"]:
        """A column as numbers that sort: missing is NaN, and a token its rank in the alphabet."""
        if name == "latent":
            return np.arange(self.index.n_latents, dtype=np.float64)
        values, kind = self.values(name), self.columns[name].kind
        if kind == "token":
            distinct, where = np.unique(values, return_inverse=True)
            rank = np.argsort(np.argsort([word.strip().casefold() for word in self.words(distinct)]))
            return np.where(values < 0, np.nan, rank[where].astype(np.float64))
        numbers = values.astype(np.float64)
        return np.where(numbers < 0, np.nan, numbers) if kind in _MISSING else numbers

    def order(self, name: str, *, descending: bool) -> Int[np.ndarray, " latents"]:
        """All latents by a column, the missing last, ties by latent."""
        with self._lock:
            key = (name, descending)
            if key not in self._orders:
                values = self.sortable(name)
                self._orders[key] = np.argsort(-values if descending else values, kind="stable").astype(np.int32)
            return self._orders[key]

    def promoted(self, latents: Iterable[int], n: int = 5) -> list[list[str]]:
        """The first n promoted tokens of each; [] where none were stored."""
        chosen = np.fromiter(latents, np.int64)
        if not self.index.has_logits:
            return [[] for _ in chosen]
        ids = np.asarray(self.index.arrays["promoted_tokens"][chosen, :n])
        words = iter(self.words(ids.ravel()))
        return [[next(words) for _ in row] for row in ids]

    def falsify(self, latent: int, label: str) -> Falsified:
        """Retests a label on passages that its first test did not show; the first time reads the whole text."""
        with self._testing:
            if self._labeller is None:
                self._labeller = Labeller(self.index, self.words.load())
            return self._labeller.falsify(latent, label)

    @cached_property
    def n_documents(self) -> int:
        """Documents that the index was made of."""
        return len(np.unique(self.index.piece_documents))

    @cached_property
    def clusters(self) -> list[Cluster]:
        """Communities, largest first; [] where the index has none."""
        return self.index.clusters() or []

    @cached_property
    def cluster_words(self) -> list[list[str]]:
        """For each cluster, tokens that tell it from all latents: those that its latents are most often active on.

        Ordered by p log(p / q), p and q the shares of latents whose most frequent token it is, in the cluster and in all.
        """
        top = self.index.arrays.get("top_token")
        if top is None:
            return [[] for _ in self.clusters]
        known, places, totals = np.unique(top, return_inverse=True, return_counts=True)
        return [self._telling_words(places[cluster.latents], known, totals) for cluster in self.clusters]

    def _telling_words(
        self, places: Int[np.ndarray, " n"], known: Int[np.ndarray, " m"], totals: Int[np.ndarray, " m"], n: int = 8
    ) -> list[str]:
        found, counts = np.unique(places, return_counts=True)
        telling = counts / len(places) * np.log(counts / len(places) / (totals[found] / totals.sum()))
        order = np.argsort(-telling, kind="stable")
        order = order[(telling[order] > 0) & (known[found[order]] >= 0)][:n]
        return self.words(known[found[order]])

    def said(self, term: str, among: Bool[np.ndarray, " latents"]) -> Bool[np.ndarray, " latents"]:
        """Which latents have a term in a promoted token or in the passage about their strongest activation."""
        found = self._passages.matching(term, among)
        if self.index.has_logits:
            tokens, places = self._promoted_tokens
            found |= tokens.matching(term)[places].any(axis=1)
        return found

    def kept(self, key: Any) -> Int[np.ndarray, " n"] | None:
        """What `keep` kept, while it does."""
        return self._kept.get(key)

    def keep(self, key: Any, latents: Int[np.ndarray, " n"]) -> None:
        """Keep what one of the last few queries matched."""
        with self._lock:
            self._kept[key] = latents
            while len(self._kept) > _QUERIES_KEPT:
                del self._kept[next(iter(self._kept))]

    @property
    def _passages(self) -> TextIndex:
        with self._lock:
            if self._text is None:
                self._text = TextIndex(strongest_passages(self.index, self.words))
            return self._text

    @cached_property
    def _promoted_tokens(self) -> tuple[TextIndex, Int[np.ndarray, "latents n"]]:
        """The distinct promoted tokens, and which of them each latent promotes."""
        ids = np.asarray(self.index.arrays["promoted_tokens"][:, :_SEARCHED_WEIGHTS])
        distinct, places = np.unique(ids, return_inverse=True)
        return TextIndex(self.words(distinct)), places.reshape(ids.shape).astype(np.int32)


class Dictionary:
    """One SAE of a run."""

    def __init__(self, run: RunDir, run_name: str, recipe: Recipe, sae: SAEConfig, words: Words) -> None:
        self.run, self.run_name, self.recipe, self.sae, self.words = run, run_name, recipe, sae, words
        self._lock = threading.Lock()
        self._opened: Opened | None = None
        self._files: list[str] = []
        self._signature: Any = None

    @property
    def key(self) -> str:
        """What the API calls it."""
        return f"{self.run_name}/{self.sae.id}"

    @property
    def is_live(self) -> bool:
        """Whether the SAE's weights are there to run text through."""
        return (self.run.sae(self.sae.id) / "cfg.json").is_file()

    def open(self) -> Opened:
        """Its index as it is on disk now. Raises Refusal when it is gone (410) or half there (503)."""
        with self._lock:
            signature = _signature(self._files)
            if self._opened is None or signature is None or signature != self._signature:
                self._opened = None
                self._opened = self._open()
            return self._opened

    def _open(self) -> Opened:
        path = self.run.features(self.sae.id)
        try:
            index = FeatureIndex.open(path)
            names = ["index.json", *(f"{name}.npy" for name in read_json(path / "index.json")["arrays"])]
            self._files = [str(path / name) for name in names]
            self._signature = _signature(self._files)
            if self._signature is None:
                raise StoreError(f"Files of `{path}` vanished while it was opened.")
            return Opened(index, self.words, Notes.open(self.run.notes(self.sae.id), index.n_latents))
        except (SparsightError, OSError, KeyError, TypeError) as error:
            raise self._refusal(path, error) from None

    def _refusal(self, path: Path, error: Exception) -> Refusal:
        if not self.run.path.is_dir() or not self.run.recipe.is_file():
            return Refusal(
                410, f"The run is no longer at {self.run.path}.", "Start the explorer with a run that is there."
            )
        if isinstance(error, RunError) and not (path / "index.json").exists():
            return Refusal(
                503, f"{self.key} has no feature index now.", f"Build one with: sparsight index {self.run.path}"
            )
        return Refusal(503, f"{self.key} cannot be read now: {error}")


def _signature(files: list[str]) -> tuple[tuple[int, int, int], ...] | None:
    """What tells one version of the files from another; None when one is missing."""
    try:
        found = [os.stat(file) for file in files]
    except OSError:
        return None
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found)
