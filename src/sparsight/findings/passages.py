"""The passages on which a latent is strongest, with its value in either model on the same tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparsight.activations import ActivationStore
from sparsight.features import readable_tokens
from sparsight.metrics import flat_tokens
from sparsight.sae import SparseAutoencoder

__all__ = ["side_by_side"]

_BEFORE, _AFTER = 14, 6


@torch.inference_mode()
def side_by_side(
    sae: SparseAutoencoder,
    latents: Sequence[int],
    store: ActivationStore,
    hook_point: str,
    tokenizer: Any,
    *,
    n: int = 5,
) -> list[dict[str, Any]]:
    """For each latent of the fine-tune's SAE, n held-out passages, one a document, strongest first by either model.

    Each: tokens, and the latent's values there on the base's and on the fine-tune's activations.
    """
    if not latents:
        return []
    pieces, chosen = store.pieces("heldout"), list(latents)
    values = np.zeros((2, len(pieces.token_ids), len(chosen)), np.float32)
    views = [f"{role}:{hook_point}" for role in ("base", "tuned")]
    for batch in store.batches("heldout", 1024, hook_points=views):
        places = flat_tokens(pieces, batch.piece_ids, batch.positions)
        for row, view in enumerate(views):
            values[row, places] = sae.encode_latents(batch[view].float(), chosen).numpy()
    piece_of = np.repeat(np.arange(len(pieces.offsets) - 1), np.diff(pieces.offsets))
    found = []
    for column, latent in enumerate(chosen):
        strongest = values[:, :, column].max(0)
        passages, seen = [], set()
        for place in np.argsort(-strongest, kind="stable")[: 50 * n]:
            document = int(pieces.document_ids[piece_of[place]])
            if document in seen or strongest[place] <= 0 or len(passages) == n:
                continue
            seen.add(document)
            first = max(int(pieces.offsets[piece_of[place]]), int(place) - _BEFORE)
            last = min(int(pieces.offsets[piece_of[place] + 1]), int(place) + _AFTER)
            passages.append(
                {
                    "tokens": readable_tokens(tokenizer, pieces.token_ids[first:last]),
                    "base": [round(float(value), 3) for value in values[0, first:last, column]],
                    "tuned": [round(float(value), 3) for value in values[1, first:last, column]],
                }
            )
        found.append({"latent": int(latent), "passages": passages})
    return found
