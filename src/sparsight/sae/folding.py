"""From the trainer's normalised units to raw activations.

The trainer sees x/s and fits target/t (s = t for an autoencoder). Every activation function here is positively
homogeneous once its biases and thresholds are scaled along, so with latents in raw units, z = t * z_normalised:

    W_enc * t/s (unchanged for an autoencoder),  W_dec unchanged,  biases * t,  thresholds * t,  r_mag unchanged

Unit decoder rows stay unit rows. A transcoder's constant centre m goes into its biases: b_enc - m W_enc, and for gated
b_gate likewise and b_mag - exp(r_mag) (m W_enc). Computed in float64: the trainer centred before rounding, we after.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.sae.config import SAEConfig
from sparsight.sae.crosscoder import latent_weights

__all__ = ["fold", "untrained_threshold"]


@torch.no_grad()
def fold(
    cfg: SAEConfig, weights: Mapping[str, Tensor], measured: Mapping[str, Tensor], threshold: Float[Tensor, " F"]
) -> dict[str, Tensor]:
    """Tensors of the finished SAE. `threshold`, in normalised units, is used by batchtopk and matryoshka; of a crosscoder on z w."""
    wide = {name: tensor.double() for name, tensor in weights.items()}
    scale_in, scale_out = measured["input_scale"].double(), measured["target_scale"].double()
    shift = measured["input_mean"].double() @ wide["W_enc"] * cfg.is_transcoder
    folded = {
        "W_enc": wide["W_enc"] * (scale_out / scale_in),
        "W_dec": wide["W_dec"],
        "b_dec": wide["b_dec"] * scale_out,
    }
    if cfg.architecture == "gated":
        folded["b_gate"] = (wide["b_gate"] - shift) * scale_out
        folded["b_mag"] = (wide["b_mag"] - shift * wide["r_mag"].exp()) * scale_out
        folded["r_mag"] = wide["r_mag"]
    else:
        folded["b_enc"] = (wide["b_enc"] - shift) * scale_out
    if cfg.inference == "jumprelu":
        level = wide["log_threshold"].exp() if "log_threshold" in wide else threshold.double()
        weighed_by = latent_weights(cfg, wide["W_dec"])
        if weighed_by is not None:
            level = level / weighed_by
        folded["threshold"] = level * scale_out
    return {name: tensor.float() for name, tensor in folded.items()}


def untrained_threshold(latents: Float[Tensor, "n F"], l0: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The value that l0 latents per token exceed, on average over these rectified latents; 0 if fewer are positive."""
    n_active = min(int(l0 * len(latents)), latents.numel() - 1)
    return latents.flatten().topk(n_active + 1).values[-1]
