"""Chosen features -> one HTML file that opens from a disk, offline, anywhere.

Everything is written as text into the page, so it can be read, searched and printed without a script; a small one adds a filter and keys.
The page's own content security policy names that script and the style by their hashes: nothing else runs, whatever a token, a label or a
note holds. Active tokens have a background by strength, in tenths of the latent's maximum, and their value on hover.
"""

import base64
import hashlib
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsight.errors import RunError
from sparsight.features import (
    Context,
    FeatureIndex,
    Label,
    TokenWeights,
    quantile_contexts,
    random_contexts,
    top_contexts,
)

__all__ = ["MOST_EXPORTED", "features_html"]

MOST_EXPORTED = 2000
_LEVELS = 10
_TOP, _PER_BAND, _RANDOM = 8, 2, 4
_BAR_WIDTH, _BAR_HEIGHT = 8, 40

Words = Callable[[np.ndarray], list[str]]


def features_html(
    index: FeatureIndex,
    words: Words,
    latents: Sequence[int],
    *,
    title: str,
    labels: Mapping[int, Label],
    notes: Mapping[int, str],
) -> str:
    """The page. Raises RunError for no latents, more than MOST_EXPORTED, or one that is not there."""
    if not 0 < len(latents) <= MOST_EXPORTED:
        raise RunError(
            f"{len(latents):,} latents were asked for; a page holds 1 to {MOST_EXPORTED:,}. Choose some, or a list."
        )
    sections = [
        _section(index, words, latent, labels.get(latent), notes.get(latent, "")) for latent in dict.fromkeys(latents)
    ]
    name = html.escape(title)
    about = html.escape(
        f"{index.about['architecture']}, {index.n_latents:,} latents at {index.about['hook_point']}; "
        f"{index.n_tokens:,} held-out tokens of {len(np.unique(index.piece_documents)):,} documents."
    )
    policy = f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<header><h1>{name}</h1><p>{about} "
        "A coloured token is one on which the feature is active; hover for the value.</p>"
        '<label hidden>Filter <input type="search"></label></header>\n<main>\n'
        + "\n".join(sections)
        + f"\n</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(index: FeatureIndex, words: Words, latent: int, label: Label | None, note: str) -> str:
    tokens, _ = index.activations(latent)
    heading = f"Latent {latent}" + (f": {html.escape(label.text)}" if label else "")
    parts = [f'<section id="latent-{latent}" tabindex="-1"><h2>{heading}</h2>']
    if label is not None:
        parts.append(f'<p class="quiet">{html.escape(_score(label))}</p>')
    if note:
        parts.append(f'<p class="note">{html.escape(note)}</p>')
    parts.append(
        f"<p>Active on {len(tokens):,} of {index.n_tokens:,} tokens ({index.density[latent]:.3%}), in "
        f"{index.n_documents[latent]:,} documents; maximum {index.maximum[latent]:.3g}.</p>"
    )
    if len(tokens):
        parts.append(_histogram(index.histogram[latent]))
    if index.has_logits:
        parts += [
            _weights("Promotes", words, index.promoted(latent)),
            _weights("Suppresses", words, index.suppressed(latent)),
        ]
    if len(tokens):
        parts.append(_passages(index, words, latent))
    return "\n".join([*parts, "</section>"])


def _passages(index: FeatureIndex, words: Words, latent: int) -> str:
    strongest = float(index.maximum[latent])
    groups = [("Strongest, one a document", top_contexts(index, latent, _TOP))]
    groups += [
        (f"From {band.low:.3g} to {band.high:.3g} ({band.n_active:,} activations)", band.contexts)
        for band in reversed(quantile_contexts(index, latent, _PER_BAND))
    ]
    groups.append(("Drawn at random from all activations", random_contexts(index, latent, _RANDOM)))
    return "\n".join(
        f"<h3>{name}</h3>\n<ol>{''.join(_passage(words, context, strongest) for context in contexts)}</ol>"
        for name, contexts in groups
    )


def _passage(words: Words, context: Context, strongest: float) -> str:
    marked = []
    for word, value in zip(words(context.token_ids), context.values.tolist(), strict=True):
        text = html.escape(word)
        if value > 0:
            level = min(_LEVELS - 1, int(value / strongest * _LEVELS))
            text = f'<mark class="s{level}" title="{value:.3g}">{text}</mark>'
        marked.append(text)
    folded = f' <span class="quiet">(and {context.n_folded} alike)</span>' if context.n_folded else ""
    return f'<li><b>{context.value:.3g}</b><span class="text">{"".join(marked)}</span>{folded}</li>'


def _weights(name: str, words: Words, weights: TokenWeights) -> str:
    pairs = zip(words(weights.token_ids), weights.weights.tolist(), strict=True)
    return (
        f"<p>{name} " + " ".join(f"<code>{html.escape(word)}</code> {weight:+.2f}" for word, weight in pairs) + "</p>"
    )


def _histogram(counts: np.ndarray) -> str:
    """Bars of equal width from 0 to the maximum."""
    most, width = max(1, int(counts.max())), _BAR_WIDTH * len(counts)
    bars = [
        f'<rect x="{i * _BAR_WIDTH}" y="{_BAR_HEIGHT - height}" width="{_BAR_WIDTH - 1}" height="{height}"/>'
        for i, height in enumerate(-(-int(count) * _BAR_HEIGHT // most) for count in counts)
    ]
    return (
        f'<svg width="{width}" height="{_BAR_HEIGHT}" role="img" aria-label="Activations by strength, 0 to the maximum">'
        f"{''.join(bars)}</svg>"
    )


def _score(label: Label) -> str:
    if label.score is None:
        return f"label by {label.source}, not scored"
    interval = "" if label.low is None or label.high is None else f" [{label.low:.2f}, {label.high:.2f}]"
    control = "" if label.control is None else f"; with others' labels {label.control:.2f}"
    return f"label by {label.source}, balanced accuracy {label.score:.2f}{interval}{control}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shades() -> str:
    """One background a tenth, from pale to strong, dark text on all."""
    rows: list[Any] = [(255 - 2 * i, 244 - 13 * i, 214 - 19 * i) for i in range(_LEVELS)]
    return "".join(f"mark.s{i}{{background:rgb{row}}}" for i, row in enumerate(rows))


_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "section{border-top:1px solid #8886;padding:.5rem 0;outline:0}h2{margin:.5rem 0}h3{font-size:.9rem;margin:.8rem 0 .2rem}"
    "ol{list-style:none;margin:0;padding:0}li{display:flex;gap:.8rem;padding:.15rem 0}li b{min-width:3.5rem;text-align:right}"
    ".text{white-space:pre-wrap;overflow-wrap:anywhere}mark{color:#111;border-radius:2px}.quiet{opacity:.7}"
    ".note{border-left:3px solid #8888;padding-left:.8rem;white-space:pre-wrap}code{background:#8882;white-space:pre-wrap}"
    "svg{display:block;fill:#c60}" + _shades()
)
_SCRIPT = """
const sections = [...document.querySelectorAll("section")], field = document.querySelector("input");
field.parentElement.hidden = false;
field.addEventListener("input", () => {
  const words = field.value.toLowerCase().split(/\\s+/);
  for (const section of sections) {
    const text = section.textContent.toLowerCase();
    section.hidden = !words.every((word) => text.includes(word));
  }
});
document.addEventListener("keydown", (event) => {
  if (event.target === field || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); field.focus(); return; }
  const step = { j: 1, k: -1 }[event.key];
  if (!step) return;
  const shown = sections.filter((section) => !section.hidden);
  const at = shown.indexOf(document.activeElement);
  const next = shown[at < 0 ? 0 : Math.min(shown.length - 1, Math.max(0, at + step))];
  if (next) { next.focus(); next.scrollIntoView(); }
});
"""
