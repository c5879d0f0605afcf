"""Text: documents, pieces with exact resume, and batches."""

import json
import threading
import time
from collections import Counter
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparsight.errors import TextError
from sparsight.lm import (
    Piece,
    TextConfig,
    TextCounts,
    TextCursor,
    document_id,
    is_heldout,
    iter_documents,
    iter_pieces,
    make_batches,
    text_fingerprint,
)
from sparsight.lm import documents as documents_module
from sparsight.lm import tokens as tokens_module
from test_lm_load import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # one token a byte


def texts(n: int = 200) -> list[str]:
    """Of all lengths from 0 to 59 characters, every seventh the same as one before."""
    made = []
    for number in range(n):
        made.append(made[number // 2] if number % 7 == 6 else (f"{number:04d} " * 12)[: number % 60])
    return made


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    return TextConfig(files=(str(path),), context_tokens=16, min_document_tokens=8)


def same(left: Piece, right: Piece) -> bool:
    fields = ("document_id", "row", "piece", "start", "heldout")
    return all(getattr(left, f) == getattr(right, f) for f in fields) and np.array_equal(
        left.token_ids, right.token_ids
    )


def all_same(left: list[Piece], right: list[Piece]) -> bool:
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


# Documents


def test_document_id_is_the_first_63_bits_of_the_texts_sha256():
    # sha256("abc") begins ba7816bf 8f01cfea
    assert document_id("abc") == 0xBA7816BF8F01CFEA >> 1
    assert 0 <= document_id("\ud800") < 2**63


def test_held_out_share_is_as_asked_and_only_grows_with_the_fraction():
    ids = [document_id(str(number)) for number in range(4000)]
    small = {id for id in ids if is_heldout(id, 0.05)}
    large = {id for id in ids if is_heldout(id, 0.2)}
    assert small < large
    assert 0.03 < len(small) / len(ids) < 0.07
    assert not any(is_heldout(id, 0.0) for id in ids)


def test_held_out_documents_fall_evenly_to_all_ranks_and_along_the_hash_order():
    ids = sorted(document_id(str(number)) for number in range(4000))
    heldout = [is_heldout(id, 0.25) for id in ids]
    assert 0.2 < sum(heldout[:1000]) / 1000 < 0.3
    by_rank = Counter((id >> 32) % 4 for id, held in zip(ids, heldout, strict=True) if held)
    assert min(by_rank.values()) > 180


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "txt"])
@pytest.mark.parametrize("start_row", [0, 1, 4, 5, 9, 10, 50])
def test_documents_of_every_format_are_numbered_and_resume_at_a_row(ending, start_row, tmp_path):
    expected = [f"text {number} é\nline two" for number in range(10)]
    for part, chunk in enumerate((expected[:5], expected[5:])):
        if ending == "jsonl":
            lines = [json.dumps({"text": text}, ensure_ascii=False) for text in chunk]
            (tmp_path / f"{part}.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
        elif ending == "parquet":
            pq.write_table(
                pa.table({"n": range(len(chunk)), "text": chunk}), tmp_path / f"{part}.parquet", row_group_size=2
            )
        else:
            for number, text in enumerate(chunk):
                (tmp_path / f"{part}{number}.txt").write_text(text, encoding="utf-8")
    config = TextConfig(files=(str(tmp_path / f"*.{ending}"),))
    documents = list(iter_documents(config, start_row=start_row))
    assert [document.text for document in documents] == expected[start_row:]
    assert [document.row for document in documents] == list(range(start_row, 10))
    assert all(document.id == document_id(document.text) for document in documents)


def test_parquet_rows_before_the_start_are_skipped_within_a_row_group(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(number) for number in range(5000)]}), path)
    config = TextConfig(files=(str(path),))
    assert [document.text for document in iter_documents(config, start_row=4990)] == [str(n) for n in range(4990, 5000)]


def test_unknown_column_lists_the_columns_there_are(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x", "url": "y"}\n')
    pq.write_table(pa.table({"body": ["x"], "url": ["y"]}), tmp_path / "a.parquet")
    for ending in ("jsonl", "parquet"):
        with pytest.raises(TextError, match=r"no column 'text'\. Its columns are body, url"):
            next(iter_documents(TextConfig(files=(str(tmp_path / f"a.{ending}"),))))
    with pytest.raises(TextError, match="body, url"):
        next(iter_documents(TextConfig(dataset=str(tmp_path))))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "holds no documents"),
        ("a.jsonl", b"\n\n", "holds no documents"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'["x"]', r"a\.jsonl:1 is a JSON list"),
        ("a.jsonl", b'{"text": 5}', r"holds a int\. Expected text"),
        ("a.jsonl", b'{"text": "\xff\xfe"}', "is not UTF-8"),
        ("a.txt", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.parquet", b"PAR1 and then nonsense", "not a readable parquet"),
        ("a.csv", b"text\nx", "unknown ending"),
    ],
)
def test_unusable_file_is_an_error_that_says_where(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        list(iter_documents(TextConfig(files=(str(tmp_path / name),))))


def test_a_lone_surrogate_in_scraped_json_is_no_obstacle(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "broken \\ud83d emoji"}\n{"text": "broken ? emoji"}\n')
    first, second = iter_pieces(TextConfig(files=(str(path),), min_document_tokens=1), TOKENIZER)
    assert first.token_ids.tolist() == second.token_ids.tolist()


def test_missing_file_and_empty_glob_are_errors(tmp_path):
    for pattern in ("absent.txt", "*.jsonl"):
        with pytest.raises(TextError, match="No file matches"):
            list(iter_documents(TextConfig(files=(str(tmp_path / pattern),))))


def test_null_text_is_an_empty_document(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    documents = list(iter_documents(TextConfig(files=(str(tmp_path / "a.parquet"),))))
    assert [document.text for document in documents] == ["a", "", "b"]


def test_dataset_is_streamed_and_resumes_at_a_row(tmp_path):
    for part in range(2):
        rows = [f"row {number}" for number in range(part * 5, part * 5 + 5)]
        pq.write_table(pa.table({"body": rows}), tmp_path / f"train-{part}.parquet")
    config = TextConfig(dataset=str(tmp_path), column="body")
    for start_row in (0, 3, 7):
        documents = list(iter_documents(config, start_row=start_row))
        assert [(document.row, document.text) for document in documents] == [
            (n, f"row {n}") for n in range(start_row, 10)
        ]


def test_dataset_that_cannot_be_reached_is_an_error_at_once(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(TextError, match=r"nobody/nothing.*cannot be read.*text\.files") as caught:
        next(iter_documents(TextConfig(dataset="nobody/nothing")))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_unknown_split_is_an_error(tmp_path):
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(TextError, match="split nowhere"):
        next(iter_documents(TextConfig(dataset=str(tmp_path), split="nowhere")))


def test_fingerprint_changes_with_the_files(config, tmp_path):
    before = text_fingerprint(config)
    assert before == text_fingerprint(config)
    (tmp_path / "text.jsonl").write_text('{"text": "other"}')
    assert text_fingerprint(config) != before
    assert text_fingerprint(TextConfig(builtin="probe-text"))["requirement"] == "sae-probes==0.4.2"


# Pieces


def test_pieces_concatenate_to_the_documents_tokens(config):
    pieces = list(iter_pieces(config, TOKENIZER))
    by_row: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_row.setdefault(piece.row, []).append(piece)
    for row, parts in by_row.items():
        assert [part.piece for part in parts] == list(range(len(parts)))
        assert [part.start for part in parts] == [16 * number for number in range(len(parts))]
        assert TOKENIZER.decode(np.concatenate([part.token_ids for part in parts])) == texts()[row]
        assert all(part.token_ids.dtype == np.int32 and len(part.token_ids) <= 16 for part in parts)
        assert {part.heldout for part in parts} == {is_heldout(parts[0].document_id, 0.05)}
    assert max(len(parts) for parts in by_row.values()) == 4


def test_duplicates_and_short_documents_are_dropped_and_counted(config):
    counts = TextCounts()
    pieces = list(iter_pieces(config, TOKENIZER, counts=counts))
    made = texts()
    first = {text: row for row, text in reversed(list(enumerate(made)))}
    kept = [row for row, text in enumerate(made) if first[text] == row and len(text) >= 8]
    assert sorted({piece.row for piece in pieces}) == kept
    assert counts.documents == len(kept)
    assert counts.duplicates == len(made) - len(first)
    assert counts.too_short == sum(len(text) < 8 for text in first)
    assert counts.pieces == len(pieces)
    assert counts.tokens == sum(len(piece.token_ids) for piece in pieces)
    assert counts.heldout_documents == len({piece.row for piece in pieces if piece.heldout})


def test_pieces_resume_exactly_from_every_cursor(config):
    seen: dict[int, int] = {}
    counts = TextCounts()
    pieces, states = [], []
    for piece in iter_pieces(config, TOKENIZER, seen=seen, counts=counts):
        pieces.append(piece)
        states.append((dict(seen), vars(counts).copy()))
    assert any(piece.piece for piece in pieces)
    total = vars(counts)
    for index in range(0, len(pieces), 9):
        piece = pieces[index]
        resumed = list(
            iter_pieces(config, TOKENIZER, start=TextCursor(piece.row, piece.piece), seen=dict(states[index][0]))
        )
        assert all_same(resumed, pieces[index:])
        then = TextCounts(**states[index][1])
        after = list(iter_pieces(config, TOKENIZER, start=piece.after, seen=dict(states[index][0]), counts=then))
        assert all_same(after, pieces[index + 1 :])
        assert vars(then) == total


def test_a_later_seen_map_gives_the_same_pieces(config):
    seen: dict[int, int] = {}
    pieces = list(iter_pieces(config, TOKENIZER, seen=seen))
    assert all_same(list(iter_pieces(config, TOKENIZER, seen=seen)), pieces)


@pytest.mark.parametrize("world", [2, 3])
def test_parts_are_disjoint_and_together_the_whole(config, world):
    whole = list(iter_pieces(config, TOKENIZER))
    parts = [list(iter_pieces(config, TOKENIZER, part=(rank, world))) for rank in range(world)]
    assert all(parts)
    assert all_same(sorted(chain(*parts), key=lambda piece: (piece.row, piece.piece)), whole)


def test_split_does_not_depend_on_the_order_of_the_documents(config, tmp_path):
    path = tmp_path / "reversed.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in reversed(texts())))
    other = TextConfig(files=(str(path),), context_tokens=16)

    def held(which: TextConfig) -> set[int]:
        return {piece.document_id for piece in iter_pieces(which, TOKENIZER) if piece.heldout}

    assert held(config) == held(other) != set()


def test_part_outside_the_world_is_an_error(config):
    with pytest.raises(TextError, match=r"part is \(2, 2\)"):
        iter_pieces(config, TOKENIZER, part=(2, 2))


def adding_bos():
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", 1)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("policy", "plain", "adding"), [("auto", False, True), ("always", True, True), ("never", False, False)]
)
def test_bos_stands_once_before_each_document_as_the_policy_says(policy, plain, adding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abcdefghijklmnopqrstuvwxyz")
    config = TextConfig(files=(str(path),), bos=policy, context_tokens=10)
    for tokenizer, expected in [(TOKENIZER, plain), (adding_bos(), adding)]:
        ids = np.concatenate([piece.token_ids for piece in iter_pieces(config, tokenizer)]).tolist()
        assert ids.count(1) == expected
        assert (ids[0] == 1) == expected
        assert len(ids) == 26 + expected


def test_bos_always_needs_a_token(config):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(TextError, match="no beginning-of-sequence token"):
        iter_pieces(TextConfig(files=config.files, bos="always"), tokenizer)


def test_chat_template_wraps_each_document_as_a_user_message(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello there")
    config = TextConfig(files=(str(path),), chat_template=True)
    with pytest.raises(TextError, match="tokenizer has none"):
        iter_pieces(config, TOKENIZER)
    tokenizer = adding_bos()
    tokenizer.chat_template = "{% for m in messages %}<s>[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    [piece] = iter_pieces(config, tokenizer)
    assert tokenizer.decode(piece.token_ids) == "<s>[user] hello there</s>"
    assert piece.token_ids[:2].tolist().count(1) == 1
    assert piece.document_id == document_id("hello there")


def token_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sparsight-tokens"]


def test_thread_ends_when_the_iterator_is_closed_or_done(config, monkeypatch):
    monkeypatch.setattr(tokens_module, "_AHEAD_DOCUMENTS", 4)  # so that the queue is full when it is closed
    pieces = iter_pieces(config, TOKENIZER)
    list(islice(pieces, 5))
    assert token_threads()
    pieces.close()
    assert not token_threads()
    list(iter_pieces(config, TOKENIZER))
    assert not token_threads()


def test_error_in_the_thread_reaches_the_consumer_after_the_pieces_before_it(config, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "_AHEAD_DOCUMENTS", 4)
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write("not json\n")
    pieces = iter_pieces(config, TOKENIZER)
    drawn = []
    with pytest.raises(TextError, match=r"text\.jsonl:201 is not JSON"):
        drawn.extend(pieces)
    assert not token_threads()
    pieces = iter_pieces(config, TOKENIZER)
    assert sum(1 for _ in islice(pieces, 100)) == 100
    pieces.close()


def test_order_does_not_depend_on_how_far_the_thread_reads_ahead(config, monkeypatch):
    pieces = list(iter_pieces(config, TOKENIZER))
    monkeypatch.setattr(tokens_module, "_AHEAD_CHARACTERS", 10)
    assert all_same(list(iter_pieces(config, TOKENIZER)), pieces)


# Batches


def make_pieces(lengths: list[int]) -> list[Piece]:
    return [
        Piece(100 + index, index, 0, 7 * index, np.arange(3, 3 + length, dtype=np.int32) + index, False)
        for index, length in enumerate(lengths)
    ]


def batched(pieces: list[Piece], isolation: str = "documents", batch_tokens: int = 64, context_tokens: int = 16):
    options = {"pad_id": 0, "eos_id": 2, "isolation": isolation, "context_tokens": context_tokens}
    return make_batches(pieces, batch_tokens=batch_tokens, **options)


@pytest.mark.parametrize("isolation", ["documents", "packed"])
def test_every_token_is_in_the_batches_once_with_its_document_and_position(isolation):
    pieces = make_pieces([5, 16, 1, 9, 16, 3, 12, 8, 8, 2])
    batches = batched(pieces, isolation)
    found: dict[int, list[tuple[int, int, int]]] = {}
    for batch in batches:
        for row, column in batch.mask.nonzero().tolist():
            index = int(batch.piece_ids[row, column])
            token = int(batch.input_ids[row, column])
            if index >= 0:
                where = (int(batch.document_ids[row, column]), int(batch.positions[row, column]))
                found.setdefault(index, []).append((*where, token))
    for index, piece in enumerate(pieces):
        expected = [(piece.document_id, piece.start + i, int(token)) for i, token in enumerate(piece.token_ids)]
        assert found[index] == expected
    assert len(found) == len(pieces)


def test_rows_are_padded_on_the_right_within_the_budget():
    generator = np.random.default_rng(0)
    pieces = make_pieces(generator.integers(1, 17, 200).tolist())
    batches = batched(pieces)
    for batch in batches:
        assert batch.input_ids.numel() <= 64
        assert batch.input_ids.shape[1] % 8 == 0
        assert (batch.mask.int().diff(dim=1) <= 0).all()
        assert (batch.input_ids[~batch.mask] == 0).all()
        assert (batch.document_ids[~batch.mask] == -1).all()
        assert (batch.piece_ids[~batch.mask] == -1).all()
        assert (batch.input_ids.dtype, batch.mask.dtype) == (torch.int64, torch.bool)
        assert (batch.document_ids.dtype, batch.positions.dtype) == (torch.int64, torch.int32)
        assert batch.piece_ids.dtype == torch.int32
    assert all(len({int(i) for i in row[row >= 0]}) == 1 for batch in batches for row in batch.piece_ids)


def test_padding_is_a_few_percent_for_documents_of_all_lengths():
    generator = np.random.default_rng(0)
    pieces = make_pieces(generator.integers(8, 257, 2000).tolist())
    batches = batched(pieces, batch_tokens=4096, context_tokens=256)
    real = sum(int(batch.mask.sum()) for batch in batches)
    assert 1 - real / sum(batch.mask.numel() for batch in batches) < 0.05


def test_row_longer_than_the_budget_is_a_batch_of_its_own():
    batches = batched(make_pieces([100, 3]), batch_tokens=64)
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(1, 104), (1, 8)]


def test_batches_are_deterministic_and_stable():
    pieces = make_pieces([8] * 20)
    first, second = batched(pieces), batched(pieces)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first, second, strict=True))
    assert torch.cat([batch.piece_ids[:, 0] for batch in first]).tolist() == list(range(20))


def test_packed_rows_are_full_with_eos_only_between_documents():
    pieces = make_pieces([5, 16, 9])
    pieces.append(Piece(102, 2, 1, 100, np.arange(50, 60, dtype=np.int32), False))  # goes on in the document before
    batches = batched(pieces, "packed", batch_tokens=32)
    stream = torch.cat([batch.input_ids.flatten() for batch in batches])
    mask = torch.cat([batch.mask.flatten() for batch in batches])
    tokens = [piece.token_ids.tolist() for piece in pieces]
    expected = tokens[0] + [2] + tokens[1] + [2] + tokens[2] + tokens[3]
    assert stream[mask].tolist() == expected
    assert mask.int().diff().min() == -1 or mask.all()
    ids = torch.cat([batch.document_ids.flatten() for batch in batches])
    assert (ids[mask] == -1).sum() == 2
    assert all(batch.input_ids.shape[1] == 16 and batch.input_ids.numel() <= 32 for batch in batches)


def test_no_pieces_make_no_batches():
    assert batched([]) == batched([], "packed") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"builtin": "probe-text", "dataset": "x"},
        {"builtin": ""},
        {"bos": "maybe"},
        {"isolation": "none"},
        {"context_tokens": 0},
        {"batch_tokens": 0},
        {"heldout_fraction": 1.0},
    ],
)
def test_impossible_text_config_is_refused(wrong):
    with pytest.raises(TextError, match=r"Give|Expected"):
        TextConfig(**({"builtin": "probe-text"} | wrong))


def test_unknown_builtin_text_is_an_error():
    with pytest.raises(TextError, match="Expected probe-text"):
        next(iter_documents(TextConfig(builtin="pile")))
    assert documents_module.BUILTIN_TEXTS.keys() == {"probe-text"}
