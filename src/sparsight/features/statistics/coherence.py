"""Do the different tokens that a latent is active on mean alike? By the language model's own token embeddings.

    token_coherence   (|sum_t c_t e_t|^2 - sum_t c_t^2) / (n^2 - sum_t c_t^2)      n = sum_t c_t

c_t is how often the latent is active on token t, e_t that token's embedding without the mean of all that occur, of length 1. It is the mean cosine
over pairs of activations on different tokens: 0 for tokens of no one kind, whatever the purity, which counts the pairs on the same token. NaN for
a latent active on one token alone. The control is that of the same activations moved half the text away (text.py).

Trade-off: input embeddings know spelling, grammar and the commoner meanings; what a latent sees in a whole sentence is not in them.
"""

import numpy as np
from jaxtyping import Float, Int

from sparsight.features.statistics.grouped import count_items

__all__ = ["centred_embeddings", "token_coherence"]

_ACTIVATIONS_AT_ONCE = 1 << 20


def centred_embeddings(
    embeddings: Float[np.ndarray, "vocab d"], token_ids: Int[np.ndarray, " tokens"]
) -> Float[np.ndarray, "vocab d"]:
    """Embeddings without their mean over the different tokens of a text, of length 1."""
    centred = embeddings - embeddings[np.unique(token_ids)].mean(0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def token_coherence(
    latent_offsets: Int[np.ndarray, " latents_plus_1"],
    token_ids: Int[np.ndarray, " active"],
    embeddings: Float[np.ndarray, "vocab d"],
) -> Float[np.ndarray, " latents"]:
    """Of each latent from the tokens of its activations, which lie latent by latent; `embeddings`: centred."""
    from scipy.sparse import csr_array  # slow to import

    found = np.full(len(latent_offsets) - 1, np.nan, np.float32)
    first = 0
    while first < len(found):
        most = latent_offsets[first] + _ACTIVATIONS_AT_ONCE
        end = max(first + 1, int(np.searchsorted(latent_offsets, most, side="right")) - 1)
        latents = np.repeat(np.arange(end - first), np.diff(latent_offsets[first : end + 1]))
        tokens = token_ids[latent_offsets[first] : latent_offsets[end]]
        groups, items, counts = count_items(latents, tokens, len(embeddings))
        table = csr_array((counts.astype(np.float32), (groups, items)), shape=(end - first, len(embeddings)))
        sums = np.square((table @ embeddings).astype(np.float64)).sum(1)
        same = np.bincount(groups, counts.astype(np.float64) ** 2, minlength=end - first)
        pairs = np.bincount(groups, counts, minlength=end - first) ** 2 - same
        found[first:end] = np.divide(sums - same, pairs, out=np.full(end - first, np.nan), where=pairs > 0)
        first = end
    return found
