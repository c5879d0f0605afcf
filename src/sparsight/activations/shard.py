"""One shard of a store: a safetensors file, written and read in blocks of a few MB.

    HOOK_POINT            [n, d]      BF16, F32, or I8 with HOOK_POINT.scale [n] F32: row = int8 * scale
    token_ids             [n]         I32   the token at which the row was read
    document_ids          [n]         I64   hash of the document's text
    positions             [n]         I32   offset of the token in its document
    piece_ids             [n]         I32   index into the shard's own piece table
    pieces.token_ids      [tokens]    I32   all pieces of text end to end, masked tokens included
    pieces.offsets        [pieces+1]  I64
    pieces.document_ids   [pieces]    I64
    pieces.starts         [pieces]    I32   offset of the piece in its document
    pieces.rows           [pieces]    I64   number of the document in the source

Any safetensors reader opens it. We write it ourselves because the library wants all tensors in memory at once and hashes nothing; here a
row is gathered into shuffled order, encoded, hashed and written in one go, with a block's memory. Source: the safetensors format
(8 bytes little-endian header length, JSON header, data). Blocks: 1-4 MB reads reach the disk's sequential rate, single rows a tenth of it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations.batch import PieceTable
from sparsight.activations.capture import Window
from sparsight.artifact import atomic_path
from sparsight.errors import StoreError

__all__ = ["ShardFile", "decode_int8", "encode_int8", "write_shard"]

_BLOCK_BYTES = 4 << 20
_CODES = {"BF16": torch.bfloat16, "F32": torch.float32, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}
_NAMES = {dtype: code for code, dtype in _CODES.items()}
_COLUMNS = {"token_ids": "I32", "document_ids": "I64", "positions": "I32", "piece_ids": "I32"}
_PIECES = {"token_ids": "I32", "offsets": "I64", "document_ids": "I64", "starts": "I32", "rows": "I64"}
_MAX_HEADER = 1 << 20


def encode_int8(rows: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor]:
    """int8 rows and the float32 scale of each: row = int8 * scale, scale = max|row| / 127."""
    rows = rows.float()
    scale = rows.abs().amax(dim=1) / 127
    return (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8), scale


def decode_int8(rows: Tensor, scale: Tensor) -> Float[Tensor, "n d"]:
    """float32 rows from int8 rows and their scales."""
    return rows.float() * scale[:, None]


def write_shard(path: Path, window: Window, dtype: str) -> tuple[str, int]:
    """Writes a window's kept rows in their shuffled order; returns the file's sha256 and size in bytes."""
    header = _layout(window, dtype)
    with atomic_path(path) as temp, temp.open("wb") as file:
        writer = _HashingWriter(file)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        writer.write(len(text).to_bytes(8, "little") + text)
        for name in window.rows:
            _write_rows(writer, window, name, dtype)
        for name, code in _COLUMNS.items():
            column = getattr(window, name)[window.order]
            writer.write(_bytes(column.to(_CODES[code])))
        for name, code in _PIECES.items():
            writer.write(_bytes(torch.from_numpy(getattr(window.pieces, name)).to(_CODES[code])))
        file.flush()
    return writer.hash.hexdigest(), writer.n_bytes


class _HashingWriter:
    def __init__(self, file: BinaryIO):
        self.file, self.hash, self.n_bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.n_bytes += len(data)


def _write_rows(writer: _HashingWriter, window: Window, name: str, dtype: str) -> None:
    rows, scales = window.rows[name], []
    for block in window.order.split(max(1, _BLOCK_BYTES // (rows.shape[1] * rows.element_size()))):
        values = rows.index_select(0, block.to(rows.device)).cpu()
        if dtype == "int8":
            values, scale = encode_int8(values)
            scales.append(scale)
        writer.write(_bytes(values.to(getattr(torch, dtype))))
    if scales:
        writer.write(_bytes(torch.cat(scales)))


def _layout(window: Window, dtype: str) -> dict[str, Any]:
    """The safetensors header: name -> dtype, shape, offsets, in the order in which `write_shard` writes."""
    n, shapes = len(window.order), {}
    for name, rows in window.rows.items():
        shapes[name] = (_NAMES[getattr(torch, dtype)], [n, rows.shape[1]])
        if dtype == "int8":
            shapes[f"{name}.scale"] = ("F32", [n])
    shapes |= {name: (code, [n]) for name, code in _COLUMNS.items()}
    shapes |= {f"pieces.{name}": (code, list(getattr(window.pieces, name).shape)) for name, code in _PIECES.items()}
    header, offset = {}, 0
    for name, (code, shape) in shapes.items():
        size = int(np.prod(shape)) * _CODES[code].itemsize
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return header


def _bytes(tensor: Tensor) -> memoryview:
    """The tensor's memory; nothing is copied when it is contiguous."""
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


class ShardFile:
    """Reads a shard. Opening reads the header alone and checks it against the file's size.

    Raises StoreError naming the file when it is absent, cut short, or not a shard.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self._places = dict(_read_header(file, path))
        except FileNotFoundError:
            raise StoreError(f"Shard {path} is missing. Run the collection again: it makes this shard anew.") from None

    def tensor(self, name: str, out: Tensor | None = None) -> Tensor:
        """One tensor, read in one go; into `out` when given (same shape and dtype)."""
        place = self._places.get(name)
        if place is None:
            raise StoreError(f"Shard {self.path} has no `{name}`; it has {', '.join(self._places)}.")
        tensor = torch.empty(place.shape, dtype=place.dtype) if out is None else out
        target = _bytes(tensor)
        with self.path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            read = 0
            while read < len(target):
                n = file.readinto(target[read : read + (64 << 20)])
                if not n:
                    raise StoreError(_damaged(self.path, f"it ends {len(target) - read} bytes early"))
                read += n
        return tensor

    def rows(self, hook_point: str) -> Tensor:
        """[n, d] rows of a hook point, as stored, or float32 from int8."""
        values = self.tensor(hook_point)
        return decode_int8(values, self.tensor(f"{hook_point}.scale")) if values.dtype == torch.int8 else values

    def pieces(self) -> PieceTable:
        """The shard's piece table."""
        return PieceTable(*(self.tensor(f"pieces.{field.name}").numpy() for field in fields(PieceTable)))

    def check_hash(self, sha256: str) -> None:
        """Raises StoreError when the file's bytes are not those that were written."""
        with self.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise StoreError(_damaged(self.path, "its bytes are not those that were written (sha256 differs)"))


def _read_header(file: BinaryIO, path: Path) -> Iterator[tuple[str, _Place]]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
        raise StoreError(_damaged(path, f"its header does not fit its {size} bytes"))
    try:
        header = json.loads(file.read(length))
        places = {
            name: _Place(_CODES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise StoreError(_damaged(path, "its header cannot be read")) from None
    for name, place in places.items():
        if place.offset + place.n_bytes > size or place.n_bytes < 0:
            raise StoreError(_damaged(path, f"`{name}` would end at byte {place.offset + place.n_bytes} of {size}"))
        yield name, place


def _damaged(path: Path, what: str) -> str:
    return (
        f"Shard {path} is damaged: {what}. Delete it and run the collection again, which makes it anew; "
        "or use the rest with activations.skip_damaged = true."
    )
