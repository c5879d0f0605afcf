"""EleutherAI's sparsify (PyPI eai-sparsify): a folder for each hook point, named after it.

    cfg.json            activation "topk", k, d_in, num_latents or expansion_factor, transcode, skip_connection, ...
    sae.safetensors     encoder.weight [F, d], encoder.bias [F], W_dec [F, d], b_dec [d]
    z = topk(relu((x - b_dec) encoder.weight^T + encoder.bias)),  x_hat = z W_dec + b_dec;  a transcoder leaves x as it is

That is our topk, weight for weight. Refused by name: `groupmax`, and transcoders with a skip connection, which is no part of our form.
Source: sparsify 1.3.3, sparse_coder.py and config.py.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from sparsight.artifact import atomic_path, write_json
from sparsight.errors import FormatError, SAEError
from sparsight.sae.config import SAEConfig
from sparsight.sae.exchange.files import fitted, id_of, matrix_shape, read_config, read_safetensors, whole_number

__all__ = ["read", "recognises", "write"]

_CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def recognises(path: Path) -> bool:
    """Whether this is such a folder."""
    return (path / WEIGHTS).is_file()


def read(path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Configuration and tensors in our form; FormatError when it is not such a folder or cannot be written in our form."""
    described = read_config(path / _CONFIG)
    for key, plain in (("activation", "topk"), ("skip_connection", False)):
        if described.get(key, plain) != plain:
            raise FormatError(f"{path / _CONFIG} has {key} = {described[key]!r}; only {plain!r} can be read.")
    weights = path / WEIGHTS
    given = read_safetensors(weights)
    n_latents, d = matrix_shape(weights, given, "encoder.weight")
    shapes = {"encoder.weight": (n_latents, d), "encoder.bias": (n_latents,), "W_dec": (n_latents, d), "b_dec": (d,)}
    tensors = fitted(weights, given, shapes)
    if described.get("d_in", d) != d:
        raise FormatError(f"{path / _CONFIG} has d_in = {described['d_in']!r}, {WEIGHTS} {d}.")
    cfg = SAEConfig(
        id=id_of(path),
        architecture="topk",
        n_latents=n_latents,
        k=min(whole_number(path / _CONFIG, {"k": 32} | described, "k"), n_latents),
        hook_point=path.resolve().name,
        target_hook_point="output" if described.get("transcode") else "",
    )
    return cfg, {
        "W_enc": tensors["encoder.weight"].T.contiguous(),
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }


def write(path: Path, cfg: SAEConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes a folder; SAEError for what sparsify lacks: anything but topk, and transcoders between two widths."""
    d_in, d_out = tensors["W_enc"].shape[0], tensors["W_dec"].shape[1]
    if cfg.inference != "topk" or d_in != d_out:
        kind = f"{cfg.inference} SAE from width {d_in} to {d_out}"
        raise SAEError(f"SAE {cfg.id} is a {kind}; sparsify holds topk of one width only.")
    path.mkdir(parents=True, exist_ok=True)
    state = {
        "encoder.weight": tensors["W_enc"].T,
        "encoder.bias": tensors["b_enc"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
    }
    with atomic_path(path / WEIGHTS) as temp:
        save_file({name: tensor.detach().float().cpu().contiguous() for name, tensor in state.items()}, temp)
    described = {
        "activation": "topk",
        "expansion_factor": max(1, cfg.n_latents // d_in),
        "normalize_decoder": True,
        "num_latents": cfg.n_latents,
        "k": cfg.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": cfg.is_transcoder,
        "d_in": d_in,
    }
    write_json(path / _CONFIG, described)
