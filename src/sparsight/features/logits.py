"""Which next tokens a latent promotes and suppresses: the logit weights of its decoder direction.

    weights = unembed(W_dec[latent])        the direction alone, through the model's own final norm and output matrix

A latent read at an early layer acts mostly through later layers, so these weights are its direct effect only. They
are plain: the mean over all directions is not subtracted, as that would make a latent's tokens depend on which other
latents the dictionary has; the price is that tokens which the output matrix favours for any direction turn up often.

Source: the logit lens on decoder directions, Bricken et al. 2023 (Towards Monosemanticity).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.lm import LanguageModel

__all__ = ["logit_weights"]

# Directions unembedded at a time: 512 rows of a 152k vocabulary in float32 are 311 MB.
ROWS_AT_ONCE = 512


@torch.inference_mode()
def logit_weights(model: LanguageModel, directions: Float[Tensor, "latents d"], n: int) -> dict[str, np.ndarray]:
    """The n largest and n smallest logit weights of each direction, strongest first.

    Returns promoted_tokens, suppressed_tokens [latents, n] int32 and promoted_weights, suppressed_weights float32.
    Raises ModelError when the model has no output matrix (it was loaded truncated).
    """
    parts: dict[str, list[np.ndarray]] = {}
    for rows in directions.split(ROWS_AT_ONCE):
        weights = model.unembed(rows)
        kept = min(n, weights.shape[-1])
        for kind, largest in (("promoted", True), ("suppressed", False)):
            found = weights.topk(kept, dim=-1, largest=largest)
            parts.setdefault(f"{kind}_tokens", []).append(found.indices.int().cpu().numpy())
            parts.setdefault(f"{kind}_weights", []).append(found.values.float().cpu().numpy())
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}
