"""ModelGeometry: how large a language model is, block by block, without reading a weight.

The text model is built on the meta device from its config, so parameter counts are exact for every architecture that
Transformers knows, and hook points are checked before anything is fetched or loaded.

    FLOPs per token of a block = 2 * parameters of the matrices that a token passes through  +  attention
    attention                  = 4 * context * heads * head width             (scores, mixing; Kaplan 2020, 2001.08361)
    Gated DeltaNet instead     = 6 * value heads * key width * value width    (update, read; Yang 2024, 2412.06464)

Attention is taken over the whole context, the worst case of a causal mask. In a mixture of experts a token passes
num_experts_per_tok of num_experts. Norms, rotary embeddings and short convolutions are left out: under 1 %.

The config comes from the local folder, the .gguf, the Hub's cache, the table of well-known ids below, or the Hub, in
this order, so that planning for a well-known model needs no network; `source` says which.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
)
from transformers.pytorch_utils import Conv1D

from sparsight.errors import ModelError
from sparsight.lm.builtin import BUILTIN_MODELS
from sparsight.lm.config import ModelConfig
from sparsight.lm.gguf import converted_folder
from sparsight.lm.hookpoint import HookPoint, find_trunk

__all__ = ["ModelGeometry", "geometry_of", "read_geometry"]


def _smollm2_135m() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )


_TABLE: dict[str, Callable[[], PreTrainedConfig]] = {
    "smollm2-135m-instruct": _smollm2_135m,
    "huggingfacetb/smollm2-135m-instruct": _smollm2_135m,
    "qwen/qwen3.5-9b": Qwen3_5TextConfig,  # its defaults are the 9B's text model
    "qwen/qwen3.5-9b-base": Qwen3_5TextConfig,
}


@dataclass(frozen=True, kw_only=True)
class ModelGeometry:
    """Sizes of one text model, and of the part of it that its hook points need."""

    source: str
    """Where the config came from."""

    d_model: int
    """Width of the residual stream."""

    vocab_size: int
    """Rows of the output matrix: logits per token."""

    block_parameters: tuple[int, ...]
    """Of each decoder block, all of them."""

    block_flops: tuple[int, ...]
    """Matrix products of each block, per token, attention apart."""

    attention_flops: tuple[int, ...]
    """Attention of each block, per token and token of context; 0 for a recurrent block."""

    recurrence_flops: tuple[int, ...]
    """State of each recurrent block, per token."""

    widest: int
    """Widest activation inside a block, in numbers: a side of its largest matrices."""

    embedding_parameters: int
    """Of the token embedding."""

    other_parameters: int
    """Outside the blocks and the embedding: final norm, and the head unless it is tied to the embedding."""

    n_layers_read: int
    """Blocks up to the deepest hook point; all of them without one."""

    widths: dict[str, int]
    """Hook point -> width of its activation."""

    @property
    def n_layers(self) -> int:
        """Decoder blocks of the whole model."""
        return len(self.block_parameters)

    @property
    def parameters(self) -> int:
        """Of the whole text model."""
        return self.embedding_parameters + sum(self.block_parameters) + self.other_parameters

    @property
    def parameters_read(self) -> int:
        """Of the cut model: embedding and blocks up to the deepest hook point."""
        return self.embedding_parameters + sum(self.block_parameters[: self.n_layers_read])

    def forward_flops(self, context_tokens: int, *, whole: bool = False, given: str = "") -> float:
        """FLOPs per token of a forward pass: of the cut model, or of the whole one with its head; from `given` on, a hook point, where the pass can
        begin there."""
        some = slice(
            HookPoint.parse(given).first_needed if given else 0, self.n_layers if whole else self.n_layers_read
        )
        attention = context_tokens * sum(self.attention_flops[some]) + sum(self.recurrence_flops[some])
        head = 2 * self.d_model * self.vocab_size if whole else 0
        return float(sum(self.block_flops[some]) + attention + head)


def read_geometry(config: ModelConfig, hook_points: Sequence[str] = ()) -> ModelGeometry:
    """The geometry of the model that `config` names.

    Raises ModelError when its config cannot be had, HookPointError when the model has no such hook point.
    """
    model_config, source = _find_config(config)
    return geometry_of(model_config, hook_points, source=source)


def geometry_of(config: PreTrainedConfig, hook_points: Sequence[str] = (), *, source: str = "given") -> ModelGeometry:
    """The geometry of a Transformers config; built on the meta device, so without memory."""
    text = config.get_text_config()
    model = _skeleton(text)
    blocks = find_trunk(model).blocks
    points = [HookPoint.parse(name) for name in hook_points]
    modules = [point.resolve(model) for point in points]
    layers = [len(blocks) if point.layer is None else point.layer + 1 for point in points]
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    d_model, block_parameters = embedding.shape[1], tuple(_count(block) for block in blocks)
    recurrent = [kind == "linear_attention" for kind in getattr(text, "layer_types", None) or [""] * len(blocks)]
    heads = text.num_attention_heads
    attention = 4 * heads * (getattr(text, "head_dim", None) or d_model // heads)
    return ModelGeometry(
        source=source,
        d_model=d_model,
        vocab_size=text.vocab_size,
        block_parameters=block_parameters,
        block_flops=tuple(2 * _active_matrix_parameters(block, text) for block in blocks),
        attention_flops=tuple(0 if each else attention for each in recurrent),
        recurrence_flops=tuple(_recurrence(text) if each else 0 for each in recurrent),
        widest=max(max(p.shape[-2:]) for block in blocks for p in block.parameters() if p.ndim >= 2),
        embedding_parameters=embedding.numel(),
        other_parameters=_count(model) - sum(block_parameters) - embedding.numel(),
        n_layers_read=max(layers, default=len(blocks)),
        widths={p.name: _width(m, p, d_model) for p, m in zip(points, modules, strict=True)},
    )


def _find_config(config: ModelConfig) -> tuple[PreTrainedConfig, str]:
    path = Path(config.id).expanduser()
    builtin = BUILTIN_MODELS.get(config.id)
    if builtin and converted_folder(builtin.sha256).is_dir():
        path = converted_folder(builtin.sha256)
    try:
        if path.is_dir():
            return AutoConfig.from_pretrained(path, trust_remote_code=False), "the model's config"
        if path.suffix == ".gguf":
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name), "the GGUF's header"
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _no_config(config, error) from None
    known = _TABLE.get(config.id.lower())
    try:
        return _hub_config(config, local_files_only=True), "the model's config"
    except (OSError, ValueError, KeyError):
        if known:
            return known(), "the built-in table of well-known models"
    try:
        return _hub_config(config, local_files_only=False), "the model's config"
    except (OSError, ValueError, KeyError) as error:
        raise _no_config(config, error) from None


def _hub_config(config: ModelConfig, *, local_files_only: bool) -> PreTrainedConfig:
    arguments = {"local_files_only": local_files_only, "trust_remote_code": False}
    return AutoConfig.from_pretrained(config.id, revision=config.revision, **arguments)


def _no_config(config: ModelConfig, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ModelError(
        f"Model {config.id!r} cannot be planned for: its config cannot be read ({reason}). "
        "Check the spelling and the network, or give a local folder."
    )


def _skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{config.model_type} is not a causal language model of the installed Transformers.")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _active_matrix_parameters(block: nn.Module, config: PreTrainedConfig) -> int:
    """Parameters of a block's matrices that one token is multiplied by."""
    n_experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 1
    share = (getattr(config, "num_experts_per_tok", None) or n_experts) / n_experts
    total = 0.0
    for name, parameter in block.named_parameters():
        if parameter.ndim >= 2:
            total += parameter.numel() * (share if ".experts." in f".{name}" else 1.0)
    return round(total)


def _recurrence(config: PreTrainedConfig) -> int:
    sides = ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
    heads, key, value = (getattr(config, name, 0) for name in sides)
    return 6 * heads * key * value


def _width(module: nn.Module, point: HookPoint, d_model: int) -> int:
    """A matrix says its own widths; blocks, attention, MLPs and norms take and give the residual stream's."""
    if isinstance(module, nn.Linear):
        return module.in_features if point.reads_input else module.out_features
    if isinstance(module, Conv1D):  # GPT-2's matrices, [in, out]
        return module.weight.shape[0 if point.reads_input else 1]
    return d_model
