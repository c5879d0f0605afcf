"""Files that are whole or absent: temp file, fsync, rename.

A reader never sees half a file, and a killed run leaves at most a `.tmp` file that the next run removes. The cost is one fsync a file,
milliseconds against the seconds that filling a shard takes.
"""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsight.errors import RunError

__all__ = [
    "append_jsonl",
    "atomic_path",
    "atomic_place",
    "cache_folder",
    "read_json",
    "read_jsonl",
    "remove_leftovers",
    "sha256_file",
    "told_in_one_line",
    "write_atomic",
    "write_json",
]

_TEMP_SUFFIX = ".tmp"
# ours, and what safetensors (0.8) writes beside the file it is asked for before it renames
_LEFTOVER = re.compile(r"\..*\.tmp|\.tmp\w{6}")
_UMASK = os.umask(0)
os.umask(_UMASK)


def cache_folder() -> Path:
    """Where built-in models and texts are kept: $SPARSIGHT_CACHE, else ~/.cache/sparsight. Made if absent."""
    folder = Path(os.environ.get("SPARSIGHT_CACHE") or Path.home() / ".cache" / "sparsight")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temp path beside `path`; on success it is fsynced and renamed to `path`, on failure removed.

    Raises RunError when the disk is full or the place cannot be written.
    """
    path = Path(path)
    with told_in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMP_SUFFIX, dir=path.parent)
        os.close(handle)
        temp = Path(name)
        try:
            yield temp
            temp.chmod(0o666 & ~_UMASK)  # the 0600 of a temp file would keep a shared machine's other users out
            _fsync(temp)
            os.replace(temp, path)
            _fsync(path.parent)
        finally:
            temp.unlink(missing_ok=True)


@contextmanager
def atomic_place(path: Path) -> Iterator[Path]:
    """Yields a free path of the same name in a temp folder beside `path`; the file or folder made there is renamed to `path` on success.

    `path` must not exist. What is made is fsynced by whoever makes it; on failure it is removed. Raises RunError like `atomic_path`.
    """
    path = Path(path)
    with told_in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=_TEMP_SUFFIX, dir=path.parent) as folder:
            yield Path(folder) / path.name
            os.rename(Path(folder) / path.name, path)
            _fsync(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all. Raises RunError when the disk is full."""
    with atomic_path(path) as temp:
        temp.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, whole or not at all. NaN and infinity are refused: JSON has no word for them."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises RunError naming the file when it is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(
            f"{path} cannot be read as JSON ({error}). Remove it and rerun the step that writes it."
        ) from None


def append_jsonl(path: Path, record: dict[str, Any]) -> None:
    """Appends one record as a line of JSON. Not fsynced: a log line is worth less than a step's time."""
    with told_in_one_line(path), Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; a last line cut short by a kill is left out. [] when there is no file."""
    if not Path(path).exists():
        return []
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Removes the temp files that a killed run left under `folder`. Only for the owner of the folder's lock.

    A folder below with a lock of its own is left to its owner, who may be writing.
    """
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not (Path(root) / name / ".lock").exists()]
        for name in files:
            if _LEFTOVER.fullmatch(name):
                (Path(root) / name).unlink(missing_ok=True)


@contextmanager
def told_in_one_line(path: Path) -> Iterator[None]:
    """Turns what the system says about writing `path` into a RunError with a remedy; other errors pass."""
    try:
        yield
    except Exception as error:
        reason = _errno(error)
        if reason in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"The disk is full: {path} was not written. What was complete before it is kept; "
                "free some space and run the same command again."
            ) from None
        if reason in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise RunError(
                f"{path} cannot be written ({os.strerror(reason)}). Choose a run directory you own."
            ) from None
        raise


def _errno(error: Exception) -> int | None:
    """The system's error number; safetensors hides it in its message."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
