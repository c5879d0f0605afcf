"""Text from models and from the web, put into Markdown so that it stays text.

    plain      one line of prose or a table's cell: every character that Markdown, HTML or a table gives a meaning becomes a numeric
               entity, which no parser takes for syntax
    fenced     lines of a code block, between fences longer than any run of backticks inside

Both make control and direction marks visible first (features/tokens.py), so newlines and right-to-left marks act on nothing.
"""

import re
from collections.abc import Iterable, Sequence

from sparsight.features import printable

__all__ = ["fenced", "plain", "table"]

# What stays as it is: letters, digits, and marks that mean nothing where they stand. So a hyphen only inside a word, a colon only before a space, no
# full stop that could number a list or begin an address.
_SPECIAL = re.compile(r"[^\w ,.;:%()'/=+…⏎⇥␍-]|_|^\W|\s$|(?<!\w)-|-(?!\w)|:(?! )|(?<=\d)\.(?=\s)|(?<=www)\.")


def plain(text: str) -> str:
    """The text in one line, with nothing in it that is syntax."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def fenced(lines: Iterable[str], language: str = "text") -> list[str]:
    """A code block of lines, each printable already or made so."""
    body = [printable(line) for line in lines]
    longest = max((len(run) for line in body for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *body, fence]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
