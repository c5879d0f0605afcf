"""The founding SAE: its recipe, and the `.pt` file it was published as.

    {"model_state_dict": {bias [d], encoder.weight [F, d], encoder.bias [F], decoder.weight [d, F]}}
    z = relu(encoder(x - bias)),  x_hat = decoder(z) + bias

That is our relu autoencoder with W_enc = encoder.weight^T, W_dec = decoder.weight^T, b_dec = bias. Trained with
F.mse_loss(x_hat, x) + 0.005 * z.abs().mean() on raw activations, Adam at 5e-5, batches of 4096 tokens.

A `.pt` file is a pickle. It is read with `weights_only=True`, which runs no code, and refused unless it holds exactly
these four finite matrices. The founding module is the only reason to write one; `SparseAutoencoder.save` is the format.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsight.artifact import atomic_path
from sparsight.errors import FormatError, SAEError
from sparsight.sae.autoencoder import SparseAutoencoder
from sparsight.sae.config import SAEConfig

__all__ = ["founding_config", "load_founding_pt", "save_founding_pt"]

_NAMES = ("bias", "encoder.weight", "encoder.bias", "decoder.weight")


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
        precision="float32",
        seed=seed,
    )


def save_founding_pt(sae: SparseAutoencoder, path: Path) -> None:
    """Write a relu autoencoder as a founding `.pt`; SAEError for any other architecture."""
    if sae.cfg.inference != "relu" or sae.cfg.is_transcoder:
        kind = "transcoder" if sae.cfg.is_transcoder else "autoencoder"
        raise SAEError(
            f"SAE {sae.cfg.id} is a {sae.cfg.architecture} {kind}; the founding .pt holds relu autoencoders only."
        )
    tensors = (sae.b_dec, sae.W_enc.T, sae.get_parameter("b_enc"), sae.W_dec.T)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in zip(_NAMES, tensors, strict=True)}
    with atomic_path(Path(path)) as temp:
        torch.save({"model_state_dict": state}, temp)


def load_founding_pt(path: Path) -> SparseAutoencoder:
    """Read a founding `.pt` without running anything in it; FormatError when it is anything else."""
    path = Path(path)
    state = _read_state(path)
    if set(state) != set(_NAMES):
        raise FormatError(f"{path} holds {sorted(map(str, state))}, expected {sorted(_NAMES)}.")
    largest = path.stat().st_size
    for name in _NAMES:
        _check_tensor(path, name, state[name], largest)
    n_latents, d = _shape(path, state)
    cfg = founding_config("founding", n_latents)
    tensors = {
        "W_enc": state["encoder.weight"].T,
        "W_dec": state["decoder.weight"].T,
        "b_enc": state["encoder.bias"],
        "b_dec": state["bias"],
    }
    assert tensors["W_enc"].shape == (d, n_latents)
    return SparseAutoencoder(cfg, tensors)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # a hostile file can raise anything out of the unpickler; all of it means "not this format"
        first_line = str(error).split("\n", 1)[0]
        raise FormatError(
            f"{path} is not a founding .pt file that can be read without running code: {first_line}"
        ) from None
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise FormatError(f"{path} has no `model_state_dict`; expected one with {', '.join(_NAMES)}.")
    return state


def _check_tensor(path: Path, name: str, tensor: object, largest: int) -> None:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        raise FormatError(f"{path}: {name} is not a dense tensor of floating-point numbers.")
    if tensor.numel() * tensor.element_size() > largest:
        raise FormatError(
            f"{path}: {name} claims shape {tuple(tensor.shape)}, more than the file of {largest} bytes holds."
        )
    if not torch.isfinite(tensor).all():
        raise FormatError(f"{path}: {name} has values that are not finite.")


def _shape(path: Path, state: Mapping[str, Tensor]) -> tuple[int, int]:
    given = {name: tuple(state[name].shape) for name in _NAMES}
    n_latents, d = given["encoder.weight"] if len(given["encoder.weight"]) == 2 else (0, 0)
    expected = dict(zip(_NAMES, ((d,), (n_latents, d), (n_latents,), (d, n_latents)), strict=True))
    if given != expected or not n_latents or not d:
        raise FormatError(
            f"{path} has shapes {given}; "
            "expected bias [d], encoder.weight [F, d], encoder.bias [F], decoder.weight [d, F]."
        )
    return n_latents, d
