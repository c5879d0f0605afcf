"""What a comparison found, in sentences and tables of text: the headline has its nulls in it."""

from typing import Any

import numpy as np

from sparsight.findings.results import Findings

__all__ = [
    "as_text",
    "closure_table",
    "counts_table",
    "grounding_table",
    "headline",
    "layers_table",
    "markdown",
    "naive_table",
]

Table = tuple[list[str], list[list[str]]]
_CHANGES = ("emergent", "rotated", "reweighted")
_ROWS = {
    "tuned": "fine-tune against base",
    "null": "null fine-tune against base",
    "reseed": "base against its own other seeds",
    "base": "base against fine-tune (lost)",
}


def headline(labels: dict[str, Any]) -> str:
    """One sentence. "No detectable difference" where the fine-tune's count is within the nulls'; "undetermined" where too little could be tested."""
    if labels["seeds"]["tuned"] == 1:
        return (
            f"Undetermined: one SAE of each model was given, so {', '.join(labels['missing'])} are missing. {labels['naive']['real']['n']:,} of "
            f"{labels['naive']['real']['of']:,} latents have no partner above cosine 0.7, as often is so between two seeds of one model."
        )
    counts, tests = labels["counts"], labels["tests"]["direction"]
    of = sum(counts["tuned"][0].values())
    called = {side: [seed["emergent"] for seed in seeds] for side, seeds in counts.items()}
    nulls = [f"{np.mean(called['null']):.1f} in a null fine-tune"] if "null" in called else []
    nulls.append(f"{np.mean(called['reseed']):.1f} between seeds of the base itself")
    beside = " and ".join(nulls)
    if not tests["n_tested"]:
        return (
            f"Undetermined: of {of:,} latents none was found again by every seed of its own model and fired often enough on "
            f"{labels['n_tokens']:,} held-out tokens. Read more tokens, or train longer."
        )
    real, least = float(np.mean(called["tuned"])), max(max(called.get("null", [0])), max(called["reseed"]))
    share = f"{tests['n_tested']:,} of {of:,} latents could be tested"
    if real <= least:
        return (
            f"No detectable difference: {real:.1f} latents of the fine-tune have no linear analogue in the base's dictionaries (mean of "
            f"{len(called['tuned'])} seeds), with {beside}; {share}."
        )
    return (
        f"{real:.1f} latents of the fine-tune have no linear analogue in the base's dictionaries (mean of {len(called['tuned'])} seeds; q <= "
        f"{labels['config']['q']:g}), where the same test, before latent scaling, finds {beside}; {share}."
    )


def counts_table(labels: dict[str, Any]) -> Table:
    """Latents of each label, means over the SAEs of a side, beside what the naive method calls emergent."""
    naive = {"tuned": "real", "null": "null", "reseed": "reseed"}
    rows = []
    for side, name in _ROWS.items():
        if side not in labels["counts"]:
            continue
        seeds = labels["counts"][side]
        means = [np.mean([seed[label] for seed in seeds]) for label in (*_CHANGES, "shared", "undetermined")]
        found = labels["naive"].get(naive.get(side, ""))
        rows.append([name, f"{found['n']:,} of {found['of']:,}" if found else "", *(f"{mean:,.1f}" for mean in means)])
    return ["", "naive: no partner", *_CHANGES, "shared", "undetermined"], rows


def naive_table(labels: dict[str, Any]) -> Table:
    """How many latents either method calls emergent, where something changed and where nothing did."""
    sides = {
        "real": ("tuned", "fine-tune"),
        "null": ("null", "null fine-tune"),
        "reseed": ("reseed", "another seed of the base"),
    }
    rows = []
    for name, (side, title) in sides.items():
        if name in labels["naive"]:
            found, seeds = labels["naive"][name], labels["counts"].get(side, [])
            calibrated = ", ".join(f"{seed['emergent']:,}" for seed in seeds) if labels["seeds"]["tuned"] > 1 else ""
            rows.append([title, f"{found['n']:,} of {found['of']:,} ({found['share']:.0%})", calibrated])
    return ["", "naive: no partner above cosine 0.7", "calibrated: emergent, of each SAE"], rows


def as_text(table: Table) -> str:
    """A table as Markdown."""
    return "\n".join(_table(table))


def layers_table(where: dict[str, Any]) -> Table:
    """How far each layer moved, and what passes there."""
    roles = [role for role in ("tuned", "null") if role in where]
    names = {"tuned": "fine-tune", "null": "null fine-tune"}
    header = [
        "layer",
        *(f"{what}, {names[role]}" for role in roles for what in ("1 - CKA", "relative norm")),
        "closure from below",
        "from above",
    ]
    rows = []
    for place, layer in enumerate(where["tuned"]):
        row = [layer["hook_point"]]
        for role in roles:
            each = where[role][place]
            row += [_number(_flipped(each["cka"])), _number(each["relative_norm"])]
        rows.append(row + [_number(side) for side in where["closure"].get(layer["hook_point"], (None, None))])
    return header, rows


def closure_table(rows: list[dict[str, Any]]) -> Table:
    """The closure curve: what each set of latents carries of the change in predictions."""
    ordered = sorted(rows, key=lambda row: (row["n_latents"] is not None, row["n_latents"] or 0))
    body = [
        [
            row["name"],
            "" if row["n_latents"] is None else f"{row['n_latents']:,}",
            _number(row["closure"]),
            _number(row["of_ceiling"]),
            _number(row["above_nothing"]),
        ]
        for row in ordered
    ]
    return ["what is put in", "latents", "closure", "of the ceiling", "from nothing to the ceiling"], body


def grounding_table(grounding: dict[str, Any]) -> Table:
    """Each model's texts: rate of ungrounded pairs beside chance, and the three outcomes."""
    rows = []
    for name, report in grounding["models"].items():
        rate = "no pair" if report["urr"] is None else _interval(report["urr"], report["low"], report["high"])
        chance = (
            "" if report["chance"] is None else _interval(report["chance"], report["chance_low"], report["chance_high"])
        )
        outcomes = [report["outcomes"].get(kind) for kind in ("grounded", "recombined", "abstaining or novel")]
        shares = ["" if each is None else _interval(each["share"], each["low"], each["high"]) for each in outcomes]
        rows.append([name, f"{report['n_texts']:,}", f"{report['n_details']:,}", rate, chance, *shares])
    return [
        "model",
        "texts",
        "details",
        "ungrounded of supported pairs",
        "by chance",
        "grounded",
        "recombined",
        "abstaining or novel",
    ], rows


def markdown(findings: Findings, name: str, steps: dict[str, Any]) -> str:
    """The report as Markdown."""
    labels = findings.get("labels")
    parts = [
        f"# {name}",
        "",
        headline(labels),
        "",
        "## Latents",
        "",
        _missing(labels),
        "",
        *_table(counts_table(labels)),
    ]
    if "drift" in labels:
        parts += ["", _drift(labels["drift"], labels["config"]["q"])]
    if "crosscoders" in labels:
        parts += ["", *(_crosscoder(each, found) for each, found in labels["crosscoders"].items())]
    parts += ["", "## Where it changed", "", *_table(layers_table(findings.get("where")))]
    for code, found in findings.get("closure").items():
        parts += ["", f"## Closure by the {code} dictionary", "", *_table(closure_table(found["rows"]))]
    if findings.has("grounding"):
        parts += [
            "",
            "## What the models write, traced to the fine-tuning text",
            "",
            *_table(grounding_table(findings.get("grounding"))),
        ]
    dense = findings.get("dense")["tuned"]
    parts += ["", "## Without any dictionary", "", "- " + "\n- ".join(dense_lines(dense))]
    parts += ["", "## Time", "", *(f"- {step}: {each['seconds']:.0f} s" for step, each in steps.items())]
    return "\n".join(parts) + "\n"


def dense_lines(dense: dict[str, Any]) -> list[str]:
    """The dense bars of one fine-tune."""
    rose = ", ".join(f"{word!r} {difference:+.4f}" for word, difference, _ in dense["tokens"]["rose"][:8])
    fell = ", ".join(f"{word!r} {difference:+.4f}" for word, difference, _ in dense["tokens"]["fell"][:8])
    first = next((name for name in dense["lens"] if name != "mean"), "mean")
    return [
        f"The mean difference is {dense['mean_share']:.1%} of the difference's square; its two halves agree with cosine {dense['agreement']:.2f}.",
        f"50 components hold {dense['variance_of_50']:.1%} of its variance.",
        f"Through the final norm and head the mean says {_listed(dense['lens']['mean'])}; at the first token {_listed(dense['lens'][first])}.",
        f"More probable on the held-out text (mean difference of p, {dense['tokens']['n_documents']} documents): {rose}. Less: {fell}.",
    ]


def _listed(words: list[str]) -> str:
    return ", ".join(map(repr, words[:8]))


def _missing(labels: dict[str, Any]) -> str:
    lines = f"p-values against {labels['against']}, on {labels['n_tokens']:,} held-out tokens; SAEs: " + ", ".join(
        f"{n} of {role}" for role, n in labels["seeds"].items()
    )
    return lines + (
        ". No null fine-tune was given or made, so what any training changes is not known."
        if "null" not in labels["seeds"]
        else "."
    )


def _drift(drift: dict[str, Any], q: float) -> str:
    names = {"tuned": "the fine-tune's activations", "null": "the null fine-tune's", "base": "the base's own"}
    parts = [
        f"{drift[role]['mean']:.4f} (95th percentile {drift[role]['p95']:.4f}) on {name}"
        for role, name in names.items()
        if role in drift
    ]
    line = f"A base SAE trained on turns by 1 - cosine = {'; '.join(parts)}."
    return line + (
        f" {drift['beyond_null']:,} of {drift['n_tested']:,} latents turn further than the null's, q <= {q:g}."
        if "beyond_null" in drift
        else ""
    )


def _crosscoder(name: str, found: dict[str, Any]) -> str:
    return (
        f"- {name}: by its norms {found['tuned_by_norm']:,} of {found['latents']:,} latents are the fine-tune's alone and "
        f"{found['base_by_norm']:,} the base's; latent scaling leaves {found['tuned_both']:,} and {found['base_both']:,} of them."
    )


def _table(table: Table) -> list[str]:
    header, rows = table
    return [
        "| " + " | ".join(header) + " |",
        "| " + " | ".join("---" for _ in header) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _flipped(estimate: dict[str, Any]) -> dict[str, Any]:
    """1 - x, with the interval's ends exchanged."""
    ends = {"value": estimate["value"], "low": estimate["high"], "high": estimate["low"]}
    return {key: None if value is None else 1 - value for key, value in ends.items()}


def _number(estimate: dict[str, Any] | None) -> str:
    return (
        ""
        if estimate is None or estimate["value"] is None
        else _interval(estimate["value"], estimate["low"], estimate["high"])
    )


def _interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
