"""Files whole or absent, one writer at a time, and loggers that never hold up training."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsight.artifact import (
    Manifest,
    MetricLoggers,
    RunDir,
    append_jsonl,
    atomic_path,
    atomic_place,
    environment,
    locked,
    loggers,
    read_json,
    read_jsonl,
    write_atomic,
    write_json,
)
from sparsight.errors import RunError


def test_a_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError, match="half way"), atomic_path(path) as temp:
        temp.write_text("{")
        raise ValueError("half way")
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_has_its_name_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half way"), atomic_place(tmp_path / "a") as place:
        place.mkdir()
        (place / "file").touch()
        raise ValueError("half way")
    assert os.listdir(tmp_path) == []
    with atomic_place(tmp_path / "a") as place:
        place.mkdir()
        (place / "file").touch()
        assert not (tmp_path / "a").exists()
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == ["file"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"disk is full: .*a\.bin was not written"), atomic_path(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_under_safetensors_is_one_clear_line_too(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(RunError, match="disk is full"), atomic_path(tmp_path / "weights.safetensors"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_a_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a folder is wanted")
    with pytest.raises(RunError, match="cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(RunError, match="cannot be written"), locked(tmp_path / "file"):
        pass


def test_files_are_as_readable_as_the_umask_allows(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    write_json(tmp_path / "a.json", {})
    with atomic_path(tmp_path / "a.safetensors") as temp:
        save_file({"x": torch.zeros(3)}, temp)
    plain = tmp_path / "plain"
    plain.touch()
    for name in ("a.json", "a.safetensors"):
        assert (tmp_path / name).stat().st_mode == plain.stat().st_mode


def test_the_leftovers_of_a_folder_that_is_in_use_are_left_alone(tmp_path: Path) -> None:
    part = tmp_path / "activations" / "part-000-of-002"
    with locked(part):
        for folder in (part, tmp_path / "saes"):
            folder.mkdir(exist_ok=True)
            (folder / ".train-00000.safetensors.abc.tmp").touch()
            (folder / ".tmpAb12_9").touch()
        with locked(tmp_path):
            pass
        assert len(list(part.glob(".t*"))) == 2
        assert not list((tmp_path / "saes").iterdir())


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})


def test_a_broken_json_file_is_named(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", b"{")
    with pytest.raises(RunError, match=r"a\.json cannot be read as JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunError, match=r"b\.json does not exist"):
        read_json(tmp_path / "b.json")


def test_a_log_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for step in range(3):
        append_jsonl(path, {"step": step})
    path.write_text(path.read_text() + '{"step": 3, "lo')
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_the_lock_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from sparsight.artifact import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(RunError, match=f"in use by process {other.pid}"), locked(tmp_path):
        pass
    other.kill()
    other.wait()
    (tmp_path / ".half.tmp").touch()
    with locked(tmp_path):
        assert not (tmp_path / ".half.tmp").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run directory"):
        RunDir.open(tmp_path)


def test_the_manifest_adds_up_the_attempts_of_a_step(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path / "manifest.json")
    manifest.record(**environment())
    manifest.step_stopped("collect", 2.0)
    Manifest(tmp_path / "manifest.json").step_finished("collect", 3.0)
    values = read_json(tmp_path / "manifest.json")
    assert values["steps"]["collect"]["seconds"] == 5.0
    assert values["torch"].startswith("2.")


class Sink:
    """A logger whose login and whose writing do what the test says."""

    def __init__(self, login: Callable[[], None], write: Callable[[], None]):
        login()
        self.action = write

    def write(self, *record: object) -> None:
        self.action()


def fail() -> None:
    raise ConnectionError("the service is away")


@pytest.mark.parametrize("login", [lambda: None, fail, lambda: time.sleep(30)], ids=["fine", "fails", "hangs"])
@pytest.mark.parametrize("write", [fail, lambda: time.sleep(30)], ids=["fails", "hangs"])
def test_a_logger_that_fails_or_hangs_never_holds_up_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, login: Callable[[], None], write: Callable[[], None]
) -> None:
    monkeypatch.setattr(loggers, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(loggers, "_module", lambda name: None)
    monkeypatch.setattr(loggers, "_make", lambda *_: Sink(login, write))
    started = time.monotonic()
    logger = MetricLoggers(["wandb"], tmp_path, "run")
    for step in range(3000):
        logger.send("sae", step, {"loss": 1.0})
    logger.close()
    assert time.monotonic() - started < 2


def test_records_reach_a_logger_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Keeping:
        def write(self, *record: object) -> None:
            kept.append(record)

    kept: list[tuple[object, ...]] = []
    monkeypatch.setattr(loggers, "_module", lambda name: None)
    monkeypatch.setattr(loggers, "_make", lambda *_: Keeping())
    logger = MetricLoggers(["tensorboard"], tmp_path, "run")
    for step in range(5):
        logger.send("sae", step, {"loss": 1.0})
    logger.close()
    assert kept == [("sae", step, {"loss": 1.0}) for step in range(5)]


def test_a_logger_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(RunError, match="wandb, which is not installed"):
        MetricLoggers(["wandb"], tmp_path, "run")
