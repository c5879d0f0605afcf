"""One shard of a store: a safetensors file, written in blocks of 1 MB, read as a map of the file.

    __metadata__                      name of each tensor -> "xxh3_128:" and the hash of its bytes
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
row is gathered into shuffled order, encoded, hashed and written while its block lies in the processor's cache. The store's index knows the
sha256 of the header, the header the hash of every tensor: a tensor is verified whenever it is read, and only what is read is hashed.
Source: the safetensors format (8 bytes little-endian header length, JSON header, data).

Trade-off: rows are served from the map, with no copy of them in this process; a disk that fails under a map ends the process by SIGBUS.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import xxhash
from torch import Tensor

from sparsight.activations.batch import PieceTable
from sparsight.activations.capture import Window
from sparsight.activations.int8 import encode_int8
from sparsight.artifact import atomic_path
from sparsight.errors import StoreError

__all__ = ["ShardFile", "write_shard"]

_BLOCK_BYTES = 1 << 20  # gathered, hashed and written from the second-level cache
_FLUSH_BYTES = 8 << 20
_CODES = {"BF16": torch.bfloat16, "F32": torch.float32, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}
_NAMES = {dtype: code for code, dtype in _CODES.items()}
_COLUMNS = {"token_ids": "I32", "document_ids": "I64", "positions": "I32", "piece_ids": "I32"}
_PIECES = {"token_ids": "I32", "offsets": "I64", "document_ids": "I64", "starts": "I32", "rows": "I64"}
_MAX_HEADER = 1 << 20
_ALIGNMENT = 64  # rows of the first hook point begin on a cache line
_HASH = "xxh3_128:"


def write_shard(path: Path, window: Window, dtype: str) -> tuple[str, int]:
    """Writes a window's kept rows in their shuffled order; returns the sha256 of the file's header and its size in bytes.

    The header comes first and holds the hashes of what follows, so it is written with empty ones and once more at the end.
    """
    layout = _layout(window, dtype)
    hashes = dict.fromkeys(layout, _hash_of(b""))
    with atomic_path(path) as temp, temp.open("wb") as file, ThreadPoolExecutor(1) as pool:
        writer = _HashingWriter(file, pool)
        writer.write(_header(layout, hashes))
        for name, blocks in _tensors(window, dtype):
            hashes[name] = writer.write_tensor(blocks)
        writer.finish()
        header = _header(layout, hashes)
        file.seek(0)
        file.write(header)
    return hashlib.sha256(header).hexdigest(), writer.n_bytes


class _HashingWriter:
    """Writes and hashes a block at a time, while a thread sends what is written to the disk.

    Waiting for the disk at the end alone, as the rename needs it, takes half of all the time.
    """

    def __init__(self, file: BinaryIO, pool: ThreadPoolExecutor):
        self.file, self.hash, self.n_bytes = file, xxhash.xxh3_128(), 0
        self._pool, self._flushing, self._n_flushed = pool, Future[None](), 0
        self._flushing.set_result(None)

    def write_tensor(self, blocks: Iterable[Tensor]) -> str:
        """Writes the blocks one after another; returns the hash of them all."""
        self.hash.reset()
        for block in blocks:
            self.write(_bytes(block))
        return _HASH + self.hash.hexdigest()

    def write(self, data: Any) -> None:
        self.hash.update(data)
        self.file.write(data)
        self.n_bytes += len(data)
        if self.n_bytes - self._n_flushed >= _FLUSH_BYTES and self._flushing.done():
            self.finish()
            self._flushing, self._n_flushed = self._pool.submit(os.fsync, self.file.fileno()), self.n_bytes

    def finish(self) -> None:
        """Waits for the thread and raises what the disk said to it: the system tells of a failed write only once."""
        self._flushing.result()


def _tensors(window: Window, dtype: str) -> Iterator[tuple[str, Iterable[Tensor]]]:
    """Every tensor of the shard in blocks, in the order of `_layout`; the blocks of one are to be used up before the next."""
    for name, rows in window.rows.items():
        scales: list[Tensor] = []
        yield name, _row_blocks(rows, window.order, dtype, scales)
        if dtype == "int8":
            yield f"{name}.scale", [torch.cat(scales)]
    for name, code in _COLUMNS.items():
        yield name, [getattr(window, name)[window.order].to(_CODES[code])]
    for name, code in _PIECES.items():
        yield f"pieces.{name}", [torch.from_numpy(getattr(window.pieces, name)).to(_CODES[code])]


def _row_blocks(rows: Tensor, order: Tensor, dtype: str, scales: list[Tensor]) -> Iterator[Tensor]:
    """The rows in their order, encoded; a block's memory is used again for the next. The scales of int8 rows go to `scales`."""
    source = rows.contiguous()
    blocks = order.split(max(1, _BLOCK_BYTES // (rows.shape[1] * getattr(torch, dtype).itemsize)))
    gathered = torch.empty(len(blocks[0]), rows.shape[1], dtype=rows.dtype)
    for block in blocks:
        values = gathered[: len(block)]
        if source.device.type == "cpu":
            # numpy gathers by one thread's memcpy; torch would wait for all of its threads at each block
            np.take(_byte_rows(source), block.numpy(), 0, out=_byte_rows(values), mode="clip")
        else:
            values.copy_(source.index_select(0, block.to(source.device)))
        if dtype == "int8":
            values, scale = encode_int8(values)
            scales.append(scale)
        yield values.to(getattr(torch, dtype))


def _layout(window: Window, dtype: str) -> dict[str, Any]:
    """Name -> dtype, shape and offsets as the header gives them, in the order in which `write_shard` writes."""
    n, shapes = len(window.order), {}
    for name, rows in window.rows.items():
        shapes[name] = (_NAMES[getattr(torch, dtype)], [n, rows.shape[1]])
        if dtype == "int8":
            shapes[f"{name}.scale"] = ("F32", [n])
    shapes |= {name: (code, [n]) for name, code in _COLUMNS.items()}
    shapes |= {f"pieces.{name}": (code, list(getattr(window.pieces, name).shape)) for name, code in _PIECES.items()}
    layout, offset = {}, 0
    for name, (code, shape) in shapes.items():
        size = math.prod(shape) * _CODES[code].itemsize
        layout[name] = {"dtype": code, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return layout


def _header(layout: dict[str, Any], hashes: dict[str, str]) -> bytes:
    text = json.dumps({"__metadata__": hashes} | layout).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    """The tensor's memory; nothing is copied when it is contiguous."""
    return tensor.contiguous().view(torch.uint8).numpy().reshape(-1).data


def _byte_rows(tensor: Tensor) -> np.ndarray:
    return tensor.view(torch.uint8).numpy()


def _hash_of(data: Any) -> str:
    # update() lets other threads run while it hashes, in every release of xxhash since 3.0; its one-call functions do not
    digest = xxhash.xxh3_128()
    digest.update(data)
    return _HASH + digest.hexdigest()


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


class ShardFile:
    """Reads a shard. Opening reads the header alone, and checks it against the file's size and, when given, the index's sha256.

    Raises StoreError naming the file when it is absent, cut short, not a shard, or not what was written. Shards of the first
    stores have no hashes in the header and the whole file's sha256 in the index: that is checked before the first tensor is read.
    """

    def __init__(self, path: Path, sha256: str | None = None):
        self.path = path
        self._map = _map_file(path)
        header = _header_bytes(path, self._map)
        self._places, self._hashes = _parse(path, header, len(self._map))
        if self._hashes and sha256 is not None and hashlib.sha256(header).hexdigest() != sha256:
            raise StoreError(_altered(path, "its header"))
        self._whole_sha256 = None if self._hashes else sha256

    def tensor(self, name: str) -> Tensor:
        """One tensor, verified: a view of the file that holds for as long as it is used. What is written to it stays in memory."""
        place = self._places.get(name)
        if place is None:
            raise StoreError(f"Shard {self.path} has no `{name}`; it has {', '.join(self._places)}.")
        self._check_whole()
        values = self._map[place.offset : place.end]
        if self._hashes and self._hashes.get(name) != _hash_of(values.numpy().data):
            raise StoreError(_altered(self.path, f"`{name}`"))
        if place.offset % place.dtype.itemsize:  # behind an odd number of smaller ones
            values = values.clone()
        return values.view(place.dtype).view(place.shape)

    def scale(self, hook_point: str) -> Tensor | None:
        """[n] what the int8 rows of a hook point are to be multiplied with; None when they are no int8."""
        place = self._places.get(hook_point)
        return self.tensor(f"{hook_point}.scale") if place is not None and place.dtype == torch.int8 else None

    def pieces(self) -> PieceTable:
        """The shard's piece table."""
        return PieceTable(*(self.tensor(f"pieces.{field.name}").numpy() for field in fields(PieceTable)))

    def check(self) -> None:
        """Raises StoreError when any byte is not what was written."""
        for name in self._places:
            self.tensor(name)

    def _check_whole(self) -> None:
        if self._whole_sha256 is not None and hashlib.sha256(self._map.numpy().data).hexdigest() != self._whole_sha256:
            raise StoreError(_altered(self.path, "the file"))
        self._whole_sha256 = None


def _map_file(path: Path) -> Tensor:
    """The file's bytes, in private pages: read when touched, copied when written to."""
    try:
        size = path.stat().st_size
        if size < 8:
            raise StoreError(_damaged(path, f"its header does not fit its {size} bytes"))
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except FileNotFoundError:
        raise StoreError(f"Shard {path} is missing. Run the collection again: it makes this shard anew.") from None


def _header_bytes(path: Path, data: Tensor) -> bytes:
    """The header and the 8 bytes of its length."""
    length = int.from_bytes(bytes(data[:8].numpy()), "little")
    if length > min(_MAX_HEADER, len(data) - 8):
        raise StoreError(_damaged(path, f"its header does not fit its {len(data)} bytes"))
    return bytes(data[: 8 + length].numpy())


def _parse(path: Path, data: bytes, size: int) -> tuple[dict[str, _Place], dict[str, str]]:
    """Where each tensor lies, and the hash of each; no hashes in shards of the first stores."""
    try:
        header = json.loads(data[8:])
        hashes = dict(header.pop("__metadata__", {}).items())
        places = {
            name: _Place(
                _CODES[entry["dtype"]], tuple(map(int, entry["shape"])), len(data) + int(entry["data_offsets"][0])
            )
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise StoreError(_damaged(path, "its header cannot be read")) from None
    for name, place in places.items():
        if not len(data) <= place.offset <= place.end <= size:
            raise StoreError(_damaged(path, f"`{name}` would lie in bytes {place.offset} to {place.end} of {size}"))
    return places, hashes


def _altered(path: Path, what: str) -> str:
    return _damaged(path, f"its bytes are not those that were written (hash of {what} differs)")


def _damaged(path: Path, what: str) -> str:
    return (
        f"Shard {path} is damaged: {what}. Delete it and run the collection again, which makes it anew; "
        "or use the rest with activations.skip_damaged = true."
    )
