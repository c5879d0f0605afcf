"""Only what is needed of a model, in memory: the text trunk up to a block, or the whole text model with its head.

The config is cut to the blocks wanted; Transformers builds that smaller model and fills it from a state dict of lazy
slices, so its own conversions, tied weights and rotary buffers apply, and no other tensor is read. Names are matched
by prefix: the trunk's keys are found in the checkpoint behind `model.`, `model.language_model.`, `transformer.` or
whatever stands before its embedding; vision, audio and multi-token-prediction tensors have other prefixes and drop
out. Verified bit for bit against the full model in the tests. A truncated model has no head: it reads activations, and
nothing else.
"""

import copy
import functools
import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sparsight.errors import ModelError
from sparsight.lm.checkpoint import Checkpoint, resolve_checkpoint
from sparsight.lm.config import ModelConfig
from sparsight.lm.hookpoint import HookPoint, find_trunk

__all__ = ["LoadedModel", "load_model"]

_LOG = logging.getLogger(__name__)
_OLD_HEADS = {"embed_out.weight"}  # GPT-NeoX on disk; Transformers renames it
_DELTA_NET_PACKAGES = {"fla": "flash-linear-attention", "causal_conv1d": "causal-conv1d"}

# oneDNN and torch keep 1,024 compiled products each, and batches of text differ in shape: 165 MB more after 4M tokens of a tiny model.
# 64 cost no time (docs/log.md). Both are read at the first product on the CPU.
_SHAPE_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A module on its device, in evaluation mode, with its tokenizer and where both came from."""

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    provenance: dict[str, Any]


def load_model(config: ModelConfig, hook_points: list[HookPoint] | None) -> LoadedModel:
    """Loads what reading `hook_points` takes; None is the whole text model. Raises ModelError or HookPointError."""
    device = choose_device(config.device)
    for name in _SHAPE_CACHES:
        os.environ.setdefault(name, "64")
    checkpoint = resolve_checkpoint(config)
    text_config = _text_config(checkpoint)
    n_total = text_config.num_hidden_layers
    n_layers = _layers_needed(hook_points, text_config)
    _cut(text_config, n_layers)
    _require_kernels(text_config, device)
    model_class = _model_class(checkpoint.id, text_config, with_head=hook_points is None)
    with torch.device("meta"):
        skeleton = model_class(text_config)  # no weights: its keys say what to look for
    names = _wanted_names(checkpoint, skeleton, n_layers)
    module = _materialise(checkpoint, model_class, text_config, names, config)
    provenance = {
        "id": config.id,
        **checkpoint.identity,
        "class": type(module).__name__,
        "dtype": config.dtype,
        "device": str(device),
        "attention": config.attention,
        "n_layers_total": n_total,
        "n_layers_loaded": n_layers,
        "n_tensors_loaded": len(names),
        "n_tensors_total": len(checkpoint.tensor_files),
        "transformers": transformers.__version__,
    }
    return LoadedModel(
        module=cast(PreTrainedModel, nn.Module.to(module, device)),
        tokenizer=checkpoint.tokenizer(),
        device=device,
        provenance=provenance,
    )


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA when there is a GPU, else the CPU with a warning. Raises ModelError for an absent device."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        _say_it_is_the_cpu()
        return torch.device("cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"model.device is {name!r} ({reason}). Expected auto, cpu, cuda or cuda:N.") from None


@functools.cache
def _say_it_is_the_cpu() -> None:
    """Once a process, however many models it loads."""
    _LOG.warning("No CUDA device: the language model runs on the CPU.")


def _text_config(checkpoint: Checkpoint) -> PreTrainedConfig:
    whole = checkpoint.transformers_config()
    if getattr(whole, "is_encoder_decoder", False):
        raise ModelError(
            f"{checkpoint.id} is an encoder-decoder ({whole.model_type}). Expected a decoder-only language model."
        )
    if getattr(whole, "quantization_config", None):
        raise ModelError(
            f"{checkpoint.id} is quantised. Give the unquantised model: quantised activations are other activations."
        )
    text = copy.deepcopy(whole.get_text_config())
    text.tie_word_embeddings = whole.tie_word_embeddings  # a wrapper's own word counts, not its text part's
    return text


def _layers_needed(hook_points: list[HookPoint] | None, config: PreTrainedConfig) -> int:
    """One past the deepest block read; all of them when a hook point lies outside the blocks.

    Also all where the last blocks share keys with earlier ones (Gemma 3n): there a block depends on how many there are.
    """
    n_total = config.num_hidden_layers
    for hook_point in hook_points or []:
        hook_point.check_layer(n_total)
    if hook_points is None or getattr(config, "num_kv_shared_layers", None):
        return n_total
    return max(n_total if point.layer is None else point.layer + 1 for point in hook_points)


def _cut(config: PreTrainedConfig, n_layers: int) -> None:
    """Keeps the first `n_layers` blocks, with every list of one entry a block (`layer_types` and its like)."""
    n_total = config.num_hidden_layers
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == n_total and not key.endswith(("token_id", "architectures")):
            setattr(config, key, value[:n_layers])
    config.num_hidden_layers = n_layers


def _require_kernels(config: PreTrainedConfig, device: torch.device) -> None:
    """On CUDA the reference Gated DeltaNet is many times slower than its kernels: an error, not a warning."""
    if device.type != "cuda" or "linear_attention" not in (getattr(config, "layer_types", None) or []):
        return
    missing = [package for module, package in _DELTA_NET_PACKAGES.items() if not _is_installed(module)]
    if missing:
        raise ModelError(
            f"{config.model_type} has Gated DeltaNet layers, whose CUDA kernels are not installed. "
            f"Run: pip install {' '.join(missing)}"
        )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _model_class(model_id: str, config: PreTrainedConfig, *, with_head: bool) -> type[PreTrainedModel]:
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING if with_head else MODEL_MAPPING
    if type(config) not in mapping:
        raise ModelError(
            f"{model_id} ({config.model_type}) is not a causal language model of the installed Transformers."
        )
    return cast(type[PreTrainedModel], mapping[type(config)])


def _wanted_names(checkpoint: Checkpoint, skeleton: PreTrainedModel, n_layers: int) -> dict[str, str]:
    """Tensor name in the checkpoint -> key in the model, for the trunk's first blocks and the head if there is one."""
    base = cast(PreTrainedModel, skeleton.base_model)
    inside = "" if base is skeleton else f"{skeleton.base_model_prefix}."
    prefix = _trunk_prefix(checkpoint, base)
    parts = {key.partition(".")[0] for key in base.state_dict()}
    heads = {key for key in skeleton.state_dict() if not key.startswith(inside)} | (_OLD_HEADS if inside else set())
    trunk = find_trunk(base)
    block = re.compile(re.escape(f"{trunk.path}.{trunk.block_list}".removeprefix(".")) + r"\.(\d+)\.")
    wanted = {}
    for name in checkpoint.tensor_files:
        key = name.removeprefix(prefix)
        match = block.match(key)
        if name.startswith(prefix) and key.partition(".")[0] in parts:
            if match is None or int(match[1]) < n_layers:
                wanted[name] = inside + key
        elif (tail := ".".join(name.split(".")[-2:])) in heads:
            wanted[name] = tail
    return wanted


def _trunk_prefix(checkpoint: Checkpoint, base: PreTrainedModel) -> str:
    """What stands before the trunk's keys in the checkpoint: the candidate behind which most of them are found."""
    keys = list(base.state_dict())
    embedding = next(key for key, value in base.named_parameters() if value is base.get_input_embeddings().weight)
    names = checkpoint.tensor_files
    candidates = [name.removesuffix(embedding) for name in names if f".{name}".endswith(f".{embedding}")]
    if not candidates:
        raise ModelError(f"{checkpoint.id} has no tensor {embedding}. Expected the weights of a {type(base).__name__}.")
    return max(candidates, key=lambda prefix: sum(prefix + key in names for key in keys))


def _materialise(
    checkpoint: Checkpoint,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    names: dict[str, str],
    settings: ModelConfig,
) -> PreTrainedModel:
    """Builds the model and fills it. Raises ModelError when a tensor is missing or has another shape."""
    state_dict = {names[name]: tensor for name, tensor in checkpoint.read(names).items()}
    from_pretrained: Any = model_class.from_pretrained  # what it returns depends on output_loading_info
    try:
        with _without_progress_bar():
            module, info = from_pretrained(
                None,
                config=config,
                state_dict=state_dict,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=settings.attention,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The weights of {checkpoint.id} do not load ({reason}).") from None
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(
            f"{checkpoint.id} lacks {len(info['missing_keys'])} tensors, among them {missing}. Fetch it again."
        )
    return module.eval().requires_grad_(False)


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()
