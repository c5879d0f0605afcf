"""StoreWriter: adds windows to one part of a store, and knows where a killed collection stood.

A window becomes a shard: the file is written under a temp name, hashed on the way, renamed, and only then named in `index.json`. A file
that is not in the index does not count and is overwritten. A shard whose file is gone is made anew from the cursor its entry kept.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsight.activations.batch import SPLITS
from sparsight.activations.capture import Progress, Window
from sparsight.activations.catalog import ShardEntry, check_description, read_index
from sparsight.activations.shard import ShardFile, write_shard
from sparsight.activations.store import FORMAT_VERSION
from sparsight.artifact import write_json
from sparsight.errors import StoreError
from sparsight.lm import TextCounts, TextCursor

__all__ = ["StoreWriter"]


class StoreWriter:
    """One process's part of a store.

    `description` is what makes two collections the same: hook points and widths, dtype, seed, model, text. Raises StoreError when the
    store at `path` was collected from another.
    """

    def __init__(self, path: Path, description: dict[str, Any], dtype: str, part: tuple[int, int] = (0, 1)):
        self.path, self.dtype = Path(path), dtype
        self.folder = self.path / f"part-{part[0]:03d}-of-{part[1]:03d}"
        self._describe({"format": FORMAT_VERSION, **description}, part[1])
        self.index = self.folder / "index.json"
        self.entries: list[ShardEntry] = read_index(self.index) if self.index.exists() else []

    def add(self, window: Window, text_counts: TextCounts) -> ShardEntry:
        """Writes a window as a shard and counts it in the index; a shard of the same split and number is replaced."""
        file = self.folder / f"{window.split}-{window.number:05d}.safetensors"
        sha256, n_bytes = write_shard(file, window, self.dtype)
        entry = ShardEntry(
            file=str(file.relative_to(self.path)),
            split=window.split,
            number=window.number,
            n_rows=len(window),
            n_pieces=len(window.pieces),
            n_bytes=n_bytes,
            sha256=sha256,
            start=(window.start.row, window.start.piece),
            next=(window.end.row, window.end.piece),
            counts=window.counts,
            text_counts=asdict(text_counts),
        )
        self.entries = [old for old in self.entries if old.file != entry.file] + [entry]
        self.entries.sort(key=lambda each: (SPLITS.index(each.split), each.number))
        self._write_index(finished=False)
        return entry

    def finish(self) -> None:
        """Marks this part as ended: it has what was asked for, or all that the text gave."""
        self._write_index(finished=True)

    def missing(self) -> list[ShardEntry]:
        """Entries whose file is gone."""
        return [entry for entry in self.entries if not (self.path / entry.file).exists()]

    def progress(self, before: ShardEntry | None = None) -> Progress:
        """Where the collection stands; or stood when the shard `before` was about to be captured."""
        progress = Progress()
        for entry in self.entries:
            if (self.path / entry.file).exists():
                table = ShardFile(self.path / entry.file).pieces()
                for document, row in zip(table.document_ids.tolist(), table.rows.tolist(), strict=True):
                    progress.seen[document] = min(row, progress.seen.get(document, row))
            if before is None or (entry.split == before.split and entry.number < before.number):
                progress.next[entry.split] = TextCursor(*entry.next)
                progress.n_rows[entry.split] += entry.n_rows
                progress.n_windows[entry.split] += 1
                progress.n_pieces[entry.split] += entry.n_pieces
        return progress

    def text_counts(self, start: TextCursor) -> TextCounts:
        """What the text had given and dropped when the reading that starts at `start` took over."""
        for entry in self.entries:
            if TextCursor(*entry.next) == start:
                return TextCounts(**entry.text_counts)
        return TextCounts()

    def _write_index(self, *, finished: bool) -> None:
        write_json(self.index, {"finished": finished, "shards": [asdict(each) for each in self.entries]})

    def _describe(self, description: dict[str, Any], world: int) -> None:
        file = self.path / "store.json"
        if not file.exists():
            write_json(file, description)
            return
        check_description(self.path, description)
        others = {folder.name[-3:] for folder in self.path.glob("part-*")} - {f"{world:03d}"}
        if others:
            raise StoreError(
                f"Store {self.path} has parts of {', '.join(sorted(others))}; this run writes one of {world}."
            )
