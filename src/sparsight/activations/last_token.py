"""The activation at the last token of each prompt: what a probe reads."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.artifact import give_back_memory
from sparsight.errors import ActivationError
from sparsight.lm import LanguageModel, Piece, make_batches

__all__ = ["last_token_activations"]


def last_token_activations(
    model: LanguageModel, prompts: Sequence[Piece], hook_points: Sequence[str], *, batch_tokens: int
) -> dict[str, Float[Tensor, "n d"]]:
    """Hook point -> the activations at the prompts' last tokens, in the prompts' order, on the CPU in the model's dtype.

    Each prompt runs in a row of its own, `batch_tokens` to a forward, padding included. Nothing is masked: a last token that is special or
    a sink is read like any other. Raises ActivationError on NaN or infinity.
    """
    options = {"isolation": "documents", "context_tokens": 0, "eos_id": model.eos_id}
    found = {name: torch.empty(len(prompts), model.width(name), dtype=model.dtype) for name in hook_points}
    for batch in make_batches(prompts, batch_tokens=batch_tokens, pad_id=model.pad_id, **options):
        last = batch.mask.sum(1) - 1
        rows = torch.arange(len(last))
        for name, activations in model.read(batch, hook_points).items():
            ends = activations[rows.to(activations.device), last.to(activations.device)].cpu()
            if not bool(torch.isfinite(ends).all()):
                raise ActivationError(
                    f"`{name}` is not finite at the last token of a prompt. Try model.dtype = float32."
                )
            found[name][batch.piece_ids[:, 0].long()] = ends
        give_back_memory()
    return found
