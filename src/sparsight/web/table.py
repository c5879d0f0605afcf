"""The table of features: filtered, searched, sorted, a page at a time.

    q        every word of it (or what stands in double quotes as a whole) in the label, the note, the promoted tokens or the passage about
             the strongest activation; a latent's number finds that latent
    filter   COLUMN OP VALUE, OP one of >= <= = !=; a token column takes the token's text; a missing value passes only !=
    list     the latents of a list
    sort     a column, latent, label or score; the missing last, ties by latent

What the last few queries matched is kept with the dictionary, so that scrolling through pages costs nothing.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.errors import NotesError
from sparsight.web.annotations import label_json
from sparsight.web.dictionary import Opened
from sparsight.web.replies import Refusal, numbers
from sparsight.web.search import terms_of

__all__ = ["SEARCHED", "TableQuery", "column_json", "matching", "rows"]

SEARCHED = "labels, notes, promoted tokens and the passage about each latent's strongest activation"
_FILTER = re.compile(r"(\w+)(>=|<=|!=|=)(.*)", re.DOTALL)
_MOST_FILTERS, _LONGEST_Q = 20, 1000


@dataclass(frozen=True, kw_only=True)
class TableQuery:
    """What a table shows, in which order. Raises Refusal for what cannot be asked."""

    sort: str = "density"
    """A column, or latent, label, score."""
    order: str = "desc"
    """desc | asc"""
    q: str = ""
    """Words to find."""
    list: str = ""
    """Name of a list; empty for all latents."""
    cluster: int | None = None
    """One cluster."""
    filter: tuple[str, ...] = ()
    """Conditions on columns, all of which must hold."""

    def __post_init__(self) -> None:
        if self.order not in ("asc", "desc"):
            raise Refusal(400, f"order is {self.order[:40]!r}; expected asc or desc.")
        if len(self.filter) > _MOST_FILTERS or len(self.q) > _LONGEST_Q:
            raise Refusal(
                400, f"The query is too long; {_MOST_FILTERS} filters and {_LONGEST_Q:,} characters of q are taken."
            )


def matching(opened: Opened, query: TableQuery) -> Int[np.ndarray, " n"]:
    """The latents that a query matches, in its order."""
    written = query.q or query.list or query.sort in ("label", "score")
    key = (opened.annotations.version if written else None, query)
    found = opened.kept(key)
    if found is None:
        order = _order(opened, query)
        found = order[_mask(opened, query)[order]]
        opened.keep(key, found)
    return found


def rows(opened: Opened, latents: Int[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Table rows: latent, label, promoted tokens and every column."""
    labels = opened.annotations.labels
    columns = {name: column_json(opened, name, latents) for name in opened.columns}
    found = []
    for i, (latent, promoted) in enumerate(zip(latents.tolist(), opened.promoted(latents), strict=True)):
        label = labels.get(latent)
        row = {"latent": latent, "label": label_json(label) if label else None, "promoted": promoted}
        found.append(row | {name: values[i] for name, values in columns.items()})
    return found


def column_json(opened: Opened, name: str, latents: Int[np.ndarray, " n"]) -> list[Any]:
    """A column of some latents for JSON: tokens as text, flags as 0 or 1, the missing as null."""
    values, kind = opened.values(name)[latents], opened.columns[name].kind
    if kind == "token":
        return [word or None for word in opened.words(values)]
    if kind in ("latent", "cluster"):
        return [None if value < 0 else value for value in values.tolist()]
    return numbers(values.astype(np.int8) if values.dtype == bool else values)


def _order(opened: Opened, query: TableQuery) -> Int[np.ndarray, " latents"]:
    descending = query.order == "desc"
    if query.sort == "label":
        return opened.annotations.alphabetical(descending=descending)
    if query.sort != "score":
        return opened.order(query.sort, descending=descending)
    keys = opened.annotations.scores()
    return np.argsort(-keys if descending else keys, kind="stable").astype(np.int32)


def _mask(opened: Opened, query: TableQuery) -> Bool[np.ndarray, " latents"]:
    n = opened.index.n_latents
    mask = np.ones(n, bool)
    if query.list:
        try:
            listed = np.array(opened.annotations.file.latents_of(query.list), np.int64)
        except NotesError as error:
            raise Refusal(404, str(error)) from None
        mask[:] = False
        mask[listed[listed < n]] = True
    for condition in (*query.filter, *(() if query.cluster is None else (f"cluster={query.cluster}",))):
        mask &= _holds(opened, condition)
    for term in terms_of(query.q):
        found = opened.said(term, mask) | opened.annotations.matching(term, mask)
        if term.isascii() and term.isdigit() and len(term) < 10 and int(term) < n:
            found[int(term)] = True
        mask &= found
    return mask


def _holds(opened: Opened, condition: str) -> Bool[np.ndarray, " latents"]:
    match = _FILTER.fullmatch(condition)
    if match is None:
        raise Refusal(
            400, f"filter is {condition[:80]!r}; expected a column, >= <= = or !=, and a value, as density>=0.001."
        )
    name, op, value = match.groups()
    if name != "latent" and name in opened.columns and opened.columns[name].kind == "token":
        return _is_token(opened, name, op, value)
    try:
        bound = float(value)
    except ValueError:
        raise Refusal(400, f"filter {condition[:80]!r} compares with {value[:40]!r}; expected a number.") from None
    return _compared(opened.sortable(name), op, bound)


def _is_token(opened: Opened, name: str, op: str, value: str) -> Bool[np.ndarray, " latents"]:
    if op not in ("=", "!="):
        raise Refusal(400, f"{name} holds tokens; filter it with = or !=.")
    distinct, where = np.unique(opened.values(name), return_inverse=True)
    same = np.array([value in (word, word.strip()) for word in opened.words(distinct)], bool)[where]
    return same if op == "=" else ~same


def _compared(values: Float[np.ndarray, " latents"], op: str, bound: float) -> Bool[np.ndarray, " latents"]:
    if op == ">=":
        return values >= bound
    if op == "<=":
        return values <= bound
    return values == bound if op == "=" else values != bound
