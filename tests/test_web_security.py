"""Attacks on the explorer: other pages, other names, other tokens, other paths, large and garbled bodies, strings that would act."""

import json
import re

import pytest
from starlette.testclient import TestClient

from sparsight.errors import RunError
from sparsight.web.app import make_app
from sparsight.web.config import ExplorerConfig
from sparsight.web.explorer import Explorer
from sparsight.web.security import LARGEST_BODY
from web_run import BASE, CHANGE, HOSTILE, make_client, make_comparison, make_run

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, text_path):
    return make_run(tmp_path_factory.mktemp("web"), model_folder, text_path)


@pytest.fixture(scope="module")
def client(run) -> TestClient:
    return make_client(run)


@pytest.fixture(scope="module")
def stranger(client) -> TestClient:
    """The same server, without the cookie."""
    return TestClient(client.app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def paths(client: TestClient) -> list[tuple[str, str]]:
    """(method, address) of every route under /api."""
    found = []

    def walk(routes, prefix: str) -> None:
        for route in routes:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                walk(inner.routes, prefix + getattr(route.include_context, "prefix", ""))
            elif hasattr(route, "methods") and not route.path.endswith("{path:path}"):
                found.extend((method, prefix + route.path) for method in route.methods - {"HEAD"})

    walk(client.app.app.routes, "")
    values = {"run": "run", "sae": "topk", "latent": "1", "name": "density"}
    return [(method, re.sub(r"{(\w+)}", lambda part: values[part[1]], path)) for method, path in found]


def test_every_route_of_the_api_wants_the_secret(stranger, client):
    routes = paths(client)
    assert len(routes) >= 22
    for method, path in routes:
        answer = stranger.request(method, path, headers=CHANGE | JSON, content="{}")
        assert answer.status_code == 401, (method, path)
        assert "run" not in answer.text.replace("browser", "").split('"remedy"')[0]


def test_every_change_wants_the_header_and_a_json_body(client):
    changes = [(method, path) for method, path in paths(client) if method != "GET"]
    assert len(changes) >= 11
    for method, path in changes:
        assert client.request(method, path, headers=JSON, content="{}").status_code == 403, (method, path)
        if method != "DELETE":
            for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""):
                answer = client.request(method, path, headers=CHANGE | {"Content-Type": kind}, content="{}")
                assert answer.status_code == 415, (method, path, kind)


@pytest.mark.parametrize("token", ["", "secre", "secret2", "SECRET", "a" * 10_000, "\u00e9", "%00", "secret%0a"])
def test_no_other_token_is_exchanged(stranger, token):
    answer = stranger.get(f"/?token={token}", follow_redirects=False)
    assert answer.status_code == (401 if token else 200)  # without one it is the page, which holds no secret
    assert "set-cookie" not in answer.headers
    assert stranger.get("/api/session", headers={"Authorization": f"Bearer {token}".encode()}).status_code == 401


def test_the_token_becomes_a_strict_cookie_and_leaves_the_address(stranger):
    answer = stranger.get("/?token=secret", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert "secret" not in cookie  # the session's own
    stranger.cookies.clear()
    for path in ("http://127.0.0.1:8000//evil.example/?token=secret", "/x?token=secret", "/api/session?token=secret"):
        answer = stranger.get(path, follow_redirects=False)
        assert answer.status_code in (401, 404)
        assert "location" not in answer.headers
    for cookie in (
        "sparsight-8000=",
        "sparsight-8000=wrong",
        "sparsight-8001=secret",
        "a=b; =; sparsight-8000",
        "\xff",
    ):
        assert stranger.get("/api/session", headers={"Cookie": cookie.encode("latin-1")}).status_code == 401


@pytest.mark.parametrize(
    "host",
    "evil.example evil.example:8000 127.0.0.1.evil.example localhost.evil.example:80 0.0.0.0:8000 [::]:8000 127.0.0.2:1 10.0.0.1 "
    "127.0.0.1@evil.example evil.example#127.0.0.1 ".split(" "),
)
def test_another_name_is_turned_away_before_anything(client, host):
    for path in ("/", "/api/session", "/?token=secret"):
        answer = client.get(path, headers={"Host": host}, follow_redirects=False)
        assert answer.status_code == 421, path
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST:9", "[::1]:8000", "localhost"])
def test_this_machines_names_are_answered_at_any_port(client, host):
    """A port may be forwarded."""
    assert client.get("/api/session", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8001"},
        {"Origin": "http://localhost:8000"},
        {"Origin": "file://"},
        {"Origin": "http://127.0.0.1:8000.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_page_is_turned_away_on_reads_changes_and_streams(client, headers):
    assert client.get("/api/session", headers=headers).status_code == 403
    changed = client.put(f"{BASE}/features/1/label", headers=headers | CHANGE, json={"text": "theirs"})
    assert changed.status_code == 403
    stream = client.post(f"{BASE}/steer", headers=headers | CHANGE, json={"prompt": "x", "edits": []})
    assert stream.status_code == 403
    assert client.get(f"{BASE}/features/1").json()["label"] is None


def test_its_own_page_is_answered(client):
    headers = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert client.get("/api/session", headers=headers).status_code == 200


def test_a_preflight_grants_nothing(client):
    asked = {
        "Origin": "http://evil.example",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "x-sparsight",
    }
    answer = client.options(f"{BASE}/features/1/label", headers=asked)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path", ["/", "/api/session", f"{BASE}/features", "/api/nothing", f"{BASE}/map", "/nothing.js"]
)
def test_every_answer_carries_the_policy(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"https?:|\*", policy)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    "/../../etc/passwd /..%2f..%2fetc/passwd /%2e%2e/%2e%2e/etc/passwd /static/../config.py http://127.0.0.1:8000//etc/passwd "
    "/etc/passwd /%00 /../app.py /..\\..\\etc\\passwd /.git/config /api/../app.py".split(),
)
def test_no_file_but_the_pages_own_is_served(client, path):
    answer = client.get(path, headers={"Accept": "*/*"})
    assert answer.status_code == 404
    assert "root:" not in answer.text
    assert "error" in answer.json()


@pytest.mark.parametrize("run_name", ["..", "%2e%2e", "..%2frun", "run%2f..", "run%00", "/etc", "RUN", "ru"])
@pytest.mark.parametrize("sae", ["topk", "..", "%2e%2e%2ftopk", "topk.seed"])
def test_no_dictionary_but_those_served_is_opened(client, run_name, sae):
    answer = client.get(f"/api/d/{run_name}/{sae}/run")
    assert answer.status_code in (404, 405)
    assert "recipe" not in answer.json()


@pytest.mark.parametrize("name", ["a/b", "..", "a\\b", "\x00", "x" * 500, "\u202e", " ", "a\nb"])
def test_names_of_lists_reach_no_path_and_no_terminal(client, run, name):
    from urllib.parse import quote

    before = sorted(path for path in run.rglob("*") if "notes" not in path.parts)
    answer = client.put(f"{BASE}/lists/{quote(name, safe='')}", headers=CHANGE, json={"latents": [1]})
    assert 400 <= answer.status_code < 500
    assert sorted(path for path in run.rglob("*") if "notes" not in path.parts) == before


def test_bodies_too_large_are_cut_off(client):
    huge = {"Content-Type": "application/x-ndjson"} | CHANGE
    announced = client.post(
        f"{BASE}/notes/import", headers=huge | {"Content-Length": str(LARGEST_BODY + 1)}, content=b"x"
    )
    assert announced.status_code == 413

    def chunks():
        for _ in range(LARGEST_BODY // 2**20 + 2):
            yield b" " * 2**20

    assert client.post(f"{BASE}/notes/import", headers=huge, content=chunks()).status_code == 413
    label = client.put(f"{BASE}/features/1/label", headers=CHANGE, json={"text": "x" * 100_000})
    assert label.status_code == 400
    assert len(label.text) < 1000
    assert client.post(f"{BASE}/text", headers=CHANGE, json={"text": "x" * 100_000}).status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'{"text": 1}', b'{"text": null}', b'{"text": "a", "latent": 3}'),
        *(b"\xff\xfe", b'{"text": "\\ud800"}', b"[" * 100_000),
    ],
)
def test_garbled_bodies_are_refused_in_one_line(client, body):
    answer = client.put(f"{BASE}/features/1/label", headers=CHANGE | JSON, content=body)
    assert 400 <= answer.status_code < 500
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    "latents",
    [[-1], [64], [2**70], ["1"], [1.5], [True], "123", None, [[1]], [None]],
    ids=lambda value: str(value)[:20],
)
def test_lists_take_latents_only(client, latents):
    answer = client.put(f"{BASE}/lists/mine", headers=CHANGE, json={"latents": latents})
    assert 400 <= answer.status_code < 500
    assert client.get(f"{BASE}/lists").json() == []


@pytest.mark.parametrize(
    "edit",
    [{"latent": 64}, {"latent": -1}, {"latent": 1, "mode": "explode"}, {"latent": 1, "strength": "NaN"}, {"latent": 1, "unit": "m"}],
)  # fmt: skip
def test_edits_that_cannot_be_are_refused(client, edit):
    answer = client.post(f"{BASE}/steer", headers=CHANGE, json={"prompt": "x", "edits": [edit]})
    last = json.loads(answer.text.strip().splitlines()[-1])
    assert "error" in last


def test_hostile_labels_and_notes_come_back_as_they_were_or_are_refused(client):
    for text in HOSTILE:
        answer = client.put(f"{BASE}/features/2/label", headers=CHANGE, json={"text": text})
        if answer.status_code == 200:
            assert answer.json()["label"]["text"] == text
            assert answer.headers["content-type"] == "application/json"
            assert client.get(f"{BASE}/features", params={"q": text.split()[0]}).status_code == 200
        else:
            assert answer.status_code == 400
            assert answer.text.isprintable()
    client.delete(f"{BASE}/features/2/label", headers=CHANGE)


def test_an_export_is_saved_and_not_shown(client):
    answer = client.get(f"{BASE}/export", params={"latents": "5"})
    assert answer.headers["content-disposition"] == 'attachment; filename="run-topk-features.html"'
    client.put(f'{BASE}/lists/a"%0d%0ab'.replace("%0d%0a", "; x="), headers=CHANGE, json={"latents": [1]})
    answer = client.get(f"{BASE}/export", params={"list": 'a"; x=b'})
    assert answer.headers["content-disposition"] == 'attachment; filename="run-topk-a___x_b.html"'
    client.delete(f'{BASE}/lists/a"; x=b', headers=CHANGE)


def test_another_address_needs_the_flag_and_answers_to_addresses_only(run):
    with pytest.raises(RunError, match="--allow-remote"):
        ExplorerConfig(host="0.0.0.0")
    with pytest.raises(RunError, match="--allow-remote"):
        ExplorerConfig(host="example.org")
    assert ExplorerConfig(host="::1").is_local
    config = ExplorerConfig(host="0.0.0.0", allow_remote=True)
    remote = TestClient(
        make_app(Explorer([run]), host=config.host, port=8000, token="secret"), base_url="http://10.1.2.3:8000"
    )
    assert remote.get("/api/session").status_code == 401
    assert remote.get("/api/session", headers={"Authorization": "Bearer secret"}).status_code == 200
    bound = {"Authorization": "Bearer secret", "Host": "evil.example:8000"}
    assert remote.get("/api/session", headers=bound).status_code == 421


def test_there_is_no_page_that_loads_scripts_from_elsewhere(client):
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(path).status_code == 404


def test_the_page_of_a_comparison_runs_nothing_wherever_it_is_opened(run, model_folder, tmp_path):
    client = make_client(run, make_comparison(tmp_path, model_folder))
    answer = client.get("/api/c/compared/report?colours=dark")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert "color-scheme:dark}" in answer.text
    assert "color-scheme:light dark}" in client.get("/api/c/compared/report?colours=red;x").text
    assert client.get("/api/c/..%2Fcompared/report").status_code == 404
    assert "frame-ancestors 'none'" in client.get("/api/session").headers["content-security-policy"]
