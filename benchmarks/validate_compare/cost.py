"""What a comparison on 2M tokens costs: time, disk and memory. Writes benchmarks/records/compare-cost.{json,md}.

    make validate-cost
    python benchmarks/validate_compare/cost.py            after examples/false-facts/run.py, whose fine-tune it takes

Runs `sparsight compare` with cost.toml in a process of its own and looks at the run's size every few seconds. A run that was cut off is to be removed
first: its seconds are those of the process that finished each step.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import in_words, measured_on

from sparsight.artifact import RunDir, read_json
from sparsight.findings import Findings, as_text, headline
from sparsight.recipe import load_comparison

RECIPE = Path(__file__).with_name("cost.toml")
RECORD = Path(__file__).parents[1] / "records" / "compare-cost.json"
MOST_MINUTES, MOST_GIGABYTES = 60, 8
LOOK_EVERY_SECONDS = 5


def run_compare() -> tuple[Path, float]:
    """The run that `sparsight compare` made, and the largest size in bytes that it was seen to have."""
    run = Path("runs") / load_comparison(RECIPE).name
    if run.exists():
        sys.exit(f"{run} is there already. Remove it: only a whole run can be timed.")
    largest = 0.0
    with subprocess.Popen([sys.executable, "-m", "sparsight.cli", "compare", str(RECIPE)]) as process:
        while process.poll() is None:
            time.sleep(LOOK_EVERY_SECONDS)
            largest = max(largest, size_of(run))
    if process.returncode:
        sys.exit(process.returncode)
    return run, largest


def size_of(run: Path) -> float:
    """Bytes on disk; files come and go meanwhile."""
    found = subprocess.run(
        ["du", "--summarize", "--block-size=1", str(run)], capture_output=True, text=True, check=False
    )
    return float(found.stdout.split()[0]) if found.stdout else 0.0


def measured(run: Path, largest: float, load: float) -> dict[str, Any]:
    """The record."""
    manifest, findings = read_json(RunDir(run).manifest), Findings(RunDir(run).comparison)
    seconds = {step: each["seconds"] for step, each in manifest["steps"].items()}
    return {
        "command": "make validate-cost",
        **measured_on(),
        "load": load,
        "tokens": manifest["activations"],
        "minutes": sum(seconds.values()) / 60,
        "gigabytes": largest / 1e9,
        "memory_gigabytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9,
        "seconds": seconds,
        "headline": headline(findings.get("labels")),
    }


def markdown(record: dict[str, Any]) -> str:
    """Target beside measured."""
    rows = [
        ["minutes", f"<= {MOST_MINUTES}", f"{record['minutes']:.0f}"],
        ["GB on disk, at most", f"<= {MOST_GIGABYTES}", f"{record['gigabytes']:.1f}"],
        ["GB of memory, at most", "", f"{record['memory_gigabytes']:.1f}"],
    ]
    return (
        "\n\n".join(
            [
                "# What a comparison on 2M tokens costs, SmolLM2-135M",
                f"`make validate-cost`, {in_words(record)}, load {record['load']:.1f} at the start. The recipe is "
                "benchmarks/validate_compare/cost.toml: 1.9M tokens to "
                "train on, 0.1M held out, three models, five seeds of each, the null fine-tune made by the tool, no grounding.",
                as_text((["", "target", "measured"], rows)),
                "Seconds: " + ", ".join(f"{step} {seconds:.0f}" for step, seconds in record["seconds"].items()) + ".",
                record["headline"],
            ]
        )
        + "\n"
    )


def main() -> None:
    """Runs the comparison and writes the record."""
    load = Path("/proc/loadavg").read_text().split()[0]
    run, largest = run_compare()
    record = measured(run, largest, float(load))
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    RECORD.with_suffix(".md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
