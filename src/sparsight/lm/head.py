"""What a residual-stream vector writes to the vocabulary: the model's own final norm, head, and what its architecture does to logits after it."""

import copy
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsight.errors import ModelError
from sparsight.lm.hookpoint import find_trunk

__all__ = ["has_head", "unembed"]

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
_VOCAB_CHUNK = 16384


def has_head(module: PreTrainedModel) -> bool:
    """Whether it was loaded whole."""
    return module.get_output_embeddings() is not None


def unembed(module: PreTrainedModel, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
    """Logits of the vectors, float32, on the head's device.

    Raises ModelError when the vectors are not as wide as the residual stream, or the final norm is not found.
    """
    trunk = find_trunk(module).module
    norm = next((getattr(trunk, name) for name in _FINAL_NORMS if hasattr(trunk, name)), None)
    if norm is None:
        raise ModelError(
            f"{type(trunk).__name__} has no final norm under {', '.join(_FINAL_NORMS)}; unembed needs one."
        )
    head = cast(nn.Linear, module.get_output_embeddings())
    if directions.ndim != 2 or directions.shape[1] != head.weight.shape[1]:
        raise ModelError(f"unembed got shape {tuple(directions.shape)}. Expected [n, {head.weight.shape[1]}].")
    normed = copy.deepcopy(norm).float()(directions.to(head.weight.device, torch.float32))
    # In chunks: a float32 copy of the whole head is gigabytes.
    chunks = [normed @ weight.float().T for weight in head.weight.split(_VOCAB_CHUNK)]
    return _scaled(module, torch.cat(chunks, dim=1) + (0.0 if head.bias is None else head.bias.float()))


def _scaled(module: PreTrainedModel, logits: Tensor) -> Tensor:
    """What some architectures do after the head: Gemma caps, Cohere multiplies, Granite divides."""
    text_config = module.config.get_text_config()
    logits = logits * (getattr(text_config, "logit_scale", None) or 1.0)
    logits = logits / (getattr(text_config, "logits_scaling", None) or 1.0)
    cap = getattr(text_config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits
