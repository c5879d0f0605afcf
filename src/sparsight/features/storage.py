"""The folder of a feature index: a description in JSON and .npy arrays, written to be mapped.

Every array is listed in index.json with its dtype and shape, and is opened only as these say: nothing in a file decides what is allocated.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparsight.artifact import read_json, write_json
from sparsight.errors import RunError, StoreError
from sparsight.features.config import IndexConfig

__all__ = ["ARRAYS", "FORMAT", "VERSION", "ArrayFolder", "read_folder"]

FORMAT = "sparsight.features"
VERSION = 2
# Version 1 is version 2 without the arrays that came with it, all of which may be absent.
READ_VERSIONS = (1, 2)
# What every index has.
ARRAYS = (
    "piece_tokens",
    "piece_offsets",
    "piece_documents",
    "piece_starts",
    "measured",
    "latent_offsets",
    "activation_tokens",
    "activation_values",
    "n_documents",
    "maximum",
    "mean",
    "quantiles",
    "histogram",
)
_REBUILD = "and rebuild it with `sparsight index`"


class ArrayFolder:
    """Arrays on their way to a folder, fsynced one by one; index.json comes last and lists them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._arrays: dict[str, dict[str, Any]] = {}

    def write(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Store arrays under their names."""
        for name, array in arrays.items():
            with self.open(name, array.dtype, array.shape) as file:
                file.write(np.ascontiguousarray(array).tobytes())

    @contextmanager
    def open(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
        """A .npy file whose data the caller writes."""
        self._arrays[name] = {"dtype": str(dtype), "shape": list(shape)}
        with (self.path / f"{name}.npy").open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            yield file
            file.flush()
            os.fsync(file.fileno())

    def map(self, name: str) -> np.ndarray:
        """An array that was written, memory-mapped."""
        return np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def describe(self, n_tokens: int, about: Mapping[str, Any], config: IndexConfig) -> None:
        """Write index.json."""
        write_json(
            self.path / "index.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "n_tokens": n_tokens,
                "about": dict(about),
                "config": asdict(config),
                "arrays": self._arrays,
            },
        )


def read_folder(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays, memory-mapped. Raises RunError when there is no index, StoreError when it is damaged."""
    if not (path / "index.json").is_file():
        raise RunError(f"`{path}` holds no feature index (no index.json). Build one with `sparsight index`.")
    description = read_json(path / "index.json")
    found = (description.get("format"), description.get("version")) if isinstance(description, dict) else None
    if found not in [(FORMAT, version) for version in READ_VERSIONS]:
        raise StoreError(f"`{path}` has format {found}; expected {(FORMAT, VERSION)}. Delete it {_REBUILD}.")
    try:
        listed = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in description["arrays"].items()}
        missing = [name for name in ARRAYS if name not in listed]
        odd = [name for name in listed if not name.isidentifier()]
        absent = [key for key in ("about", "config", "n_tokens") if key not in description]
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"`{path}/index.json` is garbled ({error}). Delete the folder {_REBUILD}.") from None
    if missing or odd or absent:
        what = f"lacks {', '.join([*absent, *missing])}" if missing or absent else f"lists {odd[0]!r}"
        raise StoreError(f"`{path}/index.json` {what}. Delete the folder {_REBUILD}.")
    return description, {name: _map(path / f"{name}.npy", *expected) for name, expected in listed.items()}


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise StoreError(f"`{path}` {reason}. Delete `{path.parent}` {_REBUILD}.") from None
    if (str(array.dtype), array.shape) != (dtype, shape):
        raise StoreError(
            f"`{path}` holds {array.dtype} {array.shape}; index.json says {dtype} {shape}. "
            f"Delete `{path.parent}` {_REBUILD}."
        )
    return array
