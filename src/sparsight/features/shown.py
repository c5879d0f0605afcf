"""Features, or one's own text, as a terminal shows them.

    show_overview   a sample of latents: the densest, the typical, the rare, each with its tokens and one passage
    show_latent     one latent: numbers, promoted and suppressed tokens, top, banded and random passages
    show_text       one's own texts: which latents fire on which token, how well each token is rebuilt, where texts differ

Active tokens have a coloured background by strength where `color` is set, else marks ⟦like this⟧. Tokens are made
printable first (see tokens.py), so no text can act on the terminal.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsight.features.annotations import Label
from sparsight.features.contexts import Context, quantile_contexts, random_contexts, top_contexts
from sparsight.features.index import FeatureIndex, TokenWeights
from sparsight.features.live import LiveText, read_texts
from sparsight.features.tokens import printable, readable_tokens
from sparsight.lm import LanguageModel
from sparsight.sae import SparseAutoencoder

__all__ = ["show_latent", "show_overview", "show_text"]

# Backgrounds of the 256-colour palette, weak to strong, under black text.
BACKGROUNDS = (230, 223, 216, 209, 203)
BLOCKS = " ▁▂▃▄▅▆▇█"
TOKEN_COLUMNS = 22
# A latent active once shows nothing about itself; the rare of the overview are active at least this often, if any is.
LEAST_ACTIVE = 5
# Of several texts.
COMPARED_LATENTS = 12


def show_overview(index: FeatureIndex, tokenizer: Any, *, n_each: int = 5, color: bool = False) -> str:
    """A sample of latents: n_each of the densest, of those about the median density, and of the rare."""
    active = np.diff(index.latent_offsets)
    alive = np.flatnonzero(active)
    lines = [
        f"{index.n_latents:,} latents at {index.about['hook_point']}, on {index.n_tokens:,} held-out tokens of "
        f"{len(np.unique(index.piece_documents)):,} documents; {index.n_latents - len(alive):,} never active.",
    ]
    for name, latents in _sample(active, alive, n_each):
        lines += ["", f"{name}:", "  latent   density     docs      max  promotes / strongest passage"]
        for latent in latents:
            lines += _overview_rows(index, tokenizer, int(latent), color)
    return "\n".join(lines) + "\n"


def show_latent(
    index: FeatureIndex,
    tokenizer: Any,
    latent: int,
    *,
    n_top: int = 8,
    n_band: int = 2,
    n_random: int = 4,
    labels: Sequence[Label] = (),
    note: str = "",
    color: bool = False,
) -> str:
    """One latent with its evidence, and what its notes say of it. Raises RunError when there is no such latent."""
    tokens, _ = index.activations(latent)
    lines = [
        f"Latent {latent} at {index.about['hook_point']}",
        *(printable(label.described()) for label in labels),
        *(printable(line) for line in note.splitlines()),
        f"active on {len(tokens):,} of {index.n_tokens:,} held-out tokens ({index.density[latent]:.3%}), in "
        f"{index.n_documents[latent]:,} documents",
    ]
    if not len(tokens):
        return "\n".join([*lines, "It was never active on these tokens, so there is nothing to show."]) + "\n"
    quantiles = zip(index.config["quantiles"], index.quantiles[latent], strict=True)
    lines += [
        f"when active: mean {index.mean[latent]:.3g}, "
        + ", ".join(f"p{q * 100:g} {value:.3g}" for q, value in quantiles),
        f"values 0 |{_sparkline(index.histogram[latent])}| {index.maximum[latent]:.3g}",
    ]
    if index.has_logits:
        lines += [
            "promotes:   " + _weights(tokenizer, index.promoted(latent)),
            "suppresses: " + _weights(tokenizer, index.suppressed(latent)),
        ]
    else:
        lines.append(f"promoted tokens were not stored: {index.about['why_no_logits']}")
    lines += [*_evidence(index, tokenizer, latent), _partner(index, latent)]
    strongest = float(index.maximum[latent])
    lines += ["", "Strongest, one a document:"]
    lines += [_passage(tokenizer, context, strongest, color) for context in top_contexts(index, latent, n_top)]
    for band in reversed(quantile_contexts(index, latent, n_band)):
        lines += ["", f"From {band.low:.3g} to {band.high:.3g} ({band.n_active:,} activations):"]
        lines += [_passage(tokenizer, context, strongest, color) for context in band.contexts]
    lines += ["", "Drawn at random from all activations:"]
    lines += [_passage(tokenizer, context, strongest, color) for context in random_contexts(index, latent, n_random)]
    return "\n".join(lines) + "\n"


def show_text(
    sae: SparseAutoencoder,
    model: LanguageModel,
    text: str | Sequence[str],
    *,
    hook_point: str,
    target_hook_point: str = "",
    index: FeatureIndex | None = None,
    per_token: int = 5,
    color: bool = False,
) -> str:
    """The latents that fire on each token of a text, strongest first; with `index` also a word each promotes.

    Several texts are shown one after the other, then the latents that differ most between them. Raises TextError when a text
    has no tokens, SAEError when the SAE does not fit the hook point.
    """
    texts = [text] if isinstance(text, str) else list(text)
    read = read_texts(sae, model, texts, hook_point=hook_point, target_hook_point=target_hook_point)
    blocks = []
    for number, live in enumerate(read, 1):
        head = [f"Text {number}: {_clip(printable(live.text), 100)}"] if len(read) > 1 else []
        blocks.append("\n".join([*head, *_text_rows(live, model, index, per_token, color)]) + "\n")
    if len(read) > 1:
        blocks.append(_compared(read, model, index))
    return "\n".join(blocks)


def _text_rows(
    live: LiveText, model: LanguageModel, index: FeatureIndex | None, per_token: int, color: bool
) -> list[str]:
    lines = ["token                     error   L0  latents: value, strongest first   (error = |x - x_hat| / |x|)"]
    for row, token in enumerate(readable_tokens(model.tokenizer, live.token_ids)):
        name = f"{_clip(token, TOKEN_COLUMNS):<{TOKEN_COLUMNS}}"
        if live.special[row]:
            lines.append(f"{name}  special token: training never saw one here")
            continue
        fired = [
            _fired(int(live.indices[row, i]), float(live.values[row, i]), index, model.tokenizer, color)
            for i in range(min(per_token, int(live.l0[row])))
        ]
        lines.append(f"{name}  {live.error[row]:>7.3f} {live.l0[row]:>4}  {'  '.join(fired)}")
    return lines


def _compared(read: Sequence[LiveText], model: LanguageModel, index: FeatureIndex | None) -> str:
    """Each text's means, and the latents whose strongest activations differ most between the texts."""
    lines = ["text   tokens  error   L0  (means, without special tokens)"]
    for number, live in enumerate(read, 1):
        real = ~live.special
        if real.any():
            lines.append(f"{number:>4}  {real.sum():>7} {live.error[real].mean():>6.3f} {live.l0[real].mean():>4.0f}")
    strongest = np.stack([live.strongest() for live in read])
    spread = strongest.max(0) - strongest.min(0)
    latents = np.argsort(-spread, kind="stable")[:COMPARED_LATENTS]
    numbered = "".join(f"{f'text {number}':>9}" for number in range(1, len(read) + 1))
    lines += ["", "Latents that differ most, by their strongest activation:", f"  latent  {numbered}"]
    for latent in map(int, latents[spread[latents] > 0]):
        values = "".join(f"{value:>9.3g}" for value in strongest[:, latent])
        promoted = index.promoted(latent).token_ids[:4] if index is not None and index.has_logits else []
        lines.append(f"{latent:>8}  {values}  {' '.join(_quoted(model.tokenizer, promoted))}".rstrip())
    return "\n".join(lines) + "\n"


def _evidence(index: FeatureIndex, tokenizer: Any, latent: int) -> list[str]:
    """Its tokens, what follows them, its neighbours and company: one line each, with what chance gives."""
    lift, near, company = index.lift(latent), index.neighbours(latent), index.coactive(latent)
    if lift is None or near is None or company is None:
        return ["tokens, neighbours and company were not counted: this index is of an earlier version"]
    number = {name: float(array[latent]) for name, array in index.arrays.items() if array.shape == (index.n_latents,)}
    token = _quoted(tokenizer, [int(number["top_token"])])[0]
    lines = [
        f"tokens: {number['token_purity']:.0%} on {token} (chance {number['chance_token_purity']:.0%}), entropy "
        f"{number['token_entropy']:.2f} bits (chance {number['chance_token_entropy']:.2f}), {_coherence(number)}position "
        f"{number['position_bits']:.2f} bits (chance {number['chance_position_bits']:.2f})",
    ]
    if len(lift.token_ids):
        chance = np.nan_to_num(number["chance_lift"])
        lines.append(f"likelier to follow: {_weights(tokenizer, lift)} bits (chance {chance:.2f})")
    if len(near[0]):
        pairs = "  ".join(f"{other} {cosine:.2f}" for other, cosine in zip(*near, strict=True))
        lines.append(f"nearest directions: {pairs} (chance {index.about['chance_cosine']['decoder']:.2f})")
    if len(company.latents):
        pairs = "  ".join(f"{other} {pmi:.1f}" for other, pmi in zip(company.latents, company.pmi, strict=True))
        cluster = f"; cluster {int(number['cluster'])}" if number["cluster"] >= 0 else ""
        lines.append(f"active together: {pairs} bits (chance {index.about['coactive']['chance_pmi']:.1f}){cluster}")
    if not np.isnan(number.get("output_score", np.nan)):
        chance = index.about["output_score"]["chance"]
        lines.append(f"output score {number['output_score']:.2f} (another latent's tokens {chance:.2f})")
    return lines


def _coherence(number: dict[str, float]) -> str:
    """How alike its different tokens are; indexes of an earlier version do not say."""
    if np.isnan(number.get("token_coherence", np.nan)):
        return ""
    return f"coherence {number['token_coherence']:.2f} (chance {number['chance_token_coherence']:.2f}), "


def _partner(index: FeatureIndex, latent: int) -> str:
    """What a second seed has that is like this latent."""
    found = index.partner(latent)
    if found is None:
        return "second seed: there was none to compare with, so it is not known whether another seed finds this feature"
    line = f"second seed: nearest direction cosine {found.cosine:.2f}, its latent {found.cosine_latent} (chance {found.chance_cosine:.2f})"
    if found.correlation is None:
        return line
    return f"{line}; most alike in activation r = {found.correlation:.2f}, its latent {found.correlation_latent}"


def _sample(active: np.ndarray, alive: np.ndarray, n: int) -> list[tuple[str, np.ndarray]]:
    """(name, latents) of the densest, the typical and the rare; each latent once."""
    often = alive[active[alive] >= LEAST_ACTIVE]
    ranked = often if len(often) >= n else alive
    ranked = ranked[np.argsort(-active[ranked], kind="stable")]
    middle = max(n, (len(ranked) - n) // 2)
    parts = [
        ("Densest", ranked[:n]),
        ("Typical", ranked[middle : middle + n]),
        ("Rare", ranked[max(middle + n, len(ranked) - n) :]),
    ]
    return [(name, latents) for name, latents in parts if len(latents)]


def _overview_rows(index: FeatureIndex, tokenizer: Any, latent: int, color: bool) -> list[str]:
    numbers = (
        f"{latent:>8}  {index.density[latent]:>8.3%} {index.n_documents[latent]:>8,} {index.maximum[latent]:>8.3g}"
    )
    passages = top_contexts(index, latent, 1, before=12, after=5)
    shown = [_passage(tokenizer, context, float(index.maximum[latent]), color).strip() for context in passages]
    if index.has_logits:
        promoted = " ".join(_quoted(tokenizer, index.promoted(latent).token_ids[:5]))
        return [f"{numbers}  {promoted}", *(" " * 38 + passage for passage in shown)]
    return [f"{numbers}  {passage}" for passage in shown]


def _passage(tokenizer: Any, context: Context, strongest: float, color: bool) -> str:
    """One line: the value, then the passage with its active tokens marked."""
    tokens = readable_tokens(tokenizer, context.token_ids)
    marked = "".join(
        _marked(token, float(value) / strongest, color) for token, value in zip(tokens, context.values, strict=True)
    )
    folded = f"  (and {context.n_folded} alike)" if context.n_folded else ""
    return f"  {context.value:>8.3g}  {marked}{folded}"


def _marked(token: str, strength: float, color: bool) -> str:
    if not strength > 0:
        return token
    if not color:
        return f"⟦{token}⟧"
    level = min(len(BACKGROUNDS) - 1, int(strength * len(BACKGROUNDS)))
    return f"\x1b[30;48;5;{BACKGROUNDS[level]}m{token}\x1b[0m"


def _fired(latent: int, value: float, index: FeatureIndex | None, tokenizer: Any, color: bool) -> str:
    name = f"\x1b[1m{latent}\x1b[0m" if color else str(latent)
    if index is None or not index.has_logits:
        return f"{name}: {value:.3g}"
    return f"{name}: {value:.3g} {_quoted(tokenizer, index.promoted(latent).token_ids[:1])[0]}"


def _weights(tokenizer: Any, weights: TokenWeights) -> str:
    pairs = zip(_quoted(tokenizer, weights.token_ids), weights.weights, strict=True)
    return "  ".join(f"{token} {weight:+.2f}" for token, weight in pairs)


def _quoted(tokenizer: Any, token_ids: Sequence[int] | np.ndarray) -> list[str]:
    return [f"'{token}'" for token in readable_tokens(tokenizer, token_ids)]


def _sparkline(counts: np.ndarray) -> str:
    most = max(1, int(counts.max()))
    return "".join(BLOCKS[-(-int(count) * (len(BLOCKS) - 1) // most)] for count in counts)


def _clip(token: str, width: int) -> str:
    return token if len(token) <= width else token[: width - 1] + "…"
