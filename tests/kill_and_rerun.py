"""Run by test_interruption.py in a process of its own: a study killed at random moments, and rerun until it ends.

`python kill_and_rerun.py RECIPE OUT KILLS SEED` imports everything once and forks a child for each attempt, so that an attempt costs what the
work costs and not the imports. Prints one line a kill: which step it hit. The fork comes before any thread is started. Each study's first kill
falls when its store has just begun, so that collection is always hit, however long the rest takes.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from sparsight.recipe import load_recipe
from sparsight.study import run_study


def attempt(recipe: Path, out: Path) -> int:
    """A child that runs the study; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            run_study(load_recipe(recipe), out)
            os._exit(0)
        except BaseException as error:
            print(f"child failed: {error!r}", flush=True)
            os._exit(1)
    return child


def where(out: Path) -> str:
    """What stood on disk at the kill: shards, the last checkpoint, finished SAEs."""
    shards = len(list(out.glob("activations/part-*/*.safetensors")))
    steps = sorted(file.name for file in out.glob("saes/*/checkpoint/*.safetensors"))
    return (
        f"{shards} shards, checkpoint {steps[-1] if steps else 'none'}, {len(list(out.glob('saes/*/cfg.json')))} SAEs"
    )


def wait_for(file: Path, seconds: float) -> None:
    """Until the file is there, and no longer than that."""
    end = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.002)


def main() -> None:
    recipe, out, n_kills, rng = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
    started = time.monotonic()
    os.waitpid(attempt(recipe, out / "whole"), 0)
    duration = time.monotonic() - started
    kills, study = 0, 0
    while kills < n_kills or (out / f"killed-{study}").exists():  # the last study, too, is rerun to its end
        target = out / f"killed-{study}"
        is_new = not target.exists()
        child = attempt(recipe, target)
        if kills < n_kills:
            if is_new:
                wait_for(target / "activations" / "store.json", duration)
            else:
                time.sleep(rng.uniform(0.02, 0.45) * duration)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
            print(f"kill {kills}: {where(target)}", flush=True)
        elif os.WEXITSTATUS(status) == 0:
            study += 1
        else:
            sys.exit(1)


if __name__ == "__main__":
    main()
