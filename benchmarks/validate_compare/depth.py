"""At which depth do 50 latents carry a fine-tune's effect? Writes benchmarks/records/compare-depth.{json,md}.

    make validate-depth
    python benchmarks/validate_compare/depth.py runs/false-facts            after `make false-facts`, whose models and text it takes

A set of latents is put into the base's activation and the fine-tune's own upper layers read it, so closure begins at what these do alone, `nothing`:
0.8 in the middle of a LoRA that touched all layers. The ratio of two closures cannot be large there, whatever the latents are. Here the same SAE of
the difference is trained at several depths, and its 50 top latents by attribution stand beside 50 random ones at each.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import measured_on
from real import SET, interval

from sparsight.activations import ActivationStore, PairedModels, StoreSource, paired_hook_points
from sparsight.artifact import RunDir
from sparsight.collect import collect_activations
from sparsight.diff import DifferenceCode, fit_difference
from sparsight.findings import PairedRows, as_text, closure_findings
from sparsight.lm import load_models
from sparsight.metrics import SpliceText
from sparsight.recipe import Comparison, load_comparison
from sparsight.sae import SAEConfig, SparseAutoencoder
from sparsight.train import train_saes

RECORD = Path(__file__).parents[1] / "records" / "compare-depth.json"
DEPTHS = (7, 15, 22, 26, 28)
SHOWN = ("nothing", "top", "random", "bottom", "all", "ceiling")


def measured(run: RunDir, folder: Path) -> dict[str, Any]:
    """Closure at each depth, by the SAE of the difference there."""
    recipe = load_comparison(run.recipe)
    models = load_models(recipe.base, {"tuned": recipe.tuned})
    text = replace(recipe.text, builtin="", dataset="", files=(str(run.path / "text.jsonl"),), column="text")
    points = [f"layers.{layer}" for layer in DEPTHS]
    capture = replace(recipe.capture(), hook_points=paired_hook_points(points, tuple(models)))
    store = collect_activations(PairedModels(models), text, capture, folder / "activations", seed=recipe.seed)
    saes = [config(recipe, point) for point in points]
    source = StoreSource(store, tuple(sae.hook_point for sae in saes), recipe.train.epochs, recipe.seed)
    train_saes(source, saes, folder / "saes", train=recipe.train, name=recipe.name)
    return {point: closure(recipe, models, store, point, folder) for point in points}


def config(recipe: Comparison, point: str) -> SAEConfig:
    """The SAE of the difference that the comparison trains, at another place."""
    one = next(sae for sae in recipe.of_pair() if sae.id == "difference")
    return replace(one, id=point, hook_point=f"difference:{point}")


def closure(recipe: Comparison, models: Any, store: ActivationStore, point: str, folder: Path) -> dict[str, Any]:
    """The rows of one depth that are shown."""
    rows, options = PairedRows(store, point), recipe.closure
    found = closure_findings(
        models,
        {"difference": DifferenceCode(SparseAutoencoder.load(folder / "saes" / point), "difference")},
        fit_difference(rows.differences("tuned"), point, k=SET),
        rows.trained_on,
        SpliceText.choose(store, options.attributed_tokens, split="train", most_documents=True),
        SpliceText.choose(store, options.heldout_tokens, split="heldout", most_documents=True),
        point,
        sizes=(SET,),
        forward_tokens=options.forward_tokens,
    )
    return {row["name"]: row for row in found["difference"]["rows"] if row["name"] in SHOWN}


def markdown(found: dict[str, Any]) -> str:
    """The table."""
    body = []
    for point, rows in found.items():
        top, random = rows["top"], rows["random"]
        ratios = [top[key]["value"] / random[key]["value"] for key in ("closure", "above_nothing")]
        body.append([point, *(interval(rows[name]["closure"]) for name in SHOWN), *(f"{each:.2f}" for each in ratios)])
    header = ["hook point", "nothing", f"top {SET}", f"random {SET}", f"bottom {SET}", "all", "ceiling"]
    tokens = found[next(iter(found))]["all"]["closure"]
    return (
        "\n\n".join(
            [
                "# Closure by depth: the SAE of the difference, a LoRA on invented biographies, SmolLM2-135M",
                as_text(([*header, "top over random", "the same above nothing"], body)),
                f"Target: the top {SET} carry at least twice what {SET} random ones carry. 95 % by resampling {tokens['n_documents']} documents, "
                f"{tokens['n_tokens']:,} held-out tokens; one SAE a depth.",
            ]
        )
        + "\n"
    )


def main() -> None:
    """Measures and writes the record."""
    run = RunDir(sys.argv[1] if len(sys.argv) > 1 else "runs/false-facts")
    found = measured(run, run.path.with_name(run.path.name + "-depth"))
    RECORD.write_text(json.dumps(measured_on() | {"depths": found}, indent=2) + "\n")
    RECORD.with_suffix(".md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
