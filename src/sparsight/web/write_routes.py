"""What the page changes: labels, notes, lists. Each answer is what the thing now is. Also the test of a label, which changes nothing."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from sparsight.errors import NotesError
from sparsight.features import Label
from sparsight.web.annotations import label_json
from sparsight.web.dictionary import Opened
from sparsight.web.feature import check_latent
from sparsight.web.read_routes import Chosen
from sparsight.web.replies import Json, Refusal, finite

__all__ = ["router"]

router = APIRouter()
_AT = "/d/{run}/{sae}"
_PERSON = "person"
_MOST_SHOWN = 20
Name = Annotated[str, Path(max_length=400)]


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    text: str


class _Latents(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    latents: list[int]


@router.put(f"{_AT}/features/{{latent}}/label")
def _set_label(chosen: Chosen, latent: int, body: _Written) -> Response:
    opened = _with(chosen, latent)
    with opened.annotations.change(latent) as notes:
        notes.set_label(Label(latent, body.text, _PERSON))
    return _labelled(opened, latent)


@router.delete(f"{_AT}/features/{{latent}}/label")
def _delete_label(chosen: Chosen, latent: int) -> Response:
    """A person's label; those of explainers stay."""
    opened = _with(chosen, latent)
    with opened.annotations.change(latent) as notes:
        notes.delete_label(latent, _PERSON)
    return _labelled(opened, latent)


@router.put(f"{_AT}/features/{{latent}}/note")
def _set_note(chosen: Chosen, latent: int, body: _Written) -> Response:
    opened = _with(chosen, latent)
    with opened.annotations.change(latent) as notes:
        notes.set_note(latent, body.text)
    return Json({"latent": latent, "note": opened.annotations.file.note(latent)})


@router.post(f"{_AT}/features/{{latent}}/falsify")
def _falsify(chosen: Chosen, latent: int, body: _Written) -> Response:
    """Tests a label by the tokens that it names in backticks. It changes nothing."""
    opened = _with(chosen, latent)
    found = asdict(opened.falsify(latent, body.text))
    against = {name: found.pop(name)[:_MOST_SHOWN] for name in ("misses", "false_alarms")}
    return Json(finite(found | against))


@router.put(f"{_AT}/lists/{{name}}")
def _set_list(chosen: Chosen, name: Name, body: _Latents) -> Response:
    with chosen.open().annotations.change() as notes:
        notes.set_list(name, body.latents)
    return _listed(notes, name)


@router.post(f"{_AT}/lists/{{name}}/add")
def _add(chosen: Chosen, name: Name, body: _Latents) -> Response:
    with chosen.open().annotations.change() as notes:
        notes.add_to_list(name, body.latents)
    return _listed(notes, name)


@router.post(f"{_AT}/lists/{{name}}/remove")
def _remove(chosen: Chosen, name: Name, body: _Latents) -> Response:
    with chosen.open().annotations.change() as notes:
        _existing(notes, name)
        notes.remove_from_list(name, body.latents)
    return _listed(notes, name)


@router.delete(f"{_AT}/lists/{{name}}")
def _delete_list(chosen: Chosen, name: Name) -> Response:
    with chosen.open().annotations.change() as notes:
        _existing(notes, name)
        notes.delete_list(name)
    return Json({"deleted": name})


@router.post(f"{_AT}/notes/import")
async def _import(chosen: Chosen, request: Request) -> Response:
    """The body is what /notes/export gave; all of it is taken, or nothing."""
    body = await request.body()
    try:
        lines = body.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Refusal(400, f"The body is not UTF-8 ({error.reason} at byte {error.start}).") from None
    opened = await run_in_threadpool(chosen.open)
    n = await run_in_threadpool(opened.annotations.file.import_jsonl, lines)
    return Json({"imported": n})


def _with(chosen: Chosen, latent: int) -> Opened:
    opened = chosen.open()
    check_latent(opened, latent)
    return opened


def _labelled(opened: Opened, latent: int) -> Response:
    labels = opened.annotations.file.labels(latent)
    shown = [label_json(label) for label in labels]
    return Json({"latent": latent, "label": shown[0] if shown else None, "labels": shown})


def _listed(notes: Any, name: str) -> Response:
    found = next(each for each in notes.lists() if each.name == name)
    return Json({"name": found.name, "size": found.size, "created": found.created, "latents": notes.latents_of(name)})


def _existing(notes: Any, name: str) -> None:
    try:
        notes.latents_of(name)
    except NotesError as error:
        raise Refusal(404, str(error)) from None
