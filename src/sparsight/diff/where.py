"""Where in depth a fine-tune changed the model: how far activations moved at each layer, and how much of its effect passes there.

    cka             likeness of the two arrangements of tokens (alignment.py); it forgives rotation and scale
    relative_norm   sqrt(sum |h_tuned - h_base|^2 / sum |h_base|^2)
    from_below      closure of the base model given the fine-tune's activation at the layer: what the layers up to it bring about
    from_above      closure of the fine-tune given the base's activation at the layer: what the layers behind it do by themselves

    closure(p) = 1 - sum KL(p_tuned | p) / sum KL(p_tuned | p_base)       over tokens; 0: like the base, 1: like the fine-tune

From below rises and from above falls with depth; a layer where both are small means that neither half does much without the other.
All of it is to be read beside the same of a null fine-tune. Activations are compared at the tokens a store kept; patches replace
every real token. Intervals resample documents (CKA: batches). The cost: two forward passes of each model's length a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.diff.alignment import CKASums
from sparsight.lm import LanguageModel
from sparsight.metrics import DocumentSums, Estimate, SpliceText, token_kl

__all__ = ["LayerChange", "layer_closure", "measure_layers", "run_both"]


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """How far one layer's activations moved, and what passes there."""

    hook_point: str
    cka: Estimate
    relative_norm: Estimate
    from_below: Estimate | None = None
    """None when closure was not measured."""
    from_above: Estimate | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@torch.inference_mode()
def measure_layers(
    base: LanguageModel,
    tuned: LanguageModel,
    text: SpliceText,
    hook_points: Sequence[str],
    *,
    forward_tokens: int,
    sink_norm_multiple: float = 10.0,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[LayerChange, ...]:
    """CKA and relative norm at each hook point, one forward pass of each model in all.

    A token whose norm in either model exceeds `sink_norm_multiple` times the batch's median is left out at that hook point: a
    store masks the sinks of its own hook points, and other layers have others. 0: none is.
    """
    alignments = {name: CKASums() for name in hook_points}
    sums = {name: DocumentSums(["difference", "base"]) for name in hook_points}
    for batch, kept in text.batches(forward_tokens):
        documents = batch.document_ids[kept]
        before, after = (model.read(batch, hook_points) for model in (base, tuned))
        for name in hook_points:
            x, y = (found[name][kept.to(found[name].device)].float() for found in (before, after))
            usual = _usual(x, sink_norm_multiple) & _usual(y, sink_norm_multiple)
            x, y, ids = x[usual], y[usual], documents[usual.cpu()]
            alignments[name].add(x, y, n_documents=len(ids.unique()))
            sums[name].add(ids, {"difference": (y - x).square().sum(1), "base": x.square().sum(1)})
    return tuple(
        LayerChange(
            hook_point=name,
            cka=alignments[name].estimate(n_resamples=n_resamples, seed=seed),
            relative_norm=_root(
                sums[name].resample(n_resamples=n_resamples, seed=seed).estimate({"difference": 1}, {"base": 1})
            ),
        )
        for name in hook_points
    )


@torch.inference_mode()
def layer_closure(
    base: LanguageModel,
    tuned: LanguageModel,
    text: SpliceText,
    hook_points: Sequence[str],
    *,
    forward_tokens: int,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[Estimate, Estimate]]:
    """Hook point -> (from_below, from_above). Their values are None where the two models predict the same: nothing is to be closed."""
    sums = DocumentSums(["kl_base", *(f"kl_{side}_{name}" for name in hook_points for side in ("below", "above"))])
    for batch, _ in text.batches(forward_tokens):
        (p_base, before), (p_tuned, after) = (run_both(model, batch, hook_points) for model in (base, tuned))
        scored = batch.mask.to(p_base.device)
        p_tuned = p_tuned[scored]
        columns = {"kl_base": token_kl(p_tuned, p_base[scored])}
        for name in hook_points:
            for side, model, given in (("below", base, after[name]), ("above", tuned, before[name])):
                logits = model.logits_given(batch, name, given)
                columns[f"kl_{side}_{name}"] = token_kl(p_tuned, logits[scored])
                del logits
        sums.add(batch.document_ids[batch.mask], columns)
    drawn = sums.resample(n_resamples=n_resamples, seed=seed)
    return {
        name: tuple(
            drawn.estimate({"kl_base": 1, f"kl_{side}_{name}": -1}, {"kl_base": 1}) for side in ("below", "above")
        )
        for name in hook_points
    }  # type: ignore[return-value]  # two of them


def run_both(model: LanguageModel, batch: Any, hook_points: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the activations at the hook points, of one forward pass."""
    found: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[Tensor], Tensor]:
        def keep(value: Tensor) -> Tensor:
            found[name] = value
            return value

        return keep

    logits = model.logits(batch, replace={name: remember(name) for name in hook_points})
    return logits, found


def _usual(rows: Float[Tensor, "n d"], multiple: float) -> Bool[Tensor, " n"]:
    norms = torch.linalg.vector_norm(rows, dim=1)
    return norms <= multiple * norms.median() if multiple and len(rows) else norms >= 0


def _root(squares: Estimate) -> Estimate:
    roots = {
        name: None if (value := getattr(squares, name)) is None else sqrt(value) for name in ("value", "low", "high")
    }
    return Estimate(**roots, n_tokens=squares.n_tokens, n_documents=squares.n_documents)
