"""Crosscoders: one dictionary for several models read side by side, z = act(sum_m E_m h_m + b), h_m' = D_m z + b_m.

It is a sparse autoencoder on the models' activations end to end, [n, models * d], whose encoder and decoder rows are cut into one block per model,
and it is saved as one. What makes it a crosscoder is how a latent is weighed, in the choice of the k (batchtopk) or in the
L1 penalty (relu):

    w_j = sum over models m of |d_j^m|      instead of the norm of all blocks together

A latent that two models use costs as much as two that use one each, so the dictionary is not rewarded for sharing what is not shared. After training
the weights are in the thresholds, one for each latent: z_j w_j > t  <=>  z_j > t / w_j.

    relative norm   Delta_j = (1 + (|d_j^1| - |d_j^0|) / max of the two) / 2      0: only the first model has it, 1/2: both, 1: only the second

Delta of an L1 crosscoder is not to be believed: the penalty shrinks the weaker norm to 0 and splits shared latents in two. See `diff.scaling`.

Sources: Lindsey 2024 (crosscoders, Delta), Minder 2025, arXiv:2504.02922 (BatchTopK crosscoders, both artefacts).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import SAEError
from sparsight.sae.config import SAEConfig

__all__ = ["latent_weights", "model_decoders", "relative_norm"]


def model_decoders(W_dec: Float[Tensor, "F width"], models: int = 2) -> Float[Tensor, "models F d"]:
    """Each model's block of the decoder rows. Raises SAEError when the width is not a multiple of `models`."""
    if W_dec.shape[1] % models:
        raise SAEError(f"Decoder rows of width {W_dec.shape[1]} cannot be cut into blocks for {models} models.")
    return W_dec.unflatten(1, (models, -1)).transpose(0, 1)


def latent_weights(cfg: SAEConfig, W_dec: Float[Tensor, "F width"]) -> Float[Tensor, " F"] | None:
    """w_j of a crosscoder's latents; None for what is not a crosscoder."""
    if cfg.models == 1:
        return None
    return torch.linalg.vector_norm(model_decoders(W_dec, cfg.models), dim=2).sum(0)


def relative_norm(W_dec: Float[Tensor, "F width"]) -> Float[Tensor, " F"]:
    """Delta_j of two models: 0 only the first has the latent, 1/2 both alike, 1 only the second. A row of zeros gives 1/2."""
    first, second = torch.linalg.vector_norm(model_decoders(W_dec), dim=2)
    return 0.5 * (1 + (second - first) / torch.maximum(first, second).clamp_min(torch.finfo(W_dec.dtype).tiny))
