"""The explorer as a process: it prints its URL, listens on this machine alone, endures, and stops by itself or when told."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import sparsight.serve
from sparsight.errors import RunError
from sparsight.serve import serve_runs
from sparsight.web.config import ExplorerConfig
from web_run import BASE, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, text_path) -> Path:
    return make_run(tmp_path_factory.mktemp("web"), model_folder, text_path)


@contextmanager
def serving(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str, int]]:
    """(process, token, port) of `sparsight serve`, which is gone at the end."""
    command = [sys.executable, "-m", "sparsight.cli", "serve", str(run), "--no-browser", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)", line)
        assert found, line + process.stdout.read()
        yield process, found[2], int(found[1])
    finally:
        process.kill()
        process.wait()


def ask(connection: http.client.HTTPConnection, path: str, token: str) -> int:
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.mark.slow
def test_a_process_answers_ten_thousand_rapid_requests_and_bad_bytes_and_stops_when_told(run):
    with serving(run) as (process, token, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        assert ask(connection, "/api/session", token) == 200
        assert ask(connection, "/api/session", "wrong") == 401
        paths = [f"{BASE}/features?limit=1", f"{BASE}/columns/density", *["/api/session"] * 8]
        statuses = {ask(connection, paths[i % 10], token if i % 10 < 3 else "wrong") for i in range(10_000)}
        assert ask(connection, "/nothing.js", token) == 404
        assert statuses == {200, 401}
        for garbage in (
            b"\x16\x03\x01" + bytes(200),
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000,
            b"GET /\x00 HTTP/9\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
                raw.sendall(garbage)
                raw.settimeout(0.5)
                with suppress(TimeoutError):
                    raw.recv(1000)
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]  # who connect and say nothing
        assert ask(connection, "/api/session", token) == 200
        for each in idle:
            each.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stdout is not None
        said = process.stdout.read()
        assert token not in said
        assert "Traceback" not in said


@pytest.mark.slow
def test_a_process_stops_by_itself_when_nobody_asks(run):
    with serving(run, "--idle-minutes", "0.02") as (process, token, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for _ in range(8):  # 1.6 s in all: longer than it would wait
            assert ask(connection, "/api/session", token) == 200
            time.sleep(0.2)
        assert process.poll() is None
        assert process.wait(10) == 0


def test_it_listens_on_this_machine_alone_and_opens_a_browser_when_asked(run, monkeypatch):
    opened, started = [], []

    def on_start(url: str) -> None:
        started.append(url)
        port = int(re.findall(r":(\d+)/", url)[0])
        with (
            pytest.raises(OSError, match=r"refused|timed out|assign"),
            socket.create_connection(("127.0.0.2", port), timeout=1),
        ):
            pass

    monkeypatch.setattr(sparsight.serve.webbrowser, "open", opened.append)
    serve_runs([run], ExplorerConfig(idle_minutes=0.001), on_start=on_start)
    assert opened == started
    assert len(started) == 1


def test_it_stops_when_it_cannot_say_where_it_is(run):
    def on_start(url: str) -> None:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        serve_runs([run], ExplorerConfig(browser=False), on_start=on_start)


def test_a_port_in_use_and_a_missing_run_are_one_line(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"Cannot listen on 127.0.0.1 port {port}"):
            serve_runs([run], ExplorerConfig(port=port, browser=False))
    with pytest.raises(RunError, match="not a run directory"):
        serve_runs([tmp_path], ExplorerConfig(browser=False))
    with pytest.raises(RunError, match="--port is 70000"):
        ExplorerConfig(port=70_000)


def test_without_its_packages_it_says_what_to_install(run):
    code = (
        "import sys; sys.modules['uvicorn'] = None\n"
        "from sparsight.serve import serve_runs\n"
        "try: serve_runs(['x'])\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sparsight[web]'" in done.stdout


def test_the_page_without_a_server_needs_none_of_its_packages():
    code = (
        "import sys\n"
        "for name in ('fastapi', 'starlette', 'uvicorn'): sys.modules[name] = None\n"
        "import sparsight.web.export, sparsight.web.words, sparsight.web.config, sparsight.study, sparsight.serve"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
