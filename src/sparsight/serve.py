"""Runs -> the explorer in a browser: a local web server that only this machine can reach, and only with the URL it prints.

The URL holds a token drawn at each start; the browser exchanges it for a cookie. Another address than this machine's own needs
`allow_remote`, since what it serves includes passages of the text and the use of the language model.
"""

import logging
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Iterable
from pathlib import Path

from sparsight.errors import RunError
from sparsight.web.config import ExplorerConfig

__all__ = ["serve_runs"]

_log = logging.getLogger(__name__)
_DEFAULTS = ExplorerConfig()


def serve_runs(
    runs: Iterable[str | Path],
    config: ExplorerConfig = _DEFAULTS,
    *,
    on_start: Callable[[str], None] = lambda url: print(url, flush=True),
) -> None:
    """Serve until a stop signal or `idle_minutes` without a request; `on_start` gets the URL to open.

    Raises RunError when a path is no run, the port is taken or the extra `web` is not installed.
    """
    try:
        import uvicorn

        from sparsight.web.app import make_app
        from sparsight.web.explorer import Explorer
    except ModuleNotFoundError as error:
        raise RunError(f"The explorer needs {error.name}. Install it with: pip install 'sparsight[web]'") from None
    explorer = Explorer(runs)
    with _listening(config) as listener:
        port = listener.getsockname()[1]
        app = make_app(explorer, host=config.host, port=port)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,  # it would print the token
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
                lifespan="off",
            )
        )
        url = f"http://{_shown_host(config.host)}:{port}/?token={app.token}"

        failures: list[Exception] = []

        def watch() -> None:
            """Says when it has started, works ahead, and waits for the idle time to pass; without it nothing would stop the server."""
            try:
                while not server.started and not server.should_exit:
                    time.sleep(0.01)
                explorer.prepare()
                on_start(url)
                if config.browser:
                    webbrowser.open(url)
                threading.Thread(target=explorer.warm_up, daemon=True, name="warm-up").start()
                while not server.should_exit:
                    if config.idle_minutes and app.idle_seconds > config.idle_minutes * 60:
                        _log.info("No request for %g minutes: stopping.", config.idle_minutes)
                        break
                    time.sleep(0.2)
            except Exception as error:  # such as a pipe that nobody reads any more
                failures.append(error)
            finally:
                server.should_exit = True

        threading.Thread(target=watch, daemon=True, name="watch").start()
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


def _listening(config: ExplorerConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it on, every answer waits 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise RunError(
            f"Cannot listen on {config.host} port {config.port} ({error.strerror}). Choose another --port, or 0 for a free one."
        ) from None
    return listener


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
