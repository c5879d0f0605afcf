"""Does the comparison find what was planted, and nothing where nothing was? Writes benchmarks/records/compare-planted.{json,md}.

    python benchmarks/validate_compare/planted.py            (--repetitions, --workers; --steps, --out for another training length)

A repetition draws a pair (sparsight.activations.synthetic_pair) and trains, all on the same tokens, SEEDS SAEs each on the base, on the fine-tune, on
the base again and on a null fine-tune whose every direction has drifted as far as the fine-tune's. The base's are then compared with each of the
others, with each null (sparsight.diff.emergence) and fewer seeds; "identical" compares them with themselves. A repetition that the record holds is
not run again.

Targets: recall at least 0.9 at rates of 1 % and more and 0.6 at 0.1 %, observed false discovery at most 0.075 at q = 0.05; at most 5 % of
comparisons without a change report an emergent or a lost latent.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsight.activations.synthetic_pair import PlantedPair
from sparsight.diff import Dictionary, LabelConfig, compare_seeds, marked, matched, naive_emergent, recall_by_rate
from sparsight.diff.emergence import LEAST_PERMUTED
from sparsight.diff.labelling import ComparedSeeds
from sparsight.sae import SAEConfig, SAETrainer

D, N_SHARED, N_LATENTS, K, NOISE, DRIFT = 64, 80, 144, 3, 0.05, 0.1
BATCH, STEPS, LR, SEEDS, HELDOUT_BATCHES = 512, 1500, 3e-3, 5, 80
RECORD = Path(__file__).parents[1] / "records" / "compare-planted.json"
ARMS = {"base": ("base", 0), "tuned": ("tuned", 100), "reseed": ("base", 200), "null": ("null", 300)}
"""Whose activations, and the first seed."""

Run = dict[str, Any]


def dictionaries(pair: PlantedPair, steps: int, seeds: int) -> dict[str, list[Dictionary]]:
    """Trains all SAEs side by side on `steps` batches, and reads them on held-out ones."""
    trainers = {
        (arm, index): SAETrainer(
            SAEConfig(id="planted", n_latents=N_LATENTS, k=K, lr=LR, seed=first + index, dead_after_tokens=40 * BATCH),
            D,
            D,
            total_steps=steps,
            batch_tokens=BATCH,
        )
        for arm, (_, first) in ARMS.items()
        for index in range(seeds)
    }
    for step in range(steps):
        x = pair.planted(BATCH, step).x
        for (arm, _), trainer in trainers.items():
            if step == 0:
                trainer.initialize(x[ARMS[arm][0]])
            trainer.step(x[ARMS[arm][0]], with_metrics=False)
    heldout = [pair.planted(BATCH, index, seed=1).x for index in range(HELDOUT_BATCHES)]
    return {
        arm: [
            Dictionary.of(trainers[arm, index].finished(), [x[ARMS[arm][0]] for x in heldout]) for index in range(seeds)
        ]
        for arm in ARMS
    }


def against_truth(pair: PlantedPair, found: dict[str, list[Dictionary]], compared: ComparedSeeds) -> Run:
    """Every SAE of either model marked: recall by kind and rate, and latents called and called wrongly."""
    there = {"emergent": "shared", "lost": "emergent"}
    sides = {
        "tuned": [{"lost": "shared"}.get(kind, kind) for kind in pair.kinds],
        "base": [there.get(kind, kind) for kind in pair.kinds],
    }
    marks = {
        side: [
            marked(labelled, one.directions, pair.directions[side], kinds, pair.probabilities, pair.gains[side] > 0)
            for labelled, one in zip(getattr(compared, side), found[side], strict=True)
        ]
        for side, kinds in sides.items()
    }
    recall = {kind: recall_by_rate(marks["tuned"], [kind]) for kind in ("emergent", "rotated", "reweighted")}
    recall["lost"] = recall_by_rate(marks["base"], ["emergent"])
    every = [*marks["tuned"], *marks["base"]]
    return {
        "recall": {kind: {str(rate): counts for rate, counts in rates.items()} for kind, rates in recall.items()},
        "called": {label: sum(mark.called[label] for mark in every) for label in ("emergent", "rotated", "reweighted")},
        "wrong": {label: sum(mark.wrong[label] for mark in every) for label in ("emergent", "rotated", "reweighted")},
    }


def without_change(compared: ComparedSeeds) -> Run:
    """Latents of each label, for each SAE of either side."""
    return {
        "counts": [labelled.counts() for labelled in compared.tuned],
        "lost": [labelled.counts() for labelled in compared.base],
    }


def repetition(number: int, steps: int = STEPS, seeds: int = SEEDS) -> Run:
    """All of one repetition."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    pair = PlantedPair(N_SHARED, D, noise=NOISE, drift=DRIFT, seed=number)
    found = dictionaries(pair, steps, seeds)
    base, tuned, reseed, null = (found[arm] for arm in ARMS)
    run: Run = {"number": number, "planted": {}, "unchanged": {}}
    for n in sorted({3, 4, seeds}):
        few = {arm: each[:n] for arm, each in found.items()}
        for null_of in ("seeds", "permuted") if n >= LEAST_PERMUTED else ("seeds",):
            config = LabelConfig(null=null_of)
            compared = compare_seeds(few["base"], few["tuned"], config=config)
            run["planted"][f"{n}, null: {null_of}"] = against_truth(pair, few, compared)
            run["unchanged"][f"reseed, {n}, null: {null_of}"] = without_change(
                compare_seeds(few["base"], few["reseed"], config=config)
            )
            run["unchanged"][f"null fine-tune, {n}, null: {null_of}"] = without_change(
                compare_seeds(few["base"], few["null"], config=config)
            )
    run["planted"][f"{seeds}, null: null fine-tune"] = against_truth(pair, found, compare_seeds(base, tuned, null))
    run["unchanged"][f"identical, {seeds}"] = without_change(compare_seeds(base, base))
    run["unchanged"][f"reseed, {seeds}, null: null fine-tune"] = without_change(compare_seeds(base, reseed, null))
    run["naive"] = {
        name: naive_emergent(matched(each[0], base[0])[0].cosine)
        for name, each in (("fine-tune", tuned), ("null fine-tune", null), ("reseed", reseed))
    }
    run["seconds"] = time.perf_counter() - started
    return run


def summed(runs: Sequence[Run], arm: str) -> Run:
    """Recall by kind and rate over repetitions, and the mean over repetitions of the share of false calls with its 95 % interval."""
    recall: dict[str, dict[str, list[int]]] = {}
    for run in runs:
        for kind, rates in run["planted"][arm]["recall"].items():
            for rate, counts in rates.items():
                held = recall.setdefault(kind, {}).setdefault(rate, [0, 0, 0])
                recall[kind][rate] = [a + b for a, b in zip(held, counts, strict=True)]
    shares = [
        sum(run["planted"][arm]["wrong"].values()) / max(1, sum(run["planted"][arm]["called"].values())) for run in runs
    ]
    half = 1.96 * np.std(shares, ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
    return {"recall": recall, "fdr": float(np.mean(shares)), "fdr_half": float(half)}


def markdown(record: Run) -> str:
    """The record as tables, target beside measured."""
    runs = record["runs"]
    arms = list(runs[0]["planted"])
    lines = [f"# Planted changes, {len(runs)} repetitions", ""]
    rates = sorted({rate for rates in summed(runs, arms[0])["recall"].values() for rate in rates}, key=float)
    lines += [
        "| seeds a model | changes | "
        + " | ".join(f"{100 * float(rate):g} %" for rate in rates)
        + " | false discovery (target 0.075) |"
    ]
    lines += ["|" + "---|" * (len(rates) + 3)]
    for arm in arms:
        found = summed(runs, arm)
        kinds = {**{kind: [kind] for kind in found["recall"]}, "all": list(found["recall"])}
        for name, members in kinds.items():
            cells = []
            for rate in rates:
                n_found, n_learned, n = np.sum([found["recall"][kind][rate] for kind in members], axis=0)
                cells.append(f"{n_found / n:.3f} (learned {n_learned / n:.2f})")
            fdr = f"{found['fdr']:.3f} +- {found['fdr_half']:.3f}" if name == "all" else ""
            lines.append(f"| {arm} | {name} | " + " | ".join(cells) + f" | {fdr} |")
    lines += [
        "",
        "Recall: planted features found by an SAE, over SAEs and repetitions; target 0.9 from 1 %, 0.6 at 0.1 %.",
        "",
    ]
    lines += [
        "| no change: | comparisons | with an emergent or lost latent (target <= 5 %) | rotated | reweighted |",
        "|---|---|---|---|---|",
    ]
    for name in runs[0]["unchanged"]:
        rows = [row for run in runs for row in run["unchanged"][name]["counts"] + run["unchanged"][name]["lost"]]
        any_run = [
            any(row["emergent"] for row in run["unchanged"][name]["counts"] + run["unchanged"][name]["lost"])
            for run in runs
        ]
        cells = [sum(row[label] > 0 for row in rows) / len(rows) for label in ("rotated", "reweighted")]
        emergent = sum(row["emergent"] > 0 for row in rows)
        lines.append(
            f"| {name} | {len(runs)} of {len(rows)} SAEs | {sum(any_run)} of {len(any_run)} comparisons, {emergent} of {len(rows)} SAEs | "
            + " | ".join(f"{100 * cell:.1f} % of SAEs" for cell in cells)
            + " |"
        )
    naive = {name: np.mean([run["naive"][name] for run in runs]) for name in runs[0]["naive"]}
    lines += [
        "",
        "Without a null (no partner at cosine 0.7 in one SAE): "
        + ", ".join(f"{name} {share:.3f}" for name, share in naive.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the repetitions that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    settings = {
        "d": D, "n_shared": N_SHARED, "n_latents": N_LATENTS, "k": K, "noise": NOISE, "drift": DRIFT, "batch": BATCH,
        "steps": options.steps, "lr": LR, "seeds": SEEDS, "heldout": BATCH * HELDOUT_BATCHES,
    }  # fmt: skip
    record = json.loads(options.out.read_text()) if options.out.exists() else {"runs": []}
    if record.get("settings", settings) != settings:
        raise SystemExit(
            f"{options.out} was made with other settings: {record['settings']}. Remove it, or give another --out."
        )
    todo = sorted(set(range(options.repetitions)) - {run["number"] for run in record["runs"]})
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(partial(repetition, steps=options.steps), number) for number in todo]):
            record["runs"] = sorted([*record["runs"], done.result()], key=lambda run: run["number"])
            record |= {
                "settings": settings,
                "torch": torch.__version__,
                "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
            }
            options.out.write_text(json.dumps(record, indent=1) + "\n")
            print(f"repetition {done.result()['number']}: {done.result()['seconds']:.0f} s", flush=True)
    options.out.with_suffix(".md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
