"""Does the comparison find what was planted, and nothing where nothing was? Writes benchmarks/records/compare-planted.{json,md}.

    python benchmarks/validate_compare/planted.py            (--repetitions, --workers; --steps, --out for another training length)

A repetition draws a pair (sparsight.activations.synthetic_pair) and trains, all on the same tokens, SEEDS SAEs each on the base, on the fine-tune, on
the base again and on a null fine-tune whose every direction has drifted as far as the fine-tune's. The base's are then compared with each of the
others, with each null (sparsight.diff.emergence), with and without latent scaling, and with 3 seeds; "identical" compares them with themselves. A
repetition that the record holds is not run again.

Targets: recall at least 0.9 at rates of 1 % and more and 0.6 at 0.1 %, observed false discovery at most 0.075 at q = 0.05; at most 5 % of
comparisons without a change report an emergent or a lost latent.
"""

import argparse
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pairs import (
    BATCH,
    DRIFT,
    LR,
    N_LATENTS,
    N_SHARED,
    NOISE,
    RECORDS,
    Arms,
    D,
    K,
    Run,
    against_truth,
    drawn,
    false_share,
    fill,
    table_head,
    table_row,
    trained,
)

from sparsight.diff import ComparedSeeds, LabelConfig, SeedTables, compare_seeds, label_seeds, naive_emergent

STEPS, SEEDS, FEW, HELDOUT_BATCHES = 500, 5, 3, 40
DEFAULT = f"{SEEDS}, permuted, scaling"


def without_change(compared: ComparedSeeds) -> Run:
    """Latents of each label, for each SAE of either side."""
    return {
        "counts": [labelled.counts() for labelled in compared.tuned],
        "lost": [labelled.counts() for labelled in compared.base],
    }


def repetition(number: int, steps: int = STEPS, seeds: int = SEEDS) -> Run:
    """All of one repetition."""
    torch.set_num_threads(1)
    started = time.process_time()
    pair = drawn(number)
    arms = Arms(pair, trained(pair, steps, seeds), HELDOUT_BATCHES)
    run: Run = {"number": number, "planted": {}, "unchanged": {}}
    for arm in ("tuned", "reseed", "null"):
        tables = SeedTables.of(arms.read["base"], arms.read[arm], arms.read["null"] if arm != "null" else ())
        scaling = arms.scaling(arm)
        for name, few, config, given in (
            (f"{FEW}, seeds", tables.first(FEW), LabelConfig(null="seeds"), None),
            (f"{FEW}, seeds, scaling", tables.first(FEW), LabelConfig(null="seeds"), scaling),
            (f"{seeds}, seeds", tables.first(seeds), LabelConfig(null="seeds"), None),
            (f"{seeds}, seeds, scaling", tables.first(seeds), LabelConfig(null="seeds"), scaling),
            (f"{seeds}, permuted", tables.first(seeds), LabelConfig(null="permuted"), None),
            (f"{seeds}, permuted, scaling", tables.first(seeds), LabelConfig(null="permuted"), scaling),
            (f"{seeds}, null fine-tune", tables, LabelConfig(), None),
            (f"{seeds}, null fine-tune, scaling", tables, LabelConfig(), scaling),
        ):
            if arm == "null" and "fine-tune" in name:
                continue
            few_scaling = given and {side: each[: len(few.own["base"])] for side, each in given.items()}
            compared = label_seeds(few, scaling=few_scaling, config=config)
            if arm == "tuned":
                run["planted"][name] = against_truth(pair, arms.read, compared)
            else:
                run["unchanged"][f"{'null fine-tune' if arm == 'null' else arm}: {name}"] = without_change(compared)
        run.setdefault("naive", {})[arm] = naive_emergent(tables.other["tuned"][0][0].cosine)
    identical = compare_seeds(arms.read["base"], arms.read["base"])
    run["unchanged"]["identical: permuted"] = without_change(identical)
    run["seconds"] = time.process_time() - started
    return run


def summed(runs: Sequence[Run], arm: str) -> Run:
    """Recall by kind and rate over repetitions, and the mean over repetitions of the share of false calls with its 95 % interval."""
    recall: dict[str, dict[str, list[int]]] = {}
    for run in runs:
        for kind, rates in run["planted"][arm]["recall"].items():
            for rate, counts in rates.items():
                held = recall.setdefault(kind, {}).setdefault(rate, [0, 0, 0])
                recall[kind][rate] = [a + b for a, b in zip(held, counts, strict=True)]
    share, half = false_share(run["planted"][arm] for run in runs)
    return {"recall": recall, "fdr": share, "fdr_half": half}


def markdown(record: Run) -> str:
    """The record as tables, target beside measured."""
    runs = record["runs"]
    found = {arm: summed(runs, arm) for arm in runs[0]["planted"]}
    default = found[DEFAULT]["recall"]
    lines = [f"# Planted changes, {len(runs)} repetitions of {2 * SEEDS} SAEs marked and {4 * SEEDS} trained", ""]
    lines += [
        "Recall: planted features that an SAE labels rightly, over SAEs and repetitions (in brackets: that it has learned at all).",
        "",
    ]
    lines += table_head(
        ["seeds a model, null", *(f"{100 * float(rate):g} %" for rate in default["lost"]), "false discovery"]
    )
    lines += table_row("target", [">= 0.6", "", *[">= 0.9"] * (len(default["lost"]) - 2), "<= 0.075"])
    for arm, each in found.items():
        recall = {rate: np.sum([kind[rate] for kind in each["recall"].values()], axis=0) for rate in default["lost"]}
        name = f"**{arm}** (the default)" if arm == DEFAULT else arm
        lines += table_row(name, [*map(_share, recall.values()), f"{each['fdr']:.3f} +- {each['fdr_half']:.3f}"])
    for kind, rates in default.items():
        lines += table_row(f"the default: {kind}", [*map(_share, rates.values()), ""])
    lines += [
        "",
        f"Nothing changed, {len(runs)} comparisons each: how many report such a latent, in any SAE of either model.",
        "",
    ]
    lines += table_head(["compared with the base: seeds, null", "emergent or lost", "rotated", "reweighted"])
    lines += table_row("target", ["<= 5 %", "", ""])
    for name in runs[0]["unchanged"]:
        sides = [run["unchanged"][name]["counts"] + run["unchanged"][name]["lost"] for run in runs]
        reports = (
            sum(any(row[label] for row in rows) for rows in sides) for label in ("emergent", "rotated", "reweighted")
        )
        lines += table_row(name, [f"{n} of {len(runs)}" for n in reports])
    naive = {name: np.mean([run["naive"][name] for run in runs]) for name in runs[0]["naive"]}
    shares = ", ".join(f"{name} {share:.3f}" for name, share in naive.items())
    return "\n".join(
        [*lines, "", f"Without a null, latents with no partner at cosine 0.7 in one SAE of the base: {shares}.", ""]
    )


def _share(counts: Sequence[int]) -> str:
    n_found, n_learned, n = counts
    return f"{n_found / n:.3f} ({n_learned / n:.2f})"


def main() -> None:
    """Runs the repetitions that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RECORDS / "compare-planted.json")
    options = parser.parse_args()
    settings = {
        "d": D, "n_shared": N_SHARED, "n_latents": N_LATENTS, "k": K, "noise": NOISE, "drift": DRIFT, "batch": BATCH,
        "steps": options.steps, "lr": LR, "seeds": SEEDS, "heldout": BATCH * HELDOUT_BATCHES,
    }  # fmt: skip
    once = partial(repetition, steps=options.steps)
    record = fill(options.out, settings, once, options.repetitions, options.workers)
    options.out.with_suffix(".md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
