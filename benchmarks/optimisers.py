"""Does another optimiser than Adam reach a given held-out FVU in less time? Writes benchmarks/records/optimisers.json.

    make demo && make bench-optimisers         (or: python benchmarks/optimisers.py STORE)

One TopK SAE (576 -> 4608, k = 32, batch 1024) for each optimiser, rate and seed, all from the same shuffled activations of one store, one pass,
the same schedule. Adam is the closed-form step; signum (the sign of the momentum, as in sparsify) and torch's Muon (the orthogonalised momentum,
for the two matrices; Adam for the biases) run in autograd with the optimiser exchanged, so their seconds are given for the optimiser alone,
beside the fused pass that Adam takes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.activations import ActivationStore
from sparsight.metrics import fvu
from sparsight.sae import SAEConfig, SAETrainer

RATES = {
    "adam": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "signum": (1e-4, 3e-4, 1e-3, 3e-3),
    "muon": (3e-3, 1e-2, 3e-2, 1e-1),
}
SEEDS = (0, 1, 2)
BATCH = 1024
RECORD = Path(__file__).parent / "records" / "optimisers.json"


class Exchanged:
    """The face that the step knows, over one or two optimisers; rates move in proportion."""

    def __init__(self, *optimisers: torch.optim.Optimizer) -> None:
        self.optimisers = optimisers
        self.state: dict[Tensor, dict[str, Tensor]] = {}  # none that a resumed run would need
        self.param_groups = [{"lr": optimisers[0].param_groups[0]["lr"]}]
        self._peaks = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
        self.seconds = 0.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Moves the weights, and adds up how long that takes."""
        started = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
        for optimiser, peak in zip(self.optimisers, self._peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * self.param_groups[0]["lr"] / self._peaks[0]
            optimiser.step()
        self.seconds += (time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()) - started


class Signum(torch.optim.Optimizer):
    """Steps of the rate's size in the direction of the momentum's signs (Bernstein 2018, arXiv:1802.04434)."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                weight.sub_(mean.sign(), alpha=group["lr"])


def exchanged(name: str, weights: dict[str, Tensor], lr: float) -> Exchanged:
    """The optimiser of that name for an SAE's weights."""
    if name == "signum":
        return Exchanged(Signum(weights.values(), lr))
    matrices, vectors = ([w for w in weights.values() if w.ndim == n] for n in (2, 1))
    return Exchanged(torch.optim.Muon(matrices, lr=lr, weight_decay=0.0), torch.optim.Adam(vectors, lr=1e-3))


def trained(name: str, lr: float, seed: int, x: Tensor, heldout: Tensor) -> dict[str, Any]:
    """Trains and measures one."""
    cfg = SAEConfig(id="one", architecture="topk", n_latents=4608, k=32, lr=lr, seed=seed)
    steps, form = len(x) // BATCH, "auto" if name == "adam" else "autograd"
    trainer = SAETrainer(cfg, x.shape[1], x.shape[1], total_steps=steps, batch_tokens=BATCH, form=form)
    optimiser = None
    if name != "adam":
        trainer._step._adam = optimiser = exchanged(name, trainer.weights, lr)  # pyright: ignore
    trainer.initialize(x[:BATCH])
    started = time.perf_counter()
    for step in range(steps):
        trainer.step(x[step * BATCH : (step + 1) * BATCH], with_metrics=False)
    seconds = time.perf_counter() - started
    sae = trainer.finished()
    fired = sae.encode_sparse(heldout)
    n_fired = len(fired.indices[fired.values > 0].unique())
    return {
        "optimiser": name,
        "lr": lr,
        "seed": seed,
        "tokens": steps * BATCH,
        "fvu": fvu(heldout, sae.reconstruct(heldout)),
        "dead_share": 1 - n_fired / cfg.n_latents,
        "ms_per_step": 1e3 * seconds / steps,
        "ms_optimiser": None if optimiser is None else 1e3 * optimiser.seconds / steps,
    }


def main() -> None:
    """Runs all, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--tokens", type=int, default=200 * BATCH)
    parser.add_argument("--heldout", type=int, default=20_480)
    options = parser.parse_args()
    store = ActivationStore(options.store)
    hook = next(iter(store.model["hook_points"])) if "hook_points" in store.model else "layers.15.mlp"
    x, heldout = (
        torch.cat([batch[hook] for batch, _ in zip(store.batches(split, BATCH), range(n // BATCH), strict=False)])
        for split, n in (("train", options.tokens), ("heldout", options.heldout))
    )
    results = []
    for name, rates in RATES.items():
        for lr in rates:
            results += [trained(name, lr, seed, x, heldout.float()) for seed in SEEDS]
            three = [each["fvu"] for each in results[-len(SEEDS) :]]
            last = results[-1]
            print(f"{name} {lr:g}: FVU {statistics.mean(three):.4f} ({min(three):.4f} to {max(three):.4f}), "
                  f"{last['ms_per_step']:.1f} ms a step, dead {last['dead_share']:.2%}", flush=True)  # fmt: skip
            RECORD.write_text(json.dumps({"command": "make bench-optimisers", "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
