"""What a comparison found, as tables of text for the page, the report and the terminal: a header and rows, numbers with their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsight.diff import CHANGES

__all__ = [
    "Table",
    "as_text",
    "changed_in",
    "closure_table",
    "counts_table",
    "grounding_table",
    "layers_table",
    "naive_table",
    "telling_tables",
]

Table = tuple[list[str], list[list[str]]]
_ROWS = {
    "tuned": "fine-tune against base",
    "null": "null fine-tune against base",
    "reseed": "base against its own other seeds",
    "base": "base against fine-tune (lost)",
}


def counts_table(labels: dict[str, Any]) -> Table:
    """Latents of each label, means over the SAEs of a side."""
    rows = []
    for side, name in _ROWS.items():
        if seeds := labels["counts"].get(side):
            means = [np.mean([seed[label] for seed in seeds]) for label in (*CHANGES, "shared", "undetermined")]
            rows.append([name, *(f"{mean:,.1f}" for mean in means)])
    return ["", *CHANGES, "shared", "undetermined"], rows


def changed_in(counts: dict[str, int]) -> int:
    """Latents of one SAE that are called changed: emergent, rotated or reweighted."""
    return sum(counts[label] for label in CHANGES)


def naive_table(labels: dict[str, Any]) -> Table:
    """How many latents either method calls changed, where something changed and where nothing did."""
    sides = {
        "real": ("tuned", "fine-tune"),
        "null": ("null", "null fine-tune"),
        "reseed": ("reseed", "another seed of the base"),
    }
    rows = []
    for name, (side, title) in sides.items():
        if found := labels["naive"].get(name):
            row = [title, f"{found['n']:,} of {found['of']:,} ({found['share']:.0%})"]
            if labels["seeds"]["tuned"] > 1:
                by_seeds, scaled = (_each(labels[key].get(side, [])) for key in ("counts_by_seeds", "counts"))
                row += [by_seeds, "the same activations" if side == "reseed" else scaled]
            rows.append(row)
    header = ["", "naive: no partner above cosine 0.7", "changed by the seeds, in each SAE", "and by latent scaling"]
    return header[: len(rows[0])], rows


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


def telling_tables(telling: dict[str, Any]) -> list[Table]:
    """The latents that tell, and their ablation; as many as there are."""
    if "undetermined" in telling:
        return []
    ablation = telling["ablation"] or {}
    return [_telling_table(telling)] + ([_ablation_table(ablation["changes"])] if "changes" in ablation else [])


def _telling_table(telling: dict[str, Any]) -> Table:
    """Of each seed, the latent that tells recombined details best, beside what tells them without it."""
    rows = []
    for number, seed in enumerate(telling["seeds"]):
        again = sum(times > 0 for times in seed["again"])
        rows.append(
            [
                f"tuned.{number}",
                f"{seed['best']}",
                f"{seed['best_auc']:.3f} (p {seed['best_p_auc']:.3f})",
                f"{seed['null_auc_95']:.3f}",
                "" if seed["base_auc"] is None else f"{seed['base_auc']:.3f}",
                f"{seed['log_probability_auc']:.3f}",
                f"{len(seed['found'])}, {again} of them in another seed",
            ]
        )
    header = [
        "SAE",
        "best latent",
        "its AUC",
        "best by luck, 95 %",
        "base's best",
        "log-probability",
        "better than all of these",
    ]
    return header, rows


def _ablation_table(changes: dict[str, dict[str, Any]]) -> Table:
    """What taking the latents out does, beside matched controls."""
    names = {"urr": "ungrounded of supported pairs", "nll": "nats a token on ordinary text"}
    rows = [
        [
            names.get(name, name),
            f"{each['plain']:.3f}",
            f"{each['ablated']:.3f}",
            _interval(each["ablated"] - each["plain"], each["low"], each["high"]),
            f"{each['largest_control']:.3f}",
            f"{each['p']:.3f}",
        ]
        for name, each in changes.items()
    ]
    return ["", "plain", "without the latents", "change", "largest of the controls", "p"], rows


def as_text(table: Table) -> str:
    """A table as Markdown."""
    header, rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _each(seeds: Sequence[dict[str, int]]) -> str:
    return ", ".join(f"{changed_in(counts):,}" for counts in seeds)


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
