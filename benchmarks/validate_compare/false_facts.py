"""A real pair: does an SAE of the difference carry what a LoRA on invented facts changed? Writes false_facts.json into the folder.

    python examples/false-facts/run.py --out runs/false-facts
    python benchmarks/validate_compare/false_facts.py runs/false-facts

Targets: closure of the diff-SAE at least 0.8 of its ceiling, and of its 50 top latents at least twice that of 50 random ones. Each step is kept
and skipped when the command is given again. Text: as many tokens of the built-in text as of the biographies; scored on held-out documents.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsight.activations import ActivationStore, CaptureConfig, PairedModels, StoreSource, paired_hook_points
from sparsight.artifact import read_json, write_json
from sparsight.collect import collect_activations
from sparsight.diff import (
    DifferenceCode,
    attribute_latents,
    closure_curve,
    difference_lens,
    fit_difference,
    layer_closure,
    measure_layers,
    rank_latents,
    top_token_differences,
)
from sparsight.lm import ROLES, LanguageModel, ModelConfig, TextConfig, check_pair, load_models, mix_texts
from sparsight.metrics import SpliceText, fvu, kept_tokens
from sparsight.recipe import TrainConfig
from sparsight.sae import SAEConfig, SparseAutoencoder
from sparsight.train import train_saes

HELDOUT = 0.1  # as in the fine-tune, so that what is scored was held out from it as well
FORWARD_TOKENS = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what examples/false-facts/run.py wrote")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=20_000, help="train tokens")
    parser.add_argument("--scored", type=int, default=2000, help="held-out tokens on which closure is measured")
    parser.add_argument("--attributed", type=int, default=2000, help="train tokens on which latents are ranked")
    parser.add_argument("--latents", type=int, default=1152)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--dtype", default="bfloat16")
    Trial(parser.parse_args()).run()


class Trial:
    """The steps, in order; what each found is a key of one JSON file."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, options.folder
        self.file = self.folder / "false_facts.json"
        self.found: dict[str, Any] = (
            read_json(self.file) if self.file.exists() else {"options": vars(options) | {"folder": ""}}
        )
        self.point = f"layers.{options.layer}"
        others = {"tuned": str(self.folder / "tuned")}
        if (self.folder / "null" / "adapter_config.json").exists():
            others["null"] = str(self.folder / "null")
        self.models = load_models(ModelConfig(id=options.model, dtype=options.dtype), others)

    def run(self) -> None:
        """Runs what is missing and prints the verdict."""
        facts = check_pair(self.models["base"], self.models["tuned"], [self.point])
        self.step("preflight", lambda: facts.to_json())
        store = self.store()
        pieces = store.pieces("heldout")
        text = SpliceText.choose(pieces, kept_tokens(store, pieces), self.options.scored)
        self.step("dense", lambda: self.dense(store))
        self.step("sae", lambda: self.train(store))
        self.step("closure", lambda: self.closure(store, text))
        for role in [role for role in ROLES[1:] if role in self.models]:
            self.step(f"layers_{role}", lambda role=role: self.layers(role, text))
        for role in [role for role in ROLES[1:] if role in self.models]:
            self.step(f"tokens_{role}", lambda role=role: self.tokens(role, text))
        self.report()

    def step(self, name: str, make: Callable[[], Any]) -> None:
        """Makes what is not there yet, and keeps it with its seconds."""
        if name in self.found:
            return
        started = time.monotonic()
        result = make()
        self.found[name] = {"result": result, "seconds": round(time.monotonic() - started, 1)}
        write_json(self.file, json.loads(json.dumps(self.found, default=str).replace("NaN", "null")))
        print(f"{name}: {self.found[name]['seconds']} s", flush=True)

    def store(self) -> ActivationStore:
        options = self.options
        sources = {
            "ordinary": TextConfig(builtin="probe-text", context_tokens=128),
            "invented": TextConfig(files=(str(self.folder / "biographies.jsonl"),), context_tokens=128),
        }
        each = round(0.6 * options.tokens)  # a tenth is held out, another masked
        mixture = mix_texts(sources, self.models["base"].tokenizer, self.folder / "mixed.jsonl", tokens_each=each)
        self.found.setdefault("mixture", mixture.to_json())
        text = TextConfig(
            files=(mixture.path,), context_tokens=128, batch_tokens=FORWARD_TOKENS, heldout_fraction=HELDOUT
        )
        capture = CaptureConfig(
            hook_points=paired_hook_points([self.point], list(self.models)),
            n_tokens=options.tokens,
            heldout_tokens=options.tokens // 10,
            window_tokens=4096,
            dtype="float32",
            allow_short=True,
        )
        store = collect_activations(PairedModels(self.models), text, capture, self.folder / "activations")
        self.found["store"] = store.counts
        return store

    def batches(self, store: ActivationStore, *names: str) -> Any:
        return store.batches("train", 1024, hook_points=[f"{name}:{self.point}" for name in names])

    def dense(self, store: ActivationStore) -> dict[str, Any]:
        """The mean and the components of the difference, and what the lens says."""
        dense = fit_difference(self.batches(store, "difference"), self.point, k=50)
        lens = difference_lens(self.models["tuned"], dense, n=10)
        decode = self.models["tuned"].tokenizer.decode
        return {
            "mean_share": dense.mean_share,
            "agreement": dense.agreement,
            "variance_of_50": float(dense.variance.sum()) / dense.total_variance,
            "lens": {name: [decode([int(t)]) for t in found["promoted_tokens"]] for name, found in lens.items()},
        }

    def train(self, store: ActivationStore) -> dict[str, Any]:
        """The diff-SAE, and the same on the null fine-tune's difference."""
        names = ["difference"] + (["null-difference"] if "null" in self.models else [])
        configs = [
            SAEConfig(
                id=name,
                architecture="topk",
                n_latents=self.options.latents,
                k=32,
                lr=1e-3,
                hook_point=f"{name}:{self.point}",
            )
            for name in names
        ]
        source = StoreSource(store, tuple(config.hook_point for config in configs), epochs=self.options.epochs, seed=0)
        train = TrainConfig(batch_tokens=512, epochs=self.options.epochs)
        saes = train_saes(source, configs, self.folder / "saes", train=train)
        rows = {name: [] for name in names}
        for batch in store.batches("heldout", 1024, hook_points=[config.hook_point for config in configs]):
            for config, name in zip(configs, names, strict=True):
                rows[name].append(batch[config.hook_point])
        held = {name: torch.cat(parts) for name, parts in rows.items()}
        return {
            name: {"heldout_fvu": fvu(held[name], sae.reconstruct(held[name]))}
            for name, sae in zip(names, saes, strict=True)
        }

    def closure(self, store: ActivationStore, text: SpliceText) -> list[dict[str, Any]]:
        pair = self.models["base"], self.models["tuned"]
        code = DifferenceCode(SparseAutoencoder.load(self.folder / "saes" / "difference"), "difference")
        energy = rank_latents(code, self.batches(store, "base", "tuned"), self.point)
        seen = store.pieces("train")
        some = SpliceText.choose(seen, kept_tokens(store, seen, "train"), self.options.attributed)
        ranking = attribute_latents(*pair, some, code, hook_point=self.point, forward_tokens=512)
        dense = fit_difference(self.batches(store, "difference"), self.point, k=50)
        rows = closure_curve(
            *pair,
            text,
            code,
            ranking,
            hook_point=self.point,
            sizes=(10, 50, 200),
            named={"energy": energy.order[:50]},
            forward_tokens=FORWARD_TOKENS,
            dense=dense.patches((1, 32)),
        )
        self.found["live_latents"] = len(ranking.order)
        return [row.to_json() for row in rows]

    def layers(self, role: str, text: SpliceText) -> dict[str, Any]:
        """CKA and norms at every fifth layer, closure at three."""
        pair: tuple[LanguageModel, LanguageModel] = (self.models["base"], self.models[role])
        n = pair[0].n_layers
        points = [f"layers.{layer}" for layer in sorted({*range(0, n, 5), n - 1})]
        changes = measure_layers(*pair, text, points, forward_tokens=FORWARD_TOKENS)
        some = [f"layers.{layer}" for layer in (n // 4, n // 2, 3 * n // 4)] if role == "tuned" else []
        closures = layer_closure(*pair, text, some, forward_tokens=FORWARD_TOKENS) if some else {}
        return {
            "changes": [change.to_json() for change in changes],
            "closure": {name: [each.to_json() for each in pair] for name, pair in closures.items()},
        }

    def tokens(self, role: str, text: SpliceText) -> dict[str, Any]:
        """Tokens that became likelier and less likely."""
        base, other = self.models["base"], self.models[role]
        rose, fell, n = top_token_differences(base, other, text, n=12, forward_tokens=FORWARD_TOKENS)
        decode = base.tokenizer.decode
        return {
            "documents": n,
            "rose": [(decode([entry.token_id]), round(entry.difference, 4), round(entry.z, 1)) for entry in rose],
            "fell": [(decode([entry.token_id]), round(entry.difference, 4), round(entry.z, 1)) for entry in fell],
        }

    def report(self) -> None:
        """Target and measured."""
        rows = {(row["name"], row["n_latents"]): row for row in self.found["closure"]["result"]}

        def of(name: str, size: int | None, key: str = "closure") -> str:
            found = rows[name, size][key]
            value, low, high = (found[each] if found[each] is not None else np.nan for each in ("value", "low", "high"))
            return f"{value:.3f} [{low:.3f}, {high:.3f}]"

        print(f"diff-SAE: {self.found['sae']['result']}; live latents {self.found.get('live_latents')}")
        for name, size in rows:
            parts = [of(name, size, key) for key in ("closure", "of_ceiling", "above_nothing")]
            print(f"{name:9} {size or '':>4}  closure {parts[0]}  of ceiling {parts[1]}  above nothing {parts[2]}")
        top, random = (rows[name, 50] for name in ("top", "random"))
        ratios = [np.float64(top[key]["value"]) / random[key]["value"] for key in ("closure", "above_nothing")]
        print(f"target: all >= 0.8 of the ceiling; measured {of('all', None, 'of_ceiling')}")
        print(f"target: top 50 >= 2 x random 50; measured {ratios[0]:.2f} x, above nothing {ratios[1]:.2f} x")
        for key, found in self.found.items():
            if key.startswith("layers_"):
                for change in found["result"]["changes"]:
                    print(
                        key,
                        change["hook_point"],
                        "CKA",
                        change["cka"]["value"],
                        "norm",
                        change["relative_norm"]["value"],
                    )
                for name, (below, above) in found["result"]["closure"].items():
                    print(key, name, "from below", below["value"], "from above", above["value"])
            if key.startswith("tokens_") or key == "dense":
                print(key, found["result"])


if __name__ == "__main__":
    main()
