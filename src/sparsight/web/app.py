"""make_app: the explorer as an ASGI application. The API is a room of routes (reading, writing, live); all else is the built page.

Every error is JSON of one line. Sync functions run in Starlette's thread pool; what waits for the language model has a small pool of its
own, so that it never keeps a table waiting.
"""

import logging
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from sparsight.errors import NotesError, SparsightError
from sparsight.web import live_routes, read_routes, write_routes
from sparsight.web.explorer import Explorer
from sparsight.web.replies import Refusal, failure
from sparsight.web.security import Guard

__all__ = ["make_app", "static_folder"]

_log = logging.getLogger(__name__)
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}


def make_app(explorer: Explorer, *, host: str = "127.0.0.1", port: int = 0, token: str = "") -> Guard:
    """The application behind its guard. `port` names its cookie; `token` is drawn when it is empty."""
    # no pages of FastAPI's own: they load scripts from elsewhere
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.explorer = explorer
    for routes in (read_routes, write_routes, live_routes):
        app.include_router(routes.router, prefix="/api")
    app.add_api_route("/{path:path}", _page, methods=["GET", "HEAD"], response_model=None)
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, answer)
    return Guard(app, host=host, port=port, token=token)


def static_folder() -> Path:
    """Where the built page lies."""
    return Path(str(resources.files("sparsight.web") / "static"))


def _page(request: Request, path: str) -> Response:
    """A file of the built page; its index.html for the page's own addresses. Only files that are listed can be asked for."""
    if path.startswith("api/"):
        raise Refusal(404, f"There is no /{path[:100]}.")
    folder = static_folder()
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    file = files.get(path or "index.html")
    if file is None and "text/html" in request.headers.get("accept", ""):
        file = files.get("index.html")
        if file is None:
            raise Refusal(404, "The page is not part of this installation; the API under /api is.")
    if file is None:
        raise Refusal(404, f"There is no file {path[:100]!r}.")
    return FileResponse(
        file, media_type=_TYPES.get(file.suffix, "application/octet-stream"), headers={"Cache-Control": "no-cache"}
    )


def _refused(_request: Request, error: Any) -> Response:
    return error.reply()


def _mistaken(_request: Request, error: Any) -> Response:
    return Refusal(400, str(error)).reply()


def _unheard(_request: Request, error: Any) -> Response:
    what = {404: "There is nothing at this address.", 405: "This address does not take that method."}
    return Refusal(error.status_code, what.get(error.status_code, str(error.detail))).reply()


def _garbled(_request: Request, error: Any) -> Response:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return Refusal(422, f"{where or 'The request'}: {first['msg']}."[:300]).reply()


def _failed(request: Request, error: Any) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return failure(error).reply()


_ANSWERS: dict[Any, Callable[[Request, Any], Response]] = {
    Refusal: _refused,
    NotesError: _mistaken,
    SparsightError: _mistaken,
    RequestValidationError: _garbled,
    HTTPException: _unheard,
    Exception: _failed,
}
