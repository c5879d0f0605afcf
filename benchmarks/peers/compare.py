"""Sparsight beside SAELens, dictionary_learning and sparsify: the same model, text, hook point, width, sparsity, batch and held-out rows.

    make bench                                                  # about an hour on 2 cores
    python benchmarks/peers/compare.py --quick --parts train    # minutes; numbers worth nothing
    python benchmarks/peers/compare.py --resume                 # what an earlier run of this commit did not finish
    python benchmarks/peers/compare.py --resume --parts store   # one part anew; the others stay, each with its commit
    python benchmarks/peers/compare.py --resume --parts train --architectures relu

Every job is a process of its own in its tool's environment, by `run_TOOL.py`; repeats are interleaved, tool after tool. The record is written after
every job: benchmarks/records/peers.json, and peers.md from it. A runner that fails is recorded with its error.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from install import INSTALLS, ROOT, install
from launch import RECONSTRUCTION, RUNNERS, commit, environment, hardware, prepared, run, versions
from plan import PARTS, QUICK, TRAINED, Job, Sizes, best_rate, jobs_of, key_of
from summarise import markdown

HERE = Path(__file__).resolve().parent
RECORDS = HERE.parent / "records"


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
    inputs = prepared(folder / ("inputs-quick" if options.quick else "inputs"), sizes)
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


def _run(job: Job, files: dict[str, str], scratch: Path) -> dict[str, Any]:
    """One job in its tool's environment, evaluated in ours."""
    began = time.perf_counter()
    result = run(job, files, scratch)
    if (scratch / RECONSTRUCTION).exists() and "error" not in result:
        result |= _evaluate(files["heldout"], str(scratch / RECONSTRUCTION))
    shutil.rmtree(scratch)
    named = " ".join(f"{key}={job[key]}" for key in ("architecture", "n_latents", "l1", "lr", "seed"))
    shown = {key: result[key] for key in ("tokens_per_second", "fvu", "l0", "error") if key in result}
    print(
        f"{job['part']} {job['tool']} {job['setting']} {named}: {shown} in {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return {"key": key_of(job), "job": job, "result": result}


def _evaluate(heldout: str, reconstruction: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "evaluate.py"), heldout, reconstruction]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode == 0:
        return json.loads(done.stdout)
    return {"error": "evaluation: " + (done.stderr.strip().splitlines() or ["no output"])[-1]}


def _record(options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    return {
        "command": "make bench"
        if len(sys.argv) == 1
        else "python benchmarks/peers/compare.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "versions": {tool: versions(tool) for tool in RUNNERS},
        "hardware": hardware(),
        "repeats": sizes.repeats,
        "sizes": dataclasses.asdict(sizes),
        "parts": options.parts,
        "runs": [],
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
