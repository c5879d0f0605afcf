"""SAE + store -> FeatureIndex: one pass over the held-out rows, each encoded once.

What is kept is every activation of every latent, so density, quantiles and any kind of passage follow without the SAE.
Held-out text only: the evidence that people and explainers see is text that training did not.
"""

from pathlib import Path

import torch

from sparsight.activations import ActivationStore
from sparsight.errors import ActivationError, MetricError, SAEError
from sparsight.features import FeatureIndex, FeatureIndexWriter, IndexConfig, logit_weights
from sparsight.lm import LanguageModel
from sparsight.metrics import flat_tokens
from sparsight.sae import SparseAutoencoder

__all__ = ["build_index"]

_DEFAULTS = IndexConfig()


@torch.inference_mode()
def build_index(
    sae: SparseAutoencoder,
    store: ActivationStore,
    model: LanguageModel | None = None,
    *,
    path: str | Path,
    config: IndexConfig = _DEFAULTS,
    hook_point: str,
    target_hook_point: str = "",
) -> FeatureIndex:
    """Build features/ID at `path`, whole or not at all; with `model` also promoted and suppressed tokens.

    Raises SAEError when the SAE does not fit the store, RunError when `path` is taken, MetricError when nothing is held
    out.
    """
    _check(sae, store, hook_point)
    n_left = config.heldout_tokens or store.n_tokens("heldout")
    pieces = store.pieces("heldout")
    with FeatureIndexWriter.create(Path(path), pieces, sae.n_latents, config) as writer:
        for batch in store.batches("heldout", config.batch_tokens, hook_points=[hook_point]):
            n = min(len(batch), n_left)
            if not n:
                break
            n_left -= n
            latents = sae.encode_sparse(batch[hook_point][:n].to(sae.W_enc.device).float())
            tokens = flat_tokens(pieces, batch.piece_ids[:n], batch.positions[:n])
            writer.add(tokens, latents.indices.cpu().numpy(), latents.values.float().cpu().numpy())
        why_no_logits = _why_no_logits(sae, model)
        if model is not None and not why_no_logits:
            writer.set_arrays(logit_weights(model, sae.W_dec, config.promoted_tokens))
        return writer.finish(
            {
                "architecture": sae.cfg.architecture,
                "n_latents": sae.n_latents,
                "hook_point": hook_point,
                "target_hook_point": target_hook_point or hook_point,
                "model": store.model,
                "split": "heldout",
                "why_no_logits": why_no_logits,
            }
        )


def _why_no_logits(sae: SparseAutoencoder, model: LanguageModel | None) -> str:
    """Why promoted tokens are not stored; empty when they are."""
    if model is None:
        return "no language model was given"
    residual = model.width(f"layers.{model.n_layers - 1}")
    if sae.d_out != residual:
        return f"the SAE writes {sae.d_out} numbers, the residual stream has {residual}"
    return ""


def _check(sae: SparseAutoencoder, store: ActivationStore, hook_point: str) -> None:
    width = store.hook_points.get(hook_point)
    if width is None:
        held = ", ".join(store.hook_points)
        raise ActivationError(
            f"The store holds no hook point `{hook_point}`, but {held}. Name one of these, or collect at it."
        )
    if width != sae.d_in:
        raise SAEError(
            f"The store's `{hook_point}` is {width} wide; this SAE expects d_in={sae.d_in}. "
            "Index it at the hook point it was trained on, or collect that one."
        )
    if not store.n_tokens("heldout"):
        raise MetricError("The store has no held-out rows to index. Collect with heldout_tokens above 0.")
