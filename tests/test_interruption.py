"""A study that was killed, interrupted or touched by others ends with the same weights as one that was left alone."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sparsight.artifact import read_json, read_jsonl

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def fingerprints(run: Path) -> dict[str, str]:
    """Hashes of every shard and every SAE's weights, and the steps that each log has."""
    files = sorted([*run.glob("activations/part-*/*.safetensors"), *run.glob("saes/*/sae_weights.safetensors")])
    hashes = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    logs = {
        str(log.relative_to(run)): [record["step"] for record in read_jsonl(log)]
        for log in run.glob("saes/*/training.jsonl")
    }
    return hashes | {name: str(steps) for name, steps in logs.items()}


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sparsight.cli", "run", str(recipe), "--out", str(out), *more]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["store", "stream"])
def test_twenty_kills_leave_the_same_bytes(tmp_path: Path, recipe_path: Path, mode: str) -> None:
    recipe = recipe_path.read_text().replace("[activations]", f'[activations]\nmode = "{mode}"')
    recipe = recipe.replace("epochs = 2", f"epochs = {2 if mode == 'store' else 1}")
    recipe_path.write_text(recipe + "\n[index]\nmap = false\n")  # whose library takes longer to load than all the rest
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
def test_a_stop_signal_in_training_saves_and_the_rerun_gives_the_same_weights(
    tmp_path: Path, recipe_path: Path, number: signal.Signals
) -> None:
    more = ("--set", "train.epochs=12")
    process = start(recipe_path, tmp_path / "cut", *more)
    stop_when((tmp_path / "cut" / "saes" / "topk" / "training.jsonl").exists, process, number)
    stopped_at = read_json(tmp_path / "cut" / "saes" / "training.json")["step"]
    assert stopped_at > 0
    assert (tmp_path / "cut" / "saes" / "topk" / "checkpoint" / f"step-{stopped_at:09d}.safetensors").exists()
    for out in ("cut", "whole"):
        assert start(recipe_path, tmp_path / out, *more).wait(timeout=120) == 0
    whole = fingerprints(tmp_path / "whole")
    assert fingerprints(tmp_path / "cut") == whole
    assert {f"saes/topk.{control}/sae_weights.safetensors" for control in ("seed", "frozen-decoder")} <= whole.keys()


def test_a_stop_signal_in_collection_keeps_the_shards_and_leaves_nothing_half_done(
    tmp_path: Path, recipe_path: Path
) -> None:
    process = start(recipe_path, tmp_path / "cut", "--set", "activations.n_tokens=20000")
    stop_when(lambda: any((tmp_path / "cut").glob("activations/part-*/train-00002*")), process, signal.SIGINT)
    assert not list((tmp_path / "cut").rglob("*.tmp"))
    index = read_json(tmp_path / "cut" / "activations" / "part-000-of-001" / "index.json")
    assert not index["finished"]
    assert len(index["shards"]) >= 2


def stop_when(condition: Callable[[], bool], process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Sends the signal as soon as the condition holds, and checks how the process leaves."""
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "Run the same command again" in errors
    assert "Traceback" not in errors


def test_a_run_in_use_is_refused(tmp_path: Path, recipe_path: Path) -> None:
    from sparsight.artifact import locked

    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        process = start(recipe_path, tmp_path / "run")
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"is in use by process {os.getpid()}" in errors
    assert len(errors.strip().splitlines()) == 1
