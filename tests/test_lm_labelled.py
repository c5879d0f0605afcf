"""Labelled sets: each prompt once, the end kept, the selection by name, and others' files as text."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sparsight.errors import TextError
from sparsight.lm import (
    LabelledSet,
    LanguageModel,
    TextConfig,
    builtin_sets,
    folder_sets,
    sample_prompts,
    sets_fingerprint,
)
from sparsight.lm import builtin as builtin_module
from sparsight.lm import labelled as labelled_module
from sparsight.lm.labelled import LabelledPrompts

TEXT = TextConfig(files=("none.txt",), bos="never")


def write_set(path: Path, rows: list[tuple[str, str]], header: tuple[str, ...] = ("prompt", "target")) -> LabelledSet:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return LabelledSet(name=path.stem, family=path.stem, path=path)


def sample(each: LabelledSet, reader: LanguageModel, text: TextConfig = TEXT, **options: int) -> LabelledPrompts:
    return sample_prompts(each, reader.tokenizer, text, **{"max_prompts": 100, "max_tokens": 16, "seed": 0} | options)


def test_each_prompt_counts_once_and_one_with_both_labels_not_at_all(tmp_path, reader) -> None:
    rows = [("a cat", "no"), ("a cat", "no"), ("a dog", "yes"), ("a tree", "no"), ("a tree", "yes"), ("", "yes")]
    prompts = sample(write_set(tmp_path / "x.csv", rows), reader)
    texts = [reader.tokenizer.decode(piece.token_ids) for piece in prompts.pieces]
    assert dict(zip(texts, prompts.labels.tolist(), strict=True)) == {"a cat": 0, "a dog": 1}
    assert prompts.classes == ("no", "yes")
    assert prompts.counts == {"rows": 6, "duplicates": 1, "conflicting": 2, "empty": 1, "beyond_cap": 0}


def test_the_end_of_a_prompt_is_kept_with_its_bos_and_equal_ends_are_one_prompt(tmp_path, reader) -> None:
    long = "red green " * 100
    each = write_set(
        tmp_path / "x.csv", [(long + "the old house", "1"), ("blue " + long + "the old house", "1"), ("dog", "0")]
    )
    prompts = sample(each, reader, max_tokens=8)
    assert prompts.counts["duplicates"] == 1
    kept = max((piece.token_ids for piece in prompts.pieces), key=len)
    assert len(kept) == 8
    assert reader.tokenizer.decode(kept).endswith("the old house")
    with_bos = sample(each, reader, TextConfig(files=("none.txt",), bos="always"), max_tokens=8)
    kept = max((piece.token_ids for piece in with_bos.pieces), key=len)
    assert kept[0] == reader.tokenizer.bos_token_id
    assert len(kept) == 8
    assert reader.tokenizer.decode(kept).endswith("the old house")


def test_the_cap_takes_as_many_of_each_class_by_seed(tmp_path, reader) -> None:
    each = write_set(tmp_path / "x.csv", [(f"{i} cat", str(i % 4 // 3)) for i in range(200)])
    prompts = sample(each, reader, max_prompts=40)
    assert prompts.labels.tolist().count(1) == prompts.labels.tolist().count(0) == 20
    assert prompts.counts["beyond_cap"] == 160

    def texts(found: LabelledPrompts) -> list[bytes]:
        return [piece.token_ids.tobytes() for piece in found.pieces]

    assert texts(prompts) == texts(sample(each, reader, max_prompts=40))
    assert texts(prompts) != texts(sample(each, reader, max_prompts=40, seed=1))


def test_a_set_with_one_class_or_no_row_comes_back_as_such(tmp_path, reader) -> None:
    one = sample(write_set(tmp_path / "x.csv", [("a", "1"), ("b", "1")]), reader)
    assert one.classes == ("1",)
    none = sample(write_set(tmp_path / "y.csv", []), reader)
    assert none.classes == ()
    assert len(none.labels) == 0


HOSTILE = {
    "no utf-8": (b"prompt,target\n\xff\xfe,1\n", "not UTF-8"),
    "no column": (b"text,target\na,1\n", "lacks the column 'prompt'; it has 'text', 'target'"),
    "nothing": (b"", "no header"),
    "short record": (b"prompt,target\na,1\nb\n", "record 3 has fewer fields"),
    "three targets": (b"prompt,target\na,1\nb,2\nc,3\n", "has 3 targets"),
    "open quote": (b'prompt,target\n"a,1\nb,0\n', "fewer fields"),
    "a binary": (bytes(range(256)) * 50, "(not UTF-8|CSV|column)"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_set_is_one_line(name: str, tmp_path, reader) -> None:
    content, words = HOSTILE[name]
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(TextError, match=words) as caught:
        sample(LabelledSet(name="x", family="x", path=tmp_path / "x.csv"), reader)
    assert "\n" not in str(caught.value)
    assert "x.csv" in str(caught.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, reader, monkeypatch) -> None:
    monkeypatch.setattr(labelled_module, "_LARGEST_FILE_BYTES", 20)
    with pytest.raises(TextError, match=r"Expected at most 20"):
        sample(write_set(tmp_path / "x.csv", [("a long prompt", "1")]), reader)


def test_control_characters_and_formulas_are_text(tmp_path, reader) -> None:
    rows = [("\x1b[31mred\x00", "=1+1"), ("{__import__('os')}", "\x1b[0m")]
    prompts = sample(write_set(tmp_path / "x.csv", rows), reader, max_tokens=64)
    assert prompts.classes == ("\x1b[0m", "=1+1")
    assert len(prompts.pieces) == 2
    write_set(tmp_path / "\x1b[31mname.csv", rows)
    assert all(each.name.isprintable() for each in folder_sets(tmp_path))


def test_a_folder_lists_its_files_by_name_and_an_empty_one_is_refused(tmp_path) -> None:
    for name in ("b", "a"):
        write_set(tmp_path / f"{name}.csv", [("x", "1")])
    (tmp_path / "notes.txt").write_text("no set")
    sets = folder_sets(tmp_path)
    assert [each.name for each in sets] == ["a", "b"]
    before = sets_fingerprint(sets, builtin=False)
    write_set(tmp_path / "a.csv", [("y", "1")])
    assert sets_fingerprint(sets, builtin=False) != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(TextError, match=r"no \.csv file"):
        folder_sets(tmp_path / "empty")


@pytest.mark.skipif(not importlib.util.find_spec("zstandard"), reason="zstandard is not installed")
def test_the_builtin_selection_is_the_first_of_each_family_in_the_catalogues_order(
    tmp_path, monkeypatch, reader
) -> None:
    from test_lm_builtin import packed_csv, put_wheel

    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin_module.subprocess, "run", lambda *a, **k: pytest.fail("downloads in a test"))
    names = ["87_glue_cola", "65_high-school", "66_living-room", "9_glue_mnli", "60_wikidata_x", "57_wikidatais_alive"]
    catalogue = "Dataset save name,Data type\n" + "".join(
        f"cleaned_data/{name}.csv,Binary Classification\n" for name in names
    )
    catalogue += "cleaned_data/1_years.csv,Continuous Data\n,\n"
    import zstandard

    members = {f"toy/data/{name}.csv.zst": packed_csv(["a cat", "a dog"]) for name in [*names, "1_years"]}
    members["toy/catalogue.csv.zst"] = zstandard.ZstdCompressor().compress(catalogue.encode())
    put_wheel(tmp_path, monkeypatch, members)
    text = builtin_module.BUILTIN_TEXTS["probe-text"]
    monkeypatch.setitem(
        builtin_module.BUILTIN_TEXTS,
        "probe-text",
        builtin_module.BuiltinText(
            wheel=text.wheel, prefix="toy/data/", column="prompt", catalogue="toy/catalogue.csv.zst"
        ),
    )
    assert [each.name for each in builtin_sets(full=True)] == names
    assert [(each.name, each.family) for each in builtin_sets()] == [
        ("87_glue_cola", "glue"),
        ("65_high-school", "word-pair"),
        ("60_wikidata_x", "wikidata"),
    ]
    (tmp_path / "wheels" / "toy-1.whl").unlink()
    assert sample(builtin_sets()[0], reader).classes == ("0",)
    np.testing.assert_equal(sets_fingerprint(builtin_sets(), builtin=True)["requirement"], "toy==1")
