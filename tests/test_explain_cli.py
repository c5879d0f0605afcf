"""sparsight explain and sparsight notes as a user meets them, on a finished study."""

import shutil
from pathlib import Path

import pytest

from loopback_endpoint import serving
from sparsight.artifact import RunDir
from sparsight.features import Notes
from sparsight.labels import ExplainReport
from test_cli import finished_run, sparsight

__all__ = ["finished_run"]


@pytest.fixture
def run(finished_run: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of a finished run, to write into."""
    return shutil.copytree(finished_run[1], tmp_path / "run")


def test_a_study_labels_its_features_and_show_tells(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = Notes.open(RunDir(run).notes("topk")).best_labels()
    assert len(labels) > 30
    latent = next(iter(labels))
    assert sparsight("show", run, latent) == 0
    shown = capsys.readouterr().out
    assert labels[latent].text in shown
    assert "another's label" in shown


def test_notes_are_written_read_exported_and_taken_in(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sparsight("notes", run, 3, "--label", "on ` the` \\u202e", "--note", "look\nagain", "--add", "mine") == 0
    assert "on ` the`" in capsys.readouterr().out
    assert sparsight("notes", run, "--export", tmp_path / "all.jsonl") == 0
    assert sparsight("notes", run, "--export", tmp_path / "all.md") == 0
    out = capsys.readouterr().out
    assert "1 labels by person" in out
    assert "list mine: 1 latents" in out
    assert "## Latent 3" in (tmp_path / "all.md").read_text()
    RunDir(run).notes("topk").unlink()
    assert sparsight("notes", run, "--take", tmp_path / "all.jsonl") == 0
    assert Notes.open(RunDir(run).notes("topk")).note(3) == "look\nagain"
    assert sparsight("notes", run, "--take", tmp_path / "all.jsonl", "--sae", "relu") == 2  # that one has fewer latents
    assert sparsight("notes", run, 3, "--remove", "mine") == 0
    assert sparsight("notes", run, 3, "--test") == 0
    tested = capsys.readouterr().out
    assert "on ` the`" in tested
    assert "balanced accuracy" in tested


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["notes", "RUN", "9999", "--note", "x"], "no latent 9999"),
        (["notes", "RUN", "--note", "x"], "Say which latent"),
        (["notes", "RUN", "3", "--label", "a\x1b[2J"], "U+001B"),
        (["notes", "RUN", "--take", "absent.jsonl"], "cannot be read"),
        (["notes", "RUN", "3", "--remove", "absent"], "no list 'absent'"),
        (["explain", "RUN", "--list", "absent"], "no list 'absent'"),
        (["explain", "RUN", "9999"], "no latent 9999"),
        (["explain", "RUN", "--model", "m"], "--endpoint"),
        (["explain", "RUN", "--endpoint", "nowhere", "--model", "m"], "no address"),
        (["explain", "RUN", "--endpoint", "http://127.0.0.1:9/v1", "--model", "m"], "name some latents"),
        (["explain", "RUN", "--endpoint", "http://127.0.0.1:9/v1", "--sample", "2"], "model is ''"),
    ],
)
def test_every_mistake_is_one_line(
    run: Path, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sparsight(*(str(run) if each == "RUN" else each for each in arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sparsight: ")
    assert line in error


def test_an_endpoint_is_estimated_then_asked_within_the_budget(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as endpoint:
        asked = ["explain", run, "--sample", "3", "--endpoint", endpoint.url, "--model", "honest"]
        assert sparsight(*asked) == 0
        assert "Nothing was sent" in capsys.readouterr().out
        assert endpoint.requests == []
        assert sparsight(*asked, "--budget-tokens", "1000000") == 0
        assert "llm:honest" in capsys.readouterr().out
        n_requests = len(endpoint.requests)
        assert n_requests > 10
        assert sparsight(*asked, "--budget-tokens", "1000000") == 0
        assert len(endpoint.requests) == n_requests
    notes = RunDir(run).notes("topk")
    assert len(ExplainReport.open(ExplainReport.path(notes, "llm:honest")).rows) == 3
