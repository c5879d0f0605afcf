"""What people and explainers say of latents, as values: labels, notes, lists; what is allowed in them; as lines of JSON.

A label is one line that says when a latent is active; it may come with the score of a test on held-out text. A note is free text.
A list is a named selection of latents. All may come from strangers, so lengths are limited and characters that act on a terminal,
reverse the direction of writing or hide are refused; what shows them must still escape them for its own medium.

    {"kind": "label", "latent", "text", "source", "score", "low", "high", "control", "n", "created"}
    {"kind": "note", "latent", "text", "created"}
    {"kind": "list", "name", "latents": [...], "created"}
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from sparsight.errors import NotesError
from sparsight.features.tokens import printable

__all__ = ["FeatureList", "Label", "Note", "check_latent", "check_name", "from_line", "markdown_page", "now", "to_line"]

MAX_LABEL, MAX_NOTE, MAX_NAME, MAX_SOURCE = 500, 20_000, 100, 120
MAX_LISTED = 1_000_000
MAX_LATENT = 2**31 - 1
# Control, format (bidi marks, zero width), surrogate, line and paragraph separators; but for the two joiners that scripts and emoji need.
_REFUSED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"
_SOURCE = re.compile(r"person|model-free|llm:\S.*")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


def now() -> str:
    """The time in UTC, such as 2026-11-23T09:30:00.123456Z; as text it sorts as time."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Label:
    """One line that says when a latent is active. Raises NotesError when it holds what a label cannot."""

    latent: int
    """Number of the latent."""
    text: str
    """One line, at most 500 characters."""
    source: str
    """person | model-free | llm:NAME."""
    score: float | None = None
    """Balanced accuracy of telling by the label where the latent is active, on text that the label was not made from; 0.5 is chance."""
    low: float | None = None
    """2.5th percentile over resampled documents."""
    high: float | None = None
    """97.5th percentile."""
    control: float | None = None
    """The same score with labels of other latents in its place."""
    n: int | None = None
    """Passages judged."""
    created: str = field(default_factory=now)
    """UTC, ISO 8601."""

    def __post_init__(self) -> None:
        check_latent(self.latent)
        _check_text("A label", self.text, MAX_LABEL)
        if not isinstance(self.source, str) or not _SOURCE.fullmatch(self.source):
            raise NotesError(f"A label's source is {self.source!r}; expected person, model-free or llm:NAME.")
        _check_text("A label's source", self.source, MAX_SOURCE)
        for name in ("score", "low", "high", "control"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value <= 1):
                raise NotesError(f"A label's {name} is {value!r}; expected a number from 0 to 1, or none.")
        if self.n is not None and not (_is_whole(self.n) and 0 <= self.n < 2**63):
            raise NotesError(f"A label's n is {self.n!r}; expected a count, or none.")
        _check_time(self.created)

    def described(self) -> str:
        """The label with who gave it and how it was tested, in one line; printable only after `printable`."""
        line = f"{self.text} ({self.source}"
        if self.score is not None:
            line += f"; score {self.score:.2f}"
            line += "" if self.low is None or self.high is None else f", 95 % {self.low:.2f} to {self.high:.2f}"
            line += "" if self.control is None else f", another's label {self.control:.2f}"
            line += "" if self.n is None else f", n = {self.n}"
        return line + ")"


@dataclass(frozen=True)
class Note:
    """A person's free text about a latent. Raises NotesError when it holds what a note cannot."""

    latent: int
    """Number of the latent."""
    text: str
    """At most 20,000 characters; lines and tabs are allowed."""
    created: str = field(default_factory=now)
    """When it was last changed; UTC, ISO 8601."""

    def __post_init__(self) -> None:
        check_latent(self.latent)
        _check_text("A note", self.text, MAX_NOTE, allowed="\n\t")
        _check_time(self.created)


@dataclass(frozen=True)
class FeatureList:
    """A named selection of latents, without its latents."""

    name: str
    """At most 100 characters, no slash."""
    size: int
    """Latents in it."""
    created: str
    """UTC, ISO 8601."""


def check_latent(latent: Any, n_latents: int | None = None) -> None:
    """Raises NotesError when this is no latent's number, or not one of `n_latents`."""
    most = MAX_LATENT if n_latents is None else n_latents - 1
    if not _is_whole(latent) or not 0 <= latent <= most:
        raise NotesError(f"There is no latent {latent!r}; expected a whole number from 0 to {most}.")


def check_name(name: Any) -> None:
    """Raises NotesError when a list cannot have this name. Slashes and lone dots would not survive in an address."""
    _check_text("A list's name", name, MAX_NAME)
    if "/" in name or "\\" in name or name in (".", "..") or name != name.strip():
        raise NotesError(f"A list's name is {name!r}; expected one without slashes and without spaces at its ends.")


def to_line(item: Label | Note | FeatureList, latents: Sequence[int] = ()) -> str:
    """The item as one line of JSON; a list with its latents."""
    kind = {Label: "label", Note: "note", FeatureList: "list"}[type(item)]
    values = asdict(item)
    if isinstance(item, FeatureList):
        values = {"name": item.name, "latents": list(latents), "created": item.created}
    return json.dumps({"kind": kind, **values}, ensure_ascii=False, allow_nan=False)


def from_line(line: str) -> Label | Note | tuple[FeatureList, list[int]]:
    """What `to_line` wrote. Raises NotesError when the line is anything else."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise NotesError(f"{line[:60]!r} is not JSON; expected an object such as {_EXAMPLE}.") from None
    if not isinstance(values, dict):
        raise NotesError(f"{line[:60]!r} is no object; expected one such as {_EXAMPLE}.")
    kind = values.pop("kind", None)
    known = {"label": Label, "note": Note, "list": FeatureList}.get(kind if isinstance(kind, str) else "")
    if known is None:
        raise NotesError(f"kind is {kind!r}; expected label, note or list.")
    try:
        if known is not FeatureList:
            return known(**values)
        return _list_of(**values)
    except TypeError as error:
        raise NotesError(
            f"A {kind} is garbled ({str(error).split('.')[-1]}); expected keys as in {_EXAMPLE}."
        ) from None


def markdown_page(
    title: str, labels: Iterable[Label], notes: Mapping[int, str], lists: Mapping[str, Sequence[int]]
) -> str:
    """A page to read: each latent with its labels and note, then the lists. Whatever was written stays text on it."""
    said: dict[int, list[str]] = {latent: [] for latent in notes}
    for label in labels:
        said.setdefault(label.latent, []).append(f"- {_plain(label.described())}")
    lines = [f"# {_plain(title)}", ""]
    for latent in sorted(said):
        lines += [f"## Latent {latent}", "", *said[latent], ""]
        for line in notes.get(latent, "").splitlines():
            lines += [_plain(line), ""]
    for name, latents in lists.items():
        lines += [f"## List {_plain(name)}", "", ", ".join(map(str, latents)), ""]
    return "\n".join(lines)


_EXAMPLE = '{"kind": "note", "latent": 3, "text": "...", "created": "2026-01-31T12:00:00Z"}'


def _list_of(name: Any, latents: Any, created: Any) -> tuple[FeatureList, list[int]]:
    check_name(name)
    _check_time(created)
    if not isinstance(latents, list) or len(latents) > MAX_LISTED:
        raise NotesError(f"The latents of list {name!r} are no array of at most {MAX_LISTED:,} numbers.")
    for latent in latents:
        check_latent(latent)
    return FeatureList(name, len(latents), created), latents


def _plain(text: str) -> str:
    """The text with every character that Markdown or HTML gives a meaning as a numeric entity, which no parser reads as syntax."""
    return re.sub(r"[^\w ,;:%()'=+…]|_|^\W|:(?! )", lambda found: f"&#{ord(found[0])};", printable(text))


def _check_text(what: str, text: Any, longest: int, allowed: str = "") -> None:
    if not isinstance(text, str) or not text.strip():
        raise NotesError(f"{what} is empty; expected some text.")
    if len(text) > longest:
        raise NotesError(f"{what} has {len(text):,} characters; at most {longest:,} are kept.")
    for character in "" if text.isprintable() else text:
        if unicodedata.category(character) in _REFUSED and character not in _JOINERS + allowed:
            raise NotesError(
                f"{what} holds the invisible character U+{ord(character):04X}; remove it, or write it out as text."
            )


def _check_time(created: Any) -> None:
    if not isinstance(created, str) or not _TIME.fullmatch(created):
        raise NotesError(f"A time is {created!r}; expected UTC such as 2026-01-31T12:00:00Z.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
