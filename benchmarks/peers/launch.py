"""Starts a tool's runner on a job in the tool's own environment; says on what machine, with which versions and of which commit.

Standard library only: a light parent keeps its children's peak memory theirs.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from install import ROOT, python_of
from plan import Job, Sizes

__all__ = ["RECONSTRUCTION", "RUNNERS", "commit", "environment", "hardware", "prepared", "run", "versions"]

HERE = Path(__file__).resolve().parent
RUNNERS = {
    "sparsight": "run_sparsight.py",
    "sae-lens": "run_saelens.py",
    "dictionary-learning": "run_dictionary_learning.py",
    "sparsify": "run_sparsify.py",
}
DASHBOARD_RUNNERS = {"sparsight-index": "run_index.py", "sae-dashboard": "run_dashboard.py"}
JOB_SECONDS = 7200
RECONSTRUCTION = "reconstruction.safetensors"
_PACKAGES = (
    "sparsight",
    "torch",
    "transformers",
    "sae-lens",
    "dictionary-learning",
    "nnsight",
    "eai-sparsify",
    "sae-dashboard",
)


def prepared(folder: Path, sizes: Sizes) -> dict[str, str]:
    """Texts and rows, by our own collection in float32."""
    n_text = max(sizes.stream_tokens, sizes.collect_tokens)
    n_train = max(sizes.train_rows, sizes.store_rows, sizes.width_steps * sizes.batch_tokens)
    asked = [str(each) for each in (n_text, n_train, sizes.heldout_rows, sizes.context_tokens)]
    subprocess.run([sys.executable, str(HERE / "prepare.py"), str(folder), *asked], check=True, env=environment())
    return json.loads((folder / "inputs.json").read_text())["files"]


def run(job: Job, files: dict[str, str], scratch: Path) -> dict[str, Any]:
    """The runner's result, or what stopped it as `error`; what it left stays in `scratch`, which is emptied first."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    where = {"files": files, "scratch": str(scratch), "reconstruction": str(scratch / RECONSTRUCTION)}
    (scratch / "job.json").write_text(json.dumps(job | where | {"started": time.time()}))
    python = sys.executable if job["tool"].startswith("sparsight") else str(python_of(job["tool"]))
    command = [
        python,
        str(HERE / (RUNNERS | DASHBOARD_RUNNERS)[job["tool"]]),
        str(scratch / "job.json"),
        str(scratch / "result.json"),
    ]
    with (scratch / "log.txt").open("w") as log:
        try:
            code = subprocess.run(
                command,
                stdout=log,
                stderr=log,
                env=environment(job["tool"]),
                cwd=scratch,
                timeout=JOB_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {JOB_SECONDS} s"}
    if (scratch / "result.json").exists():
        return json.loads((scratch / "result.json").read_text())
    lines = (scratch / "log.txt").read_text(errors="replace").strip().splitlines()
    return {"error": f"exit code {code}: {lines[-1] if lines else 'no output'}"}


def environment(tool: str = "sparsight") -> dict[str, str]:
    """Threads as torch finds them, waiting without spinning, no hub and no tracker, the same for everyone; this tree's code for ours."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    kept |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"}
    return kept | ({"PYTHONPATH": str(ROOT / "src")} if tool.startswith("sparsight") else {})


def commit() -> str:
    """This tree's commit, and whether what is measured differs from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "src", "benchmarks/peers"], capture_output=True, text=True, check=False
    )
    return head.stdout.strip() + (" and changes not committed" if changed.stdout.strip() else "")


def versions(tool: str) -> list[str]:
    """`package version` of what matters in a tool's environment."""
    code = (
        "import sys\nfrom importlib.metadata import version, PackageNotFoundError\nfor name in sys.argv[1:]:\n"
        "    try: print(name, version(name))\n    except PackageNotFoundError: pass"
    )
    python = sys.executable if tool == "sparsight" else str(python_of(tool))
    done = subprocess.run([python, "-c", code, *_PACKAGES], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()


def hardware() -> dict[str, Any]:
    """CPU, cores, matrix units, memory, system, and what else was running."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [
        flag for flag in facts.get("flags", "").split() if flag.startswith(("amx", "avx512_bf16", "avx512f", "avx2"))
    ]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "matrix_units": " ".join(flags) or "no flags known",
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }
