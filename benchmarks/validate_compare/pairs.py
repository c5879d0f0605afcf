"""SAEs of a planted pair: trained side by side, read on held-out tokens, marked against the truth. planted.py and power.py stand on it.

The pair has 36 features that all models share, at rates from 0.1 to 10 %, and one of each kind of change at each of five rates; directions of the
fine-tune and of the null fine-tune have drifted by a tenth. SAEs have 128 latents, 3 of them active, and train on batches of 1,024 tokens, each read
once unless `distinct` says how many there are.
"""

import copy
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsight.activations.synthetic_pair import PlantedPair
from sparsight.diff import ComparedSeeds, Dictionary, LatentScaling, marked, recall_by_rate, scaled_sae
from sparsight.sae import SAEConfig, SAETrainer, SparseAutoencoder, SparseLatents

D, N_SHARED, N_LATENTS, K, NOISE, DRIFT = 32, 36, 128, 3, 0.05, 0.1
BATCH, LR, DOCUMENT = 1024, 1e-2, 128
RECORDS = Path(__file__).parents[1] / "records"
ARMS = {"base": ("base", 0), "tuned": ("tuned", 100), "reseed": ("base", 200), "null": ("null", 300)}
"""Whose activations, and the first seed."""

Run = dict[str, Any]


def drawn(number: int) -> PlantedPair:
    """The pair of a repetition."""
    return PlantedPair(N_SHARED, D, noise=NOISE, drift=DRIFT, seed=number)


def trained(
    pair: PlantedPair, steps: int, seeds: int, *, arms: Iterable[str] = ARMS, distinct: int | None = None
) -> dict[str, list[SparseAutoencoder]]:
    """All SAEs, side by side on the same batches; `distinct`: so many batches, read in turn until the steps are done."""
    arms = tuple(arms)
    trainers = {
        (arm, index): SAETrainer(
            SAEConfig(
                id="planted", n_latents=N_LATENTS, k=K, lr=LR, seed=ARMS[arm][1] + index, dead_after_tokens=20 * BATCH
            ),
            D,
            D,
            total_steps=steps,
            batch_tokens=BATCH,
        )
        for arm in arms
        for index in range(seeds)
    }
    for step in range(steps):
        x = pair.planted(BATCH, step % (distinct or steps)).x
        for (arm, _), trainer in trainers.items():
            if step == 0:
                trainer.initialize(x[ARMS[arm][0]])
            trainer.step(x[ARMS[arm][0]], with_metrics=False)
    return {arm: [trainers[arm, index].finished() for index in range(seeds)] for arm in arms}


class Arms:
    """A repetition's SAEs, what they read on held-out tokens, and the latent scaling of one model's against another's."""

    def __init__(self, pair: PlantedPair, saes: Mapping[str, list[SparseAutoencoder]], n_batches: int) -> None:
        self.saes = saes
        self.heldout = [pair.planted(BATCH, index, seed=1).x for index in range(n_batches)]
        self.read = {
            arm: [Dictionary.of(sae, [x[ARMS[arm][0]] for x in self.heldout]) for sae in of_arm]
            for arm, of_arm in saes.items()
        }

    def first(self, n_batches: int) -> "Arms":
        """As if the first held-out batches were all."""
        part = copy.copy(self)
        part.heldout = self.heldout[:n_batches]
        part.read = {arm: [_first(each, n_batches * BATCH) for each in read] for arm, read in self.read.items()}
        return part

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


def _first(dictionary: Dictionary, n_tokens: int) -> Dictionary:
    latents = SparseLatents(*(part[:n_tokens] for part in dictionary.latents))
    firings = torch.bincount(latents.indices[latents.values > 0], minlength=len(dictionary.firings))
    return replace(dictionary, latents=latents, firings=firings.numpy())


def false_share(runs: Iterable[Run]) -> tuple[float, float]:
    """Mean over what `against_truth` gave of the share of calls that are wrong, and half its 95 % interval."""
    shares = [sum(run["wrong"].values()) / max(1, sum(run["called"].values())) for run in runs]
    half = 1.96 * np.std(shares, ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
    return float(np.mean(shares)), float(half)


def fill(path: Path, settings: Run, repetition: Callable[[int], Run], repetitions: int, workers: int | None) -> Run:
    """The record at `path` with the repetitions that it lacked, written after each. SystemExit for one with other settings."""
    record = json.loads(path.read_text()) if path.exists() else {"runs": []}
    if record.get("settings", settings) != settings:
        raise SystemExit(
            f"{path} was made with other settings: {record['settings']}. Remove it, or give another --out."
        )
    todo = sorted(set(range(repetitions)) - {run["number"] for run in record["runs"]})
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(repetition, number) for number in todo]):
            record["runs"] = sorted([*record["runs"], done.result()], key=lambda run: run["number"])
            record |= {
                "settings": settings,
                "torch": torch.__version__,
                "hardware": f"{platform.machine()}, {cpu_count()} cores",
            }
            path.write_text(json.dumps(record) + "\n")
            print(f"repetition {done.result()['number']}: {done.result()['seconds']:.0f} s", flush=True)
    return record


def table_head(cells: Sequence[str]) -> list[str]:
    """Of a table in Markdown."""
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def table_row(name: str, cells: Iterable[str]) -> list[str]:
    """A row of it."""
    return ["| " + " | ".join([name, *cells]) + " |"]
