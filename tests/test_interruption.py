"""A study that was killed, interrupted or touched by others ends with the same weights as one that was left alone."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsight.artifact import read_json

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def fingerprints(run: Path) -> dict[str, str]:
    """Hashes of every shard and every SAE's weights."""
    files = sorted([*run.glob("activations/part-*/*.safetensors"), *run.glob("saes/*/sae_weights.safetensors")])
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sparsight.cli", "run", str(recipe), "--out", str(out), *more]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["store", "stream"])
def test_twenty_kills_leave_the_same_bytes(tmp_path: Path, recipe_path: Path, mode: str) -> None:
    recipe = recipe_path.read_text().replace("[activations]", f'[activations]\nmode = "{mode}"')
    recipe_path.write_text(recipe.replace("epochs = 2", f"epochs = {2 if mode == 'store' else 1}"))
    script = Path(__file__).with_name("kill_and_rerun.py")
    command = [sys.executable, str(script), str(recipe_path), str(tmp_path / "runs"), "20", "7"]
    done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kills = [line for line in done.stdout.splitlines() if line.startswith("kill ")]
    assert len(kills) == 20
    assert any("checkpoint step-" in line for line in kills), "no kill fell into training"
    assert any("checkpoint none, 0 SAEs" in line for line in kills), "no kill fell into collection"
    whole = fingerprints(tmp_path / "runs" / "whole")
    assert len(whole) >= 4
    studies = list((tmp_path / "runs").glob("killed-*"))
    assert studies
    for run in studies:
        assert fingerprints(run) == whole
        assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_and_leaves_a_resumable_run(
    tmp_path: Path, recipe_path: Path, number: signal.Signals
) -> None:
    more = ("--set", "activations.n_tokens=20000", "--set", "activations.allow_short=true", "--set", "train.epochs=40")
    process = start(recipe_path, tmp_path / "run", *more)
    log = tmp_path / "run" / "saes" / "topk" / "training.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Run the same command again" in errors
    assert "Traceback" not in errors
    stopped_at = read_json(tmp_path / "run" / "saes" / "training.json")["step"]
    assert stopped_at > 0
    assert (tmp_path / "run" / "saes" / "topk" / "checkpoint" / f"step-{stopped_at:09d}.safetensors").exists()


def test_a_run_in_use_is_refused(tmp_path: Path, recipe_path: Path) -> None:
    from sparsight.artifact import locked

    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        process = start(recipe_path, tmp_path / "run")
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"is in use by process {os.getpid()}" in errors
    assert len(errors.strip().splitlines()) == 1
