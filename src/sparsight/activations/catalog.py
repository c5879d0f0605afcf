"""What a store holds, read from its small files alone: the shards that count, the parts that ended, what it was collected from.

store.json                  see writer.py
part-RRR-of-WWW/index.json  {"finished": whether this part has what was asked for, "shards": [ShardEntry, ...]}
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsight.artifact import read_json
from sparsight.errors import StoreError

__all__ = ["ShardEntry", "check_description", "missing_shards", "read_index", "unfinished_parts"]

_IDENTITY = ("commit", "sha256", "sampled_sha256", "files")


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the index knows it."""

    file: str
    """Path below the store."""
    split: str
    number: int
    n_rows: int
    n_pieces: int
    n_bytes: int
    sha256: str
    """Of the file's header, which holds the hash of every tensor; in the first stores, of the whole file."""
    start: tuple[int, int]
    """TextCursor of its first piece."""
    next: tuple[int, int]
    """TextCursor after its last piece, within its split."""
    counts: dict[str, int]
    """tokens read; special, sinks, beyond_wanted left out."""
    text_counts: dict[str, int]
    """What the text had given, and dropped, when this shard was closed."""


def read_index(path: Path) -> list[ShardEntry]:
    """The entries of a part's index.json. Raises StoreError when it is not one."""
    try:
        return [
            ShardEntry(**{**entry, "start": tuple(entry["start"]), "next": tuple(entry["next"])})
            for entry in read_json(path)["shards"]
        ]
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is not an index of shards ({error}). Delete its folder and collect that part anew."
        ) from None


def missing_shards(path: Path) -> list[str]:
    """Shards that the indexes of the store at `path` name and the disk lacks."""
    entries = [entry for part in sorted(Path(path).glob("part-*/index.json")) for entry in read_index(part)]
    return [entry.file for entry in entries if not (Path(path) / entry.file).exists()]


def unfinished_parts(path: Path) -> list[str]:
    """RANK/WORLD of the parts of the store at `path` whose collection has not ended; 0/1 when there is nothing yet."""
    folders = sorted(Path(path).glob("part-*-of-*"))
    world = int(folders[0].name[-3:]) if folders else 1
    finished = {int(each.name[5:8]) for each in folders if (each / "index.json").exists() and _is_finished(each)}
    return [f"{rank}/{world}" for rank in range(world) if rank not in finished]


def check_description(path: Path, asked: dict[str, Any]) -> None:
    """Raises StoreError naming the first key in which the store at `path` was collected from something else than `asked`.

    Of provenance (`model`, `text`) only hashes and commits count, and only where both sides know theirs.
    """
    found = read_json(Path(path) / "store.json")
    pairs = [(key, found.get(key), value) for key, value in asked.items() if key not in ("model", "text")]
    for part in ("model", "text"):
        for key, value in asked.get(part, {}).items():
            if key in _IDENTITY and value is not None and found.get(part, {}).get(key) is not None:
                pairs.append((f"{part} {key}", found[part][key], value))
    for key, old, new in pairs:
        if old != new:
            raise StoreError(
                f"Store {path} was collected with {key} = {old}; this run asks for {new}. "
                "Collect into another run directory (--out) to keep both, or delete the store."
            )


def _is_finished(folder: Path) -> bool:
    return bool(read_json(folder / "index.json").get("finished", False))
