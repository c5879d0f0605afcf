"""Sparsight beside SAELens, dictionary_learning and sparsify: the same model, text, hook point, width, sparsity, batch and held-out rows.

    make bench                                                  # about an hour on 2 cores
    python benchmarks/peers/compare.py --quick --parts train    # minutes; numbers worth nothing
    python benchmarks/peers/compare.py --resume                 # what an earlier run of this commit did not finish
    python benchmarks/peers/compare.py --resume --parts store   # one part anew; the others stay, each with its commit
    python benchmarks/peers/compare.py --resume --parts train --architectures relu

Every job is a process of its own in its tool's environment, by `run_TOOL.py`; repeats are interleaved, tool after tool. The record is written after
every job: benchmarks/records/peers.json, and peers.md from it. A runner that fails is recorded with its error. Standard library only: a light
parent keeps its children's peak memory theirs.
"""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from install import INSTALLS, ROOT, install, python_of
from plan import PARTS, QUICK, TRAINED, Job, Sizes, best_rate, jobs_of, key_of
from summarise import markdown

HERE = Path(__file__).resolve().parent
RECORDS = HERE.parent / "records"
RUNNERS = {
    "sparsight": "run_sparsight.py",
    "sae-lens": "run_saelens.py",
    "dictionary-learning": "run_dictionary_learning.py",
    "sparsify": "run_sparsify.py",
}
JOB_SECONDS = 3600
_PACKAGES = ("sparsight", "torch", "transformers", "sae-lens", "dictionary-learning", "nnsight", "eai-sparsify")


def main() -> None:
    """Runs what is asked for and writes the record."""
    options = _options()
    sizes = _sizes(options)
    for peer in INSTALLS:
        install(peer)
    folder = ROOT / "build" / "bench"
    record_file = folder / "quick.json" if options.quick else RECORDS / "peers.json"
    record = _record(options, sizes)
    if options.resume and record_file.exists():
        record["runs"] = _kept(json.loads(record_file.read_text()), record, options.architectures)
    best = best_rate(record["runs"])
    inputs = _prepare(folder / ("inputs-quick" if options.quick else "inputs"), sizes)
    for part in [part for part in PARTS if part in options.parts]:
        for repeat in range(sizes.repeats):
            for job in jobs_of(part, repeat, sizes, best):
                asked = part != "train" or job["architecture"] in options.architectures
                if asked and key_of(job) not in {run["key"] for run in record["runs"]}:
                    record["runs"].append({"commit": record["commit"], **_run(job, inputs, folder / "scratch")})
                    best.update(best_rate(record["runs"]))
                    _write(record, record_file)
    _write(record, record_file)
    print(record_file.with_suffix(".md").read_text())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--architectures", nargs="+", choices=TRAINED, default=list(TRAINED), help="of part train")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the record goes to build/bench/quick.json")
    parser.add_argument("--resume", action="store_true", help="keep the jobs that this commit has measured already")
    for field in dataclasses.fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int)
    return parser.parse_args()


def _sizes(options: argparse.Namespace) -> Sizes:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Sizes)}
    given = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(QUICK if options.quick else Sizes(), **given)


def _prepare(folder: Path, sizes: Sizes) -> dict[str, str]:
    """Texts and rows, by our own collection in float32."""
    n_text = max(sizes.stream_tokens, sizes.collect_tokens)
    n_train = max(sizes.train_rows, sizes.store_rows, sizes.width_steps * sizes.batch_tokens)
    asked = [str(each) for each in (n_text, n_train, sizes.heldout_rows, sizes.context_tokens)]
    subprocess.run([sys.executable, str(HERE / "prepare.py"), str(folder), *asked], check=True, env=_environment())
    return json.loads((folder / "inputs.json").read_text())["files"]


def _run(job: Job, files: dict[str, str], scratch: Path) -> dict[str, Any]:
    """One job in its tool's environment, evaluated in ours."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    where = {"files": files, "scratch": str(scratch), "reconstruction": str(scratch / "reconstruction.safetensors")}
    (scratch / "job.json").write_text(json.dumps(job | where | {"started": time.time()}))
    began = time.perf_counter()
    result = _result(job, scratch)
    if Path(where["reconstruction"]).exists() and "error" not in result:
        result |= _evaluate(files["heldout"], where["reconstruction"])
    shutil.rmtree(scratch)
    named = " ".join(f"{key}={job[key]}" for key in ("architecture", "n_latents", "l1", "lr", "seed"))
    shown = {key: result[key] for key in ("tokens_per_second", "fvu", "l0", "error") if key in result}
    print(
        f"{job['part']} {job['tool']} {job['setting']} {named}: {shown} in {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return {"key": key_of(job), "job": job, "result": result}


def _result(job: Job, scratch: Path) -> dict[str, Any]:
    python = sys.executable if job["tool"] == "sparsight" else str(python_of(job["tool"]))
    command = [python, str(HERE / RUNNERS[job["tool"]]), str(scratch / "job.json"), str(scratch / "result.json")]
    with (scratch / "log.txt").open("w") as log:
        try:
            code = subprocess.run(
                command,
                stdout=log,
                stderr=log,
                env=_environment(job["tool"]),
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


def _evaluate(heldout: str, reconstruction: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "evaluate.py"), heldout, reconstruction]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), check=False)
    if done.returncode == 0:
        return json.loads(done.stdout)
    return {"error": "evaluation: " + (done.stderr.strip().splitlines() or ["no output"])[-1]}


def _environment(tool: str = "sparsight") -> dict[str, str]:
    """Threads as torch finds them, waiting without spinning, no hub and no tracker, the same for everyone; this tree's code for ours."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    kept |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"}
    return kept | ({"PYTHONPATH": str(ROOT / "src")} if tool == "sparsight" else {})


def _record(options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "src", "benchmarks/peers"], capture_output=True, text=True, check=False
    )
    return {
        "command": "make bench"
        if len(sys.argv) == 1
        else "python benchmarks/peers/compare.py " + " ".join(sys.argv[1:]),
        "commit": head.stdout.strip() + (" and changes not committed" if changed.stdout.strip() else ""),
        "versions": {tool: _versions(tool) for tool in RUNNERS},
        "hardware": _hardware(),
        "repeats": sizes.repeats,
        "sizes": dataclasses.asdict(sizes),
        "parts": options.parts,
        "runs": [],
    }


def _versions(tool: str) -> list[str]:
    """`package version` of what matters in a tool's environment."""
    code = (
        "import sys\nfrom importlib.metadata import version, PackageNotFoundError\nfor name in sys.argv[1:]:\n"
        "    try: print(name, version(name))\n    except PackageNotFoundError: pass"
    )
    python = sys.executable if tool == "sparsight" else str(python_of(tool))
    done = subprocess.run([python, "-c", code, *_PACKAGES], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines()


def _hardware() -> dict[str, Any]:
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


def _kept(old: dict[str, Any], new: dict[str, Any], architectures: list[str]) -> list[dict[str, Any]]:
    """Of an earlier record: what is not asked for now, and of the rest the runs of this commit that did not fail."""

    def asked(job: Job) -> bool:
        return job["part"] in new["parts"] and (job["part"] != "train" or job["architecture"] in architectures)

    return [
        run
        for run in old["runs"]
        if not asked(run["job"]) or (run["commit"] == new["commit"] and "error" not in run["result"])
    ]


def _write(record: dict[str, Any], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temp = file.with_suffix(".tmp")
    temp.write_text(json.dumps(record, indent=1) + "\n")
    temp.replace(file)
    file.with_suffix(".md").write_text(markdown(record))


if __name__ == "__main__":
    main()
