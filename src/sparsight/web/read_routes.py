"""What the page reads: session, comparisons, tables, features, passages, map, columns, clusters, lists, the run."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import PlainTextResponse, Response

from sparsight.errors import NotesError
from sparsight.web.dictionary import Dictionary, Opened
from sparsight.web.export import features_html
from sparsight.web.feature import check_latent, clusters_json, contexts_json, feature_json
from sparsight.web.replies import Json, Refusal
from sparsight.web.run import run_json
from sparsight.web.table import SEARCHED, TableQuery, matching, rows

__all__ = ["Chosen", "router"]

router = APIRouter()
_AT = "/d/{run}/{sae}"
_MOST_ROWS = 1000


def _chosen(request: Request, run: str, sae: str) -> Dictionary:
    return request.app.state.explorer.dictionary(run, sae)


def _asked(
    sort: str = "density",
    order: str = "desc",
    q: str = "",
    list: str = "",
    cluster: int | None = None,
    filter: Annotated[tuple[str, ...], Query()] = (),
) -> TableQuery:
    return TableQuery(sort=sort, order=order, q=q, list=list, cluster=cluster, filter=tuple(filter))


Chosen = Annotated[Dictionary, Depends(_chosen)]
Asked = Annotated[TableQuery, Depends(_asked)]
Count = Annotated[int, Query(ge=0, le=100)]


@router.get("/session")
def _session(request: Request) -> Response:
    return Json(request.app.state.explorer.session())


@router.get("/c/{run}/report")
def _report(request: Request, run: str, colours: str = "") -> Response:
    return request.app.state.explorer.comparison(run).page(colours)


@router.get(f"{_AT}/features")
def _features(
    chosen: Chosen,
    asked: Asked,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=0, le=_MOST_ROWS)] = 100,
) -> Response:
    opened = chosen.open()
    found = matching(opened, asked)
    page = rows(opened, found[offset : offset + limit])
    return Json({"total": len(found), "offset": offset, "searched": SEARCHED, "rows": page})


@router.get(f"{_AT}/features/{{latent}}")
def _feature(chosen: Chosen, asked: Asked, request: Request, latent: int) -> Response:
    """`previous` and `next` are the neighbours in the table that the query asks for; by number without one."""
    opened = chosen.open()
    found = feature_json(chosen, opened, latent)
    return Json(found | _beside(opened, latent, asked if request.query_params else None))


@router.get(f"{_AT}/features/{{latent}}/contexts")
def _contexts(chosen: Chosen, latent: int, top: Count = 12, per_band: Count = 4, random: Count = 8) -> Response:
    return Json(contexts_json(chosen.open(), latent, top=top, per_band=per_band, n_random=random))


@router.get(f"{_AT}/map")
def _map(chosen: Chosen) -> Response:
    index = chosen.open().index
    if "map" not in index.arrays:
        raise Refusal(
            404, f"{chosen.key} has no map: {index.about.get('why_no_map') or 'its index was built without one'}."
        )
    return _floats(index.arrays["map"])


@router.get(f"{_AT}/columns/{{name}}")
def _column(chosen: Chosen, name: str) -> Response:
    """Missing tokens, latents and clusters are -1 here, since ids are numbers."""
    return _floats(chosen.open().values(name))


@router.get(f"{_AT}/clusters")
def _clusters(chosen: Chosen) -> Response:
    return Json(clusters_json(chosen.open()))


@router.get(f"{_AT}/lists")
def _lists(chosen: Chosen) -> Response:
    lists = chosen.open().annotations.file.lists()
    return Json([{"name": each.name, "size": each.size, "created": each.created} for each in lists])


@router.get(f"{_AT}/notes/export")
def _export_notes(chosen: Chosen, format: str = "jsonl") -> Response:
    notes = chosen.open().annotations.file
    if format not in ("jsonl", "markdown"):
        raise Refusal(400, f"format is {format[:40]!r}; expected jsonl or markdown.")
    if format == "markdown":
        return _attached(
            notes.export_markdown(chosen.key), f"{chosen.run_name}-{chosen.sae.id}-notes.md", "text/markdown"
        )
    text = "".join(f"{line}\n" for line in notes.export_jsonl())
    return _attached(text, f"{chosen.run_name}-{chosen.sae.id}-notes.jsonl", "application/x-ndjson")


@router.get(f"{_AT}/export")
def _export(chosen: Chosen, list: str = "", latents: Annotated[str, Query(max_length=20_000)] = "") -> Response:
    """A list, or `latents=1,2,3`, as one HTML file."""
    opened = chosen.open()
    numbers = _listed(opened, list) if list else _numbered(latents)
    for latent in numbers:
        check_latent(opened, latent)
    notes = opened.annotations
    page = features_html(
        opened.index, opened.words, numbers, title=list or chosen.key, labels=notes.labels, notes=notes.notes
    )
    return _attached(page, f"{chosen.run_name}-{chosen.sae.id}-{list or 'features'}.html", "text/html")


@router.get(f"{_AT}/run")
def _run(chosen: Chosen) -> Response:
    return Json(run_json(chosen))


def _beside(opened: Opened, latent: int, asked: TableQuery | None) -> dict[str, int | None]:
    if asked is None:
        last = opened.index.n_latents - 1
        return {"previous": latent - 1 if latent else None, "next": latent + 1 if latent < last else None}
    check_latent(opened, latent)
    order = matching(opened, asked)
    place = np.flatnonzero(order == latent)
    if not len(place):
        return {"previous": None, "next": None}
    at = int(place[0])
    return {
        "previous": int(order[at - 1]) if at else None,
        "next": int(order[at + 1]) if at + 1 < len(order) else None,
    }


def _listed(opened: Opened, name: str) -> list[int]:
    try:
        return opened.annotations.file.latents_of(name)
    except NotesError as error:
        raise Refusal(404, str(error)) from None


def _numbered(latents: str) -> list[int]:
    parts = [part.strip() for part in latents.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise Refusal(400, f"latents is {latents[:60]!r}; expected numbers such as 1,2,3.")
    return [int(part) for part in parts]


def _floats(values: np.ndarray) -> Response:
    return Response(np.ascontiguousarray(values, "<f4").tobytes(), media_type="application/octet-stream")


def _attached(text: str, name: str, kind: str) -> Response:
    safe = "".join(
        character if character.isascii() and (character.isalnum() or character in "._-") else "_" for character in name
    )
    headers: dict[str, Any] = {"Content-Disposition": f'attachment; filename="{safe}"'}
    return PlainTextResponse(text, media_type=f"{kind}; charset=utf-8", headers=headers)
