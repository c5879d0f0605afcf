"""ActivationStore: activations on disk, collected once, read by every later sweep without the language model.

    activations/
      store.json                      what is in it: hook points and widths, dtype, seed, model and text provenance
      part-000-of-001/                one part a process; several machines write theirs at the same time
        index.json                    the shards that count, in order, each with a sha256, size, rows, first and next piece
        train-00000.safetensors       see shard.py
        heldout-00000.safetensors

Train and held-out documents are apart from the start. A shard counts only once its hash is in the index, and what is read of it is verified
each time it is read. The first epoch reads in written order, which is shuffled within each shard, and so equals the live stream batch for
batch; later epochs draw a new order of shards and of rows within each. Reading maps one shard at a time, and the next one ahead in a thread.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from sparsight.activations.batch import COLUMNS, SPLITS, ActivationBatch, Chunk, PieceTable, batches_from_chunks
from sparsight.activations.catalog import ShardEntry, read_index
from sparsight.activations.paired import derive, derived_width, stored_names
from sparsight.activations.shard import ShardFile
from sparsight.artifact import read_json
from sparsight.errors import StoreError

__all__ = ["FORMAT_VERSION", "ActivationStore", "StoreSource"]

FORMAT_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """One shard to read."""

    entry: ShardEntry
    order_seed: int | None
    skip: int


class ActivationStore:
    """A store opened for reading.

    Raises StoreError when it is absent, of another format, or holds a shard whose file is missing or of another size. With `skip_damaged`
    such shards are left out; `damaged` lists why.
    """

    def __init__(self, path: str | Path, *, skip_damaged: bool = False):
        self.path = Path(path)
        if not (self.path / "store.json").exists():
            raise StoreError(
                f"{self.path} holds no activation store (no store.json). Collect one with `sparsight collect RECIPE`."
            )
        self.description: dict[str, Any] = read_json(self.path / "store.json")
        if self.description.get("format") != FORMAT_VERSION:
            raise StoreError(
                f"{self.path} has store format {self.description.get('format')}; this version reads {FORMAT_VERSION}. Collect it anew."
            )
        self.hook_points: dict[str, int] = self.description["hook_points"]
        self.damaged: list[str] = []
        self._skip_damaged = skip_damaged
        entries = [entry for part in sorted(self.path.glob("part-*/index.json")) for entry in read_index(part)]
        self.entries = self._usable(entries)

    @classmethod
    def open(cls, path: str | Path, *, skip_damaged: bool = False) -> "ActivationStore":
        """The store at `path`."""
        return cls(path, skip_damaged=skip_damaged)

    @property
    def model(self) -> dict[str, Any]:
        """Provenance of the language model that was read."""
        return self.description["model"]

    @property
    def text(self) -> dict[str, Any]:
        """Provenance of the text."""
        return self.description["text"]

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> rows kept, and tokens masked or cut, by reason."""
        totals: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            entries = self.shards(split)
            names = ("tokens", "special", "sinks", "beyond_wanted")
            totals[split] = {"rows": sum(entry.n_rows for entry in entries)} | {
                name: sum(entry.counts[name] for entry in entries) for name in names
            }
        return totals

    def shards(self, split: str) -> list[ShardEntry]:
        """The shards of a split, in reading order."""
        return sorted(
            (entry for entry in self.entries if entry.split == split), key=lambda entry: (entry.number, entry.file)
        )

    def n_tokens(self, split: str) -> int:
        """Rows in a split."""
        return sum(entry.n_rows for entry in self.shards(split))

    def width(self, hook_point: str) -> int:
        """Width of a hook point, also of one derived from a pair (see paired.py). Raises StoreError listing what there is."""
        width = derived_width(hook_point, self.hook_points)
        if width is None:
            raise StoreError(
                f"Store {self.path} has no hook point {hook_point}; it has {', '.join(self.hook_points)}. "
                "Add it to activations.hook_points and collect into another run directory."
            )
        return width

    def pieces(self, split: str) -> PieceTable:
        """The texts behind a split's rows, in the order that `piece_ids` counts."""
        return PieceTable.concatenate([self._open(entry).pieces() for entry in self.shards(split)])

    def batches(
        self,
        split: str,
        batch_tokens: int,
        *,
        hook_points: Sequence[str] | None = None,
        epochs: int = 1,
        seed: int = 0,
        start_batch: int = 0,
        drop_last: bool | None = None,
    ) -> Iterator[ActivationBatch]:
        """Batches of a split, from batch number `start_batch` on, the same ones whether earlier batches were read or not.

        Hook points derived from a pair (see paired.py) may be named too.
        Epochs follow one another without a seam. A last batch short of `batch_tokens` is dropped for `train`, kept for `heldout`,
        unless `drop_last` says otherwise.
        """
        names = list(self.hook_points if hook_points is None else hook_points)
        for name in names:
            self.width(name)
        stored = list(dict.fromkeys(each for name in names for each in stored_names(name)))
        jobs = self._jobs(split, epochs, seed, start_batch * batch_tokens)
        chunks = _read_ahead([partial(self._chunk, stored, job) for job in jobs])
        for batch in batches_from_chunks(
            chunks, batch_tokens, drop_last=split == "train" if drop_last is None else drop_last
        ):
            yield batch if stored == names else derive(batch, names)

    def _jobs(self, split: str, epochs: int, seed: int, skip: int) -> list[_Job]:
        """The shards to read, epoch after epoch, without the first `skip` rows."""
        jobs = []
        for epoch in range(epochs):
            for entry, order_seed in self._epoch(split, epoch, seed):
                if skip >= entry.n_rows:
                    skip -= entry.n_rows
                else:
                    jobs.append(_Job(entry, order_seed, skip))
                    skip = 0
        return jobs

    def _epoch(self, split: str, epoch: int, seed: int) -> list[tuple[ShardEntry, int | None]]:
        """Shards in this epoch's order, each with the seed of its row order (None: as written)."""
        shards = self.shards(split)
        if epoch == 0:
            return [(entry, None) for entry in shards]
        order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        return [(shards[i], (seed * 1_000_003 + epoch) * 1_000_003 + int(i)) for i in order]

    @cached_property
    def _piece_bases(self) -> dict[str, int]:
        """Shard -> number of pieces in the shards of its split before it."""
        bases = {}
        for split in SPLITS:
            shards = self.shards(split)
            before = itertools.accumulate((entry.n_pieces for entry in shards), initial=0)
            bases |= {entry.file: base for entry, base in zip(shards, before, strict=False)}
        return bases

    def _chunk(self, names: list[str], job: _Job) -> Chunk:
        """One shard, verified: reading every byte for its hash also brings in what later comes in random order."""
        file = self._open(job.entry)
        columns = {name: file.tensor(name) for name in COLUMNS}
        columns["piece_ids"] = columns["piece_ids"].long() + self._piece_bases[job.entry.file]
        order = None
        if job.order_seed is not None:
            order = torch.randperm(job.entry.n_rows, generator=torch.Generator().manual_seed(job.order_seed))
        rows = ActivationBatch({name: file.tensor(name) for name in names}, **columns)
        scales = {name: scale for name in names if (scale := file.scale(name)) is not None}
        return Chunk(rows, order, job.skip, scales)

    def _usable(self, entries: list[ShardEntry]) -> list[ShardEntry]:
        """The entries whose file is there at its size; with `skip_damaged` also hashed now, since every count depends on it."""
        good = []
        for entry in entries:
            try:
                self._check(entry)
            except StoreError as error:
                if not self._skip_damaged:
                    raise
                self.damaged.append(str(error))
            else:
                good.append(entry)
        for what in self.damaged:
            _log.warning("Going on without it (activations.skip_damaged): %s", what)
        return good

    def _check(self, entry: ShardEntry) -> None:
        file = self._open(entry)
        if file.path.stat().st_size != entry.n_bytes:
            raise StoreError(
                f"Shard {file.path} is damaged: {file.path.stat().st_size} bytes instead of {entry.n_bytes}. Delete it and run the "
                "collection again, which makes it anew; or use the rest with activations.skip_damaged = true."
            )
        if self._skip_damaged:
            file.check()

    def _open(self, entry: ShardEntry) -> ShardFile:
        return ShardFile(self.path / entry.file, entry.sha256)


@dataclass(frozen=True)
class StoreSource:
    """The training rows of a store, several epochs of them, as `train_saes` takes them."""

    store: ActivationStore
    names: tuple[str, ...]
    """Hook points to read."""
    epochs: int
    seed: int

    @property
    def hook_points(self) -> dict[str, int]:
        """Hook point -> width."""
        return {name: self.store.width(name) for name in self.names}

    @property
    def n_rows(self) -> int:
        """Rows over all epochs."""
        return self.store.n_tokens("train") * self.epochs

    def batches(self, batch_tokens: int, *, start_batch: int = 0) -> Iterator[ActivationBatch]:
        """Batches from number `start_batch` on; a last short one is dropped."""
        return self.store.batches(
            "train", batch_tokens, hook_points=self.names, epochs=self.epochs, seed=self.seed, start_batch=start_batch
        )

    @property
    def counts(self) -> dict[str, int]:
        """Tokens read for one pass, and how many were masked or cut, by reason."""
        return self.store.counts["train"]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the store itself says where every batch is."""
        return {}


def _read_ahead(jobs: list[Callable[[], Chunk]]) -> Iterator[Chunk]:
    """Runs the jobs in order, the next one in a thread while this one's result is used."""
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[Chunk] | None = pool.submit(jobs[0]) if jobs else None
        for job in [*jobs[1:], None]:
            if ahead is None:
                return
            current = ahead.result()
            ahead = pool.submit(job) if job is not None else None
            yield current
            del current
