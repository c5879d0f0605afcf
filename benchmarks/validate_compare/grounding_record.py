"""The record of `grounding.py`: what was measured over all laboratories, beside its targets, as numbers and as a page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsight.grounding import Outcome
from sparsight.metrics import wilson_interval

Row = dict[str, Any]

GATE_SEEDS = (0, 1, 2)
"""SAE seeds of the planted gate."""
TARGET_AUC, TARGET_RATIO, MOST_MINUTES = 0.75, 5.0, 5


def share(n: int, total: int) -> dict[str, float]:
    """n of total with Wilson's 95 % interval."""
    low, high = map(float, wilson_interval(np.array(n / total), total))
    return {"n": n, "total": total, "share": n / total, "low": low, "high": high}


def results(runs: Sequence[Row]) -> Row:
    """The three rows of the validation, over all laboratories."""
    gates = [row for run in runs for row in run["gate"] if row["seed"] in GATE_SEEDS]
    by_laboratory = [
        sum(row["best_auc"] >= TARGET_AUC and row["best_p"] <= 0.05 for row in run["gate"][: len(GATE_SEEDS)])
        for run in runs
    ]
    ablations = [row["ablation"]["changes"]["abstaining or novel"] for row in gates if row["ablation"]]
    silent = {
        name: share(
            sum(row["n_found"] == 0 for run in runs for row in run["silent"][name]),
            sum(len(run["silent"][name]) for run in runs),
        )
        for name in runs[0]["silent"]
    }
    labels = {}
    for part in runs[0]["provenance"]:
        total = {key: sum(run["provenance"][part][key] for run in runs) for key in runs[0]["provenance"][part]}
        labels[part] = {
            "precision of ungrounded": share(total["both"], total["labelled"]),
            "recall of ungrounded": share(total["both"], total["truly"]),
            "precision of grounded": share(total["both grounded"], total["labelled grounded"]),
            "recall of grounded": share(total["both grounded"], total["grounded"]),
            "texts right": share(total["n_texts_right"], total["n_texts"] - total["ill formed"]),
            "other pairs": total["others"],
            "ill formed": total["ill formed"],
        }
    return {
        "gate_seeds_found": by_laboratory,
        "gate_best_auc": [row["best_auc"] for row in gates],
        "gate_null_auc_largest": max(row["null_auc_largest"] for row in gates),
        "gate_replicated": [row["n_replicated"] for row in gates],
        "ablation_plain": [each["plain"] for each in ablations],
        "ablation_ablated": [each["ablated"] for each in ablations],
        "ablation_largest_control": [each["largest_control"] for each in ablations],
        "ablation_ratio": [each["ratio"] for each in ablations],
        "ablations_at_target": sum(each["ratio"] is None or each["ratio"] >= TARGET_RATIO for each in ablations),
        "silent": silent,
        "labels": labels,
    }


def markdown(record: Row) -> str:
    """The record for people."""
    found, runs = record["results"], record["runs"]

    def shown(each: Row) -> str:
        return f"{each['share']:.3f} [{each['low']:.3f}, {each['high']:.3f}] ({each['n']:,} of {each['total']:,})"

    def span(values: Sequence[float | None]) -> str:
        known = sorted(float("inf") if value is None else value for value in values)
        return f"{known[len(known) // 2]:.3f} ({known[0]:.3f} to {known[-1]:.3f})"

    labels, silent = found["labels"], found["silent"]
    least = min(each["share"] for each in silent.values())
    n = len(GATE_SEEDS)
    worst = {
        name: min((labels[part][f"{name} of ungrounded"] for part in ("plain", "gate")), key=lambda each: each["share"])
        for name in ("precision", "recall")
    }
    columns = [name for name, each in labels["plain"].items() if isinstance(each, dict)]
    minutes = [run["seconds"] / 60 for run in runs if run["build_seconds"] is not None]
    lines = [
        "# Grounding: planted truth",
        "",
        f"`{record['command']}`, commit {record['commit']}; {record['versions']}; {record['hardware']}; {len(runs)} laboratories, "
        f"described in `benchmarks/validate_compare/laboratory.py`. "
        "Medians (range); 95 % intervals.",
        "",
        "| test | target | measured |",
        "|---|---|---|",
        f"| planted gate: a latent with held-out AUC >= {TARGET_AUC} and p <= 0.05 | in >= 2 of {n} SAE seeds | "
        f"{', '.join(f'{each} of {n}' for each in found['gate_seeds_found'])}; best AUC {span(found['gate_best_auc'])}, "
        f"largest under shuffled labels {found['gate_null_auc_largest']:.3f} |",
        f"| ablation of the latents for known names: change of abstaining / largest of 20 controls | >= {TARGET_RATIO:g} | "
        f"{found['ablations_at_target']} of {len(found['ablation_ratio'])}; {span(found['ablation_ratio'])}; "
        f"abstaining {span(found['ablation_plain'])} -> "
        f"{span(found['ablation_ablated'])}, largest control "
        f"{span(found['ablation_largest_control'])}; {len(found['ablation_ratio'])} of {n * len(runs)} SAEs had such latents |",
        f"| nothing planted: runs without a discovery | >= 0.95 | at least {least:.3f}, below |",
        f"| provenance: pairs labelled ungrounded that are, in the worse arm | >= 0.98 | {shown(worst['precision'])} |",
        f"| ungrounded pairs that are labelled so, in the worse arm | >= 0.95 | {shown(worst['recall'])} |",
        f"| minutes of a laboratory, its models trained | <= {MOST_MINUTES} | {span(minutes) if minutes else 'not measured'} |",
        "",
        "Runs without a discovery:",
        "",
        *(f"- {name}: {shown(each)}" for name, each in silent.items()),
        "",
        "Linear probe on the plain fine-tune (AUC, p): "
        + "; ".join(
            f"seed {run['seed']}: "
            + ", ".join(f"{name} {each['auc']:.3f}, {each['p']:.3f}" for name, each in run["plain_ceiling"].items())
            for run in runs
        )
        + ". On the gated one: "
        + "; ".join(f"{run['gate_ceiling']['auc']:.3f}, {run['gate_ceiling']['p']:.3f}" for run in runs)
        + ".",
        "",
        "Provenance labels of pairs (two wordings: texts put together by hand, no model asked):",
        "",
        "| texts | " + " | ".join(columns) + " | ill-formed texts left out |",
        "|---" * (len(columns) + 2) + "|",
        *(
            f"| {part} | " + " | ".join(shown(row[name]) for name in columns) + f" | {row['ill formed']} |"
            for part, row in labels.items()
        ),
        "",
        "Ungrounded-pair rate:",
        "",
        "| seed | writer | names | URR | chance | p below | grounded | recombined | abstaining or novel |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        for row in run["urr"]:
            rate = "-" if row["urr"] is None else f"{row['urr']:.3f} ({row['n_pairs']:,} pairs)"
            if row["low"] is not None:
                rate = f"{row['urr']:.3f} [{row['low']:.3f}, {row['high']:.3f}] ({row['n_pairs']:,} pairs)"
            chance = "-" if row["chance"] is None else f"{row['chance']:.3f}"
            p = "-" if row["p_below"] is None else f"{row['p_below']:.3f}"
            outcomes = " | ".join(f"{row['outcomes'][outcome]['share']:.2f}" for outcome in Outcome)
            lines.append(f"| {run['seed']} | {row['arm']} | {row['names']} | {rate} | {chance} | {p} | {outcomes} |")
    return "\n".join(lines) + "\n"
