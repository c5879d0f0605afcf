"""Where a latent is active, as passages of text: the strongest, some of each strength, and a random sample.

    top       the strongest activation of each document, strongest first; those alike about the peak are folded
    quantiles four bands of equally many activations, weakest first; random ones of each, distinct documents, folded
    random    drawn uniformly from all activations, as they come: what the latent does most of the time

The strongest passages alone make almost any latent look clear; the bands and the random sample show the rest.
Sampling is seeded by (seed, latent), so a page shows the same passages each time.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.features.index import FeatureIndex

__all__ = ["Band", "Context", "quantile_contexts", "random_contexts", "top_contexts"]

N_BANDS = 4
TOKENS_BEFORE = 20
TOKENS_AFTER = 10
# Passages that agree on these tokens about the peak are alike: boilerplate often differs only where a piece ends.
ALIKE_BEFORE, ALIKE_AFTER = 6, 2


@dataclass(frozen=True, kw_only=True)
class Context:
    """A passage around one activation."""

    token_ids: Int[np.ndarray, " w"]
    """The passage, within one piece of one document."""
    values: Float[np.ndarray, " w"]
    """The latent's activation on each token; 0 where it is not active."""
    measured: Bool[np.ndarray, " w"]
    """False on tokens that were masked at collection, whose value is unknown."""
    peak: int
    """Which token of the passage the activation asked for is on."""
    document_id: int
    """Hash of the document's text."""
    position: int
    """Offset of the passage's first token in the document."""
    n_folded: int = 0
    """Passages of other documents with the same tokens about the peak, passed over on the way."""

    @property
    def value(self) -> float:
        """The activation asked for."""
        return float(self.values[self.peak])


@dataclass(frozen=True, kw_only=True)
class Band:
    """Passages of similar strength."""

    low: float
    """Weakest activation of the band."""
    high: float
    """Strongest activation of the band."""
    n_active: int
    """Activations in the band."""
    contexts: list[Context]


def top_contexts(
    index: FeatureIndex, latent: int, n: int = 10, *, before: int = TOKENS_BEFORE, after: int = TOKENS_AFTER
) -> list[Context]:
    """The strongest activations, one a document; ties go to the earlier token."""
    tokens, values = index.activations(latent)
    order = np.argsort(-values, kind="stable")
    return _distinct(index, latent, tokens[order], n, before, after)


def quantile_contexts(
    index: FeatureIndex,
    latent: int,
    n: int = 3,
    *,
    seed: int = 0,
    before: int = TOKENS_BEFORE,
    after: int = TOKENS_AFTER,
) -> list[Band]:
    """Four bands by strength, weakest first, with n random passages each; empty bands are left out."""
    tokens, values = index.activations(latent)
    rng = np.random.default_rng((seed, latent))
    bands = []
    for members in np.array_split(np.argsort(values, kind="stable"), N_BANDS):
        if len(members):
            contexts = _distinct(index, latent, tokens[rng.permutation(members)], n, before, after)
            strengths = values[members]
            bands.append(
                Band(low=float(strengths[0]), high=float(strengths[-1]), n_active=len(members), contexts=contexts)
            )
    return bands


def random_contexts(
    index: FeatureIndex,
    latent: int,
    n: int = 5,
    *,
    seed: int = 0,
    before: int = TOKENS_BEFORE,
    after: int = TOKENS_AFTER,
) -> list[Context]:
    """n activations drawn uniformly without replacement; all of them when there are fewer."""
    tokens, _ = index.activations(latent)
    rng = np.random.default_rng((seed, latent))
    chosen = rng.choice(len(tokens), size=min(n, len(tokens)), replace=False)
    return [_context(index, latent, int(tokens[i]), before, after) for i in chosen]


def _distinct(
    index: FeatureIndex, latent: int, tokens: Int[np.ndarray, " n"], n: int, before: int, after: int
) -> list[Context]:
    """The first n passages of distinct documents that are not alike, in the order given."""
    _, first = np.unique(index.documents_of(tokens), return_index=True)
    found: dict[tuple[int, ...], Context] = {}
    for token in _ints(tokens[np.sort(first)]):
        if len(found) == n:
            break
        context = _context(index, latent, token, before, after)
        core = context.token_ids[max(0, context.peak - ALIKE_BEFORE) : context.peak + ALIKE_AFTER + 1]
        key = tuple(_ints(core))
        same = found.get(key)
        found[key] = context if same is None else replace(same, n_folded=same.n_folded + 1)
    return list(found.values())


def _context(index: FeatureIndex, latent: int, token: int, before: int, after: int) -> Context:
    piece = int(index.pieces_of(np.array([token]))[0])
    start = max(int(index.piece_offsets[piece]), token - before)
    end = min(int(index.piece_offsets[piece + 1]), token + after + 1)
    tokens, values = index.activations(latent)
    lo, hi = np.searchsorted(tokens, (start, end))
    shown = np.zeros(end - start, np.float32)
    shown[tokens[lo:hi] - start] = values[lo:hi]
    return Context(
        token_ids=np.asarray(index.piece_tokens[start:end]),
        values=shown,
        measured=np.asarray(index.measured[start:end]),
        peak=token - start,
        document_id=int(index.piece_documents[piece]),
        position=int(index.piece_starts[piece]) + start - int(index.piece_offsets[piece]),
    )


def _ints(array: Int[np.ndarray, " n"]) -> Iterable[int]:
    return (int(item) for item in array)
