"""The explorer's notes, live answers and endurance: what is written, what a text makes fire, and runs that vanish under it."""

import json
import shutil
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from sparsight import cli
from sparsight.errors import RunError
from sparsight.features import Label, LiveText, Notes, read_text
from sparsight.lm import LanguageModel
from sparsight.recipe import load_recipe
from sparsight.sae import SparseAutoencoder
from sparsight.steering import SteerEvent
from sparsight.web import live
from sparsight.web.explorer import Explorer
from web_run import BASE, CHANGE, HOSTILE, make_client, make_comparison, make_run, moved, write_index


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, text_path) -> Path:
    return make_run(tmp_path_factory.mktemp("web"), model_folder, text_path)


@pytest.fixture(scope="module")
def client(run) -> TestClient:
    return make_client(run)


@pytest.fixture
def own_run(tmp_path, run) -> Path:
    """A copy that a test may destroy."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_labels_notes_and_lists_are_kept_where_the_command_line_finds_them(client, run):
    notes = Notes.open(run / "notes" / "topk.sqlite")
    notes.set_label(Label(3, "by a model", "llm:judge", score=0.8, low=0.7, high=0.9))
    assert client.get(f"{BASE}/features/3").json()["label"]["score"] == 0.8
    put = client.put(f"{BASE}/features/3/label", headers=CHANGE, json={"text": "by hand"}).json()
    assert [label["source"] for label in put["labels"]] == ["person", "llm:judge"]
    client.put(f"{BASE}/features/3/note", headers=CHANGE, json={"text": "look\nagain"})
    assert notes.note(3) == "look\nagain"
    found = client.put(f"{BASE}/lists/mine", headers=CHANGE, json={"latents": [3, 1]}).json()
    assert (found["size"], found["latents"]) == (2, [3, 1])
    assert client.post(f"{BASE}/lists/mine/add", headers=CHANGE, json={"latents": [7, 3]}).json()["latents"] == [
        3,
        1,
        7,
    ]
    assert client.post(f"{BASE}/lists/mine/remove", headers=CHANGE, json={"latents": [1]}).json()["size"] == 2
    assert {row["latent"] for row in client.get(f"{BASE}/features?list=mine").json()["rows"]} == {3, 7}
    assert client.get(f"{BASE}/features/3").json()["lists"] == ["mine"]
    exported = client.get(f"{BASE}/notes/export").text
    assert len(exported.splitlines()) == 4
    assert "## Latent 3" in client.get(f"{BASE}/notes/export?format=markdown").text
    assert client.delete(f"{BASE}/lists/mine", headers=CHANGE).status_code == 200
    assert client.delete(f"{BASE}/lists/mine", headers=CHANGE).status_code == 404
    assert client.delete(f"{BASE}/features/3/label", headers=CHANGE).json()["label"]["source"] == "llm:judge"
    lines = {"content": exported, "headers": CHANGE | {"Content-Type": "application/x-ndjson"}}
    assert client.post(f"{BASE}/notes/import", **lines).json() == {"imported": 4}
    assert client.get(f"{BASE}/features/3").json()["label"]["text"] == "by hand"
    assert client.get(f"{BASE}/lists").json()[0]["size"] == 2
    garbled = client.post(f"{BASE}/notes/import", content="{}\n", headers=lines["headers"])
    assert (garbled.status_code, "Line 1" in garbled.json()["error"]) == (400, True)


def test_a_label_is_tested_by_the_tokens_it_names(client, run):
    word = client.get(f"{BASE}/features/40").json()["columns"]["top_token"]
    right = client.post(f"{BASE}/features/40/falsify", headers=CHANGE, json={"text": f"fires on `{word}`"}).json()
    wrong = client.post(f"{BASE}/features/40/falsify", headers=CHANGE, json={"text": "fires on `zebra`"}).json()
    assert right["score"]["value"] == 1
    assert wrong["score"]["value"] == 0.5
    assert len(wrong["misses"]) == wrong["score"]["n_active"] > 0
    vague = client.post(f"{BASE}/features/40/falsify", headers=CHANGE, json={"text": "sad words"})
    assert (vague.status_code, "backticks" in vague.json()["error"]) == (400, True)
    assert client.get(f"{BASE}/features/40").json()["label"] is None


def test_what_another_process_writes_shows_in_the_table(client, run):
    def label(latent: int):
        return client.get(f"{BASE}/features?filter=latent={latent}").json()["rows"][0]["label"]

    assert label(20) is None
    Notes.open(run / "notes" / "topk.sqlite").set_label(Label(20, "from elsewhere", "person"))
    assert label(20)["text"] == "from elsewhere"
    assert client.get(f"{BASE}/features?q=elsewhere").json()["total"] == 1
    ranked = client.get(f"{BASE}/features?sort=label&order=asc&limit=64").json()["rows"]
    assert [row["label"] is None for row in ranked] == sorted(row["label"] is None for row in ranked)


def test_writers_at_the_same_time_lose_nothing(client):
    def write(first: int) -> None:
        for latent in range(first, first + 8):
            assert (
                client.put(f"{BASE}/features/{latent}/note", headers=CHANGE, json={"text": f"n{latent}"}).status_code
                == 200
            )

    threads = [threading.Thread(target=write, args=(first,)) for first in (24, 32, 40, 48)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get(f"{BASE}/features?q=n40").json()["total"] == 1
    assert {client.get(f"{BASE}/features/{latent}").json()["note"] for latent in range(24, 56)} == {
        f"n{latent}" for latent in range(24, 56)
    }


def test_text_gives_what_the_sae_gives(client, run):
    answer = client.post(f"{BASE}/text", headers=CHANGE, json={"text": "the cat sleeps"})
    found, done = map(json.loads, answer.text.splitlines())
    assert done == {"done": True}
    recipe = load_recipe(run / "recipe.toml")
    sae, model = SparseAutoencoder.load(run / "saes" / "topk"), LanguageModel.load(recipe.model)
    expected = read_text(sae, model, "the cat sleeps", hook_point="layers.2.mlp")
    assert isinstance(expected, LiveText)
    assert len(found["tokens"]) == len(expected.token_ids)
    for token, indices, values, error, l0 in zip(
        found["tokens"], expected.indices, expected.values, expected.error, expected.l0, strict=True
    ):
        assert [latent for latent, _ in token["active"]] == indices[:l0].tolist()
        assert [value for _, value in token["active"]] == pytest.approx(values[:l0].tolist(), rel=1e-4)
        assert token["error"] == pytest.approx(float(error), rel=1e-4)
    assert found["latents"]
    assert all(
        bool(each["label"]) != bool(each["promoted"]) for each in found["latents"].values()
    )  # the page shows one of them
    named = {str(latent) for token in found["tokens"] for latent, _ in token["active"]}
    assert set(found["latents"]) == named


class FakeSteering:
    """Events without a model; notes how it was used."""

    random_edits, prompt_control = (), "Speak of it."

    def __init__(self, n: int = 3, seconds: float = 0.0):
        self.left, self.seconds, self.given = n, seconds, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.given == self.left:
            raise StopIteration
        time.sleep(self.seconds)
        self.given += 1
        return SteerEvent(arm="plain", step=self.given - 1, token_id=1, text="a", nll=float("nan"), kl=0.5)


def test_a_stream_is_a_line_an_event_and_says_that_it_is_done(client, monkeypatch):
    seen = {}

    def steer(model, sae, prompt, edits, config, **options):
        seen.update(prompt=prompt, edits=edits, config=config, options=options)
        return FakeSteering()

    monkeypatch.setattr(live, "steer", steer)
    asked = {"prompt": "the", "edits": [{"latent": 3, "mode": "scale", "strength": 2}], "max_new_tokens": 5, "seed": 9}
    answer = client.post(f"{BASE}/steer", headers=CHANGE, json=asked)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [line.get("step") for line in lines] == [0, 1, 2, None]
    assert lines[0] == {"arm": "plain", "step": 0, "token": "a", "nll": None, "kl": 0.5}
    assert lines[-1] == {"done": True, "random_latents": [], "prompt_control": "Speak of it."}
    assert (seen["config"].max_new_tokens, seen["config"].seed, seen["config"].controls) == (5, 9, ("random", "prompt"))
    assert (seen["edits"][0].latent, seen["edits"][0].mode, seen["edits"][0].value) == (3, "scale", 2)


def test_one_asks_the_model_at_a_time_and_too_many_are_told(client, monkeypatch):
    monkeypatch.setattr(live, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(live, "steer", lambda *_arguments, **_options: FakeSteering(6, 0.1))
    answers = []

    def ask() -> None:
        answers.append(client.post(f"{BASE}/steer", headers=CHANGE, json={"prompt": "the", "edits": []}).text)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert client.get(f"{BASE}/features").status_code == 200  # tables do not wait for the model
    for thread in threads:
        thread.join()
    assert sum('"done":true' in answer for answer in answers) >= 1
    assert all('"done":true' in answer or "busy" in answer for answer in answers)
    assert client.post(f"{BASE}/text", headers=CHANGE, json={"text": "cat"}).status_code == 200  # and it is free again


def test_a_long_text_comes_in_parts_the_first_short_and_each_latent_named_once(client):
    words = " ".join(["the red cat sings and the dog sleeps"] * 12)
    answer = client.post(f"{BASE}/text", headers=CHANGE, json={"text": words})
    *parts, done = map(json.loads, answer.text.splitlines())
    assert (answer.headers["content-type"], done) == ("application/x-ndjson", {"done": True})
    assert [len(part["tokens"]) for part in parts] == [32, 65]
    named = [latent for part in parts for latent in part["latents"]]
    assert len(named) == len(set(named))
    for n, part in enumerate(parts):
        known = {latent for earlier in parts[: n + 1] for latent in earlier["latents"]}
        assert known >= {str(latent) for token in part["tokens"] for latent, _ in token["active"]}


class FailingSteering(FakeSteering):
    """Fails where it would end."""

    def __next__(self):
        if self.given == self.left:
            raise ZeroDivisionError("a secret of ours")
        return super().__next__()


def test_an_error_within_a_stream_is_its_last_line(client, monkeypatch):
    monkeypatch.setattr(live, "steer", lambda *_arguments, **_options: FailingSteering(2))
    answer = client.post(f"{BASE}/steer", headers=CHANGE, json={"prompt": "the", "edits": []})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert (answer.status_code, len(lines)) == (200, 3)
    assert lines[-1]["error"] == "The explorer failed (ZeroDivisionError)."


def test_what_fails_before_a_streams_first_line_has_its_own_status(client, monkeypatch):
    monkeypatch.setattr(live, "steer", lambda *_arguments, **_options: FailingSteering(0))
    answer = client.post(f"{BASE}/steer", headers=CHANGE, json={"prompt": "the", "edits": []})
    assert (answer.status_code, answer.json()["error"]) == (500, "The explorer failed (ZeroDivisionError).")
    unknown = {"prompt": "the", "edits": [{"latent": 10**6}]}
    assert client.post(f"{BASE}/steer", headers=CHANGE, json=unknown).status_code == 404
    assert client.post(f"{BASE}/text", headers=CHANGE, json={"text": "cat"}).status_code == 200  # the model is free


def test_a_run_that_is_gone_says_so_and_comes_back(own_run):
    client = make_client(own_run)
    assert client.get(f"{BASE}/features").status_code == 200
    with moved(own_run):
        for path in ("/features", "/features/1", "/features/1/contexts", "/map", "/lists", "/run", "/clusters"):
            answer = client.get(BASE + path)
            assert (answer.status_code, "no longer" in answer.json()["error"]) == (410, True), path
        assert client.put(f"{BASE}/features/1/note", headers=CHANGE, json={"text": "x"}).status_code == 410
        session = client.get("/api/session").json()
        assert (session["dictionaries"], len(session["unavailable"])) == ([], 1)
        assert not own_run.exists()  # nothing was written where it was
    assert client.get(f"{BASE}/features").status_code == 200


def test_an_index_that_is_rebuilt_is_opened_anew(own_run):
    client = make_client(own_run)
    path = own_run / "features" / "topk"
    before = client.get(f"{BASE}/features/9").json()["columns"]["n_active"]
    shutil.rmtree(path)
    gone = client.get(f"{BASE}/features")
    assert (gone.status_code, "sparsight index" in gone.json()["remedy"]) == (503, True)
    index = write_index(path, np.array([340, 341]), seed=1)
    after = client.get(f"{BASE}/features/9").json()["columns"]["n_active"]
    assert after == len(index.activations(9)[0]) != before


@pytest.mark.parametrize("name", ["activation_values.npy", "maximum.npy", "piece_tokens.npy", "map.npy", "index.json"])
def test_a_file_cut_short_under_it_is_an_answer_and_not_the_end(own_run, name):
    client = make_client(own_run)
    assert client.get(f"{BASE}/features/9/contexts").status_code == 200
    file = own_run / "features" / "topk" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # in place: the maps of the old file lose their second half
    for path in ("/features", "/features/9", "/features/9/contexts", "/map", "/columns/density"):
        assert client.get(BASE + path).status_code == 503, path
    file.write_bytes(whole)
    assert client.get(f"{BASE}/features/9/contexts").status_code == 200


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, b"SQLite format 3\x00" + bytes(100)])
def test_a_strangers_notes_are_refused_and_touch_nothing(own_run, content):
    (own_run / "notes").mkdir(exist_ok=True)
    for file in (own_run / "notes").iterdir():
        file.unlink()
    (own_run / "notes" / "topk.sqlite").write_bytes(content)
    answer = make_client(own_run).get(f"{BASE}/features")
    assert answer.status_code == (200 if not content else 503)
    assert content == b"" or "notes" in answer.json()["error"]


def test_the_run_page_is_the_runs_own_files(own_run, client):
    found = client.get(f"{BASE}/run").json()
    assert found["recipe"] == (own_run / "recipe.toml").read_text()
    assert (found["manifest"], found["evaluation"], found["training"], found["report"]) == (None, None, [], "")
    log = own_run / "saes" / "topk" / "training.jsonl"
    log.write_text("".join(f'{{"step": {step}, "loss": NaN}}\n' for step in range(1201)) + '{"step": 1201, "lo')
    (own_run / "report.md").write_text("# tiny")
    found = make_client(own_run).get(f"{BASE}/run").json()
    steps = [record["step"] for record in found["training"]]
    assert (len(steps), steps[0], steps[-1], found["training"][0]["loss"]) == (500, 0, 1200, None)
    assert found["report"] == "# tiny"
    (own_run / "saes" / "topk" / "evaluation.json").write_text('{"format": "other"}')
    assert make_client(own_run).get(f"{BASE}/run").status_code == 503


def test_runs_of_one_name_get_numbers_and_no_run_is_an_error(run, tmp_path):
    twice = Explorer([run, run])
    assert [dictionary.key for dictionary in twice.dictionaries.values()] == ["run/topk", "run-2/topk"]
    with pytest.raises(RunError, match="no recipe"):
        Explorer([tmp_path])
    with pytest.raises(RunError, match="no run"):
        Explorer([])


class Page(HTMLParser):
    """Elements, and the text that is none."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def test_an_exported_page_holds_hostile_strings_as_text_and_runs_only_its_own_script(client, run, tmp_path, capsys):
    client.put(f"{BASE}/features/5/note", headers=CHANGE, json={"text": HOSTILE[1]})
    client.put(f"{BASE}/lists/five", headers=CHANGE, json={"latents": [5, 63]})
    text = client.get(f"{BASE}/export?list=five").text
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"img", "iframe", "link", "object"} & {tag for tag, _ in page.tags}
    assert not [
        name
        for _, attributes in page.tags
        for name in attributes
        if name.startswith("on") or name in ("style", "src", "href")
    ]
    assert sum(HOSTILE[0] in word for word in page.words) >= 2  # promoted, and in a passage
    assert any(HOSTILE[1] == word for word in page.words)  # the note
    (policy,) = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == ["latent-5", "latent-63"]
    out = tmp_path / "five.html"
    cli.main(["show", str(run), "--html", str(out), "--list", "five"])
    assert out.read_text() == text
    with pytest.raises(SystemExit):
        cli.main(["show", str(run), "--html", str(out)])
    assert client.get(f"{BASE}/export?latents=64").status_code == 404
    assert client.get(f"{BASE}/export?latents=1;2").status_code == 400
    assert client.get(f"{BASE}/export").status_code == 400
    capsys.readouterr()


def test_a_comparison_is_listed_with_its_headline_once_it_is_complete(run, model_folder, tmp_path):
    compared = make_comparison(tmp_path, model_folder)
    client = make_client(compared, run, compared)
    session = client.get("/api/session").json()
    assert [each["key"] for each in session["dictionaries"]] == ["run/topk"]
    assert [each["name"] for each in session["comparisons"]] == ["compared", "compared-2"]
    assert session["comparisons"][0]["headline"] == "3.0 latents differ."
    assert session["comparisons"][0]["hook_point"] == "layers.1"
    assert "<h1>tuned</h1>" in client.get("/api/c/compared/report").text
    assert client.get("/api/c/other/report").json()["remedy"] == "There are compared, compared-2."
    alone = make_client(compared)
    assert alone.get("/api/session").json()["dictionaries"] == []
    (compared / "compare" / "report.html").unlink()
    session = alone.get("/api/session").json()
    assert session["comparisons"] == []
    assert "not complete" in session["unavailable"][0]["error"]
    assert alone.get("/api/c/compared/report").status_code == 404
    (compared / "recipe.toml").unlink()
    assert alone.get("/api/c/compared/report").status_code == 410
