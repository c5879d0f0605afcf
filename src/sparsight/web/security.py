"""What a request must show before anything answers it, and what every answer carries.

A page that listens on 127.0.0.1 is reachable from every web page the browser has open. So:

    Host      must name this machine: a foreign page that points its own name at 127.0.0.1 (DNS rebinding) is turned away
    Origin    where there is one, must be the page's own; so must Sec-Fetch-Site, where there is one
    secret    a cookie (HttpOnly, SameSite=Strict) that the printed URL's token is exchanged for, or `Authorization: Bearer TOKEN`
    changes   need the header `X-Sparsight: 1` and a JSON type: no form and no plain cross-origin request can send them
    size      no body above LARGEST_BODY

The page itself (the built front end) holds no secret and is served without the cookie; /api is not. Answers carry a content security
policy that allows nothing but this server's own files, and no inline script.
Trade-off: a cookie is sent to every port of its host, so a hostile server that a person runs on this machine and visits could read it.
"""

import hmac
import ipaddress
import secrets
import socket
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders

from sparsight.web.replies import Json, Refusal

__all__ = ["LARGEST_BODY", "Guard"]

LARGEST_BODY = 32 * 2**20
_JSON_TYPES = ("application/json", "application/x-ndjson")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware around the whole application. `token` is what the printed URL holds."""

    def __init__(self, app: Any, *, host: str = "127.0.0.1", port: int = 0, token: str = "") -> None:
        self.app, self.token = app, token or secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        self._cookie = f"sparsight-{port}"  # cookies know no ports: two explorers would overwrite each other's
        self._host = host
        self._in_flight = 0
        self._last = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Since the last request ended; 0 while one is answered."""
        return 0.0 if self._in_flight else time.monotonic() - self._last

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        self._in_flight += 1
        try:
            await self._answer(scope, receive, _with_headers(scope, send))
        finally:
            self._in_flight -= 1
            self._last = time.monotonic()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        headers = Headers(scope=scope)
        try:
            self._check_origin(scope, headers)
            if scope["path"] == "/" and (given := _token(scope)):
                await self._exchange(given)(scope, receive, send)
                return
            if scope["path"].startswith("/api"):
                self._check_secret(headers)
                _check_change(scope, headers)
            await self.app(scope, _limited(receive, headers), send)
        except Refusal as refusal:
            await refusal.reply()(scope, receive, send)

    def _check_origin(self, scope: Any, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise Refusal(
                421, f"This explorer does not answer to the name {', '.join(hosts)[:100]!r}.", "Open the printed URL."
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = origin is not None and origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}")
        if foreign or (scope["path"].startswith("/api") and site not in ("same-origin", "none")):
            raise Refusal(403, "The request comes from another page.", "Open the printed URL.")

    def _is_ours(self, host: str) -> bool:
        """Any port: it may be forwarded. A name that is an address cannot be pointed elsewhere."""
        name = host.rsplit(":", 1)[0].strip("[]") if not host.endswith("]") else host.strip("[]")
        name = name.lower()
        if name in ("localhost", "127.0.0.1", "::1", self._host.lower()):
            return True
        try:
            everywhere = ipaddress.ip_address(self._host).is_unspecified
        except ValueError:
            everywhere = False
        return everywhere and (_is_address(name) or name == socket.gethostname().lower())

    def _exchange(self, given: str) -> Any:
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise Refusal(
                401, "The token of this URL is not this explorer's.", "Open the URL that it printed when it started."
            )
        answer = Json({}, status_code=303, headers={"Location": "/", "Cache-Control": "no-store"})
        answer.set_cookie(self._cookie, self._session, httponly=True, samesite="strict", path="/")
        return answer

    def _check_secret(self, headers: Headers) -> None:
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(bearer.encode(), self.token.encode()):
            return
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            morsel = None
        if morsel is None or not hmac.compare_digest(morsel.value.encode(), self._session.encode()):
            raise Refusal(
                401, "This browser has not opened this explorer yet.", "Open the URL that it printed when it started."
            )


def _check_change(scope: Any, headers: Headers) -> None:
    if scope["method"] in ("GET", "HEAD"):
        return
    if headers.get("x-sparsight") != "1":
        raise Refusal(403, "A request that changes something needs the header X-Sparsight: 1.")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in _JSON_TYPES and scope["method"] != "DELETE":
        raise Refusal(415, f"The body's type is {kind[:60]!r}; expected {' or '.join(_JSON_TYPES)}.")


def _limited(receive: Any, headers: Headers) -> Any:
    """`receive` that refuses a body above LARGEST_BODY, announced or not."""
    announced = headers.get("content-length", "0")
    too_large = Refusal(413, f"The body is larger than {LARGEST_BODY:,} bytes.", "Send it in parts.")
    if not announced.isdigit() or int(announced) > LARGEST_BODY:
        raise too_large
    n_bytes = 0

    async def limited() -> Any:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > LARGEST_BODY:
            raise too_large
        return message

    return limited


def _with_headers(scope: Any, send: Any) -> Any:
    async def decorated(message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if scope["path"].startswith("/api"):
                headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return decorated


def _token(scope: Any) -> str:
    return parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
