"""dictionary_learning: a folder `trainer_i` with weights and the trainer's settings.

    config.json   {"trainer": {"dict_class", "activation_dim", "dict_size", "k", "submodule_name", ...}, "buffer": {...}}
    ae.pt         a state dict, by dict_class:
      AutoEncoder              bias [d], encoder.weight [F, d], encoder.bias [F], decoder.weight [d, F]
      AutoEncoderNew           encoder.weight, encoder.bias, decoder.weight, decoder.bias [d]; input not centred
      AutoEncoderTopK,         encoder.weight, encoder.bias, decoder.weight, b_dec [d], k and threshold []; the second
      BatchTopKSAE             keeps what exceeds the threshold
      MatryoshkaBatchTopKSAE   W_enc [d, F], b_enc, W_dec [F, d], b_dec, k, threshold [], group_sizes [groups]
      GatedAutoEncoder         decoder_bias [d], encoder.weight, gate_bias, r_mag, mag_bias [F], decoder.weight
      JumpReluAutoEncoder      W_enc, b_enc, W_dec, b_dec, threshold [F]; input not centred

Weights are taken as they are. Its `load_dictionary` scales an AutoEncoder to decoder columns of norm 1 when it loads one, which multiplies each
latent by its column's norm and leaves the reconstruction; `from_pretrained(..., normalize_decoder=False)` does not.
A batchtopk or matryoshka SAE of ours has one threshold, which is theirs; with thresholds of its own for each latent it is written as JumpReLU.
Source: dictionary_learning 0.1.0, dictionary.py, trainers/ and utils.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparsight.artifact import atomic_path, write_json
from sparsight.errors import FormatError, SAEError
from sparsight.sae.config import SAEConfig
from sparsight.sae.exchange.files import fitted, id_of, matrix_shape, read_config, read_pickle, whole_number
from sparsight.sae.exchange.shift import centred_bias, plain_bias

__all__ = ["read", "recognises", "write"]

_CONFIG, WEIGHTS = "config.json", "ae.pt"
_LINEAR = {"encoder.weight": "Fd", "encoder.bias": "F", "decoder.weight": "dF"}
_MATRICES = {"W_enc": "dF", "b_enc": "F", "W_dec": "Fd", "b_dec": "d"}


class _Class(NamedTuple):
    """One of its classes: our architecture, shapes in letters, names of ours -> theirs, whether the input is centred."""

    architecture: str
    shapes: dict[str, str]
    names: dict[str, str]
    centred: bool = True


_LINEAR_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_SAME_NAMES = {name: name for name in _MATRICES}
_CLASSES = {
    "AutoEncoder": _Class("relu", _LINEAR | {"bias": "d"}, _LINEAR_NAMES | {"b_dec": "bias"}),
    "AutoEncoderNew": _Class("relu", _LINEAR | {"decoder.bias": "d"}, _LINEAR_NAMES | {"b_dec": "decoder.bias"}, False),
    "AutoEncoderTopK": _Class("topk", _LINEAR | {"b_dec": "d", "threshold": ""}, _LINEAR_NAMES | {"b_dec": "b_dec"}),
    "BatchTopKSAE": _Class("batchtopk", _LINEAR | {"b_dec": "d", "threshold": ""}, _LINEAR_NAMES | {"b_dec": "b_dec"}),
    "MatryoshkaBatchTopKSAE": _Class("matryoshka", _MATRICES | {"threshold": ""}, _SAME_NAMES),
    "GatedAutoEncoder": _Class(
        "gated",
        {
            "decoder_bias": "d",
            "encoder.weight": "Fd",
            "decoder.weight": "dF",
            "gate_bias": "F",
            "r_mag": "F",
            "mag_bias": "F",
        },
        {
            "W_enc": "encoder.weight",
            "W_dec": "decoder.weight",
            "b_dec": "decoder_bias",
            "b_gate": "gate_bias",
            "r_mag": "r_mag",
            "b_mag": "mag_bias",
        },
    ),
    "JumpReluAutoEncoder": _Class(
        "jumprelu", _MATRICES | {"threshold": "F"}, _SAME_NAMES | {"threshold": "threshold"}, False
    ),
}
_WRITTEN_AS = {theirs.architecture: name for name, theirs in reversed(_CLASSES.items())}
_TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
    "GatedAutoEncoder": "GatedSAETrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
}


def recognises(path: Path) -> bool:
    """Whether this is such a folder."""
    return (path / WEIGHTS).is_file()


def read(path: Path) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Configuration and tensors in our form; FormatError when it is not such a folder."""
    trainer = read_config(path / _CONFIG).get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    theirs = _CLASSES.get(str(trainer.get("dict_class")))
    if theirs is None:
        known = ", ".join(_CLASSES)
        raise FormatError(f"{path / _CONFIG} has dict_class {trainer.get('dict_class')!r}; readable are {known}.")
    weights = path / WEIGHTS
    given = read_pickle(weights)
    if not isinstance(given, dict):
        raise FormatError(
            f"{weights} holds a {type(given).__name__}, expected the tensors of a {trainer['dict_class']}."
        )
    given = dict(given)
    options, d, n_latents = _options(weights, theirs, given)
    sizes = {"d": d, "F": n_latents}
    shapes = {name: tuple(sizes[letter] for letter in letters) for name, letters in theirs.shapes.items()}
    tensors = fitted(weights, given, shapes)
    try:
        cfg = SAEConfig(
            id=id_of(path),
            architecture=theirs.architecture,
            n_latents=n_latents,
            hook_point=str(trainer.get("submodule_name") or ""),
            **options,
        )
    except SAEError as error:
        raise FormatError(f"{weights} does not describe an SAE: {error}") from None
    return cfg, _in_our_form(theirs, tensors, n_latents)


def write(path: Path, cfg: SAEConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes such a folder; SAEError for transcoders, which it lacks."""
    if cfg.is_transcoder:
        raise SAEError(f"SAE {cfg.id} is a transcoder; dictionary_learning holds autoencoders only.")
    name = _WRITTEN_AS[cfg.architecture]
    state: dict[str, Any] = {}
    if cfg.inference == "jumprelu" and cfg.selects_k:
        levels = tensors["threshold"]
        if not torch.equal(levels, levels[:1].expand_as(levels)):
            name = "JumpReluAutoEncoder"
        else:
            state |= {"k": torch.tensor(cfg.k, dtype=torch.int32), "threshold": levels[0].detach().float().clone()}
    if name == "AutoEncoderTopK":
        state |= {"k": torch.tensor(cfg.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
    if name == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([0, *cfg.prefixes]).diff()
    state |= _in_their_form(_CLASSES[name], tensors)
    path.mkdir(parents=True, exist_ok=True)
    with atomic_path(path / WEIGHTS) as temp:
        torch.save(state, temp)
    trainer = {
        "trainer_class": _TRAINERS[name],
        "dict_class": name,
        "activation_dim": tensors["W_enc"].shape[0],
        "dict_size": cfg.n_latents,
        "k": cfg.k if cfg.selects_k else None,
        "submodule_name": cfg.hook_point,
    }
    write_json(path / _CONFIG, {"trainer": trainer, "buffer": {}})


def _options(path: Path, theirs: _Class, given: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """What whole numbers say, taken out of `given`; and the widths d and F."""
    options: dict[str, Any] = {}
    if theirs.architecture in ("topk", "batchtopk", "matryoshka"):
        options["k"] = whole_number(path, given, "k")
        given.pop("k")
    if theirs.architecture == "matryoshka":
        groups = given.pop("group_sizes", None)
        if not isinstance(groups, Tensor) or groups.dtype != torch.int64 or groups.dim() != 1 or len(groups) > 1000:
            raise FormatError(f"{path}: group_sizes should be a list of whole numbers.")
        options["prefix_widths"] = tuple(groups.cumsum(0).tolist())
    encoder = theirs.names["W_enc"]
    rows, columns = matrix_shape(path, given, encoder)
    return (options, columns, rows) if theirs.shapes[encoder] == "Fd" else (options, rows, columns)


def _in_our_form(theirs: _Class, tensors: Mapping[str, Tensor], n_latents: int) -> dict[str, Tensor]:
    ours = {mine: _turned(theirs, name, tensors[name], mine) for mine, name in theirs.names.items()}
    if theirs.architecture in ("batchtopk", "matryoshka"):
        ours["threshold"] = tensors["threshold"].expand(n_latents).clone()
    if not theirs.centred:
        ours["b_enc"] = centred_bias(ours["b_enc"], ours["b_dec"], ours["W_enc"])
    return ours


def _in_their_form(theirs: _Class, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {
        name: _turned(theirs, name, tensors[mine].detach().float().cpu(), mine) for mine, name in theirs.names.items()
    }
    if not theirs.centred:
        state[theirs.names["b_enc"]] = plain_bias(tensors["b_enc"], tensors["b_dec"], tensors["W_enc"])
    return state


def _turned(theirs: _Class, name: str, tensor: Tensor, mine: str) -> Tensor:
    """A matrix from their orientation to ours or back."""
    same = tensor.dim() < 2 or theirs.shapes[name] == {"W_enc": "dF", "W_dec": "Fd"}[mine]
    return tensor if same else tensor.T.contiguous()
