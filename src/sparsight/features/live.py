"""One's own text through the model and the SAE: which latents fire on which token, and how well each token is rebuilt.

    error = |x - x_hat| / |x| per token (of the target, for a transcoder): where it is high, the dictionary is blind

Texts are read alone, each in a row of its own. Special tokens are marked, since training masked them: what latents do there means
nothing.

For who waits in front of a page, a text is read in parts, the first of 32 tokens: what a token makes fire does not depend on what
follows it. The trade-off: each part's forward pass starts where the text starts, so that a fifth to nine tenths more tokens are read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.errors import SAEError, TextError
from sparsight.lm import LanguageModel, Piece, make_batches
from sparsight.sae import SparseAutoencoder

__all__ = ["LiveText", "check_sae_fits", "read_text", "read_text_in_parts", "read_texts"]

# Tokens of one forward pass, padding included, unless one text alone is longer.
BATCH_TOKENS = 4096
_FIRST_TOKENS, _GROWTH = 32, 4


@dataclass(frozen=True, kw_only=True)
class LiveText:
    """One text, token by token."""

    text: str
    """As it was given, the whole of it."""
    token_ids: Int[np.ndarray, " n"]
    """int32; of a part, its own."""
    special: Bool[np.ndarray, " n"]
    """The tokenizer's special tokens."""
    indices: Int[np.ndarray, "n m"]
    """Active latents of each token, strongest first; padding is 0 with value 0. m: the most that any token has."""
    values: Float[np.ndarray, "n m"]
    """Their activations."""
    error: Float[np.ndarray, " n"]
    """|x - x_hat| / |x|."""
    l0: Int[np.ndarray, " n"]
    """Active latents per token."""
    n_latents: int
    """Of the SAE."""

    def strongest(self) -> Float[np.ndarray, " latents"]:
        """Each latent's largest activation on the text, special tokens apart; 0 for those that never fire."""
        found = np.zeros(self.n_latents, np.float32)
        real = ~self.special
        np.maximum.at(found, self.indices[real].ravel(), self.values[real].ravel())
        return found


def read_text(
    sae: SparseAutoencoder, model: LanguageModel, text: str, *, hook_point: str, target_hook_point: str = ""
) -> LiveText:
    """What a text makes fire. Raises TextError when it has no tokens, SAEError when the SAE does not fit the hook point."""
    return read_texts(sae, model, [text], hook_point=hook_point, target_hook_point=target_hook_point)[0]


def read_text_in_parts(
    sae: SparseAutoencoder, model: LanguageModel, text: str, *, hook_point: str, target_hook_point: str = ""
) -> Iterator[LiveText]:
    """The same, some of its tokens at a time, the first soon. Raises as `read_text` does, before anything is read."""
    target = target_hook_point or hook_point
    whole = _piece(model, 0, text)
    check_sae_fits(sae, model, hook_point, target)
    start, n_tokens = 0, len(whole.token_ids)
    while start < n_tokens:
        end = start * _GROWTH or _FIRST_TOKENS
        end = end if 2 * n_tokens > 3 * end else n_tokens  # no small rest
        so_far = replace(whole, token_ids=whole.token_ids[:end])
        _, x, y = next(_activations(model, [so_far], hook_point, target))
        yield _live_text(sae, model, text, so_far.token_ids[start:], x[start:], y[start:])
        start = end


def read_texts(
    sae: SparseAutoencoder,
    model: LanguageModel,
    texts: Sequence[str],
    *,
    hook_point: str,
    target_hook_point: str = "",
) -> list[LiveText]:
    """The same for several texts, in their order, several to a forward pass."""
    target = target_hook_point or hook_point
    pieces = [_piece(model, row, text) for row, text in enumerate(texts)]
    check_sae_fits(sae, model, hook_point, target)
    found = {
        row: _live_text(sae, model, texts[row], pieces[row].token_ids, x, y)
        for row, x, y in _activations(model, pieces, hook_point, target)
    }
    return [found[row] for row in range(len(texts))]


def _activations(
    model: LanguageModel, pieces: Sequence[Piece], hook_point: str, target: str
) -> Iterator[tuple[int, Float[Tensor, "n d"], Float[Tensor, "n d_out"]]]:
    """Each piece's number and its activations at both hook points, several pieces to a forward pass."""
    longest = max((len(piece.token_ids) for piece in pieces), default=1)
    for batch in make_batches(
        pieces, batch_tokens=BATCH_TOKENS, pad_id=0, isolation="documents", context_tokens=longest, eos_id=0
    ):
        read = model.read(batch, list(dict.fromkeys((hook_point, target))))
        for row, number in enumerate(map(int, batch.piece_ids[:, 0])):
            n = len(pieces[number].token_ids)
            yield number, read[hook_point][row, :n], read[target][row, :n]


@torch.inference_mode()
def _live_text(
    sae: SparseAutoencoder,
    model: LanguageModel,
    text: str,
    token_ids: Int[np.ndarray, " n"],
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d_out"],
) -> LiveText:
    """What the SAE makes of a text's activations."""
    x, y = (side.to(sae.W_enc.device).float() for side in (x, y))
    latents = sae.encode_sparse(x)
    values, order = latents.values.sort(dim=1, descending=True)
    error = (y - sae.decode_sparse(latents)).norm(dim=-1) / y.norm(dim=-1).clamp_min(1e-12)
    return LiveText(
        text=text,
        token_ids=token_ids,
        special=np.isin(token_ids, list(model.special_ids)),
        indices=latents.indices.gather(1, order).int().cpu().numpy(),
        values=values.float().cpu().numpy(),
        error=error.cpu().numpy(),
        n_latents=sae.n_latents,
        l0=(values > 0).sum(1).int().cpu().numpy(),
    )


def check_sae_fits(sae: SparseAutoencoder, model: LanguageModel, hook_point: str, target_hook_point: str) -> None:
    """Raises SAEError when the SAE's widths are not those of the model's hook points, HookPointError for an unknown one."""
    for side, name, expected in (("d_in", hook_point, sae.d_in), ("d_out", target_hook_point, sae.d_out)):
        if model.width(name) != expected:
            raise SAEError(
                f"The model's `{name}` is {model.width(name)} wide; this SAE expects {side}={expected}. "
                "Give the model and hook point that it was trained on."
            )


def _piece(model: LanguageModel, row: int, text: str) -> Piece:
    token_ids = np.array(model.tokenizer(text)["input_ids"], np.int32)
    if not len(token_ids):
        raise TextError(f"The text {text!r} has no tokens. Give at least one word.")
    return Piece(document_id=row, row=row, piece=0, start=0, token_ids=token_ids, heldout=True)
