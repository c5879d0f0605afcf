"""A ProbingReport for a terminal: a table for each metric, then what the SAE beats and what it does not, in sentences.

Every cell is a mean over sets with its 95 % interval over families of sets. The control of the measure itself, probes trained on shuffled
labels, is a row of its own and must cover 1/2.
"""

from sparsight.metrics.probing_report import ALL_UNITS, PROBE_METRICS, ProbeDifference, ProbingReport, SetMean
from sparsight.metrics.tables import Table, aligned

__all__ = ["probing_text"]

_NAMES = {"auc": "ROC AUC", "balanced_accuracy": "balanced accuracy"}


def probing_text(report: ProbingReport) -> str:
    """The report for a terminal."""
    subject = report.subject
    kind = f"{subject['architecture']} SAE, {subject['n_latents']:,} latents, at {subject['hook_point']}"
    lines = [f"k-sparse probing of {subject['id']}, {kind}", ""]
    for metric in PROBE_METRICS:
        table = _table(report, metric)
        lines += [table.title, table.caption, *aligned(table), ""]
    lines += [_sentence(each, report) for each in report.differences() if each.metric == "auc"]
    lines += ["", *(f"Note: {note}" for note in report.notes)]
    lines += [f"Skipped {each.name}: {each.reason}." for each in report.skipped]
    return "\n".join(lines).rstrip() + "\n"


def _table(report: ProbingReport, metric: str) -> Table:
    ks = [*report.ks("sae"), ALL_UNITS]
    rows = []
    for method, label in report.methods.items():
        measured = report.ks(method)
        rows.append([label, *(_cell(report.mean(metric, method, k)) if k in measured else "" for k in ks)])
    n_test = sum(each.n_test for each in report.sets)
    n_families = len({each.family for each in report.sets})
    caption = (
        f"Mean over {len(report.sets)} sets of {n_families} families, {n_test:,} test prompts in all; "
        "[95 % interval, families resampled]"
    )
    header = ["", *(f"k = {k}" for k in ks[:-1]), "all units"]
    return Table(f"Test {_NAMES[metric]} of probes on k units", caption, header, rows)


def _sentence(each: ProbeDifference, report: ProbingReport) -> str:
    label = report.methods[each.control]
    said = {
        "better": f"The SAE beats {label}",
        "worse": f"The SAE does NOT beat {label}; it is worse",
        "tie": f"Tie with {label}",
    }
    beside = "" if each.seed_difference is None else f"; the SAE minus its second seed = {each.seed_difference:+.3f}"
    if each.control == "seed":
        said["better"] = said["worse"] = said["tie"] = f"Chance: {label}"
    return f"{said[each.outcome]}, at k = {each.k}: AUC of the SAE minus its = {_cell(each.difference, signed=True)}{beside}."


def _cell(mean: SetMean, *, signed: bool = False) -> str:
    form = "+.3f" if signed else ".3f"
    if mean.low is None or mean.high is None:
        return f"{mean.value:{form}}"
    return f"{mean.value:{form}} [{mean.low:{form}}, {mean.high:{form}}]"
