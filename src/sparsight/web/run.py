"""A run as its own files tell it: recipe, provenance, evaluation with its controls, training curves, report."""

from typing import Any

from sparsight.artifact import RunDir, read_json, read_jsonl
from sparsight.errors import SparsightError
from sparsight.metrics import EvalReport
from sparsight.web.dictionary import Dictionary
from sparsight.web.replies import Refusal, finite

__all__ = ["run_json"]

_MOST_POINTS = 500


def run_json(dictionary: Dictionary) -> dict[str, Any]:
    """Everything that the run's page shows; null for what is not there yet."""
    run, name = dictionary.run, dictionary.sae.id
    if not run.recipe.is_file():
        raise Refusal(410, f"The run is no longer at {run.path}.", "Start the explorer with a run that is there.")
    try:
        return {
            "recipe": run.recipe.read_text(encoding="utf-8"),
            "manifest": finite(read_json(run.manifest)) if run.manifest.is_file() else None,
            "evaluation": _evaluation(run, name),
            "training": _thinned([finite(record) for record in read_jsonl(run.sae(name) / "training.jsonl")]),
            "report": run.report.read_text(encoding="utf-8") if run.report.is_file() else "",
        }
    except (SparsightError, OSError, UnicodeDecodeError) as error:
        raise Refusal(503, f"The run's files cannot be read now: {error}") from None


def _evaluation(run: RunDir, name: str) -> dict[str, Any] | None:
    """The whole of evaluation.json (see metrics/report.py), and as Markdown what report.md makes of it."""
    path = run.evaluation(name)
    if not path.is_file():
        return None
    report = EvalReport.load(path)
    return finite(report.to_json()) | {"markdown": report.markdown()}


def _thinned(records: list[Any]) -> list[Any]:
    """At most 500 of them, evenly, with the first and the last."""
    n = len(records)
    if n <= _MOST_POINTS:
        return records
    return [records[round(i * (n - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]
