"""Does latent scaling see through an L1 crosscoder's false exclusives? Writes benchmarks/records/compare-exclusive.{json,md}.

    python benchmarks/validate_compare/exclusive.py            (--repetitions, --workers)

Shrinkage: features that one model has at a third of the other's strength, and a penalty that shrinks the weaker norm to nothing. Decoupling: training
starts from a crosscoder that has two latents for each shared feature, one for either model, and nothing in the L1 penalty joins them again. An
artefact is a latent whose norms say that one model alone has it (Delta above 0.9 or below 0.1) and whose feature both have; it is flagged when it is
not called exclusive. The control is the truly exclusive latents: a test that flags everything flags artefacts too.

Target: at least 95 % of the artefacts flagged, for either cause.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparsight.activations.synthetic_pair import PlantedPair
from sparsight.diff import ScalingSums, scaled_crosscoder
from sparsight.sae import SAEConfig, SAETrainer, SparseAutoencoder, model_decoders, relative_norm

D, N_LATENTS, BATCH, STEPS, HELDOUT_BATCHES, DOCUMENT = 32, 96, 512, 800, 40, 128
RATES, CHANGED = (0.01, 0.03, 0.1), {"emergent": 2, "lost": 2, "reweighted": 3}
ARMS = {
    "shrinkage, base weaker": (3.0, 4.0, 3e-3),
    "shrinkage, fine-tune weaker": (1 / 3, 4.0, 3e-3),
    "decoupling": (1.0, 0.5, 3e-4),
}
"""The gain of the reweighted features, the penalty's coefficient and the learning rate."""
RECORD = Path(__file__).parents[1] / "records" / "compare-exclusive.json"

Run = dict[str, Any]


def side_by_side(pair: PlantedPair, index: int, seed: int = 0) -> Tensor:
    """A batch of both models' activations, [n, 2 d]."""
    x = pair.planted(BATCH, index, seed).x
    return torch.cat([x["base"], x["tuned"]], 1)


def decoupled(pair: PlantedPair, cfg: SAEConfig) -> SparseAutoencoder:
    """A crosscoder with a latent for each feature of either model, and so two for each that both have; the rest of the latents at random."""
    rows = []
    for model, block in (("base", 0), ("tuned", 1)):
        directions = pair.directions[model][pair.gains[model] > 0]
        rows.append(functional.pad(directions, (block * pair.d, (1 - block) * pair.d)))
    generator = torch.Generator().manual_seed(cfg.seed)
    n_free = cfg.n_latents - sum(map(len, rows))
    free = 0.1 * functional.normalize(torch.randn(n_free, 2 * pair.d, generator=generator), dim=1)
    W_dec = torch.cat([*rows, free])
    bias = torch.full((cfg.n_latents,), -0.1)
    return SparseAutoencoder(cfg, {"W_enc": W_dec.T, "W_dec": W_dec, "b_dec": torch.zeros(2 * pair.d), "b_enc": bias})


def trained(pair: PlantedPair, arm: str, seed: int, *, steps: int) -> SparseAutoencoder:
    """An L1 crosscoder after `steps` steps."""
    _, coefficient, lr = ARMS[arm]
    cfg = SAEConfig(
        id="l1", architecture="relu", l1_penalty="decoder-norm", n_latents=N_LATENTS, models=2, lr=lr, l1_coefficient=coefficient,
        sparsity_warmup_fraction=0.3, precision="float32", seed=seed,
    )  # fmt: skip
    trainer = SAETrainer(cfg, 2 * D, 2 * D, total_steps=steps, batch_tokens=BATCH)
    trainer.initialize(side_by_side(pair, 0))
    if arm == "decoupling":
        trainer.start_from(decoupled(pair, cfg))
    for step in range(steps):
        trainer.step(side_by_side(pair, step), with_metrics=False)
    return trainer.finished()


def scaled(pair: PlantedPair, crosscoder: SparseAutoencoder, n_batches: int = HELDOUT_BATCHES) -> ScalingSums:
    """Latent scaling on held-out batches, in documents of 128 tokens."""
    ids = torch.arange(BATCH) // DOCUMENT
    return scaled_crosscoder(
        crosscoder, ((ids + 1000 * index, side_by_side(pair, index, seed=1)) for index in range(n_batches))
    )


def counted(pair: PlantedPair, crosscoder: SparseAutoencoder, sums: ScalingSums) -> Run:
    """Of the latents that the norms call exclusive: false ones and how many are flagged, true ones and how many are kept."""
    delta, decoders = relative_norm(crosscoder.W_dec), model_decoders(crosscoder.W_dec)
    both = (pair.gains["base"] > 0) & (pair.gains["tuned"] > 0)
    run = {"artefacts": 0, "flagged": 0, "present": 0, "true": 0, "kept": 0, "of no feature": 0}
    for model, block, called in (("tuned", 1, delta > 0.9), ("base", 0, delta < 0.1)):
        scaling = sums.finish(model)
        fires = torch.from_numpy(scaling.nu[0, 0] == scaling.nu[0, 0])
        cosines = functional.normalize(decoders[block], dim=1) @ pair.directions[model].T
        near = cosines.masked_fill(pair.gains[model] == 0, -1.0).max(1)
        exclusive, present = torch.from_numpy(scaling.exclusive()), torch.from_numpy(scaling.present())
        has_feature, shared = near.values >= 0.8, both[near.indices]
        false, true = called & fires & has_feature & shared, called & fires & has_feature & ~shared
        run["artefacts"] += int(false.sum())
        run["flagged"] += int((false & ~exclusive).sum())
        run["present"] += int((false & present).sum())
        run["true"] += int(true.sum())
        run["kept"] += int((true & exclusive).sum())
        run["of no feature"] += int((called & fires & ~has_feature).sum())
    return run


def repetition(number: int, steps: int = STEPS, n_batches: int = HELDOUT_BATCHES) -> Run:
    """All arms on one drawn pair each."""
    torch.set_num_threads(1)
    runs: Run = {}
    for arm, (gain, *_) in ARMS.items():
        pair = PlantedPair(24, D, changed=CHANGED, rates=RATES, gain=gain, noise=0.03, seed=number)
        crosscoder = trained(pair, arm, number, steps=steps)
        runs[arm] = counted(pair, crosscoder, scaled(pair, crosscoder, n_batches))
    return runs


def markdown(runs: Sequence[Run]) -> str:
    """Target beside measured."""
    lines = [f"# False exclusives of L1 crosscoders, {len(runs)} repetitions", ""]
    lines += [
        "| cause | artefacts | flagged (target >= 95 %) | shown to be present | truly exclusive latents | kept | of no feature |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        n = {key: sum(run[arm][key] for run in runs) for key in runs[0][arm]}
        shares = [
            n["flagged"] / max(1, n["artefacts"]),
            n["present"] / max(1, n["artefacts"]),
            n["kept"] / max(1, n["true"]),
        ]
        flagged, present, kept = (f"{100 * share:.1f} %" for share in shares)
        lines.append(
            f"| {arm} | {n['artefacts']} | {flagged} | {present} | {n['true']} | {kept} | {n['of no feature']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all repetitions and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(repetition, range(options.repetitions)))
    settings = {
        "d": D,
        "n_latents": N_LATENTS,
        "batch": BATCH,
        "steps": STEPS,
        "arms": ARMS,
        "rates": RATES,
        "changed": CHANGED,
    }
    options.out.write_text(
        json.dumps({"settings": settings, "torch": torch.__version__, "runs": runs}, indent=1) + "\n"
    )
    options.out.with_suffix(".md").write_text(markdown(runs))
    print(markdown(runs))


if __name__ == "__main__":
    main()
