"""What whole models show of a change, as plain values: where it is, what simpler measures say, and how much of it a few latents carry."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sparsight.activations import ActivationBatch
from sparsight.diff import (
    DenseDifference,
    DifferenceCode,
    attribute_latents,
    closure_curve,
    difference_lens,
    layer_closure,
    measure_layers,
    rank_latents,
    top_token_differences,
)
from sparsight.lm import LanguageModel
from sparsight.metrics import SpliceText

__all__ = ["closure_findings", "dense_findings", "layer_findings"]

_BESIDE = (1, 32)  # components whose closure stands beside the latents'
_TOKENS = 12
_BY_ENERGY = 50


def layer_findings(
    models: Mapping[str, LanguageModel], text: SpliceText, hook_points: Sequence[str], forward_tokens: int
) -> dict[str, Any]:
    """Of each fine-tune, how far each hook point moved; of the real one also what of the change in predictions passes there."""
    base, found = models["base"], {}
    for role, model in models.items():
        if role != "base":
            changes = measure_layers(base, model, text, hook_points, forward_tokens=forward_tokens)
            found[role] = [change.to_json() for change in changes]
    closures = layer_closure(base, models["tuned"], text, hook_points, forward_tokens=forward_tokens)
    return found | {"closure": {name: [side.to_json() for side in sides] for name, sides in closures.items()}}


def dense_findings(
    models: Mapping[str, LanguageModel],
    differences: Mapping[str, DenseDifference],
    text: SpliceText,
    forward_tokens: int,
) -> dict[str, Any]:
    """The dense bars of each fine-tune; `differences`: of each role."""
    found = {}
    for role, dense in differences.items():
        base, model = models["base"], models[role]
        rose, fell, n = top_token_differences(base, model, text, n=_TOKENS, forward_tokens=forward_tokens)
        word = base.tokenizer.decode
        lens = difference_lens(model, dense, n=10)
        sides = {"rose": rose, "fell": fell}
        found[role] = {
            "mean_share": dense.mean_share,
            "agreement": dense.agreement,
            "variance_of_50": float(dense.variance.sum()) / dense.total_variance,
            "lens": {name: [word([int(token)]) for token in each["promoted_tokens"]] for name, each in lens.items()},
            "tokens": {side: [(word([e.token_id]), e.difference, e.z) for e in each] for side, each in sides.items()}
            | {"n_documents": n},
        }
    return found


def closure_findings(
    models: Mapping[str, LanguageModel],
    codes: Mapping[str, DifferenceCode],
    dense: DenseDifference,
    batches: Callable[[], Iterable[ActivationBatch]],
    seen: SpliceText,
    text: SpliceText,
    hook_point: str,
    *,
    sizes: Sequence[int],
    forward_tokens: int,
    named: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
) -> dict[str, Any]:
    """The closure curve of each code, its latents ranked by attribution on `seen`, of the train split; beside it the first 50
    latents by energy, and for the first code the mean and principal components. `batches`: base and tuned train rows, anew each time.
    `named`: sets of latents of some codes, which are measured on them alone, put in and taken out; at most half of the live latents of each."""
    found = {}
    for name, code in codes.items():
        energy = rank_latents(code, batches(), hook_point)
        pair = models["base"], models["tuned"]
        ranking = attribute_latents(*pair, seen, code, hook_point=hook_point, forward_tokens=forward_tokens // 2)
        half = len(ranking.order) // 2
        sets = {own: list(members)[:half] for own, members in (named or {}).get(name, {}).items()}
        rows = closure_curve(
            *pair,
            text,
            code,
            ranking,
            hook_point=hook_point,
            sizes=() if sets else sizes,
            named=sets or {"by energy": energy.order[: min(_BY_ENERGY, half)].tolist()},
            forward_tokens=forward_tokens,
            dense=None if found else dense.patches(_BESIDE),
        )
        found[name] = {
            "rows": [row.to_json() for row in rows],
            "top": ranking.order[:20].tolist(),
            "live": len(ranking.order),
        }
    return found
