"""The reports of a finished comparison: closure.csv, report.md and, last of all, report.html."""

import csv
import io
from typing import Any

from sparsight.artifact import write_atomic
from sparsight.findings.page import page
from sparsight.findings.results import Findings
from sparsight.findings.words import markdown

__all__ = ["write_report"]


def write_report(findings: Findings, name: str, steps: dict[str, Any]) -> None:
    """Writes them from what is kept. Raises RunError when a step is missing."""
    write_atomic(findings.folder / "closure.csv", _closure_csv(findings.get("closure")).encode())
    write_atomic(findings.folder / "report.md", markdown(findings, name, steps).encode())
    write_atomic(findings.report, page(findings, name).encode(errors="replace"))


def _closure_csv(closure: dict[str, Any]) -> str:
    out = io.StringIO()
    lines = csv.writer(out)
    kinds = ("closure", "of_ceiling", "above_nothing")
    lines.writerow(
        [
            "dictionary",
            "set",
            "n_latents",
            *(f"{kind}{end}" for kind in kinds for end in ("", "_low", "_high")),
            "n_draws",
            "largest",
        ]
    )
    for code, found in closure.items():
        for row in found["rows"]:
            numbers = [row[kind][end] for kind in kinds for end in ("value", "low", "high")]
            lines.writerow([code, row["name"], row["n_latents"], *numbers, row["n_draws"], row["largest"]])
    return out.getvalue()
