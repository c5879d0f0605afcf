"""Ten features at random and ten by a rule: what a card shows of a dictionary, and why these.

    random   drawn from all latents by a fixed seed, dead ones included: what the dictionary is like
    chosen   the largest mean of the values when active, of those active in at least 20 held-out documents and on at most 1 % of tokens; fewer
             when fewer qualify

The rule is a number, not a person's taste; choosing by it flatters the dictionary all the same, and the card says so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsight.features import Context, FeatureIndex, random_contexts, readable_tokens, top_contexts
from sparsight.publication.markdown import fenced

__all__ = ["Featured", "choose_latents", "feature_lines"]

N_EACH = 10
_LEAST_DOCUMENTS, _HIGHEST_DENSITY = 20, 0.01
_BEFORE, _AFTER, _TOP, _RANDOM = 14, 6, 2, 1
_PROMOTED = 6


@dataclass(frozen=True, kw_only=True)
class Featured:
    """Latents under a heading, and the rule that picked them."""

    title: str
    rule: str
    latents: tuple[int, ...]


def choose_latents(index: FeatureIndex, seed: int = 0) -> tuple[Featured, Featured]:
    """The two samples."""
    drawn = np.random.default_rng(seed).choice(index.n_latents, size=min(N_EACH, index.n_latents), replace=False)
    of_all = f"drawn from all {index.n_latents:,} latents by seed {seed}, dead ones included"
    eligible = np.flatnonzero((index.n_documents >= _LEAST_DOCUMENTS) & (index.density <= _HIGHEST_DENSITY))
    among = f"of the {len(eligible):,} active in at least {_LEAST_DOCUMENTS} held-out documents and on at most {_HIGHEST_DENSITY:.0%} of tokens"
    rule = f"{among}, those with the largest mean value when active"
    chosen = eligible[np.argsort(-index.mean[eligible], kind="stable")[:N_EACH]]
    return (
        Featured(title="Ten at random", rule=of_all, latents=tuple(int(latent) for latent in drawn)),
        Featured(title="Ten chosen", rule=rule, latents=tuple(int(latent) for latent in chosen)),
    )


def feature_lines(
    index: FeatureIndex, tokenizer: Any, latent: int, *, with_contexts: bool
) -> tuple[list[str], int, int]:
    """One latent as Markdown; how many passages and how many tokens of text it quotes."""
    tokens, _ = index.activations(latent)
    head = f"**Latent {latent}**: "
    if not len(tokens):
        return [head + f"never active on {index.n_tokens:,} held-out tokens.", ""], 0, 0
    head += f"active on {index.density[latent]:.3%} of tokens, in {index.n_documents[latent]:,} documents; maximum {index.maximum[latent]:.3g}"
    body, n_passages, n_tokens = [], 0, 0
    if index.has_logits:
        for name, weights in (("promotes", index.promoted(latent)), ("suppresses", index.suppressed(latent))):
            words = readable_tokens(tokenizer, weights.token_ids[:_PROMOTED])
            body.append(
                f"{name:<10}  "
                + "  ".join(f"'{word}' {weight:+.2f}" for word, weight in zip(words, weights.weights, strict=False))
            )
    if with_contexts:
        window = {"before": _BEFORE, "after": _AFTER}
        for name, contexts in (
            ("strongest", top_contexts(index, latent, _TOP, **window)),
            ("random", random_contexts(index, latent, _RANDOM, **window)),
        ):
            body += [f"{name:<10} {_passage(tokenizer, context)}" for context in contexts]
            n_passages += len(contexts)
            n_tokens += sum(len(context.token_ids) for context in contexts)
    return [head, "", *(fenced(body) if body else []), ""], n_passages, n_tokens


def _passage(tokenizer: Any, context: Context) -> str:
    """The value, then the passage with its active tokens marked."""
    tokens = readable_tokens(tokenizer, context.token_ids)
    marked = (f"⟦{token}⟧" if value > 0 else token for token, value in zip(tokens, context.values, strict=True))
    return f"{context.value:>8.3g}  {''.join(marked)}"
