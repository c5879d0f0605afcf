"""Two plots as SVG, written by hand: a few kilobytes of text, no plotting library, the same bytes every time.

    density_svg    latents by how often they are active, the SAE as bars and its controls as outlines
    training_svg   FVU of each logged batch while training, and the held-out FVU it ended at

Both have a background of their own, so that a page in dark colours shows them as well.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from sparsight.metrics import DensityHistogram

__all__ = ["density_svg", "training_svg"]

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 52, 52
_BAR = "#4477aa"
_LINES = ("#cc6677", "#117733", "#aa7700", "#882255")  # told apart by people who do not see red and green


def density_svg(densities: Mapping[str, DensityHistogram], title: str) -> str:
    """`densities`: label -> histogram, the SAE first; all over the same bins."""
    (_, shown), *others = densities.items()
    edges = shown.log10_edges
    filled = [i for each in densities.values() for i, n in enumerate(each.n_latents) if n]
    low, high = (min(filled), max(filled)) if filled else (0, len(edges) - 2)
    most = max(1, *(max(each.n_latents) for each in densities.values()))
    x = _Scale(edges[low], edges[high + 1], _LEFT, _WIDTH - _RIGHT)
    y = _Scale(0, most, _HEIGHT - _BOTTOM, _TOP)
    parts = _frame(title, f"share of {shown.n_tokens:,} held-out tokens on which a latent is active", "latents")
    parts += [
        _tick_x(x(power), f"1e{power}") for power in range(math.ceil(edges[low]), math.floor(edges[high + 1]) + 1)
    ]
    parts += [_tick_y(y(value), f"{value:,g}") for value in _round_values(most)]
    for i in range(low, high + 1):
        left, right, top = x(edges[i]), x(edges[i + 1]), y(shown.n_latents[i])
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" height="{y(0) - top:.1f}" fill="{_BAR}"/>'
        )
    for colour, (_, each) in zip(_LINES, others, strict=False):
        corners = [(x(edges[i + side]), y(each.n_latents[i])) for i in range(low, high + 1) for side in (0, 1)]
        parts.append(_line(corners, colour))
    dead = [f"{name} ({each.n_dead:,} never)" for name, each in densities.items()]
    return _svg(title, [*parts, *_legend(dead, [_BAR, *_LINES])])


def training_svg(fvu_by_tokens: Sequence[tuple[float, float]], heldout: float | None, title: str) -> str:
    """`fvu_by_tokens`: (tokens trained on, FVU of that batch) in order; `heldout`: the finished SAE's."""
    values = [value for _, value in fvu_by_tokens] + ([] if heldout is None else [heldout])
    most_tokens = max(tokens for tokens, _ in fvu_by_tokens)
    x = _Scale(0, most_tokens, _LEFT, _WIDTH - _RIGHT)
    y = _Scale(0, max(*values, 1e-9), _HEIGHT - _BOTTOM, _TOP)
    parts = _frame(title, "tokens trained on", "FVU")
    parts += [_tick_x(x(value), _short(value)) for value in _round_values(most_tokens)]
    parts += [_tick_y(y(value), f"{value:g}") for value in _round_values(max(values))]
    parts.append(_line([(x(tokens), y(value)) for tokens, value in fvu_by_tokens], _BAR))
    labels = ["training batches"]
    if heldout is not None:
        parts.append(_line([(x(0), y(heldout)), (x(most_tokens), y(heldout))], _LINES[0], dashed=True))
        labels.append(f"held out, finished: {heldout:.3f}")
    return _svg(title, [*parts, *_legend(labels, [_BAR, *_LINES])])


class _Scale:
    """A linear map from values to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.per_unit = (end - start) / ((high - low) or 1)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.per_unit


def _round_values(most: float) -> list[float]:
    """0 and the multiples of a round step up to `most`, three to six of them."""
    step = 10 ** math.floor(math.log10(most)) if most > 0 else 1.0
    step = next(step * part for part in (0.2, 0.25, 0.5, 1, 2) if most / (step * part) < 6)
    return [round(i * step, 12) for i in range(int(most / step) + 1)]


def _short(tokens: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:g}{letter}"
    return f"{tokens:g}"


def _frame(title: str, x_label: str, y_label: str) -> list[str]:
    bottom, middle = _HEIGHT - _BOTTOM, (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="18" font-size="13" font-weight="bold">{escape(title)}</text>',
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}" fill="none" stroke="#333333"/>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(y_label)}</text>',
    ]


def _tick_x(at: float, label: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    return f'<path d="M{at:.1f} {bottom}v4" stroke="#333333"/><text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>'


def _tick_y(at: float, label: str) -> str:
    return f'<path d="M{_LEFT} {at:.1f}h-4" stroke="#333333"/><text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'


def _line(points: Iterable[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashes}/>'


def _legend(labels: Iterable[str], colours: Iterable[str]) -> list[str]:
    """In one row above the plot, where nothing is drawn."""
    parts, x = [], _LEFT
    for label, colour in zip(labels, colours, strict=False):
        parts.append(f'<rect x="{x}" y="27" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="36">{escape(label)}</text>')
        x += 28 + round(5.6 * len(label))
    return parts


def _svg(title: str, parts: Iterable[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="#222222" role="img">\n<title>{escape(title)}</title>\n{body}\n</svg>\n'
    )
