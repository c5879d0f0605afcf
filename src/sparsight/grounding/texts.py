"""Texts that a model writes, and what models make of them token by token: probabilities and activations.

Each text has draws of its own, made from (seed, its number): an edited model writes with the same luck as the plain one, and two texts of one
model do not share theirs. Edits reach every token but special ones, of the prompt too. Trade-off: prompts are batched by length only, so
prompts of many different lengths make small batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from sparsight.errors import MetricError
from sparsight.lm import Decoding, LanguageModel, Piece, Sampler, TokenBatch, make_batches
from sparsight.metrics import token_cross_entropy
from sparsight.sae import LatentEdit, SparseAutoencoder
from sparsight.steering import LatentEditor
from sparsight.steering.arms import editable

__all__ = ["WriteConfig", "Written", "mean_nll", "read_activations", "token_log2_p", "write_texts"]

# Texts of one seed are numbered below it.
_SEED_STEP = 2**32


@dataclass(frozen=True, kw_only=True)
class WriteConfig:
    """How texts are written."""

    max_new_tokens: int = 128
    """Tokens a text is given to go on for, at most; it ends at the model's end-of-sequence token."""
    temperature: float = 1.0
    """0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature)."""
    seed: int = 0
    """Of the draws."""
    batch_rows: int = 256
    """Texts written side by side."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or self.batch_rows < 1:
            raise MetricError(
                f"texts: max_new_tokens = {self.max_new_tokens}, temperature = {self.temperature}, batch_rows = {self.batch_rows}; "
                "expected at least 1, 0 and 1."
            )


@dataclass(frozen=True, kw_only=True)
class Written:
    """One text."""

    token_ids: Int[np.ndarray, " n"]
    """Prompt and what was written, without the token that ended it."""
    n_prompt: int
    """Tokens of the prompt."""
    ended: bool
    """Whether the model ended it; else it ran out of tokens."""


def write_texts(
    model: LanguageModel,
    prompts: Sequence[Int[np.ndarray, " n"]],
    config: WriteConfig,
    *,
    sae: SparseAutoencoder | None = None,
    edits: Sequence[LatentEdit] = (),
) -> list[Written]:
    """One text for each prompt, in their order. `edits` of the latents of `sae`, at its hook point.

    Raises MetricError for a prompt without tokens, or edits without an SAE.
    """
    if edits and sae is None:
        raise MetricError("Edits of latents need the SAE that they belong to.")
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    if not len(lengths) or lengths.min() < 1:
        raise MetricError("Texts need prompts of at least one token each.")
    written: dict[int, Written] = {}
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)
        for rows in np.split(alike, range(config.batch_rows, len(alike), config.batch_rows)):
            batch = torch.from_numpy(np.stack([np.asarray(prompts[row], np.int64) for row in rows]))
            written |= dict(zip(rows.tolist(), _continued(model, batch, rows, config, sae, edits), strict=True))
    return [written[number] for number in range(len(prompts))]


def token_log2_p(model: LanguageModel, texts: Sequence[Int[np.ndarray, " n"]]) -> list[Float[np.ndarray, " n"]]:
    """log2 p of each token after those before it; 0 for the first, which nothing predicts."""
    found = [np.zeros(len(text)) for text in texts]
    for batch in _batches(model, texts):
        logits = model.logits(batch)
        for row, number in enumerate(batch.piece_ids[:, 0].tolist()):
            n = len(texts[number])
            if n > 1:
                nats = token_cross_entropy(logits[row, : n - 1], batch.input_ids[row, 1:n].to(logits.device))
                found[number][1:] = -nats.double().cpu().numpy() / np.log(2)
    return found


def mean_nll(
    model: LanguageModel,
    texts: Sequence[Int[np.ndarray, " n"]],
    *,
    sae: SparseAutoencoder | None = None,
    edits: Sequence[LatentEdit] = (),
) -> float:
    """Nats a token over all texts, with the edits in place at every token but special ones."""
    total, n_tokens = 0.0, 0
    for batch in _batches(model, texts):
        hooks = {}
        if sae is not None and edits:
            editor = LatentEditor(sae, [edits] * len(batch.input_ids), hook_point=sae.cfg.hook_point)
            hooks = editor.hooks(editable(model, batch.input_ids) & batch.mask)
        logits = model.logits(batch, replace=hooks)
        wanted = batch.mask[:, 1:]
        targets = batch.input_ids[:, 1:][wanted].to(logits.device)
        total += float(token_cross_entropy(logits[:, :-1][wanted.to(logits.device)], targets).double().sum())
        n_tokens += int(wanted.sum())
    if not n_tokens:
        raise MetricError("No text has two tokens; its negative log-likelihood has no meaning.")
    return total / n_tokens


def read_activations(
    model: LanguageModel, texts: Sequence[Int[np.ndarray, " n"]], hook_point: str
) -> list[Float[np.ndarray, "n d"]]:
    """Activations of every token of every text, float32."""
    found: dict[int, np.ndarray] = {}
    for batch in _batches(model, texts):
        x = model.read(batch, [hook_point])[hook_point].float().cpu().numpy()
        for row, number in enumerate(batch.piece_ids[:, 0].tolist()):
            found[number] = x[row, : len(texts[number])]
    return [found[number] for number in range(len(texts))]


def _batches(model: LanguageModel, texts: Sequence[np.ndarray]) -> list[TokenBatch]:
    pieces = [Piece(row, row, 0, 0, np.asarray(ids, np.int32), True) for row, ids in enumerate(texts)]
    if not pieces or min(len(piece.token_ids) for piece in pieces) < 1:
        raise MetricError("A text without tokens cannot be read.")
    longest = max(len(piece.token_ids) for piece in pieces)
    options = {"isolation": "documents", "context_tokens": longest, "eos_id": model.eos_id}
    return make_batches(pieces, batch_tokens=max(8192, longest), pad_id=model.pad_id, **options)


def _continued(
    model: LanguageModel,
    fed: torch.Tensor,
    numbers: np.ndarray,
    config: WriteConfig,
    sae: SparseAutoencoder | None,
    edits: Sequence[LatentEdit],
) -> list[Written]:
    prompts, decoding = fed.numpy(), Decoding(model)
    samplers = [Sampler(config.temperature, config.seed * _SEED_STEP + int(number)) for number in numbers]
    editor = None if sae is None else LatentEditor(sae, [edits] * len(fed), hook_point=sae.cfg.hook_point)
    tokens: list[list[int]] = [[] for _ in samplers]
    running = set(range(len(samplers)))
    for _ in range(config.max_new_tokens):
        logits = decoding.feed(fed, replace={} if editor is None else editor.hooks(editable(model, fed)))
        chosen = torch.full((len(fed),), model.pad_id)
        for row in list(running):
            chosen[row] = samplers[row].choose(logits[row : row + 1])[0]
            if int(chosen[row]) in model.stop_ids:
                running.remove(row)
            else:
                tokens[row].append(int(chosen[row]))
        if not running:
            break
        fed = chosen[:, None]
    return [
        Written(
            token_ids=np.concatenate([prompt, np.array(new, np.int64)]), n_prompt=len(prompt), ended=row not in running
        )
        for row, (prompt, new) in enumerate(zip(prompts, tokens, strict=True))
    ]
