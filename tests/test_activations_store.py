"""The store: what is written is what the model gave, each token once, held out apart, and damage is named."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from conftest import make_documents, write_texts
from sparsight.activations import ActivationStore, CaptureConfig
from sparsight.activations.int8 import decode_int8, encode_int8
from sparsight.artifact import read_json, write_json
from sparsight.collect import collect_activations
from sparsight.errors import ActivationError, RunError, StoreError, TextError
from sparsight.lm import LanguageModel, TextConfig, is_heldout, iter_pieces, make_batches

HOOK = "layers.2.mlp"


def text_config(path: str, **changes: object) -> TextConfig:
    options = {"files": (path,), "context_tokens": 64, "batch_tokens": 512, "heldout_fraction": 0.2}
    return TextConfig(**options | changes)  # type: ignore[arg-type]


def capture_config(**changes: object) -> CaptureConfig:
    options = {
        "hook_points": (HOOK,),
        "n_tokens": 4998,
        "heldout_tokens": 900,
        "window_tokens": 1000,
        "dtype": "float32",
    }
    return CaptureConfig(**options | changes)  # type: ignore[arg-type]


def all_rows(store: ActivationStore, split: str) -> dict[str, torch.Tensor]:
    """Every row of a split; batches of 3 divide the numbers of training rows used here, so none is dropped."""
    batches = list(store.batches(split, 3))
    columns = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in ("token_ids", "document_ids", "positions", "piece_ids")
    }
    return columns | {"x": torch.cat([batch[HOOK] for batch in batches])}


def test_rows_are_the_models_own_activations(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    text = text_config(text_path)
    store = collect_activations(reader, text, capture_config(), tmp_path)
    rows, pieces = all_rows(store, "heldout"), store.pieces("heldout")
    oracle = {}
    for piece in iter_pieces(text, reader.tokenizer):
        batch = make_batches([piece], batch_tokens=64, pad_id=0, isolation="documents", context_tokens=64, eos_id=0)[0]
        values = reader.read(batch, [HOOK])[HOOK][0]
        oracle |= {(piece.document_id, piece.start + i): values[i] for i in range(len(piece.token_ids))}
    for i in range(0, len(rows["x"]), 7):
        key = int(rows["document_ids"][i]), int(rows["positions"][i])
        torch.testing.assert_close(rows["x"][i], oracle[key], atol=1e-5, rtol=1e-5)
        piece_id = int(rows["piece_ids"][i])
        assert pieces.document_ids[piece_id] == key[0]
        assert pieces.tokens(piece_id)[key[1] - pieces.starts[piece_id]] == rows["token_ids"][i]


def test_no_token_is_doubled_and_held_out_documents_stay_apart(
    tmp_path: Path, reader: LanguageModel, text_path: str
) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    assert (store.n_tokens("train"), store.n_tokens("heldout")) == (4998, 900)
    keys = {}
    for split in ("train", "heldout"):
        rows = all_rows(store, split)
        keys[split] = set(zip(rows["document_ids"].tolist(), rows["positions"].tolist(), strict=True))
        assert len(keys[split]) == store.n_tokens(split)
        assert {is_heldout(document, 0.2) for document, _ in keys[split]} == {split == "heldout"}
    assert not {d for d, _ in keys["train"]} & {d for d, _ in keys["heldout"]}


def test_rows_are_shuffled_on_write(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    documents = all_rows(store, "train")["document_ids"][:1000]
    assert (documents[1:] == documents[:-1]).float().mean() < 0.2  # in reading order it is about 0.98


def test_a_shard_is_a_safetensors_file(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(dtype="bfloat16"), tmp_path)
    before, entry = store.shards("train")[:2]
    with safe_open(tmp_path / entry.file, "pt") as file:
        assert file.get_tensor(HOOK).dtype == torch.bfloat16
        theirs = file.get_tensor(HOOK).float()
    ours = torch.cat([batch[HOOK] for batch in store.batches("train", 3)]).float()
    ours = ours[before.n_rows : before.n_rows + entry.n_rows]
    assert torch.equal(theirs, ours)


def test_int8_rows_are_within_their_stated_error() -> None:
    rows = torch.randn(50, 64) * torch.logspace(-3, 3, 50)[:, None]
    restored = decode_int8(*encode_int8(rows))
    assert ((restored - rows).abs().amax(1) <= rows.abs().amax(1) / 254 * 1.0001).all()
    assert torch.equal(decode_int8(*encode_int8(torch.zeros(2, 4))), torch.zeros(2, 4))


def test_int8_store_reads_back_close(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    exact = all_rows(collect_activations(reader, text_config(text_path), capture_config(), tmp_path / "a"), "heldout")[
        "x"
    ]
    small = all_rows(
        collect_activations(reader, text_config(text_path), capture_config(dtype="int8"), tmp_path / "b"), "heldout"
    )["x"]
    assert ((small - exact).abs().amax(1) <= exact.abs().amax(1) / 254 * 1.001).all()
    twice = ActivationStore.open(tmp_path / "b").batches("train", 3, epochs=2)
    epochs = torch.cat([batch[HOOK] for batch in twice]).split(4998)
    sums = [epoch.double().sum(1).sort().values for epoch in epochs]
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(sums[0], sums[1])  # each row with its own scale in any order


def test_batches_from_the_middle_equal_those_of_a_whole_pass(
    tmp_path: Path, reader: LanguageModel, text_path: str
) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    whole = list(store.batches("train", 300, epochs=3, seed=5))
    assert len(whole) == 49
    for start in (1, 16, 17, 33, 48):
        rest = list(store.batches("train", 300, epochs=3, seed=5, start_batch=start))
        assert len(rest) == 49 - start
        assert all(torch.equal(a[HOOK], b[HOOK]) for a, b in zip(rest, whole[start:], strict=True))


def test_each_epoch_has_every_row_in_another_order(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    epochs = torch.cat([batch[HOOK] for batch in store.batches("train", 3, epochs=2)]).split(4998)
    assert not torch.equal(epochs[0], epochs[1])
    sums = [epoch.double().sum(1).sort().values for epoch in epochs]
    assert torch.equal(sums[0], sums[1])


def test_special_tokens_and_sinks_are_masked_and_counted(tmp_path: Path, reader: LanguageModel) -> None:
    path = write_texts(tmp_path, make_documents(100))
    text = text_config(path, bos="always", heldout_fraction=0.0)
    store = collect_activations(
        reader, text, capture_config(n_tokens=3000, heldout_tokens=0, sink_norm_multiple=1.5), tmp_path / "a"
    )
    counts = store.counts["train"]
    rows = all_rows(store, "train")
    assert counts["special"] > 30
    assert not torch.isin(rows["token_ids"], torch.tensor(sorted(reader.special_ids))).any()
    assert counts["sinks"] > 0
    assert counts["tokens"] == counts["rows"] + counts["special"] + counts["sinks"] + counts["beyond_wanted"]
    norms = rows["x"].norm(dim=1)
    assert norms.max() < 1.7 * norms.median()


def test_parts_of_several_processes_make_one_store(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    text, capture = text_config(text_path), capture_config(n_tokens=5001)
    with pytest.raises(StoreError, match=r"parts of 003"):
        for part in ((0, 3), (1, 3), (2, 3), (0, 2)):
            collect_activations(reader, text, capture, tmp_path, part=part)
    store = ActivationStore.open(tmp_path)
    assert store.n_tokens("train") == 5001
    rows = all_rows(store, "train")
    assert len(set(zip(rows["document_ids"].tolist(), rows["positions"].tolist(), strict=True))) == 5001
    pieces = store.pieces("train")
    offsets = rows["positions"].numpy() - pieces.starts[rows["piece_ids"].numpy()]
    tokens = pieces.token_ids[pieces.offsets[rows["piece_ids"].numpy()] + offsets]
    assert np.array_equal(tokens, rows["token_ids"].numpy())


def test_a_text_that_ends_early_is_an_error_that_keeps_what_there_is(tmp_path: Path, reader: LanguageModel) -> None:
    path = write_texts(tmp_path, make_documents(20))
    with pytest.raises(TextError, match=r"ended after [\d,]+ of the 4,998 train tokens"):
        collect_activations(reader, text_config(path), capture_config(heldout_tokens=0), tmp_path / "a")
    kept = ActivationStore.open(tmp_path / "a").n_tokens("train")
    assert kept > 100
    allowed = capture_config(heldout_tokens=0, allow_short=True)
    assert collect_activations(reader, text_config(path), allowed, tmp_path / "a").n_tokens("train") == kept


def test_a_truncated_shard_is_named_and_the_rest_usable(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    victim = store.shards("train")[2]
    path = tmp_path / victim.file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match=victim.file):
        ActivationStore.open(tmp_path)
    rest = ActivationStore.open(tmp_path, skip_damaged=True)
    assert rest.n_tokens("train") == 4998 - victim.n_rows
    assert victim.file in rest.damaged[0]
    assert sum(len(batch) for batch in rest.batches("train", 100)) // 100 == rest.n_tokens("train") // 100


def test_an_altered_shard_is_found_when_it_is_read(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    path = tmp_path / store.shards("train")[1].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    altered = ActivationStore.open(tmp_path)
    with pytest.raises(StoreError, match=r"train-00001.* \(hash of `layers\.2\.mlp` differs"):
        list(altered.batches("train", 100))
    rest = ActivationStore.open(tmp_path, skip_damaged=True)
    assert [what for what in rest.damaged if "train-00001" in what] == rest.damaged != []
    assert rest.n_tokens("train") == 4998 - store.shards("train")[1].n_rows


def test_damage_to_what_stands_beside_the_rows_is_found(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    path = tmp_path / store.shards("train")[1].file
    good = path.read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")
    for name, place in json.loads(good[8:end]).items():
        if name == "__metadata__":
            continue
        data = bytearray(good)
        data[end + place["data_offsets"][1] - 1] ^= 1
        path.write_bytes(data)
        altered = ActivationStore.open(tmp_path)
        with pytest.raises(StoreError, match=f"hash of `{re.escape(name)}` differs"):
            altered.pieces("train") if name.startswith("pieces.") else list(altered.batches("train", 100))


def test_a_damaged_header_is_found_when_the_store_is_opened(
    tmp_path: Path, reader: LanguageModel, text_path: str
) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    path = tmp_path / store.shards("train")[1].file
    data = bytearray(path.read_bytes())
    data[data.index(b"xxh3_128:") + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="hash of its header differs"):
        ActivationStore.open(tmp_path)


def test_damage_after_the_first_epoch_is_found_as_well(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    assert len(list(store.batches("train", 100))) == 49
    path = tmp_path / store.shards("train")[1].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="hash of"):
        list(store.batches("train", 100))


def make_it_a_first_store(path: Path) -> None:
    """As stores were at first: no hashes in a shard's header, and the whole file's sha256 in the index."""
    for index in path.glob("part-*/index.json"):
        content = read_json(index)
        for entry in content["shards"]:
            shard = path / entry["file"]
            data = shard.read_bytes()
            end = 8 + int.from_bytes(data[:8], "little")
            header = json.loads(data[8:end])
            del header["__metadata__"]
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            data = len(text).to_bytes(8, "little") + text + data[end:]
            shard.write_bytes(data)
            entry |= {"n_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        write_json(index, content)


def test_a_first_store_is_read_verified_and_gone_on_with(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    new = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    wanted, wanted_pieces = all_rows(new, "train"), new.pieces("train")
    make_it_a_first_store(tmp_path)
    old = ActivationStore.open(tmp_path)
    assert all(torch.equal(values, wanted[name]) for name, values in all_rows(old, "train").items())
    assert np.array_equal(old.pieces("train").token_ids, wanted_pieces.token_ids)
    (tmp_path / old.shards("train")[2].file).unlink()
    mixed = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    assert all(torch.equal(values, wanted[name]) for name, values in all_rows(mixed, "train").items())
    path = tmp_path / old.shards("train")[1].file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="hash of the file differs"):
        list(ActivationStore.open(tmp_path).batches("train", 100))
    assert len(ActivationStore.open(tmp_path, skip_damaged=True).damaged) == 1


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, (10**6).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"[]", b"abc"]
)
def test_a_file_that_is_no_shard_is_refused(
    tmp_path: Path, header: bytes, reader: LanguageModel, text_path: str
) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    (tmp_path / store.shards("train")[0].file).write_bytes(header)
    with pytest.raises(StoreError, match="train-00000"):
        ActivationStore.open(tmp_path)


def test_a_deleted_shard_is_made_anew_with_the_same_bytes(
    tmp_path: Path, reader: LanguageModel, text_path: str
) -> None:
    store = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    before = {entry.file: entry.sha256 for entry in store.entries}
    for number in (0, 2, 4):
        (tmp_path / store.shards("train")[number].file).unlink()
    with pytest.raises(StoreError, match="missing"):
        ActivationStore.open(tmp_path)
    again = collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    assert {entry.file: entry.sha256 for entry in again.entries} == before


def test_a_store_of_something_else_is_refused(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    collect_activations(reader, text_config(text_path), capture_config(), tmp_path)
    with pytest.raises(StoreError, match=r"seed = 0; this run asks for 1"):
        collect_activations(reader, text_config(text_path), capture_config(), tmp_path, seed=1)
    with pytest.raises(StoreError, match=r"no hook point layers.9; it has layers.2.mlp"):
        ActivationStore.open(tmp_path).width("layers.9")


def test_nan_names_hook_point_and_document(
    tmp_path: Path, reader: LanguageModel, text_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LanguageModel.read

    def poisoned(self: LanguageModel, batch: object, hook_points: object) -> dict:
        values = real(self, batch, hook_points)  # type: ignore[arg-type]
        values[HOOK] = values[HOOK].clone()
        values[HOOK][0, 3, 5] = float("nan")
        return values

    monkeypatch.setattr(LanguageModel, "read", poisoned)
    with pytest.raises(ActivationError, match=r"layers.2.mlp hold NaN in document \d+, token 3"):
        collect_activations(reader, text_config(text_path), capture_config(), tmp_path)


def test_disk_full_in_mid_shard_loses_nothing(
    tmp_path: Path, reader: LanguageModel, text_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from sparsight.activations import shard

    written = 0

    def full(self: object, data: memoryview) -> None:
        nonlocal written
        written += len(data)
        if written > 300_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    real = shard._HashingWriter.write
    monkeypatch.setattr(shard._HashingWriter, "write", full)
    with pytest.raises(RunError, match="disk is full"):
        collect_activations(reader, text_config(text_path), capture_config(), tmp_path / "a")
    assert not list((tmp_path / "a").rglob("*.tmp"))
    assert len(ActivationStore.open(tmp_path / "a").entries) > 0
    monkeypatch.setattr(shard._HashingWriter, "write", real)
    after = collect_activations(reader, text_config(text_path), capture_config(), tmp_path / "a")
    whole = collect_activations(reader, text_config(text_path), capture_config(), tmp_path / "b")
    assert [entry.sha256 for entry in after.entries] == [entry.sha256 for entry in whole.entries]
