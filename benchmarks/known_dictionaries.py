"""Which architecture finds a dictionary that is known? Writes benchmarks/records/dictionaries.{json,md}.

    make bench-dictionaries            (BENCH="--parts ..., --seeds, --steps, --workers" for some of it)

For each kind of planted dictionary and each seed (of the dictionary, the data and the SAE alike): every architecture at the true number of active
features, and the controls, all from the same rows. Where a coefficient sets the sparsity it is searched on the first seed until L0 on held-out tokens
is within the tolerance, and kept for the others. One learning rate for all. Two sweeps on the sparse kind: noise, and k.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.activations.synthetic import KINDS, PlantedBatch, SyntheticActivations
from sparsight.metrics import LinearFit, fvu
from sparsight.metrics.recovery import RecoverySums
from sparsight.sae import ARCHITECTURES, SAEConfig, SAETrainer, SparseAutoencoder

D, N_FEATURES, N_LATENTS, MEAN_ACTIVE, NOISE = 64, 128, 256, 3, 0.05
BATCH, STEPS, POOL_BATCHES, HELDOUT_BATCHES = 512, 1000, 256, 40
SEEDS = (0, 1, 2)
LR = 3e-3
TOLERANCE, MOST_TRIES = 0.1, 7
PENALTIES = {"relu": ("l1_coefficient", 8.0), "gated": ("l1_coefficient", 12.0), "jumprelu": ("l0_coefficient", 0.02)}
"""The coefficient that sets the sparsity, and where its search begins."""
PENALTY_WARMUP = 0.7
"""Of the steps. With the default of 0.05 a penalty this strong kills latents before they have found a direction: docs/log.md."""
NOISES, KS = (0.0, 0.05, 0.15, 0.3), (1, 2, 3, 6, 12)
RECORD = Path(__file__).parent / "records" / "dictionaries.json"
CONTROLS = ("untrained topk", "frozen decoder, topk", "PCA, both signs, topk", "true directions, thresholded")

Run = dict[str, Any]


class Planted:
    """One dictionary with rows to train on and rows to be marked on."""

    def __init__(self, kind: str, seed: int, noise: float = NOISE) -> None:
        self.kind, self.seed = kind, seed
        self.data = SyntheticActivations.of_kind(kind, N_FEATURES, D, mean_active=MEAN_ACTIVE, noise=noise, seed=seed)
        self.rows = torch.cat([self.data.planted(BATCH, index).x for index in range(POOL_BATCHES)])
        self.heldout: list[PlantedBatch] = [self.data.planted(BATCH, index, seed=1) for index in range(HELDOUT_BATCHES)]

    def batch(self, step: int) -> Tensor:
        """Rows of one step; tokens are independent, so a further pass has the same order."""
        start = step % POOL_BATCHES * BATCH
        return self.rows[start : start + BATCH]


def trained(planted: Planted, steps: int, **options: Any) -> SparseAutoencoder:
    """An SAE after `steps` steps; after none, the untrained one."""
    config = SAEConfig(
        id="planted",
        n_latents=N_LATENTS,
        lr=LR,
        dead_after_tokens=100 * BATCH,
        l1_penalty="decoder-norm",
        sparsity_warmup_fraction=PENALTY_WARMUP,
        seed=planted.seed,
        **({"k": MEAN_ACTIVE} | options),
    )
    trainer = SAETrainer(config, D, D, total_steps=max(steps, 1), batch_tokens=BATCH)
    trainer.initialize(planted.batch(0))
    for step in range(steps):
        trainer.step(planted.batch(step), with_metrics=False)
    return trainer.finished()


def marked(sae: SparseAutoencoder, planted: Planted) -> Run:
    """Everything that is measured on the held-out rows."""
    sums = RecoverySums(sae.W_dec, planted.data.features, planted.data.parents)
    n_active, rebuilt = 0, []
    for batch in planted.heldout:
        latents, x_hat = sae(batch.x)
        n_active += int((latents > 0).sum())
        rebuilt.append(x_hat)
        sums.add(latents, batch.magnitudes)
    true_l0 = sum(int((batch.magnitudes > 0).sum()) for batch in planted.heldout) / sums.n_tokens
    error = fvu(torch.cat([batch.x for batch in planted.heldout]), torch.cat(rebuilt))
    return {"l0": n_active / sums.n_tokens, "true_l0": true_l0, "fvu": error, **asdict(sums.finish())}


def searched(architecture: str, planted: Planted, steps: int) -> tuple[list[tuple[float, float]], Run]:
    """Every (coefficient, L0) that was tried, the nearest to the true L0 first, and what the nearest gives."""
    name, coefficient = PENALTIES[architecture]
    tries: list[tuple[float, Run]] = []

    def distance(each: tuple[float, Run]) -> float:
        return abs(math.log(max(each[1]["l0"], 1e-3) / each[1]["true_l0"]))

    while len(tries) < MOST_TRIES:
        options = {"architecture": architecture, name: coefficient}
        tries.append((coefficient, marked(trained(planted, steps, **options), planted)))
        tries.sort(key=distance)
        if distance(tries[0]) < TOLERANCE:
            break
        coefficient = next_coefficient([(c, run["l0"]) for c, run in tries], tries[0][1]["true_l0"])
    return [(c, run["l0"]) for c, run in tries], tries[0][1]


def next_coefficient(tries: Sequence[tuple[float, float]], wanted: float) -> float:
    """Where the L0 `wanted` is expected from tries (coefficient, L0), L0 falling as the coefficient grows.

    Between the nearest on either side by a line through logarithms; beyond them all by the ratio, at most a factor of 8.
    """
    too_many = max((each for each in tries if each[1] >= wanted), default=None)
    too_few = min((each for each in tries if each[1] < wanted), default=None)
    if too_many and too_few:
        (c1, many), (c2, few) = too_many, too_few
        share = math.log(many / wanted) / math.log(many / max(few, 1e-3))
        return c1 * (c2 / c1) ** min(0.9, max(0.1, share))
    c, l0 = too_many or too_few or tries[0]
    ratio = max(l0, 1e-3) / wanted
    return c * (min(8.0, max(1.5, ratio)) if too_many else max(1 / 8, min(1 / 1.5, ratio)))


def pca(planted: Planted) -> SparseAutoencoder:
    """Principal directions with both signs, as many latents as the SAEs have at most, the k largest kept."""
    fit = LinearFit()
    fit.add(planted.rows)
    linear = fit.baseline(D)
    W_dec = torch.cat([linear.decoder, -linear.decoder])
    config = SAEConfig(id="pca", architecture="topk", n_latents=len(W_dec), k=MEAN_ACTIVE)
    weights = {"W_enc": W_dec.T, "W_dec": W_dec, "b_dec": linear.output_mean, "b_enc": torch.zeros(len(W_dec))}
    return SparseAutoencoder(config, weights)


def true_directions(planted: Planted) -> SparseAutoencoder:
    """What a linear reading of the true directions gives: one threshold for all, at the true mean number of active features."""
    features = planted.data.features
    readings = (planted.rows[: 8 * BATCH] @ features.T).flatten()
    threshold = readings.sort(descending=True).values[8 * BATCH * MEAN_ACTIVE]
    config = SAEConfig(id="truth", architecture="jumprelu", n_latents=N_FEATURES)
    weights = {"W_enc": features.T, "W_dec": features, "b_dec": torch.zeros(D), "b_enc": torch.zeros(N_FEATURES)}
    return SparseAutoencoder(config, weights | {"threshold": threshold.expand(N_FEATURES)})


def controls(planted: Planted, steps: int) -> dict[str, SparseAutoencoder]:
    """By the names in CONTROLS."""
    made = (
        trained(planted, 0, architecture="topk"),
        trained(planted, steps, architecture="topk", freeze_decoder=True),
        pca(planted),
        true_directions(planted),
    )
    return dict(zip(CONTROLS, made, strict=True))


def study(kind: str, seeds: Sequence[int], steps: int) -> tuple[list[Run], dict[str, Any]]:
    """All runs of one kind of dictionary, and what the searches tried."""
    runs, tried = [], {}
    for seed in seeds:
        planted = Planted(kind, seed)
        for architecture in ARCHITECTURES:
            options, result = {}, None
            if architecture in PENALTIES:
                if architecture not in tried:
                    tried[architecture], result = searched(architecture, planted, steps)
                options = {PENALTIES[architecture][0]: tried[architecture][0][0]}
            result = result or marked(trained(planted, steps, architecture=architecture, **options), planted)
            runs.append({"part": kind, "method": architecture, "seed": seed, **options, **result})
            print(f"{kind}, seed {seed}, {architecture}: L0 {result['l0']:.2f}, MCC {result['mcc']:.3f}", flush=True)
        for name, sae in controls(planted, steps).items():
            runs.append({"part": kind, "method": name, "seed": seed, **marked(sae, planted)})
    return runs, tried


def sweep(part: str, seeds: Sequence[int], steps: int) -> tuple[list[Run], dict[str, Any]]:
    """`noise`: batchtopk at the true k as noise grows. `k`: topk at several k."""
    runs = []
    for seed in seeds:
        if part == "noise":
            for noise in NOISES:
                planted = Planted("sparse", seed, noise)
                result = marked(trained(planted, steps, architecture="batchtopk"), planted)
                runs.append({"part": part, "method": f"batchtopk, noise {noise:g}", "seed": seed, **result})
            continue
        planted = Planted("sparse", seed)
        for k in KS:
            result = marked(trained(planted, steps, architecture="topk", k=k), planted)
            runs.append({"part": part, "method": f"topk, k = {k}", "seed": seed, **result})
    print(f"{part}: {len(runs)} runs", flush=True)
    return runs, {}


def one_part(part: str, seeds: Sequence[int], steps: int) -> tuple[list[Run], dict[str, Any]]:
    """A worker's job: one thread, since the matrices are tiny."""
    torch.set_num_threads(1)
    return (study if part in KINDS else sweep)(part, seeds, steps)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (least to greatest)`; a dash where nothing could be measured."""
    known = [value for value in values if value == value]
    if not known:
        return "-"
    low, middle, high = min(known), statistics.median(known), max(known)
    missing = f", {len(known)} of {len(values)}" if len(known) < len(values) else ""
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}{missing})"


COLUMNS: Mapping[str, Callable[[Run], float]] = {
    "L0": lambda run: run["l0"],
    "FVU": lambda run: run["fvu"],
    "MCC": lambda run: run["mcc"],
    "recovered": lambda run: run["recovered"],
    "the rarest third": lambda run: run["recovered_by_rate"][-1],
    "precision": lambda run: run["precision"],
    "recall": lambda run: run["recall"],
    "F1": lambda run: run["f1"],
    "shrinkage": lambda run: run["shrinkage"],
}
FAMILIES: Mapping[str, Callable[[Run], float]] = {
    "absorption": lambda run: run["absorption"]["rate"],
    "silent with a child": lambda run: run["absorption"]["silent_with_child"],
    "silent alone": lambda run: run["absorption"]["silent_alone"],
}


def table(runs: Sequence[Run], columns: Mapping[str, Callable[[Run], float]]) -> list[str]:
    """One row for each method, in the order of the runs."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    order = list(dict.fromkeys(run["method"] for run in runs))
    for method in order:
        of_it = [run for run in runs if run["method"] == method]
        lines.append(
            f"| {method} | " + " | ".join(spread([of(run) for run in of_it]) for of in columns.values()) + " |"
        )
    return lines


def markdown(record: Mapping[str, Any]) -> str:
    """The record for people."""
    s = record["settings"]
    lines = [
        "# Known dictionaries",
        "",
        f"`{record['command']}`, commit {record['commit']}; {record['versions']}; {record['hardware']}; {record['minutes']:.0f} minutes.",
        f"{s['n_features']} unit features in {s['d']} dimensions, {s['n_latents']} latents, {s['mean_active']} features active per token, noise "
        f"{s['noise']} per dimension, magnitudes 1 + Exp(0.5); {s['steps']} steps of {s['batch']} rows, learning rate {s['lr']}, for all. Marked on "
        f"{s['heldout']:,} held-out tokens. Median (range) over {len(s['seeds'])} seeds of dictionary, data and SAE. Definitions: "
        "`sparsight/metrics/recovery.py`.",
        f"L1 and L0 coefficients: searched on the first seed for an L0 within {TOLERANCE:.0%} of the truth, then kept; they rise over the first "
        f"{PENALTY_WARMUP:.0%} of the steps.",
        "",
    ]
    for part, group in groupby(record["runs"], key=lambda run: run["part"]):
        runs = list(group)
        lines += [f"## {part}", "", *table(runs, COLUMNS), ""]
        if runs[0]["absorption"] is not None:
            n = runs[0]["absorption"]["n_parents"]
            lines += [f"Shares of a parent's tokens, mean over {n} parents:", "", *table(runs, FAMILIES), ""]
    lines += ["## What the searches tried (coefficient: L0, the nearest first)", ""]
    for part, tried in record["searches"].items():
        for architecture, tries in tried.items():
            lines.append(f"- {part}, {architecture}: " + ", ".join(f"{c:.3g}: {l0:.2f}" for c, l0 in tries))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all parts side by side, writes the record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", default=[*KINDS, "noise", "k"])
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    started = time.perf_counter()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(one_part, part, options.seeds, options.steps) for part in options.parts]
        results = [job.result() for job in jobs]
    record = {
        "command": " ".join(["python", "benchmarks/known_dictionaries.py", *sys.argv[1:]]),
        "commit": head.stdout.strip(),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("sparsight", "torch", "scipy")),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {options.workers} processes of one thread",
        "minutes": (time.perf_counter() - started) / 60,
        "settings": {
            "d": D, "n_features": N_FEATURES, "n_latents": N_LATENTS, "mean_active": MEAN_ACTIVE, "noise": NOISE, "lr": LR,
            "steps": options.steps, "batch": BATCH, "heldout": BATCH * HELDOUT_BATCHES, "seeds": list(options.seeds),
            "tolerance": TOLERANCE, "penalty_warmup": PENALTY_WARMUP, "kinds": {kind: dict(given) for kind, given in KINDS.items()},
        },
        "searches": {part: tried for part, (_, tried) in zip(options.parts, results, strict=True) if tried},
        "runs": [run for runs, _ in results for run in runs],
    }  # fmt: skip
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
