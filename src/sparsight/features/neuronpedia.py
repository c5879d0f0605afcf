"""Neuronpedia's batches: what its `POST /api/feature/upload-batch` takes, at most 128 features in one.

    {"modelId": ..., "source": "LAYER-SET", "features": [{
        "index", "density",
        "topLogits", "bottomLogits":   [{"token", "value"}, ...]   strongest first; absent where no language model was given
        "activations": [{"tokens": [...], "values": [...], "quantiles": [low, high]}, ...]}]}

Passages: the strongest of distinct documents, then some of each quarter of the activations by strength, strongest first. `quantiles` of a
quarter's are the shares that bound it; of the strongest, twice the share of activations up to theirs, 1 for the maximum. A latent never active
has no passages. Values are raw activations, 0 where a token's is unknown.

We had no account to send one to: names and nesting are as its clients send them, the shapes of logits and quantiles are assumptions, and
docs/formats.md says so.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sparsight.features.contexts import N_BANDS, Context, quantile_contexts, top_contexts
from sparsight.features.index import FeatureIndex, TokenWeights
from sparsight.features.tokens import readable_tokens

__all__ = ["PASSAGES_PER_LATENT", "neuronpedia_batches"]

_BATCH = 128
_TOP, _PER_BAND = 10, 2
PASSAGES_PER_LATENT = _TOP + N_BANDS * _PER_BAND


def neuronpedia_batches(
    index: FeatureIndex, tokenizer: Any, *, model_id: str, source: str, with_contexts: bool = True
) -> Iterator[dict[str, Any]]:
    """Every latent in order, 128 a batch, as plain values for JSON."""
    for start in range(0, index.n_latents, _BATCH):
        latents = range(start, min(start + _BATCH, index.n_latents))
        features = [_feature(index, tokenizer, latent, with_contexts) for latent in latents]
        yield {"modelId": model_id, "source": source, "features": features}


def _feature(index: FeatureIndex, tokenizer: Any, latent: int, with_contexts: bool) -> dict[str, Any]:
    feature: dict[str, Any] = {"index": latent, "density": float(index.density[latent]), "activations": []}
    if index.has_logits:
        feature["topLogits"] = _logits(tokenizer, index.promoted(latent))
        feature["bottomLogits"] = _logits(tokenizer, index.suppressed(latent))
    if with_contexts and len(index.activations(latent)[0]):
        feature["activations"] = list(_passages(index, tokenizer, latent))
    return feature


def _passages(index: FeatureIndex, tokenizer: Any, latent: int) -> Iterator[dict[str, Any]]:
    ascending = np.sort(index.activations(latent)[1])
    for context in top_contexts(index, latent, _TOP):
        share = float(np.searchsorted(ascending, context.value, side="right") / len(ascending))
        yield _passage(tokenizer, context, (share, share))
    bands = quantile_contexts(index, latent, _PER_BAND)
    for number, band in reversed(list(enumerate(bands))):  # fewer than four where it was active fewer than four times
        for context in band.contexts:
            yield _passage(tokenizer, context, (number / len(bands), (number + 1) / len(bands)))


def _passage(tokenizer: Any, context: Context, quantiles: tuple[float, float]) -> dict[str, Any]:
    return {
        "tokens": readable_tokens(tokenizer, context.token_ids),
        "values": [float(value) for value in context.values],
        "quantiles": list(quantiles),
    }


def _logits(tokenizer: Any, weights: TokenWeights) -> list[dict[str, Any]]:
    words = readable_tokens(tokenizer, weights.token_ids)
    return [{"token": word, "value": float(value)} for word, value in zip(words, weights.weights, strict=True)]
