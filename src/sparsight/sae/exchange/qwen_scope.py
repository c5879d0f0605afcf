"""Qwen-Scope's `layer{n}.sae.pt`: TopK SAEs of residual streams.

    {W_enc [F, d], W_dec [d, F], b_enc [F], b_dec [d]}
    z = topk(x W_enc^T + b_enc),  x_hat = z W_dec^T + b_dec

b_dec is not subtracted from the input; ours is, so b_enc + b_dec W_enc stands for their b_enc, an exact rewriting (summed in float64).
k is not in the file: it is asked for, or taken from a name with `k50` or `L0_50` in it.
Source: the release's own loading code, April 2026.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsight.artifact import atomic_path
from sparsight.errors import FormatError, SAEError
from sparsight.sae.config import SAEConfig
from sparsight.sae.exchange.files import fitted, id_of, matrix_shape, read_pickle
from sparsight.sae.exchange.shift import centred_bias, plain_bias

__all__ = ["read", "recognises", "write"]


def recognises(path: Path) -> bool:
    """Whether the name says so."""
    return path.name.endswith(".sae.pt")


def read(path: Path, *, k: int | None = None) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Configuration and tensors in our form; FormatError when it is no such file, or k is not known."""
    k = k or _k_of(path)
    given = read_pickle(path)
    if not isinstance(given, dict):
        raise FormatError(f"{path} holds a {type(given).__name__}, expected W_enc, W_dec, b_enc and b_dec.")
    n_latents, d = matrix_shape(path, given, "W_enc")
    shapes = {"W_enc": (n_latents, d), "W_dec": (d, n_latents), "b_enc": (n_latents,), "b_dec": (d,)}
    tensors = fitted(path, given, shapes)
    if not 0 < k <= n_latents:
        raise FormatError(f"{path} has {n_latents} latents; k = {k} is not among them.")
    layer = re.search(r"layer(\d+)", path.name)
    cfg = SAEConfig(
        id=id_of(path).removesuffix(".sae.pt"),
        architecture="topk",
        n_latents=n_latents,
        k=k,
        hook_point=f"layers.{layer[1]}" if layer else "",
    )
    W_enc = tensors["W_enc"].T.contiguous()
    ours = {"W_enc": W_enc, "W_dec": tensors["W_dec"].T.contiguous(), "b_dec": tensors["b_dec"]}
    return cfg, ours | {"b_enc": centred_bias(tensors["b_enc"], tensors["b_dec"], W_enc)}


def write(path: Path, cfg: SAEConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes such a file; SAEError for anything but a topk autoencoder."""
    if cfg.inference != "topk" or cfg.is_transcoder:
        raise SAEError(f"SAE {cfg.id} is {cfg.architecture}; Qwen-Scope's files hold topk autoencoders only.")
    state = {
        "W_enc": tensors["W_enc"].T,
        "W_dec": tensors["W_dec"].T,
        "b_enc": plain_bias(tensors["b_enc"], tensors["b_dec"], tensors["W_enc"]),
        "b_dec": tensors["b_dec"],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temp:
        torch.save({name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}, temp)


def _k_of(path: Path) -> int:
    found = re.findall(r"(?:^|[^A-Za-z])(?:[kK]|L0)[_=-]?(\d+)", str(path.resolve()))
    if not found:
        raise FormatError(f"{path} does not say how many latents are active per token; give it: --k 50.")
    return int(found[-1])
