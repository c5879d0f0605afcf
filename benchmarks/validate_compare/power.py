"""What can a comparison find, by firing rate, seeds and tokens? Writes benchmarks/records/compare-power.{json,md,svg}.

    python benchmarks/validate_compare/power.py            (--repetitions, --workers, --out)

A repetition draws a planted pair (pairs.py) and trains 5 SAEs of the base and 5 of the fine-tune at each training length of TRAIN; all read the same
held-out tokens, of which the first 5,120 to 81,920 are compared on. From 3, 4 and 5 of the seeds latents are labelled as `sparsight compare` labels
them without a null fine-tune: latent scaling, and the permuted null from 5 seeds on, that of seeds with fewer. The last of TRAIN reads a quarter of
the tokens four times, and says what a second pass is worth. A repetition that the record holds is not run again.

What the package carries (src/sparsight/diff/power.json, read by sparsight.diff.power) is made of the record; a test holds the two together.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

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
from power_plot import power_svg

import sparsight.diff
from sparsight.diff import PowerTable, Recall, SeedTables, label_seeds

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
SEEDS = (3, 4, 5)
TRAIN = ((125, 1), (250, 1), (500, 1), (1000, 1), (500, 4))
"""Steps, and passes in which they are made."""
HELDOUT = (5, 10, 20, 40, 80)
"""Batches."""
SHOWN = 40 * BATCH
"""Held-out tokens of the tables by rate."""
_FEW_FIRINGS = 2000
TABLE = Path(sparsight.diff.__file__).with_name("power.json")


def repetition(
    number: int,
    train: Sequence[tuple[int, int]] = TRAIN,
    heldout: Sequence[int] = HELDOUT,
    seeds: Sequence[int] = SEEDS,
) -> Run:
    """All settings on one drawn pair."""
    torch.set_num_threads(1)
    started = time.process_time()
    pair = drawn(number)
    cells = []
    for steps, passes in train:
        saes = trained(pair, steps, max(seeds), arms=("base", "tuned"), distinct=steps // passes)
        arms = Arms(pair, saes, max(heldout))
        for n_batches in heldout:
            where = {"train": steps // passes * BATCH, "passes": passes, "heldout": n_batches * BATCH}
            cells += [where | cell for cell in _cells(pair, arms.first(n_batches), seeds)]
    return {"number": number, "cells": cells, "seconds": time.process_time() - started}


def _cells(pair: Any, arms: Arms, seeds: Sequence[int]) -> Iterator[Run]:
    """What each number of seeds finds, as counts by rate."""
    tables, scaling = SeedTables.of(arms.read["base"], arms.read["tuned"]), arms.scaling("tuned")
    for n in seeds:
        compared = label_seeds(tables.first(n), scaling={side: each[:n] for side, each in scaling.items()})
        marked = against_truth(pair, arms.read, compared)
        counts = {kind: [rates[str(rate)] for rate in RATES] for kind, rates in marked["recall"].items()}
        yield {
            "seeds": n,
            "found": {kind: [found for found, _, _ in rates] for kind, rates in counts.items()},
            "learned": {kind: [learned for _, learned, _ in rates] for kind, rates in counts.items()},
            "called": sum(marked["called"].values()),
            "wrong": sum(marked["wrong"].values()),
        }


def packed(record: Run) -> Run:
    """The counts that the package carries: found by seeds, train tokens, held-out tokens and rate, all kinds together; every token read once."""
    axes = {
        name: [BATCH * n for n in each]
        for name, each in (("train_tokens", _once(record)), ("heldout_tokens", record["settings"]["heldout"]))
    }
    seeds, repetitions = record["settings"]["seeds"], len(record["runs"])
    cells = {
        (n, train, heldout): at(record, n, train, 1, heldout) for n, train, heldout in product(seeds, *axes.values())
    }

    def by_axes(value: Callable[[list[Run]], Any]) -> list[Any]:
        return [
            [[value(cells[n, train, heldout]) for heldout in axes["heldout_tokens"]] for train in axes["train_tokens"]]
            for n in seeds
        ]

    return {
        "source": f"benchmarks/records/compare-power.json, {repetitions} repetitions",
        "rates": record["settings"]["rates"],
        "seeds": seeds,
        **axes,
        "passes": _repeated(record)[2],
        "n_features": repetitions * len(record["runs"][0]["cells"][0]["found"]),
        "found": by_axes(lambda of: _summed(of, "found").tolist()),
        "false_share": by_axes(lambda of: round(_false_share(of)[0], 4)),
    }


def markdown(record: Run) -> str:
    """The record as tables."""
    table, n = PowerTable.from_json(packed(record)), len(record["runs"])
    lines = [f"# What a comparison finds, by firing rate, seeds and tokens: {n} repetitions", ""]
    lines += [
        "`python benchmarks/validate_compare/power.py`; "
        f"torch {record['torch']}, {record['hardware']}. Recall: planted features that an SAE labels rightly, over SAEs, kinds and repetitions, "
        f"with its 95 % interval over {table.n_features} planted features of each rate. False discovery: calls that are wrong, a mean over "
        "repetitions.",
        "",
        "![recall of planted changes](compare-power.svg)",
        "",
        f"At {SHOWN:,} held-out tokens:",
        "",
    ]
    lines += table_head(["seeds", "training tokens", *(f"{100 * rate:g} %" for rate in table.rates), "false discovery"])
    for seeds, train in product(table.seeds, table.train_tokens):
        lines += _measured(table, record, seeds, train, 1, SHOWN)
    few, often, passes = _repeated(record)
    lines += [
        "",
        f"A quarter of the tokens, {few:,}, read {passes} times instead, as many steps as {often:,} new ones:",
        "",
    ]
    lines += table_head(["seeds", "training tokens", *(f"{100 * rate:g} %" for rate in table.rates), "false discovery"])
    for seeds in table.seeds:
        lines += _measured(table, record, seeds, few, passes, SHOWN)
    rarest = table.rates[0]
    lines += ["", f"Recall at {100 * rarest:g} %, by held-out tokens:", ""]
    lines += table_head(["seeds", "training tokens", *(f"{heldout:,}" for heldout in table.heldout_tokens)])
    for seeds, train in product(table.seeds, table.train_tokens):
        found = (table.recall(rarest, seeds=seeds, train_tokens=train, heldout_tokens=h) for h in table.heldout_tokens)
        lines += table_row(str(seeds), [f"{train:,}", *(_shown(each) for each in found)])
    lines += ["", *_collapse(table), ""]
    return "\n".join(lines)


def _measured(table: PowerTable, record: Run, seeds: int, train: int, passes: int, heldout: int) -> list[str]:
    """A row: recall at each rate, and the share of false calls."""
    cells = at(record, seeds, train, passes, heldout)
    alone = replace(
        table,
        seeds=(seeds,),
        train_tokens=(train,),
        heldout_tokens=(heldout,),
        found=_summed(cells, "found").reshape(1, 1, 1, -1),
    )
    recall = (alone.recall(r, seeds=seeds, train_tokens=train, heldout_tokens=heldout) for r in table.rates)
    share, half = _false_share(cells)
    return table_row(str(seeds), [f"{train:,}", *(_shown(each) for each in recall), f"{share:.3f} +- {half:.3f}"])


def _collapse(table: PowerTable) -> list[str]:
    """Whether recall follows from firings seen in training alone: then it would nowhere be lower where there are more of them."""
    found, lines = {}, []
    for seeds in table.seeds:
        at = {"seeds": seeds, "heldout_tokens": SHOWN}
        settings = [
            (t * r, table.recall(r, train_tokens=t, **at), t, r) for t in table.train_tokens for r in table.rates
        ]
        found[seeds] = sorted((n, recall.value, t, r) for n, recall, t, r in settings if recall is not None)
        drop, fewer, more = max((a[1] - b[1], a, b) for a, b in combinations(found[seeds], 2))
        places = " and ".join(f"{n:,.0f} ({t:,} x {100 * r:g} %)" for n, _, t, r in (fewer, more))
        lines.append(
            f"- {seeds} seeds: up to {max(drop, 0):.2f} lower, between {places}"
            if drop > 0
            else f"- {seeds} seeds: nowhere lower"
        )
    few = ", ".join(f"{n:,.0f}: {value:.2f}" for n, value, *_ in found[table.seeds[-1]] if n < _FEW_FIRINGS)
    return [
        "Does recall follow from the firings that training saw, rate x tokens, alone? Then it would nowhere be lower where there are more of them.",
        "",
        *lines,
        "",
        f"By firings, with {table.seeds[-1]} seeds: {few}.",
    ]


def _shown(recall: Recall | None) -> str:
    return "" if recall is None else f"{recall.value:.2f} ({recall.low:.2f}-{recall.high:.2f})"


def _once(record: Run) -> list[int]:
    """Steps of the trainings that read each token once."""
    return [steps for steps, passes in record["settings"]["train"] if passes == 1]


def _repeated(record: Run) -> tuple[int, int, int]:
    """Tokens, tokens read and passes of the training that reads its tokens several times."""
    ((steps, passes),) = ((steps, passes) for steps, passes in record["settings"]["train"] if passes > 1)
    return steps // passes * BATCH, steps * BATCH, passes


def at(record: Run, *where: int) -> list[Run]:
    """A setting's cell of every repetition: seeds, train tokens, passes, held-out tokens."""
    names = ("seeds", "train", "passes", "heldout")
    return [cell for run in record["runs"] for cell in run["cells"] if tuple(cell[name] for name in names) == where]


def _summed(cells: Sequence[Run], what: str) -> np.ndarray:
    """Counts by rate, over repetitions and kinds."""
    return np.sum([kind for cell in cells for kind in cell[what].values()], axis=0)


def _false_share(cells: Sequence[Run]) -> tuple[float, float]:
    return false_share({name: {"all": cell[name]} for name in ("called", "wrong")} for cell in cells)


def main() -> None:
    """Runs the repetitions that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RECORDS / "compare-power.json")
    parser.add_argument("--table", default=TABLE, help="the package's; empty for none")
    options = parser.parse_args()
    settings = {
        "d": D, "n_shared": N_SHARED, "n_latents": N_LATENTS, "k": K, "noise": NOISE, "drift": DRIFT, "batch": BATCH,
        "lr": LR, "rates": list(RATES), "seeds": list(SEEDS), "train": [list(each) for each in TRAIN],
        "heldout": list(HELDOUT),
    }  # fmt: skip
    record = fill(options.out, settings, repetition, options.repetitions, options.workers)
    table = packed(record)
    options.out.with_suffix(".md").write_text(markdown(record))
    options.out.with_suffix(".svg").write_text(power_svg(PowerTable.from_json(table), heldout_tokens=SHOWN))
    if options.table:
        Path(options.table).write_text(json.dumps(table) + "\n")
    print(markdown(record))


if __name__ == "__main__":
    main()
