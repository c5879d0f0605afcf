"""The folder of a finished SAE, ours as well: SAELens' own layout, so that `sae_lens.SAE.load_from_disk(folder)` opens it.

    cfg.json                 architecture, d_in, d_sae, dtype, device, apply_b_dec_to_input, normalize_activations
                             "none", reshape_activations "none"; topk adds k and
                             rescale_acts_by_decoder_norm, a transcoder d_out;
                             metadata {sae_lens_version, hook_name, ..., sparsight: {"config": SAEConfig}}
    sae_weights.safetensors  float32 W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_dec [d_out] and per latent b_enc,
                             jumprelu also threshold, gated b_gate, r_mag, b_mag in place of b_enc

An extra tensor is an error there, and an unknown key of cfg.json is dropped, so ours live under metadata. batchtopk and
matryoshka are written as jumprelu, relu as standard. SAELens knows ReLU and JumpReLU transcoders only: topk and gated
ones are written as `topk_transcoder` and `gated_transcoder`, which it refuses by name and we read.

Reading trusts nothing: names, shapes and types come from the safetensors header, before any tensor is allocated, and
values must be finite. SAELens folders in which b_dec is not subtracted from the input, or topk rescales by decoder
norms, are rewritten exactly into our form; activations normalised at run time are refused.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sparsight.artifact import atomic_path, write_json
from sparsight.errors import FormatError, SAEError
from sparsight.sae.config import SAEConfig
from sparsight.sae.exchange.files import id_of, read_config, read_safetensors
from sparsight.sae.exchange.shift import centred_bias

__all__ = ["read", "recognises", "tensor_shapes", "write"]

_CONFIG_FILE = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
_LAYOUT_VERSION = "6.0.0"
_LARGEST_WIDTH = 2**31
_NAMES = {
    ("relu", False): "standard",
    ("topk", False): "topk",
    ("jumprelu", False): "jumprelu",
    ("gated", False): "gated",
    ("relu", True): "transcoder",
    ("topk", True): "topk_transcoder",
    ("jumprelu", True): "jumprelu_transcoder",
    ("gated", True): "gated_transcoder",
}
_ARCHITECTURES = {name: key for key, name in _NAMES.items()}


def tensor_shapes(inference: str, d_in: int, n_latents: int, d_out: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a finished SAE with this activation function."""
    per_latent = {"gated": ("b_gate", "r_mag", "b_mag"), "jumprelu": ("b_enc", "threshold")}.get(inference, ("b_enc",))
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, n_latents), "W_dec": (n_latents, d_out), "b_dec": (d_out,)}
    return shapes | dict.fromkeys(per_latent, (n_latents,))


def recognises(folder: Path) -> bool:
    """Whether this is such a folder."""
    return (folder / WEIGHTS).is_file()


def write(
    folder: Path, cfg: SAEConfig, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a finished SAE; each file is whole or absent, and cfg.json comes last.

    `metadata`: SAELens' keys (model_name, hook_name, prepend_bos, ...) and, under "sparsight", our own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG_FILE).unlink(missing_ok=True)
    with atomic_path(folder / WEIGHTS) as path:
        save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}, path)
    write_json(folder / _CONFIG_FILE, _saelens_config(cfg, tensors, metadata or {}))


def read(folder: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Configuration and float32 tensors of a folder written by us or by SAELens; FormatError when it is neither."""
    folder = Path(folder)
    described = _read_config(folder)
    inference, is_transcoder = _architecture(folder, described)
    _refuse_run_time_changes(folder, described)
    d_in, n_latents = (_width(folder, described, key) for key in ("d_in", "d_sae"))
    d_out = _width(folder, described, "d_out") if is_transcoder else d_in
    cfg = _sae_config(folder, described, inference, is_transcoder, n_latents)
    tensors = read_safetensors(folder / WEIGHTS, tensor_shapes(inference, d_in, n_latents, d_out))
    return cfg, _in_our_form(described, is_transcoder, tensors)


def _saelens_config(cfg: SAEConfig, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, Any]:
    described = {
        "architecture": _NAMES[cfg.inference, cfg.is_transcoder],
        "d_in": tensors["W_enc"].shape[0],
        "d_sae": cfg.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not cfg.is_transcoder,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if cfg.is_transcoder:
        described["d_out"] = tensors["W_dec"].shape[1]
    if cfg.inference == "topk":
        described |= {"k": cfg.k, "rescale_acts_by_decoder_norm": False}
    hooks = {"hook_name": cfg.hook_point, "hook_name_out": cfg.target_hook_point}
    defaults = {"sae_lens_version": _LAYOUT_VERSION} | {name: hook for name, hook in hooks.items() if hook}
    ours = dict(metadata.get("sparsight", {})) | {"config": asdict(cfg)}
    return described | {"metadata": defaults | dict(metadata) | {"sparsight": ours}}


def _read_config(folder: Path) -> dict[str, Any]:
    described = read_config(folder / _CONFIG_FILE)
    if not isinstance(described.get("metadata", {}), dict):
        raise FormatError(f"{folder / _CONFIG_FILE} does not describe an SAE: `metadata` should be an object.")
    return described


def _architecture(folder: Path, described: Mapping[str, Any]) -> tuple[str, bool]:
    name = described.get("architecture")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise FormatError(f"{folder / _CONFIG_FILE} has architecture {name!r}; readable are {known}.")
    return _ARCHITECTURES[name]


def _refuse_run_time_changes(folder: Path, described: Mapping[str, Any]) -> None:
    for key in ("normalize_activations", "reshape_activations"):
        if described.get(key, "none") != "none":
            raise FormatError(
                f"{folder / _CONFIG_FILE} has {key} = {described[key]!r}; only 'none' can be read. "
                "Fold it into the weights with the tool that wrote it."
            )


def _width(folder: Path, described: Mapping[str, Any], key: str) -> int:
    value = described.get(key)
    if type(value) is not int or not 0 < value < _LARGEST_WIDTH:
        raise FormatError(f"{folder / _CONFIG_FILE} has {key} = {value!r}; a positive width is expected.")
    return value


def _sae_config(
    folder: Path, described: Mapping[str, Any], inference: str, is_transcoder: bool, n_latents: int
) -> SAEConfig:
    metadata = described.get("metadata", {})
    ours = metadata.get("sparsight")
    try:
        if ours is not None:
            cfg = _config_from_json(ours["config"])
        else:
            cfg = SAEConfig(
                id=id_of(folder),
                architecture=inference,
                n_latents=n_latents,
                hook_point=str(metadata.get("hook_name") or ""),
                target_hook_point=str(metadata.get("hook_name_out") or "output") if is_transcoder else "",
                k=described["k"] if inference == "topk" else 1,
            )
    except (SAEError, TypeError, KeyError) as error:
        raise FormatError(f"{folder / _CONFIG_FILE} does not describe an SAE: {error!r}.") from None
    if (cfg.inference, cfg.is_transcoder, cfg.n_latents) != (inference, is_transcoder, n_latents):
        raise FormatError(f"{folder / _CONFIG_FILE} contradicts itself: metadata.sparsight describes another SAE.")
    return cfg


def _config_from_json(values: Mapping[str, Any]) -> SAEConfig:
    known = {field.name for field in fields(SAEConfig)}
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known
    }
    return SAEConfig(**given)


def _in_our_form(described: Mapping[str, Any], is_transcoder: bool, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if described.get("rescale_acts_by_decoder_norm", False):
        norms = torch.linalg.vector_norm(tensors["W_dec"], dim=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
        tensors["W_dec"] = tensors["W_dec"] / norms.unsqueeze(1)
    if not is_transcoder and not described.get("apply_b_dec_to_input", True):
        W_enc, b_dec = tensors["W_enc"], tensors["b_dec"]
        if "b_gate" in tensors:
            tensors["b_gate"] = centred_bias(tensors["b_gate"], b_dec, W_enc)
            tensors["b_mag"] = centred_bias(tensors["b_mag"], b_dec, W_enc * tensors["r_mag"].exp())
        else:
            tensors["b_enc"] = centred_bias(tensors["b_enc"], b_dec, W_enc)
    return tensors
