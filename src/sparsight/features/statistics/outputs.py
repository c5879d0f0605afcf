"""Does a latent do what its promoted tokens say? The output score: boost it, and see whether they are what rises.

    score = mean over prompts and promoted tokens t of P(logit of t rises more than that of a token drawn from the vocabulary)

The latent's direction, at 16 times its maximum, is added at both positions of a prompt of two tokens at the target hook point; logits are those
after the second, beside the same without the boost. 1: all its promoted tokens rise more than all others; 0.5: no relation, as for a latent that
acts through later layers or not at all; below: they fall. Prompts are the first tokens of four documents of the indexed text, the same for every
latent and chosen for none. The control is the same score by the promoted tokens of another latent.

So strong a boost asks what the direction does by itself: at its maximum the prompt decides, and scores by two prompts correlate by 0.1; at 16
times by 0.5 (docs/log.md). Steering, at strengths that leave text whole, is for `steer`.

Source: the output score of Arad et al. 2025, arXiv:2505.20063, which asks for rank and probability of the promoted tokens after a boost; this
one asks for ranks of differences, whose chance level is known.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.activations import PieceTable
from sparsight.lm import LanguageModel

__all__ = ["OUTPUT_TOKENS", "output_scores"]

_N_PROMPTS, _PROMPT_TOKENS = 4, 2
OUTPUT_TOKENS = _N_PROMPTS * _PROMPT_TOKENS
"""Tokens that the language model reads for one latent's score."""
_BOOST = 16.0
_ROWS = 256
# Tokens drawn from the vocabulary to rank against: a score's error from it is under 0.01, and all 49,152 took longer than the model.
_DRAWN_TOKENS = 2048


@torch.inference_mode()
def output_scores(
    model: LanguageModel,
    maxima: Float[Tensor, "latents d"],
    promoted: Int[np.ndarray, "latents n"],
    alive: Bool[np.ndarray, " latents"],
    pieces: PieceTable,
    *,
    target_hook_point: str,
    n_latents: int,
) -> tuple[Float[np.ndarray, " latents"], dict[str, Any]]:
    """The score of up to `n_latents` latents alive, evenly spaced, NaN for others; and `latents`, `prompts`, `mean`, `chance`.

    `maxima`: what each latent adds at most, in the target's units.
    """
    scores = np.full(len(alive), np.nan, np.float32)
    numbers, prompts = _spread(np.flatnonzero(alive), n_latents), _prompts(pieces)
    if not len(numbers) or not len(prompts):
        return scores, {"latents": 0, "prompts": len(prompts), "mean": None, "chance": None}
    drawn = torch.from_numpy(
        np.random.default_rng(0).choice(model.vocab_size, min(_DRAWN_TOKENS, model.vocab_size), replace=False)
    )
    own, others, neighbours = np.zeros(len(numbers)), np.zeros(len(numbers)), np.roll(numbers, 1)
    for prompt in prompts:
        ids = torch.from_numpy(prompt.astype(np.int64))
        clean = model.boosted_logits(ids, target_hook_point, torch.zeros_like(maxima[:1]))[0].float()
        for start in range(0, len(numbers), _ROWS):
            block = slice(start, min(start + _ROWS, len(numbers)))
            latents = numbers[block]
            logits = model.boosted_logits(ids, target_hook_point, _BOOST * maxima[latents])
            among = (logits[:, drawn].float() - clean[drawn]).sort(dim=1).values
            for sums, of_latents in ((own, latents), (others, neighbours[block])):
                tokens = torch.from_numpy(promoted[of_latents].astype(np.int64)).to(logits.device)
                rises = logits.gather(1, tokens).float() - clean[tokens]
                sums[block] += _ranks(rises, among).mean(1).cpu().numpy() / len(prompts)
    scores[numbers] = own
    about = {
        "latents": len(numbers),
        "prompts": len(prompts),
        "mean": float(own.mean()),
        "chance": float(others.mean()),
    }
    return scores, about


def _spread(numbers: Int[np.ndarray, " n"], most: int) -> Int[np.ndarray, " m"]:
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).astype(np.int64)] if most else numbers[:0]


def _prompts(pieces: PieceTable) -> list[Int[np.ndarray, " p"]]:
    """The first tokens of documents, evenly spaced."""
    long = np.flatnonzero((np.diff(pieces.offsets) >= _PROMPT_TOKENS) & (pieces.starts == 0))
    return [pieces.tokens(int(piece))[:_PROMPT_TOKENS] for piece in _spread(long, _N_PROMPTS)]


def _ranks(rises: Float[Tensor, "n t"], among: Float[Tensor, "n m"]) -> Float[Tensor, "n t"]:
    """Share of `among`, which ascends, that each rise exceeds, ties by half."""
    below = torch.searchsorted(among, rises) + torch.searchsorted(among, rises, right=True)
    return below / (2 * among.shape[1])
