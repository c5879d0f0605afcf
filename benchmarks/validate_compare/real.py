"""A real fine-tune: the last rows of the validation, target beside measured. Writes benchmarks/records/compare-real.{json,md}.

    make false-facts
    python benchmarks/validate_compare/real.py runs/false-facts

Closure of the diff-SAE against its ceiling, its 50 top latents against random ones, what each method calls emergent where something changed and where
nothing did, what the models write, and what it cost in time and disk.
"""

import json
import sys
from pathlib import Path
from typing import Any

from machine import in_words, measured_on

from sparsight.artifact import RunDir, read_json
from sparsight.findings import Findings, as_text, headline, naive_table
from sparsight.findings.summaries import closure_table, counts_table, grounding_table, telling_tables
from sparsight.findings.words import telling_lines
from sparsight.recipe import load_comparison

RECORD = Path(__file__).parents[1] / "records" / "compare-real.json"
SET = 50
GIGABYTE = 1e9


def measured(run: Path) -> dict[str, Any]:
    """What a finished comparison says, by target."""
    findings = Findings(RunDir(run).comparison)
    rows = {(row["name"], row["n_latents"]): row for row in findings.get("closure")["difference"]["rows"]}
    top, random = rows["top", SET], rows["random", SET]
    manifest = read_json(RunDir(run).manifest)
    tuned = read_json(Path(load_comparison(RunDir(run).recipe).tuned) / "finetune.json")
    seconds = {"fine-tune": tuned["seconds_of_last_run"]}
    seconds |= {step: each["seconds"] for step, each in manifest["steps"].items()}
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    return {
        "of_ceiling": rows["all", None]["of_ceiling"],
        "ratio": top["closure"]["value"] / random["closure"]["value"],
        "ratio_above_nothing": top["above_nothing"]["value"] / random["above_nothing"]["value"],
        "seconds": seconds,
        "minutes": sum(seconds.values()) / 60,
        "gigabytes": size / GIGABYTE,
        "tokens": manifest["activations"],
        "steps": {name: findings.get(name) for name in ("labels", "closure", "grounding", "telling")},
    }


def markdown(found: dict[str, Any]) -> str:
    """Targets, then what the run says in words and tables."""
    ceiling, steps = found["of_ceiling"], found["steps"]
    targets = [
        ["diff-SAE, closure over its ceiling", ">= 0.8", interval(ceiling)],
        [f"top {SET} over random {SET}, closure", ">= 2", f"{found['ratio']:.2f}"],
        [f"top {SET} over random {SET}, above nothing", "", f"{found['ratio_above_nothing']:.2f}"],
        ["minutes", "<= 60", f"{found['minutes']:.0f}"],
        ["GB on disk", "<= 8", f"{found['gigabytes']:.1f}"],
    ]
    parts = [
        "# A LoRA on invented biographies, SmolLM2-135M",
        f"`make false-facts`, {in_words(found)}.",
        as_text((["", "target", "measured"], targets)),
        headline(steps["labels"]),
        as_text(naive_table(steps["labels"])),
        as_text(counts_table(steps["labels"])),
        *(part for code, each in steps["closure"].items() for part in (f"Closure, {code}", _rows(each))),
        as_text(grounding_table(steps["grounding"])),
        *telling_lines(steps["telling"]),
        *map(as_text, telling_tables(steps["telling"])),
        "Seconds: " + ", ".join(f"{step} {seconds:.0f}" for step, seconds in found["seconds"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _rows(code: dict[str, Any]) -> str:
    return as_text(closure_table(code["rows"]))


def interval(estimate: dict[str, Any]) -> str:
    """With its ends."""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def main() -> None:
    """Reads the run that is named, and writes the record."""
    found = measured(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/false-facts"))
    about = measured_on()
    kept = {key: value for key, value in found.items() if key != "steps"}
    RECORD.write_text(json.dumps(about | kept, indent=2) + "\n")
    RECORD.with_suffix(".md").write_text(markdown(about | found))
    print(markdown(about | found))


if __name__ == "__main__":
    main()
