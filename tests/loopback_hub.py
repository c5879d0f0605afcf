"""A stand-in for the Hugging Face Hub on 127.0.0.1: the endpoints that huggingface_hub's upload calls, over plain HTTP and LFS.

    POST /api/repos/create                         POST /api/validate-yaml
    POST /api/{models,datasets}/ID/preupload/main  POST [datasets/]ID.git/info/lfs/objects/batch     PUT /lfs/OID
    POST /api/{models,datasets}/ID/commit/main     GET  /api/{models,datasets}/ID[/revision/main]

and those by which it fetches again: GET /api/models/ID/tree/main, HEAD and GET /ID/resolve/COMMIT/PATH.

It keeps what arrives and notes every request. `fail` decides which requests go wrong and how. The card's front matter is checked by the rules that
the Hub's documentation gives (a licence, a library, a list of datasets by id, a model-index with task, dataset and metrics).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

_COMMIT = "1" * 40
_HUB_ID = re.compile(r"(?:[\w-]+/)?[\w.-]+")


class LoopbackHub:
    """A server in a thread; use as a context manager."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self.fail: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        """(method, path) -> None, or the status and text to answer; status 0 closes the connection without a word."""

    def __enter__(self) -> "LoopbackHub":
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def sent(self, method: str, part: str) -> list[str]:
        """Paths of the requests of a method that have `part` in them."""
        return [path for verb, path in self.requests if verb == method and part in path]


def front_matter_errors(card: str) -> list[str]:
    """What the Hub would say against a card's front matter; empty when nothing."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["no front matter"]
    errors = [f"{key} should be text" for key in ("license", "library_name") if not isinstance(data.get(key, ""), str)]
    errors += [f"{name!r} is no dataset" for name in data.get("datasets", []) if not _HUB_ID.fullmatch(str(name))]
    for model in data.get("model-index", []):
        for result in model["results"]:
            if not result["task"]["type"] or not _HUB_ID.fullmatch(result["dataset"]["type"]):
                errors.append(f"model-index: {result['task']}, {result['dataset']}")
            errors += [
                f"metric {m}" for m in result["metrics"] if not isinstance(m["value"], int | float) or not m["type"]
            ]
    return errors


def _git(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    state: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._goes_wrong():
            return
        if "/resolve/" in self.path:
            self._resolve()
        elif "/tree/" in self.path:
            files = self.state.files.items()
            self._answer([{"type": "file", "path": name, "size": len(each), "oid": _git(each)} for name, each in files])
        else:
            siblings = [{"rfilename": name} for name in self.state.files]
            self._answer({"id": "someone/x", "sha": _COMMIT, "siblings": siblings, "tags": []})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self._body()
        if self._goes_wrong():
            return
        oid = self.path.rsplit("/", 1)[1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.state.blobs[oid] = body
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self._goes_wrong():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            errors = front_matter_errors(json.loads(body)["content"])
            self._answer({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)
        elif "/preupload/" in self.path:
            self._answer({"files": [self._mode(file) for file in json.loads(body)["files"]]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._answer({"objects": [self._lfs(each) for each in json.loads(body)["objects"]]})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer({"error": "no such endpoint"}, 404)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        there = name in self.state.repositories
        self.state.repositories.setdefault(name, asked)
        self._answer({"url": f"{self.state.url}/{name}"}, 409 if there else 200)

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".safetensors", ".parquet"))
        content, oid = self.state.files.get(file["path"]), None
        if content is not None:
            oid = hashlib.sha256(content).hexdigest() if large else _git(content)
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": oid,
        }

    def _lfs(self, asked: dict[str, Any]) -> dict[str, Any]:
        there = asked["oid"] in self.state.blobs
        actions = {"actions": {"upload": {"href": f"{self.state.url}/lfs/{asked['oid']}"}}}
        return {"oid": asked["oid"], "size": asked["size"]} | ({} if there else actions)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines[1:]:
            value = line["value"]
            content = self.state.blobs[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            self.state.files[value["path"]] = content
        address = f"{self.state.url}/{re.search('/api/(?:models/)?(.+?)/commit/', self.path)[1]}/commit/{_COMMIT}"
        self._answer({"success": True, "commitOid": _COMMIT, "commitUrl": address})

    def _resolve(self) -> None:
        content = self.state.files.get(self.path.split("?")[0].split("/", 5)[5])
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            content = b""
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{_git(content)}"')
        self.send_header("X-Repo-Commit", _COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _goes_wrong(self) -> bool:
        self.state.requests.append((self.command, self.path))
        self.state.tokens.add(self.headers.get("Authorization", ""))
        wrong = self.state.fail(self.command, self.path)
        if wrong is None:
            return False
        status, said = wrong
        if status:
            self._answer({"error": said}, status)
        else:
            self.close_connection = True
            self.connection.close()
        return True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
