"""The founding SAE: its recipe, and the `.pt` file it was published as.

    {"model_state_dict": {bias [d], encoder.weight [F, d], encoder.bias [F], decoder.weight [d, F]}}
    z = relu(encoder(x - bias)),  x_hat = decoder(z) + bias

That is our relu autoencoder with W_enc = encoder.weight^T, W_dec = decoder.weight^T, b_dec = bias. Trained with
F.mse_loss(x_hat, x) + 0.005 * z.abs().mean() on raw activations, Adam at 5e-5, batches of 4096 tokens.

A `.pt` file is a pickle: see `files`. The founding module is the only reason to write one; `SparseAutoencoder.save` is the format.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsight.artifact import atomic_path
from sparsight.errors import FormatError, SAEError
from sparsight.sae.config import SAEConfig
from sparsight.sae.exchange.files import fitted, matrix_shape, read_pickle

__all__ = ["founding_config", "read", "recognises", "write"]

_NAMES = {"b_dec": "bias", "W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}


def founding_config(id: str, n_latents: int, *, hook_point: str = "", seed: int = 0) -> SAEConfig:
    """The founding recipe to the letter, in float32: no normalisation, no schedule, free decoder, b_dec from 0."""
    return SAEConfig(
        id=id,
        architecture="relu",
        n_latents=n_latents,
        hook_point=hook_point,
        l1_coefficient=0.005,
        l1_penalty="raw",
        sparsity_warmup_fraction=0.0,
        normalize="none",
        init="linear",
        b_dec_init="zero",
        lr=5e-5,
        warmup_steps=0,
        decay_fraction=0.0,
        adam_betas=(0.9, 0.999),
        adam_eps=1e-8,
        max_gradient_norm=1e9,
        precision="float32",
        seed=seed,
    )


def recognises(path: Path) -> bool:
    """Whether this may be such a file: any other `.pt` than Qwen-Scope's."""
    return path.suffix == ".pt" and not path.name.endswith(".sae.pt")


def write(path: Path, cfg: SAEConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes a relu autoencoder; SAEError for any other architecture."""
    if cfg.inference != "relu" or cfg.is_transcoder:
        kind = "transcoder" if cfg.is_transcoder else "autoencoder"
        raise SAEError(f"SAE {cfg.id} is a {cfg.architecture} {kind}; the founding .pt holds relu autoencoders only.")
    state = {theirs: _turned(tensors[mine].detach().cpu()) for mine, theirs in _NAMES.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temp:
        torch.save({"model_state_dict": state}, temp)


def read(path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Configuration and tensors in our form; FormatError when it is anything else."""
    content = read_pickle(path)
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise FormatError(f"{path} has no `model_state_dict`; expected one with {', '.join(_NAMES.values())}.")
    n_latents, d = matrix_shape(path, state, "encoder.weight")
    shapes = {
        "bias": (d,),
        "encoder.weight": (n_latents, d),
        "encoder.bias": (n_latents,),
        "decoder.weight": (d, n_latents),
    }
    tensors = fitted(path, state, shapes)
    return founding_config("founding", n_latents), {mine: _turned(tensors[theirs]) for mine, theirs in _NAMES.items()}


def _turned(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous() if tensor.dim() == 2 else tensor
