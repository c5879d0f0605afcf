"""A shard: the rows in their order, as any reader of the format sees them, and no byte that may change unnoticed."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors import safe_open

from sparsight.activations.batch import PieceTable
from sparsight.activations.capture import Window
from sparsight.activations.int8 import encode_int8
from sparsight.activations.shard import ShardFile, write_shard
from sparsight.errors import RunError, StoreError
from sparsight.lm import TextCursor


def make_window(
    n: int, d: int, *, hook_points: tuple[str, ...] = ("a", "b"), dtype: torch.dtype = torch.bfloat16
) -> Window:
    """Random rows, a third of them left out."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1000, (n,), generator=generator)
    table = PieceTable(
        np.arange(n, dtype=np.int32), np.array([0, n]), np.array([7]), np.array([3], np.int32), np.array([5])
    )
    return Window(
        split="train",
        number=0,
        rows={name: torch.randn(n, d, generator=generator).to(dtype) for name in hook_points},
        token_ids=ids.int(),
        document_ids=ids * 3,
        positions=torch.arange(n).int(),
        piece_ids=torch.zeros(n, dtype=torch.int64),
        order=torch.randperm(n, generator=generator)[: max(1, n * 2 // 3)],
        pieces=table,
        start=TextCursor(0, 0),
        end=TextCursor(1, 0),
        counts={},
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_shard_of_many_blocks_holds_the_rows_in_their_order(tmp_path: Path, dtype: str) -> None:
    window = make_window(9001, 129, dtype=torch.float32)
    path = tmp_path / "s.safetensors"
    sha256, n_bytes = write_shard(path, window, dtype)
    assert path.stat().st_size == n_bytes
    file = ShardFile(path, sha256)
    for name, rows in window.rows.items():
        wanted = rows[window.order]
        if dtype == "int8":
            wanted, scale = encode_int8(wanted)
            found = file.scale(name)
            assert found is not None
            assert torch.equal(found, scale)
        else:
            wanted = wanted.to(getattr(torch, dtype))
            assert file.scale(name) is None
        assert torch.equal(file.tensor(name), wanted)
        with safe_open(path, "pt") as theirs:
            assert torch.equal(theirs.get_tensor(name), wanted)
    for name in ("token_ids", "document_ids", "positions", "piece_ids"):
        assert torch.equal(file.tensor(name).long(), getattr(window, name)[window.order].long())
    assert np.array_equal(file.pieces().token_ids, window.pieces.token_ids)


def test_the_header_holds_each_tensors_hash_and_the_index_the_headers(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    sha256, _ = write_shard(path, make_window(5, 3), "bfloat16")
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    assert hashlib.sha256(data[:end]).hexdigest() == sha256
    header = json.loads(data[8:end])
    hashes = header.pop("__metadata__")
    assert hashes.keys() == header.keys()
    for name, place in header.items():
        start, stop = place["data_offsets"]
        assert hashes[name] == "xxh3_128:" + xxhash.xxh3_128(data[end + start : end + stop]).hexdigest()
    with safe_open(path, "pt") as theirs:
        assert theirs.metadata() == hashes


def test_a_change_of_any_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    sha256, _ = write_shard(path, make_window(5, 3), "bfloat16")
    data = path.read_bytes()
    ShardFile(path, sha256).check()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(StoreError, match=r"s\.safetensors is damaged: .*Delete it and run the collection again"):
            ShardFile(path, sha256).check()


def test_only_what_is_read_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    sha256, _ = write_shard(path, make_window(64, 8), "bfloat16")
    data = bytearray(path.read_bytes())
    data[8 + int.from_bytes(data[:8], "little") + 64 * 2 // 3 * 8 * 2] ^= 1  # the first byte of `b`
    path.write_bytes(data)
    file = ShardFile(path, sha256)
    file.tensor("a")
    with pytest.raises(StoreError, match="hash of `b` differs"):
        file.tensor("b")
    with pytest.raises(StoreError, match="hash of `b` differs"):
        file.check()


def test_what_is_written_to_rows_that_were_read_does_not_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    sha256, _ = write_shard(path, make_window(64, 8), "bfloat16")
    before = path.read_bytes()
    ShardFile(path, sha256).tensor("a").zero_()
    assert path.read_bytes() == before
    assert ShardFile(path, sha256).tensor("a").any()


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_disk_that_fails_in_the_thread_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    window, path = make_window(5, 3, hook_points=("a",)), tmp_path / "s.safetensors"
    _, n_bytes = write_shard(path, window, "bfloat16")
    path.unlink()
    failed = []
    real = os.fsync

    def fails_once(handle: int) -> None:
        if not failed:
            failed.append(handle)
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("sparsight.activations.shard._FLUSH_BYTES", 1 if which == "first" else n_bytes)
    monkeypatch.setattr(os, "fsync", fails_once)
    with pytest.raises(RunError, match="disk is full"):
        write_shard(path, window, "bfloat16")
    assert failed
    assert not list(tmp_path.iterdir())


def test_int8_rows_without_their_scale_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_shard(path, make_window(5, 3), "int8")
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"a.scale": {', b'"other_x": {'))
    with pytest.raises(StoreError, match=r"has no `a\.scale`"):
        ShardFile(path).scale("a")


@pytest.mark.parametrize("offset", [-8, 1, 10**15])
def test_a_tensor_outside_the_file_is_refused(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "s.safetensors"
    header = {"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [offset, offset + 32]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    with pytest.raises(StoreError, match="`a` would lie in bytes"):
        ShardFile(path)
