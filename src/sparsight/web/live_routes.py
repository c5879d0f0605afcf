"""What the page asks of the language model: its own text, steering and sweeps, each answer a stream of JSON lines.

an answer starts with its first line, so that what fails before it has its own status
a stream's last line has "done": true, or is {"error": "one line"}: the status was sent long before
"""

import logging
from collections.abc import AsyncIterator, Callable, Generator
from typing import Annotated, Any, Literal

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from sparsight.errors import SparsightError
from sparsight.steering import EditRequest, SteerConfig
from sparsight.web.dictionary import Dictionary
from sparsight.web.live import LiveModel, steer_lines, sweep_lines, text_lines
from sparsight.web.read_routes import Chosen
from sparsight.web.replies import Json, Refusal, failure

__all__ = ["router"]

router = APIRouter()
_log = logging.getLogger(__name__)
_AT = "/d/{run}/{sae}"
_LONGEST_TEXT, _LONGEST_PROMPT = 20_000, 8_000
_MOST_NEW_TOKENS, _MOST_EDITS, _MOST_STRENGTHS = 400, 16, 40
_END = object()

Prompt = Annotated[str, Field(min_length=1, max_length=_LONGEST_PROMPT)]
Mode = Literal["add", "clamp", "ablate", "scale"]
Unit = Literal["p99", "norm", "raw"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Text(_Body):
    text: str = Field(min_length=1, max_length=_LONGEST_TEXT)
    latents: list[int] = Field(default=[], max_length=_MOST_EDITS)


class _Edit(_Body):
    latent: int
    mode: Mode = "add"
    strength: Finite = 0.0
    unit: Unit = "p99"

    def request(self) -> EditRequest:
        unit = "raw" if self.mode in ("ablate", "scale") else self.unit
        return EditRequest(self.latent, self.mode, 0.0 if self.mode == "ablate" else self.strength, unit)


class _Settings(_Body):
    scope: Literal["both", "prompt", "generation"] = "both"
    max_new_tokens: int = Field(default=40, ge=1, le=_MOST_NEW_TOKENS)
    temperature: float = Field(default=0.0, ge=0, le=10)
    seed: int = Field(default=0, ge=0, lt=2**63)

    def config(self, controls: tuple[str, ...] = ()) -> SteerConfig:
        return SteerConfig(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            scope=self.scope,
            controls=controls,
        )


class _Steer(_Settings):
    prompt: Prompt
    edits: list[_Edit] = Field(max_length=_MOST_EDITS)
    controls: list[Literal["random", "prompt"]] = Field(default=["random", "prompt"], max_length=2)


class _Sweep(_Settings):
    prompt: Prompt
    latent: int
    mode: Mode = "add"
    unit: Unit = "p99"
    strengths: list[Finite] = Field(min_length=1, max_length=_MOST_STRENGTHS)


@router.post(f"{_AT}/text")
async def _text(chosen: Chosen, request: Request, body: _Text) -> Response:
    def lines() -> Generator[dict[str, Any], None, None]:
        return text_lines(_live(request, chosen), chosen, chosen.open(), body.text, body.latents)

    return await _stream(request, lines)


@router.post(f"{_AT}/steer")
async def _steer(chosen: Chosen, request: Request, body: _Steer) -> Response:
    def lines() -> Generator[dict[str, Any], None, None]:
        requests = [edit.request() for edit in body.edits]
        config = body.config(tuple(body.controls))
        return steer_lines(_live(request, chosen), chosen, chosen.open(), body.prompt, requests, config)

    return await _stream(request, lines)


@router.post(f"{_AT}/sweep")
async def _sweep(chosen: Chosen, request: Request, body: _Sweep) -> Response:
    def lines() -> Generator[dict[str, Any], None, None]:
        edit = _Edit(latent=body.latent, mode=body.mode, unit=body.unit).request()
        live = _live(request, chosen)
        return sweep_lines(live, chosen, chosen.open(), body.prompt, edit, body.strengths, body.config())

    return await _stream(request, lines)


def _line(value: Any) -> bytes:
    return bytes(Json(value).body) + b"\n"


def _live(request: Request, chosen: Dictionary) -> LiveModel:
    return request.app.state.explorer.models[chosen.run_name]


def _limiter(request: Request) -> anyio.CapacityLimiter:
    """Threads for live answers only: one that runs, and those that wait for it."""
    state = request.app.state
    if not hasattr(state, "live_threads"):
        state.live_threads = anyio.CapacityLimiter(8)
    return state.live_threads


async def _stream(request: Request, make: Callable[[], Generator[dict[str, Any], None, None]]) -> Response:
    """The generator's values as lines of JSON. It is closed, and the model free again, when the reader goes away."""
    limiter = _limiter(request)
    made = await run_sync(make, limiter=limiter)
    first = await run_sync(next, made, _END, limiter=limiter)

    async def lines() -> AsyncIterator[bytes]:
        try:
            line: Any = first
            while line is not _END:
                yield _line(line)
                line = await run_sync(next, made, _END, limiter=limiter)
        except Refusal as refusal:
            yield _line(refusal.body)
        except SparsightError as error:
            yield _line(Refusal(400, str(error)).body)
        except Exception as error:
            _log.error("%s failed", request.url.path, exc_info=error)
            yield _line(failure(error).body)
        finally:
            with anyio.CancelScope(shield=True):
                await run_sync(made.close, limiter=limiter)

    return StreamingResponse(lines(), media_type="application/x-ndjson")
