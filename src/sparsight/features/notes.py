"""Notes: labels, notes and lists of one SAE's latents, which several processes may write at once.

They lie at notes/ID.sqlite (see notefile.py), outside features/ID, whose arrays never change and are deleted to be rebuilt: what
people wrote stays. A note is read as one transaction and written as one; the object holds nothing open and threads may share it.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from sparsight.errors import NotesError
from sparsight.features.annotations import (
    MAX_LISTED,
    FeatureList,
    Label,
    Note,
    check_latent,
    check_name,
    from_line,
    markdown_page,
    now,
    to_line,
)
from sparsight.features.notefile import reading, writing

__all__ = ["Notes"]

_COLUMNS = [column.name for column in fields(Label)]
_LABEL = ", ".join(_COLUMNS)


class Notes:
    """The notes of one SAE. Making one touches nothing on disk."""

    def __init__(self, path: Path, n_latents: int | None = None):
        self.path, self.n_latents = Path(path), n_latents

    @classmethod
    def open(cls, path: str | Path, n_latents: int | None = None) -> "Notes":
        """The notes at `path`, which need not exist yet; latents from `n_latents` on are refused where it is given.

        Raises NotesError when the file is there and is not one of ours.
        """
        notes = cls(Path(path), n_latents)
        notes.changes()
        return notes

    def changes(self) -> int:
        """How many times something was written: what was read before stays true while this stays the same."""
        with reading(self.path) as database:
            return int(database.execute("SELECT n FROM changes").fetchone()[0])

    def set_label(self, label: Label) -> None:
        """Keep a label, in place of the same source's earlier one."""
        self.set_labels([label])

    def set_labels(self, labels: Iterable[Label]) -> None:
        """Keep many labels: all or none."""
        with writing(self.path) as database:
            for label in labels:
                check_latent(label.latent, self.n_latents)
                _put_label(database, label)

    def labels(self, latent: int) -> list[Label]:
        """Every source's label of a latent, best first: a person's, then language models' (newest first), then model-free."""
        check_latent(latent, self.n_latents)
        with reading(self.path) as database:
            rows = database.execute(f"SELECT {_LABEL} FROM labels WHERE latent = ?", (latent,)).fetchall()
        return sorted((Label(*row) for row in rows), key=_rank, reverse=True)

    def all_labels(self) -> list[Label]:
        """Every label of every latent, by latent."""
        with reading(self.path) as database:
            return [Label(*row) for row in database.execute(f"SELECT {_LABEL} FROM labels ORDER BY latent, source")]

    def best_labels(self) -> dict[int, Label]:
        """The first of each latent's labels."""
        best: dict[int, Label] = {}
        for label in self.all_labels():
            if label.latent not in best or _rank(label) > _rank(best[label.latent]):
                best[label.latent] = label
        return best

    def delete_label(self, latent: int, source: str) -> None:
        """Forget one source's label, if there is one."""
        with writing(self.path) as database:
            database.execute("DELETE FROM labels WHERE latent = ? AND source = ?", (latent, source))

    def note(self, latent: int) -> str:
        """A latent's note; empty when there is none."""
        check_latent(latent, self.n_latents)
        with reading(self.path) as database:
            row = database.execute("SELECT latent, text, created FROM notes WHERE latent = ?", (latent,)).fetchone()
        return Note(*row).text if row else ""

    def set_note(self, latent: int, text: str) -> None:
        """Keep a note in place of the earlier one; an empty text deletes it."""
        check_latent(latent, self.n_latents)
        note = Note(latent, text) if text.strip() else None
        with writing(self.path) as database:
            if note is None:
                database.execute("DELETE FROM notes WHERE latent = ?", (latent,))
            else:
                database.execute("REPLACE INTO notes VALUES (?, ?, ?)", (latent, note.text, note.created))

    def notes(self) -> dict[int, str]:
        """Every note by latent."""
        with reading(self.path) as database:
            rows = database.execute("SELECT latent, text, created FROM notes ORDER BY latent")
            return {note.latent: note.text for note in (Note(*row) for row in rows)}

    def lists(self) -> list[FeatureList]:
        """Every list, by name."""
        with reading(self.path) as database:
            rows = database.execute(
                "SELECT lists.name, COUNT(latent), created FROM lists LEFT JOIN listed USING (name) GROUP BY lists.name ORDER BY lists.name"
            )
            return [FeatureList(*row) for row in rows]

    def lists_of(self, latent: int) -> list[str]:
        """Names of the lists that a latent is in."""
        with reading(self.path) as database:
            return [
                name
                for (name,) in database.execute("SELECT name FROM listed WHERE latent = ? ORDER BY name", (latent,))
            ]

    def latents_of(self, name: str) -> list[int]:
        """The latents of a list, in the order they were given. Raises NotesError when there is no such list."""
        with reading(self.path) as database:
            self._check_there(database, name)
            return _latents_of(database, name)

    def set_list(self, name: str, latents: Sequence[int]) -> None:
        """Make a list of exactly these latents, or make it so."""
        with writing(self.path) as database:
            self._make_list(database, name, now())
            database.execute("DELETE FROM listed WHERE name = ?", (name,))
            self._add(database, name, latents)

    def add_to_list(self, name: str, latents: Sequence[int]) -> None:
        """Add latents at a list's end, each once; makes the list if it is new."""
        with writing(self.path) as database:
            self._make_list(database, name, now())
            self._add(database, name, latents)

    def remove_from_list(self, name: str, latents: Sequence[int]) -> None:
        """Take latents out of a list. Raises NotesError when there is no such list."""
        with writing(self.path) as database:
            self._check_there(database, name)
            database.executemany(
                "DELETE FROM listed WHERE name = ? AND latent = ?", [(name, latent) for latent in latents]
            )

    def delete_list(self, name: str) -> None:
        """Delete a list. Raises NotesError when there is none."""
        with writing(self.path) as database:
            self._check_there(database, name)
            database.execute("DELETE FROM listed WHERE name = ?", (name,))
            database.execute("DELETE FROM lists WHERE name = ?", (name,))

    def export_jsonl(self) -> Iterator[str]:
        """Everything, a line of JSON an item: see annotations.py."""
        with reading(self.path) as database:
            items = [Label(*row) for row in database.execute(f"SELECT {_LABEL} FROM labels ORDER BY latent, source")]
            notes = [Note(*row) for row in database.execute("SELECT latent, text, created FROM notes ORDER BY latent")]
            lists = [
                (FeatureList(name, 0, created), _latents_of(database, name))
                for name, created in database.execute("SELECT name, created FROM lists ORDER BY name").fetchall()
            ]
        yield from (to_line(item) for item in (*items, *notes))
        yield from (to_line(found, latents) for found, latents in lists)

    def export_markdown(self, title: str = "Notes") -> str:
        """Everything as a page to read. What people wrote is text on it, whatever it holds."""
        lists = {found.name: self.latents_of(found.name) for found in self.lists()}
        return markdown_page(title, sorted(self.all_labels(), key=_rank, reverse=True), self.notes(), lists)

    def import_jsonl(self, lines: Iterable[str]) -> int:
        """Take in what `export_jsonl` gave, all or nothing; returns how many items it held.

        Nothing is lost: of two labels of one source, or two notes of one latent, the newer stays; lists of one name are joined.
        Raises NotesError naming the line that cannot be taken.
        """
        n = 0
        with writing(self.path) as database:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        self._take(database, line)
                    except NotesError as error:
                        raise NotesError(f"Line {number}: {error} Nothing was imported.") from None
                    n += 1
        return n

    def _take(self, database: sqlite3.Connection, line: str) -> None:
        item = from_line(line)
        if isinstance(item, tuple):
            found, latents = item
            self._make_list(database, found.name, found.created)
            self._add(database, found.name, latents)
            return
        check_latent(item.latent, self.n_latents)
        if isinstance(item, Label):
            _put_label(database, item, newer_only=True)
        else:
            database.execute(
                "INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET text = excluded.text, created = excluded.created "
                "WHERE excluded.created > created",
                (item.latent, item.text, item.created),
            )

    def _make_list(self, database: sqlite3.Connection, name: str, created: str) -> None:
        check_name(name)
        database.execute("INSERT OR IGNORE INTO lists VALUES (?, ?)", (name, created))

    def _add(self, database: sqlite3.Connection, name: str, latents: Sequence[int]) -> None:
        if len(latents) > MAX_LISTED:
            raise NotesError(f"A list of {len(latents):,} latents is too long; at most {MAX_LISTED:,} are kept.")
        for latent in latents:
            check_latent(latent, self.n_latents)
        (after,) = database.execute(
            "SELECT COALESCE(MAX(place), -1) + 1 FROM listed WHERE name = ?", (name,)
        ).fetchone()
        rows = [(name, latent, place) for place, latent in enumerate(latents, after)]
        database.executemany("INSERT OR IGNORE INTO listed VALUES (?, ?, ?)", rows)

    def _check_there(self, database: sqlite3.Connection, name: str) -> None:
        if not database.execute("SELECT 1 FROM lists WHERE name = ?", (name,)).fetchone():
            raise NotesError(f"There is no list {name!r} in {self.path}.")


def _rank(label: Label) -> tuple[int, str]:
    return ({"person": 2, "model-free": 0}.get(label.source, 1), label.created)


def _put_label(database: sqlite3.Connection, label: Label, *, newer_only: bool = False) -> None:
    taken = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in ("latent", "source"))
    statement = (
        f"INSERT INTO labels({_LABEL}) VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO UPDATE SET {taken}"
    )
    database.execute(statement + (" WHERE excluded.created > created" if newer_only else ""), astuple(label))


def _latents_of(database: sqlite3.Connection, name: str) -> list[int]:
    rows = database.execute("SELECT latent FROM listed WHERE name = ? ORDER BY place", (name,))
    return [latent for (latent,) in rows]
