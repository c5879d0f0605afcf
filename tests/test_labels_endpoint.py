"""Labels by a language model behind an address: told apart from wrong ones, paid once, within a budget, with no key left behind."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from loopback_endpoint import Endpoint, explain, judge, serving
from planted_index import Tokenizer, document_id, planted_index
from sparsight.errors import EndpointError
from sparsight.explain import explain_index
from sparsight.features import FeatureIndex, Notes
from sparsight.labels import Answers, Cost, EndpointConfig, ExplainConfig, ExplainReport, Labeller, Score, auc
from sparsight.labels import Endpoint as Client
from sparsight.labels.prompts import read_label, read_verdicts

KEY = "sk-sesame-0123456789"
PLENTY = 10_000_000


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return planted_index(tmp_path_factory.mktemp("planted") / "index")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as served:
        yield served


@pytest.fixture
def notes(tmp_path: Path, index: FeatureIndex) -> Notes:
    return Notes.open(tmp_path / "notes" / "sae.sqlite", index.n_latents)


def config(endpoint: Endpoint, budget: int = PLENTY, **options: object) -> EndpointConfig:
    return EndpointConfig(base_url=endpoint.url, model="honest", budget_tokens=budget, **options)  # type: ignore[arg-type]


def run(index: FeatureIndex, notes: Notes, asked: EndpointConfig, latents: object = range(4)) -> ExplainReport:
    report = explain_index(index, Tokenizer(), notes, latents=list(latents), endpoint=asked)  # type: ignore[call-overload]
    assert isinstance(report, ExplainReport)
    return report


Everything = tuple[ExplainReport, Notes, Endpoint]


@pytest.fixture(scope="module")
def everything(index: FeatureIndex, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    """All planted latents explained: the report, the notes, and what the endpoint was asked."""
    notes = Notes.open(tmp_path_factory.mktemp("all") / "notes" / "sae.sqlite", index.n_latents)
    with serving() as endpoint:
        yield run(index, notes, config(endpoint), range(28)), notes, endpoint


def test_the_score_tells_true_labels_from_shuffled_ones(everything: Everything) -> None:
    report, notes, _ = everything
    rows = [report.rows[latent] for latent in range(28)]
    true, wrong = (np.array([row[part]["value"] for row in rows]) for part in ("detection", "control"))
    assert auc(true, wrong) >= 0.9
    assert true.mean() > 0.85
    assert 0.4 < wrong.mean() < 0.6
    assert np.mean([row["fuzzing"]["value"] for row in rows]) > 0.85
    assert all(row["control_label"] != row["label"] for row in rows)
    label = notes.best_labels()[3]
    assert label.source == "llm:honest"
    assert set(re.findall(r"t\d+\w", label.text)) == {"t3a", "t3b", "t3c", "t3d"}
    assert "AUC" in report.text()


def test_explaining_and_scoring_see_other_documents(everything: Everything, index: FeatureIndex) -> None:
    """By the words in what was sent: every passage holds its document's own."""
    _, _, endpoint = everything
    seen = [set(re.findall(r"\bd\d+\b", "\n".join(texts))) for texts in (endpoint.explaining, endpoint.judging)]
    assert min(map(len, seen)) > 40
    assert not seen[0] & seen[1]
    halves = Labeller(index, Tokenizer()).evidence.halves
    assert {document_id(int(word[1:])) for word in seen[1]} <= set(
        Labeller(index, Tokenizer()).evidence.document_of[halves["score"]].tolist()
    )


def test_shown_passages_mark_exactly_the_active_tokens(index: FeatureIndex, notes: Notes, endpoint: Endpoint) -> None:
    run(index, notes, config(endpoint), [26])
    (text,) = endpoint.explaining
    active, _, inactive = text.partition("Not active:")
    marked = re.findall(r"(\S+) ?⟦ (\S+)⟧", active)
    assert (
        sum(before == "go2" for before, _ in marked) / len(marked) > 0.8
    )  # the others are planted noise; at random 0.01
    assert len(re.findall(r"go2 (?!⟦)\S", active)) <= len(marked) / 5  # the planted misses
    assert "⟦" not in inactive
    assert len(active.splitlines()) == 1 + 16 + 1
    assert len(inactive.splitlines()) == 1 + 6


def calls_of_a_whole_run(index: FeatureIndex, folder: Path) -> int:
    with serving() as endpoint:
        run(index, Notes.open(folder / "notes" / "whole.sqlite"), config(endpoint))
        return len(endpoint.requests)


def test_an_interrupted_run_goes_on_without_paying_twice(
    index: FeatureIndex, notes: Notes, endpoint: Endpoint, tmp_path: Path
) -> None:
    whole = calls_of_a_whole_run(index, tmp_path)
    endpoint.before = lambda number, body: (404, {}, "gone") if number > 30 else None
    with pytest.raises(EndpointError, match="404"):
        run(index, notes, config(endpoint, concurrency=1))
    kept = notes.path.with_name("sae.answers.jsonl")
    assert len(kept.read_text().splitlines()) == 30
    with kept.open("a") as file:
        file.write('{"key": "torn by a ki')
    endpoint.requests.clear()
    endpoint.before = lambda number, body: None
    report = run(index, notes, config(endpoint))
    assert len(endpoint.requests) == whole - 30
    assert report.spending is not None
    assert report.spending["kept"] >= 30
    endpoint.requests.clear()
    assert run(index, notes, config(endpoint)).rows == report.rows
    assert endpoint.requests == []


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from planted_index import Tokenizer
from sparsight.explain import explain_index
from sparsight.features import FeatureIndex, Notes
from sparsight.labels import EndpointConfig
index, folder = FeatureIndex.open(sys.argv[1]), Path(sys.argv[2])
asked = EndpointConfig(base_url=sys.argv[4], model="honest", budget_tokens=10_000_000, concurrency=1)
explain_index(index, Tokenizer(), Notes.open(folder / "notes" / "sae.sqlite"), latents=list(range(4)), endpoint=asked)
"""


def test_a_killed_process_loses_at_most_the_answer_under_way(
    index: FeatureIndex, notes: Notes, endpoint: Endpoint, tmp_path: Path
) -> None:
    whole = calls_of_a_whole_run(index, tmp_path)
    arguments = [str(index.path), str(tmp_path), str(Path(__file__).parent), endpoint.url]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments])

    def kill(number: int, body: object) -> None:
        if number == 20:
            os.kill(process.pid, signal.SIGKILL)

    endpoint.before = kill
    assert process.wait(120) == -signal.SIGKILL
    endpoint.before = lambda number, body: None
    endpoint.requests.clear()
    run(index, notes, config(endpoint))
    assert len(endpoint.requests) == whole - 19


def test_the_budget_is_never_exceeded_and_what_was_done_is_kept(
    index: FeatureIndex, notes: Notes, endpoint: Endpoint
) -> None:
    budget = 60_000
    with pytest.raises(EndpointError, match=r"budget of 60,000 .*8 latents are explained and kept"):
        run(index, notes, config(endpoint, budget), range(28))
    spent = ExplainReport.open(ExplainReport.path(notes.path, "llm:honest")).spending
    assert spent is not None
    assert 0.5 * budget < spent["tokens_in"] + spent["tokens_out"] <= budget
    assert len(notes.all_labels()) == 8
    run(index, notes, config(endpoint), range(28))
    assert len(notes.all_labels()) == 28
    assert len({json.dumps(body) for body in endpoint.requests}) == len(endpoint.requests)


def test_an_endpoint_that_reports_no_usage_is_charged_what_it_might_have_used(
    index: FeatureIndex, notes: Notes, endpoint: Endpoint
) -> None:
    endpoint.before = lambda number, body: (200, {}, json.dumps({"choices": [{"message": {"content": "1: no"}}]}))
    with pytest.raises(EndpointError, match="budget"):
        run(index, notes, config(endpoint, 5_000), range(16))
    assert len(endpoint.requests) <= 8


def test_the_estimate_sends_nothing_and_is_near_what_is_then_spent(
    index: FeatureIndex, notes: Notes, endpoint: Endpoint
) -> None:
    priced = {"price_in": 2.0, "price_out": 8.0}
    cost = explain_index(index, Tokenizer(), notes, latents=range(12), endpoint=config(endpoint, 0, **priced))
    assert isinstance(cost, Cost)
    assert endpoint.requests == []
    assert not notes.path.parent.exists()
    assert "held-out text are sent to this machine" in cost.text()
    report = run(index, notes, config(endpoint), range(12))
    assert cost.calls == pytest.approx(len(endpoint.requests), rel=0.05)
    assert report.spending is not None
    assert (
        1.0 <= cost.tokens_in / report.spending["tokens_in"] < 2.5
    )  # bytes / 3 against the fake's bytes / 4, and instructions
    assert cost.price == pytest.approx((2 * cost.tokens_in + 8 * cost.tokens_out) / 1e6)
    remote = EndpointConfig(base_url="https://api.example.org/v1", model="m")
    told = explain_index(index, Tokenizer(), notes, latents=range(4), endpoint=remote)
    assert isinstance(told, Cost)
    assert "sent to api.example.org" in told.text()


def test_failures_are_counted_and_do_not_become_verdicts(index: FeatureIndex, notes: Notes, endpoint: Endpoint) -> None:
    def fail_some(number: int, body: dict) -> tuple[int, dict[str, str], str] | None:
        text = body["messages"][1]["content"]
        return (500, {"Retry-After": "0"}, "") if text.startswith("Description") and hash(text) % 4 == 0 else None

    endpoint.before = fail_some
    report = run(index, notes, config(endpoint, retries=2))
    failing = {json.dumps(body) for body in endpoint.requests if fail_some(0, body)}
    assert report.spending is not None
    assert report.spending["failed"] == len(failing) > 3
    assert report.spending["retried"] == 2 * len(failing)
    scores = [Score(**row[part]) for row in report.rows.values() for part in ("detection", "control", "fuzzing")]
    assert sum(score.n_unanswered for score in scores) == pytest.approx(5 * len(failing), abs=4)
    assert all(score.n + score.n_unanswered >= 28 for score in scores)
    assert f"{len(failing)} failed" in report.text()


@pytest.mark.parametrize(
    "content", ["", "null", "{}", '{"choices": []}', '{"choices": [{"message": {"content": null}}]}', "<html>"]
)
def test_answers_that_are_none_are_failures(
    index: FeatureIndex, notes: Notes, endpoint: Endpoint, content: str
) -> None:
    endpoint.before = lambda number, body: (200, {}, content)
    report = run(index, notes, config(endpoint, retries=0), [1, 2])
    assert report.spending is not None
    assert report.spending["failed"] == len(endpoint.requests) > 0
    assert notes.all_labels() == []
    assert "the endpoint gave no label: 2 latents" in report.text()


def test_a_busy_endpoint_is_asked_again_after_the_time_it_names(
    index: FeatureIndex, notes: Notes, endpoint: Endpoint
) -> None:
    endpoint.before = lambda number, body: (429, {"Retry-After": "0"}, "slow down") if number % 3 == 1 else None
    report = run(index, notes, config(endpoint), [1, 2])
    assert report.spending is not None
    assert report.spending["failed"] == 0
    assert report.spending["retried"] > 3
    assert report.rows[1]["detection"]["n_unanswered"] == 0


def test_the_key_is_sent_in_one_header_and_is_nowhere_else(
    index: FeatureIndex,
    notes: Notes,
    endpoint: Endpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An endpoint that repeats the key in its answers and in what it refuses with."""
    monkeypatch.setenv("SPARSIGHT_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    def repeat(number: int, body: dict) -> tuple[int, dict[str, str], str] | None:
        if number > 40:
            return 400, {}, f"the key {KEY} is fine, but no"
        text = body["messages"][1]["content"]
        said = f"{KEY}\n{judge(text)}" if text.startswith("Description") else f"{explain(text)}, {KEY}"
        return 200, {}, json.dumps({"choices": [{"message": {"content": said}}], "usage": {}})

    endpoint.before = repeat
    asked = config(endpoint)
    with pytest.raises(EndpointError) as error:
        run(index, notes, asked, range(8))
    assert endpoint.authorizations == {f"Bearer {KEY}"}
    assert KEY not in json.dumps(endpoint.requests)
    printed = capsys.readouterr()
    said = [str(error.value), repr(asked), printed.out, printed.err, caplog.text]
    said += [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(KEY in text for text in said)
    assert "[key]" in str(error.value)
    assert "[key]" in notes.path.with_name("sae.answers.jsonl").read_text()


def test_a_refused_key_is_one_line_that_names_its_variable(
    index: FeatureIndex, notes: Notes, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.before = lambda number, body: (401, {}, f"Incorrect API key provided: {KEY[:6]}***{KEY[-4:]}")
    with pytest.raises(EndpointError, match=r"refuses access \(401\): the key in MY_KEY is not set"):
        run(index, notes, config(endpoint, key_variable="MY_KEY"))
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(EndpointError, match="is not accepted") as error:
        run(index, notes, config(endpoint, key_variable="MY_KEY"))
    assert KEY[:6] not in str(error.value)
    assert len(endpoint.requests) < 20


def test_a_key_goes_nowhere_unencrypted_and_no_address_holds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIGHT_API_KEY", KEY)
    with pytest.raises(EndpointError, match="unencrypted"):
        Client(EndpointConfig(base_url="http://api.example.org/v1", model="m"))
    for address in ("https://user:pass@api.example.org/v1", "https://api.example.org/v1?key=1"):
        with pytest.raises(EndpointError, match="password or a query"):
            EndpointConfig(base_url=address, model="m")
    for address in ("", "ftp://x", "api.example.org"):
        with pytest.raises(EndpointError, match="no address"):
            EndpointConfig(base_url=address, model="m")


def test_redirects_are_not_followed(index: FeatureIndex, notes: Notes, endpoint: Endpoint) -> None:
    with serving() as elsewhere:
        endpoint.before = lambda number, body: (307, {"Location": f"{elsewhere.url}/chat/completions"}, "")
        with pytest.raises(EndpointError, match="307"):
            run(index, notes, config(endpoint))
        assert elsewhere.requests == []


def test_an_endpoint_that_is_not_there_is_one_line(index: FeatureIndex, notes: Notes) -> None:
    with serving() as gone:
        address = gone.url
    with pytest.raises(EndpointError, match="cannot be reached"):
        explain_index(
            index,
            Tokenizer(),
            notes,
            latents=[1],
            endpoint=EndpointConfig(base_url=address, model="m", budget_tokens=10_000),
        )


def test_a_hand_written_label_is_retested_as_the_endpoint_reads_it(index: FeatureIndex, endpoint: Endpoint) -> None:
    labeller = Labeller(index, Tokenizer(), ExplainConfig(active=16))
    client = Client(config(endpoint))
    true = labeller.falsify(4, "the words: t4a, t4b, t4c, t4d", client)
    wrong = labeller.falsify(4, "the words: t5a, t5b", client)
    client.close()
    assert (true.by, true.fresh) == ("llm:honest", True)
    assert true.score.value is not None
    assert wrong.score.value is not None
    assert true.score.value > 0.85 > 0.65 > wrong.score.value
    assert any(word in wrong.misses[0] for word in ("t4a", "t4b", "t4c", "t4d"))


def test_what_answers_say_is_read_as_a_person_would() -> None:
    assert read_label("I think...\nLABEL: **dates in brackets**") == "dates in brackets"
    assert read_label("label: ‘x’ \x1b[2J and more\nBye") == "‘x’ [2J and more"
    assert read_label("only a line") == "only a line"
    assert read_label("LABEL:") is None
    assert read_label(None) is None
    assert len(read_label("LABEL: " + "x" * 900) or "") == 200
    assert read_verdicts("1: yes\n2. No\n**3**: YES\n5: maybe\n4: yes\n4: no", 5) == [True, False, True, None, None]
    assert read_verdicts(None, 2) == [None, None]
    assert read_verdicts("yes", 1) == [None]


def test_answers_survive_damage(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(
        b'{"key": "a", "answer": "1", "tokens_in": 1, "tokens_out": 1}\n\xff\xfe\n[]\n{"key": 1}\nnull\n{"key": "b"'
    )
    answers = Answers(path)
    assert answers.get("a") is not None
    answers.keep("c", answers.get("a"))  # type: ignore[arg-type]
    assert Answers(path).get("c") == answers.get("a")
