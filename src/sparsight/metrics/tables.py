"""An EvalReport for people: plain text for a terminal, and Markdown.

Both are made from the same sections, so they never differ in a number. Each number stands with its 95 % interval over
documents in brackets, each table says on how many tokens and documents it was measured, and each verdict
stands in a sentence that says which controls the SAE beats, which it does not, and with which it ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sparsight.metrics.intervals import Estimate
from sparsight.metrics.report import EvalReport, MethodReport
from sparsight.metrics.sparsity import DensityHistogram
from sparsight.metrics.stability import LatentMean

__all__ = ["Table", "aligned", "report_markdown", "report_text", "stability_table"]

HEADINGS = {
    "fvu": "FVU",
    "cosine": "cosine",
    "l0": "L0",
    "dead_share": "dead",
    "ce": "CE",
    "kl": "KL",
    "recovered_zero": "recovered (zero)",
    "recovered_mean": "recovered (mean)",
}
WHAT = {"fvu": "By fraction of variance unexplained", "ce": "By cross-entropy", "kl": "By KL divergence"}
SAID = {"better": "beats {}", "worse": "does NOT beat {} (it is worse)", "tie": "does NOT beat {} (a tie)"}
OUTCOMES = {"better": "better", "worse": "WORSE", "tie": "tie"}  # what the SAE is
RECONSTRUCTION = ("fvu", "cosine", "l0", "dead_share")
DOWNSTREAM = ("ce", "kl", "recovered_zero", "recovered_mean")
BAR_WIDTH = 40
EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Table:
    """A heading, a line on what it was measured on, and cells."""

    title: str
    caption: str
    header: list[str]
    rows: list[list[str]]


def report_text(report: EvalReport) -> str:
    """The report for a terminal."""
    lines = [_title(report), "", *_verdict_lines(report), ""]
    for table in _tables(report):
        lines += [table.title, table.caption, *aligned(table), ""]
    lines += [*_density_lines(report), *(f"Note: {note}" for note in report.notes)]
    return "\n".join(lines).rstrip() + "\n"


def report_markdown(report: EvalReport, title: str = "") -> str:
    """The report as Markdown."""
    lines = [f"## {title or _title(report)}", "", *(f"- {line}" for line in _verdict_lines(report)), ""]
    for table in _tables(report):
        lines += [
            f"### {table.title}",
            "",
            table.caption,
            "",
            _pipes(table.header),
            _pipes(["---"] * len(table.header)),
        ]
        lines += [*(_pipes(row) for row in table.rows), ""]
    density = _density_lines(report)
    if density:
        lines += ["```text", *density, "```", ""]
    lines += [f"- Note: {note}" for note in report.notes]
    return "\n".join(lines).rstrip() + "\n"


def _title(report: EvalReport) -> str:
    subject = report.subject
    hook = subject["hook_point"]
    if subject["target_hook_point"] != hook:
        hook = f"{hook} -> {subject['target_hook_point']}"
    return f"Evaluation of {subject['architecture']} SAE, {subject['n_latents']:,} latents, at {hook}"


def _verdict_lines(report: EvalReport) -> list[str]:
    """Which controls the SAE does not beat, then a sentence a metric: which it beats, which it does not, which tie."""
    if not report.verdicts:
        return ["No verdict: the SAE was measured without a control to beat."]
    labels = {method.name: method.label for method in report.methods}
    unbeaten = [
        f"{labels[verdict.baseline]} by {HEADINGS[verdict.metric]} ({OUTCOMES[verdict.outcome]})"
        for verdict in report.verdicts
        if verdict.outcome != "better"
    ]
    lines = [f"Controls that the SAE does NOT beat: {', '.join(unbeaten) or 'none'}."]
    for metric in dict.fromkeys(verdict.metric for verdict in report.verdicts):
        by_outcome: dict[str, list[str]] = {"better": [], "worse": [], "tie": []}
        for verdict in report.verdicts:
            if verdict.metric == metric:
                by_outcome[verdict.outcome].append(labels[verdict.baseline])
        said = [SAID[outcome].format(_listed(names)) for outcome, names in by_outcome.items() if names]
        lines.append(f"{WHAT[metric]} ({HEADINGS[metric]}) the SAE {'; '.join(said)}.")
    return lines


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _verdict_table(report: EvalReport) -> Table:
    labels = {method.name: method.label for method in report.methods}
    rows = [
        [
            HEADINGS[verdict.metric],
            labels[verdict.baseline],
            OUTCOMES[verdict.outcome],
            _cell(verdict.difference, signed=True),
            "" if verdict.seed_difference is None else _number(verdict.seed_difference, True),
            f"{verdict.difference.n_tokens:,} / {verdict.difference.n_documents:,}",
        ]
        for verdict in report.verdicts
    ]
    caption = (
        "Positive favours the SAE. A tie: the 95 % interval (documents resampled in pairs) holds zero, or a second seed differs "
        "by as much."
    )
    header = ["by", "control", "the SAE is", "control - SAE", "second seed - SAE", "tokens / documents"]
    return Table("The SAE against its controls", caption, header, rows)


def stability_table(report: EvalReport) -> Table:
    """What two seeds share; no rows without a second seed."""
    found = report.stability
    if found is None:
        return Table("", "", [], [])
    ours, theirs = found.n_alive
    caption = (
        f"Over the latents active on these tokens, {ours:,} here and {theirs:,} there. Chance: the second seed's directions before "
        "training; [95 % interval, over latents]"
    )
    rows = [
        [name, _cell(mean) or "too many latents", _cell(chance), f"{mean.n_latents:,}" if mean else ""]
        for name, mean, chance in (
            ("nearest direction of each latent (MMCS)", found.mmcs, found.chance_mmcs),
            ("matched one to one (PW-MCC)", found.pw_mcc, found.chance_pw_mcc),
        )
    ]
    return Table("Found again by a second seed", caption, ["mean cosine", "second seed", "chance", "n"], rows)


def _tables(report: EvalReport) -> list[Table]:
    tables = [
        _verdict_table(report),
        _table("Reconstruction of held-out activations", report.methods, RECONSTRUCTION),
        _table("In place in the language model (nats per token)", report.methods, DOWNSTREAM),
    ]
    tables += [stability_table(report), *(_class_table(report, metric) for metric in ("fvu", "ce", "kl"))]
    return [table for table in tables if table.rows]


def _table(title: str, methods: Sequence[MethodReport], metrics: Sequence[str]) -> Table:
    shown = [method for method in methods if any(metric in method.metrics for metric in metrics)]
    measured = next((m.metrics[name] for m in shown for name in metrics if name in m.metrics), None)
    rows = [[method.label, *(_metric_cell(method, metric) for metric in metrics)] for method in shown]
    return Table(title, _caption(measured), ["", *(HEADINGS[metric] for metric in metrics)], rows)


def _class_table(report: EvalReport, metric: str) -> Table:
    methods = [m for m in report.methods if any(metric in by_metric for by_metric in m.by_class.values())]
    classes = list(methods[0].by_class) if methods else []
    measured = {name: methods[0].by_class[name].get(metric) for name in classes}
    header = ["", *(f"{name} (n = {each.n_tokens:,})" if each else name for name, each in measured.items())]
    rows = [[method.label, *(_cell(method.by_class[name].get(metric)) for name in classes)] for method in methods]
    caption = "Classes by the token at the position: first 4 of a document, then by frequency in the train split."
    return Table(f"{HEADINGS[metric]} by class of token", caption, header, rows)


def _caption(measured: Estimate | None) -> str:
    if measured is None:
        return ""
    return (
        f"n = {measured.n_tokens:,} tokens of {measured.n_documents:,} held-out documents; "
        "[95 % interval, documents resampled]"
    )


def _metric_cell(method: MethodReport, metric: str) -> str:
    estimate = method.metrics.get(metric)
    if metric == "dead_share" and estimate is not None and estimate.value is not None:
        return f"{estimate.value:.1%} of {_n_latents(method.density):,}"
    return _cell(estimate)


def _n_latents(density: DensityHistogram | None) -> int:
    return 0 if density is None else density.n_dead + sum(density.n_latents)


def _cell(estimate: Estimate | LatentMean | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    if estimate.value is None:
        return "undefined"
    text = _number(estimate.value, signed)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{_number(estimate.low, signed)}, {_number(estimate.high, signed)}]"


def _number(value: float, signed: bool) -> str:
    digits = 4 if abs(value) < 10 else 2
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def aligned(table: Table) -> list[str]:
    """The header, a rule and the rows, in columns for a terminal."""
    grid = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in grid) for column in range(len(table.header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]
    return [lines[0], "─" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]]


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _density_lines(report: EvalReport) -> list[str]:
    """The SAE's alone: those of its controls are in evaluation.json."""
    shown = [(method.label, method.density) for method in report.methods[:1] if method.density is not None]
    lines = []
    for label, density in shown:
        lines += [f"Density of latents, {label} (share of {density.n_tokens:,} tokens on which each is active)"]
        most = max(1, density.n_dead, *density.n_latents)
        lines.append(_bar("never active", density.n_dead, most))
        edges = density.log10_edges
        filled = [i for i, n in enumerate(density.n_latents) if n]
        for i in range(filled[0], filled[-1] + 1) if filled else ():
            lines.append(_bar(f"{10 ** edges[i]:.1e} - {10 ** edges[i + 1]:.1e}", density.n_latents[i], most))
        lines.append("")
    return lines


def _bar(name: str, n: int, most: int) -> str:
    eighths = round(8 * BAR_WIDTH * n / most)
    bar = "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    return f"{name:>18}  {n:>7,}  {bar or ('▏' if n else '')}".rstrip()
