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
from sparsight.diff import (
    ComparedSeeds,
    Dictionary,
    LabelConfig,
    LatentScaling,
    SeedTables,
    compare_seeds,
    label_seeds,
    marked,
    naive_emergent,
    recall_by_rate,
    scaled_sae,
)
from sparsight.sae import SAEConfig, SAETrainer, SparseAutoencoder

D, N_SHARED, N_LATENTS, K, NOISE, DRIFT = 32, 36, 128, 3, 0.05, 0.1
BATCH, STEPS, LR, SEEDS, FEW, HELDOUT_BATCHES, DOCUMENT = 1024, 500, 1e-2, 5, 3, 40, 128
RECORD = Path(__file__).parents[1] / "records" / "compare-planted.json"
ARMS = {"base": ("base", 0), "tuned": ("tuned", 100), "reseed": ("base", 200), "null": ("null", 300)}
"""Whose activations, and the first seed."""

DEFAULT = f"{SEEDS}, permuted, scaling"

Run = dict[str, Any]


def trained(pair: PlantedPair, steps: int, seeds: int) -> dict[str, list[SparseAutoencoder]]:
    """All SAEs, side by side on the same batches."""
    trainers = {
        (arm, index): SAETrainer(
            SAEConfig(id="planted", n_latents=N_LATENTS, k=K, lr=LR, seed=first + index, dead_after_tokens=20 * BATCH),
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
    return {arm: [trainers[arm, index].finished() for index in range(seeds)] for arm in ARMS}


class Arms:
    """A repetition's SAEs, what they read on held-out tokens, and the latent scaling of one model's against another's."""

    def __init__(self, pair: PlantedPair, saes: dict[str, list[SparseAutoencoder]]) -> None:
        self.saes = saes
        self.heldout = [pair.planted(BATCH, index, seed=1).x for index in range(HELDOUT_BATCHES)]
        self.read = {
            arm: [Dictionary.of(sae, [x[ARMS[arm][0]] for x in self.heldout]) for sae in of_arm]
            for arm, of_arm in saes.items()
        }

    def scaling(self, arm: str) -> dict[str, list[LatentScaling]]:
        """Of the arm's SAEs against the base's of the same number, and the other way round."""
        return {"tuned": self._scaled(arm, "base"), "base": self._scaled("base", arm)}

    def _scaled(self, own: str, other: str) -> list[LatentScaling]:
        ids = torch.arange(BATCH) // DOCUMENT
        batches = [(ids + 1000 * i, x[ARMS[own][0]], x[ARMS[other][0]]) for i, x in enumerate(self.heldout)]
        pairs = zip(self.saes[own], self.saes[other], strict=True)
        return [scaled_sae(*pair, batches).finish("own", n_resamples=100) for pair in pairs]


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
            for labelled, one in zip(getattr(compared, side), found[side], strict=False)
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
    started = time.process_time()
    pair = PlantedPair(N_SHARED, D, noise=NOISE, drift=DRIFT, seed=number)
    arms = Arms(pair, trained(pair, steps, seeds))
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
    shares = [
        sum(run["planted"][arm]["wrong"].values()) / max(1, sum(run["planted"][arm]["called"].values())) for run in runs
    ]
    half = 1.96 * np.std(shares, ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
    return {"recall": recall, "fdr": float(np.mean(shares)), "fdr_half": float(half)}


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
    lines += _head(
        ["seeds a model, null", *(f"{100 * float(rate):g} %" for rate in default["lost"]), "false discovery"]
    )
    lines += _row("target", [">= 0.6", "", *[">= 0.9"] * (len(default["lost"]) - 2), "<= 0.075"])
    for arm, each in found.items():
        recall = {rate: np.sum([kind[rate] for kind in each["recall"].values()], axis=0) for rate in default["lost"]}
        name = f"**{arm}** (the default)" if arm == DEFAULT else arm
        lines += _row(name, [*map(_share, recall.values()), f"{each['fdr']:.3f} +- {each['fdr_half']:.3f}"])
    for kind, rates in default.items():
        lines += _row(f"the default: {kind}", [*map(_share, rates.values()), ""])
    lines += [
        "",
        f"Nothing changed, {len(runs)} comparisons each: how many report such a latent, in any SAE of either model.",
        "",
    ]
    lines += _head(["compared with the base: seeds, null", "emergent or lost", "rotated", "reweighted"])
    lines += _row("target", ["<= 5 %", "", ""])
    for name in runs[0]["unchanged"]:
        sides = [run["unchanged"][name]["counts"] + run["unchanged"][name]["lost"] for run in runs]
        reports = (
            sum(any(row[label] for row in rows) for rows in sides) for label in ("emergent", "rotated", "reweighted")
        )
        lines += _row(name, [f"{n} of {len(runs)}" for n in reports])
    naive = {name: np.mean([run["naive"][name] for run in runs]) for name in runs[0]["naive"]}
    shares = ", ".join(f"{name} {share:.3f}" for name, share in naive.items())
    return "\n".join(
        [*lines, "", f"Without a null, latents with no partner at cosine 0.7 in one SAE of the base: {shares}.", ""]
    )


def _head(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def _row(name: str, cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join([name, *cells]) + " |"]


def _share(counts: Sequence[int]) -> str:
    n_found, n_learned, n = counts
    return f"{n_found / n:.3f} ({n_learned / n:.2f})"


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
            options.out.write_text(json.dumps(record) + "\n")
            print(f"repetition {done.result()['number']}: {done.result()['seconds']:.0f} s", flush=True)
    options.out.with_suffix(".md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
