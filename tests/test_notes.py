"""Notes: what is written is there for everyone at once, nothing hostile gets in, nothing is lost."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sparsight.errors import NotesError
from sparsight.features import FeatureList, Label, Notes


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes.open(tmp_path / "notes" / "topk.sqlite", n_latents=100)


def filled(notes: Notes) -> Notes:
    notes.set_labels(
        [Label(3, "fires on ` the`", "model-free", 0.75, 0.7, 0.8, 0.5, 40), Label(3, "articles", "person")]
    )
    notes.set_note(7, "two lines:\n\t<b>second</b>")
    notes.set_list("to read", [9, 3, 9])
    return notes


def test_notes_read_as_empty_until_the_first_write_makes_the_file(notes: Notes) -> None:
    assert (notes.best_labels(), notes.labels(3), notes.note(3), notes.lists()) == ({}, [], "", [])
    assert not notes.path.parent.exists()
    notes.set_note(3, "x")
    assert notes.path.exists()


def test_a_persons_label_stands_before_a_models_and_that_before_model_free(notes: Notes) -> None:
    for source in ("model-free", "llm:old", "llm:new"):
        notes.set_label(Label(5, f"by {source}", source))
    assert notes.best_labels()[5].text == "by llm:new"
    notes.set_label(Label(5, "mine", "person"))
    assert [label.source for label in notes.labels(5)] == ["person", "llm:new", "llm:old", "model-free"]
    notes.delete_label(5, "person")
    assert notes.best_labels()[5].source == "llm:new"


def test_lists_keep_their_order_and_each_latent_once(notes: Notes) -> None:
    filled(notes).add_to_list("to read", [1, 9])
    assert notes.latents_of("to read") == [9, 3, 1]
    assert notes.lists_of(1) == ["to read"]
    notes.remove_from_list("to read", [3])
    assert notes.latents_of("to read") == [9, 1]
    notes.set_list("to read", [])
    assert [(found.name, found.size) for found in notes.lists()] == [("to read", 0)]
    notes.delete_list("to read")
    assert notes.lists() == []
    with pytest.raises(NotesError, match="no list 'to read'"):
        notes.latents_of("to read")


def test_export_and_import_are_a_round_trip(notes: Notes, tmp_path: Path) -> None:
    lines = list(filled(notes).export_jsonl())
    other = Notes.open(tmp_path / "notes" / "other.sqlite")
    assert other.import_jsonl(lines) == 4
    assert list(other.export_jsonl()) == lines
    assert other.import_jsonl(lines) == 4
    assert list(other.export_jsonl()) == lines


def test_an_import_keeps_the_newer_and_joins_lists(notes: Notes) -> None:
    early, late = "2026-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
    filled(notes).import_jsonl(
        [
            f'{{"kind": "note", "latent": 7, "text": "older", "created": "{early}"}}',
            f'{{"kind": "label", "latent": 3, "text": "newer", "source": "person", "created": "{late}"}}',
            f'{{"kind": "list", "name": "to read", "latents": [4], "created": "{early}"}}',
        ]
    )
    assert notes.note(7).startswith("two lines")
    assert notes.best_labels()[3].text == "newer"
    assert notes.latents_of("to read") == [9, 3, 4]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no object"),
        ('{"kind": ["note"]}', "kind is"),
        ('{"kind": "note", "latent": 3}', "garbled"),
        ('{"kind": "note", "latent": 3, "text": "x", "extra": 1}', "garbled"),
        ('{"kind": "note", "latent": 100, "text": "x"}', "no latent 100"),
        ('{"kind": "note", "latent": true, "text": "x"}', "no latent True"),
        ('{"kind": "note", "latent": 1e400, "text": "x"}', "no latent inf"),
        ('{"kind": "note", "latent": 3, "text": "x", "created": "tomorrow"}', "tomorrow"),
        ('{"kind": "label", "latent": 3, "text": "x", "source": "me"}', "source is 'me'"),
        ('{"kind": "label", "latent": 3, "text": "x", "source": "person", "score": NaN}', "score is nan"),
        ('{"kind": "label", "latent": 3, "text": "x", "source": "person", "score": "1"}', "score is '1'"),
        ('{"kind": "label", "latent": 3, "text": "a\\u001b[2J", "source": "person"}', "U\\+001B"),
        ('{"kind": "list", "name": "../x", "latents": [], "created": "2026-01-01T00:00:00Z"}', "without slashes"),
        ('{"kind": "list", "name": "x", "latents": [3, -1], "created": "2026-01-01T00:00:00Z"}', "no latent -1"),
        ('{"kind": "list", "name": "x", "latents": 3, "created": "2026-01-01T00:00:00Z"}', "no array"),
    ],
)
def test_a_line_that_cannot_be_taken_is_named_and_nothing_is_imported(notes: Notes, line: str, message: str) -> None:
    before = list(filled(notes).export_jsonl())
    with pytest.raises(NotesError, match=f"Line 2: .*{message}.*Nothing was imported"):
        notes.import_jsonl(['{"kind": "note", "latent": 8, "text": "good"}', line])
    assert list(notes.export_jsonl()) == before


@pytest.mark.parametrize("text", ["", "  ", "x" * 501, "a\nb", "a\u202eb", "a\x00b", "\ud800"])
def test_labels_are_one_visible_line_of_limited_length(text: str) -> None:
    with pytest.raises(NotesError):
        Label(3, text, "person")


def test_scripts_and_emoji_that_need_joiners_are_text() -> None:
    assert Label(3, "می‌خواهم 👩‍💻", "person").text


def test_what_people_wrote_stays_text_in_markdown(notes: Notes) -> None:
    from markdown_it import MarkdownIt

    hostile = "# h <script>x</script> [a](http://b) **c** `d` | e"
    notes.set_label(Label(1, hostile, "person"))
    notes.set_note(1, "- item\n1. one\n> quote\n***\n    code")
    notes.set_list("<img src=x>", [1])
    tokens = MarkdownIt("commonmark").parse(notes.export_markdown(hostile))
    kinds = {child.type for token in tokens for child in [token, *(token.children or [])]}
    assert kinds <= {"heading_open", "heading_close", "inline", "text", "softbreak", "paragraph_open", "paragraph_close"} | {
        "bullet_list_open", "bullet_list_close", "list_item_open", "list_item_close"
    }  # fmt: skip
    assert sum(token.type == "bullet_list_open" for token in tokens) == 1


WRITER = """
import sys
from sparsight.features import Label, Notes
notes, mine = Notes.open(sys.argv[1]), int(sys.argv[2])
for i in range(40):
    notes.set_label(Label(i, f"by {mine}", f"llm:{mine}"))
    notes.set_note(1000 * mine + i, str(i))
    notes.add_to_list("shared", [1000 * mine + i])
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "notes" / "topk.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, str(number)]) for number in (1, 2, 3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    notes = Notes.open(path)
    assert len(notes.all_labels()) == 120
    assert sorted(notes.notes()) == sorted(1000 * number + i for number in (1, 2, 3) for i in range(40))
    assert sorted(notes.latents_of("shared")) == sorted(notes.notes())
    assert notes.changes() == 360


def test_a_page_reads_while_a_command_writes(notes: Notes) -> None:
    filled(notes)
    writing = sqlite3.connect(notes.path, isolation_level=None)
    assert writing.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    writing.execute("BEGIN EXCLUSIVE")
    writing.execute("UPDATE labels SET text = 'later'")
    assert notes.best_labels()[3].text == "articles"
    writing.execute("COMMIT")
    assert notes.best_labels()[3].text == "later"
    writing.close()


KILLED = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA journal_mode = DELETE")  # as it is while a new file is switched to write-ahead logging
database.execute("PRAGMA cache_size = 1")  # so that the file is written to before the end
database.execute("BEGIN IMMEDIATE")
for latent in range(1000, 3000):
    database.execute("REPLACE INTO notes VALUES (?, ?, 'x')", (latent, "x" * 1000))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_reader_undoes_what_a_killed_writer_left(notes: Notes) -> None:
    before = list(filled(notes).export_jsonl())
    subprocess.run([sys.executable, "-c", KILLED, notes.path], timeout=60, check=False)
    assert notes.path.with_name(notes.path.name + "-journal").exists()
    assert list(notes.export_jsonl()) == before


def test_a_write_that_fails_half_way_leaves_everything_as_it_was(notes: Notes) -> None:
    before = list(filled(notes).export_jsonl())
    with pytest.raises(NotesError, match="no latent 100"):
        notes.set_labels([Label(1, "kept?", "person"), Label(100, "x", "person")])
    with pytest.raises(NotesError, match="no latent 500"):
        notes.set_list("to read", [1, 500])
    assert list(notes.export_jsonl()) == before


def test_a_file_that_is_not_ours_is_refused_before_it_is_asked(notes: Notes, tmp_path: Path) -> None:
    filled(notes)
    with sqlite3.connect(notes.path) as database:
        database.execute("CREATE TRIGGER t AFTER INSERT ON notes BEGIN DELETE FROM labels; END")
    database.close()
    with pytest.raises(NotesError, match="no file of notes"):
        notes.note(7)
    with pytest.raises(NotesError, match="no file of notes"):
        notes.set_note(7, "x")
    other = tmp_path / "notes" / "other.sqlite"
    other.write_bytes(b"not a database at all, but long enough to be looked at as one" * 20)
    with pytest.raises(NotesError, match="not a database"):
        Notes.open(other)


def test_a_strangers_rows_are_checked_when_they_are_read(notes: Notes) -> None:
    filled(notes)
    with sqlite3.connect(notes.path) as database:
        database.execute("UPDATE labels SET text = 'a' || char(27) || '[2J'")
        database.execute("UPDATE notes SET text = x'00ff'")
    database.close()
    with pytest.raises(NotesError, match=r"U\+001B"):
        notes.best_labels()
    with pytest.raises(NotesError):
        notes.notes()


def test_a_run_deleted_under_its_notes_is_an_error_and_not_made_again(tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    run.mkdir()
    notes = filled(Notes.open(run / "notes" / "a.sqlite"))
    shutil.rmtree(run)
    with pytest.raises(NotesError, match="not there any more"):
        notes.set_note(1, "x")
    assert not run.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_notes_in_a_folder_that_cannot_be_written_can_be_read(notes: Notes) -> None:
    filled(notes)
    notes.path.parent.chmod(0o500)
    try:
        assert notes.best_labels()[3].text == "articles"
    finally:
        notes.path.parent.chmod(0o700)


def test_sizes_of_lists_are_counted(notes: Notes) -> None:
    (found,) = filled(notes).lists()
    assert found == FeatureList("to read", 2, found.created)
