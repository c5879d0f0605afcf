"""The untrained SAE: the initial weights on the same data, a baseline that every trained SAE must be shown beside.

Random dictionaries rival trained ones on many benchmarks (arXiv:2501.17727), so the report needs one; keeping its weights would double the
disk. They come from the seed; what the first batch added (scales, centre, b_dec) is a few vectors, kept in `initial.safetensors` with a sample
of that batch. Where a threshold decides what fires it is one value for all latents, set so that on the sample the baseline's L0 is the
trained SAE's. topk has its k; relu and gated fire as often as their initial weights make them.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sparsight.errors import FormatError
from sparsight.sae.autoencoder import SparseAutoencoder
from sparsight.sae.crosscoder import latent_weights
from sparsight.sae.folding import fold, untrained_threshold
from sparsight.sae.initial import initial_weights

__all__ = ["load_untrained", "untrained_directions", "untrained_sae"]


def load_untrained(folder: Path) -> SparseAutoencoder:
    """The SAE in `folder` as it was before its first step: a baseline, remade from its seed and `initial.safetensors`.

    Raises FormatError when that file is not there or not readable.
    """
    try:
        initial = load_file(folder / "initial.safetensors")
    except (OSError, SafetensorError) as error:
        raise FormatError(
            f"{folder}/initial.safetensors cannot be read ({error}). Train the SAE anew to have its untrained baseline."
        ) from None
    return untrained_sae(SparseAutoencoder.load(folder), initial)


@torch.no_grad()
def untrained_sae(trained: SparseAutoencoder, initial: Mapping[str, Tensor]) -> SparseAutoencoder:
    """The SAE that `trained` was before its first step; `initial` is what `SAETrainer.initial_state` gave then.

    Raises FormatError when `initial` is not of this SAE.
    """
    cfg = trained.cfg
    wanted = {"sample": (trained.d_in,), "b_dec": (trained.d_out,), "input_mean": (trained.d_in,), "encoder_scale": ()}
    for name, shape in wanted.items():
        if name not in initial or tuple(initial[name].shape[initial[name].ndim - len(shape) :]) != shape:
            raise FormatError(
                f"The initial state of SAE {cfg.id} lacks {name} of shape {shape}. Train it anew to have its baseline."
            )
    weights = initial_weights(cfg, trained.d_in, trained.d_out) | {"b_dec": initial["b_dec"]}
    weights["W_enc"] *= initial["encoder_scale"]
    weights.pop("log_threshold", None)
    threshold = torch.zeros(cfg.n_latents)
    if cfg.inference == "jumprelu":
        l0 = (trained.encode(initial["sample"].to(trained.W_enc.device)) > 0).sum(1).float().mean().cpu()
        open_sae = SparseAutoencoder(cfg, fold(cfg, weights, initial, threshold))
        latents = open_sae.encode(initial["sample"])
        weighed_by = latent_weights(cfg, weights["W_dec"])
        latents = latents if weighed_by is None else latents * weighed_by
        threshold += untrained_threshold(latents, l0) / initial["target_scale"]
    return SparseAutoencoder(cfg, fold(cfg, weights, initial, threshold)).to(trained.W_enc.device)


def untrained_directions(sae: SparseAutoencoder) -> Float[Tensor, "F d_out"]:
    """The decoder's rows as `sae`'s seed draws them, which nothing in the data has shaped."""
    return initial_weights(sae.cfg, sae.d_in, sae.d_out)["W_dec"].to(sae.W_dec.device)
