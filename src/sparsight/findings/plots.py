"""The page's two plots, as SVG: E against q, and closure against the number of latents. Drawn by hand: no script, no font, no file besides."""

from collections.abc import Sequence
from html import escape
from math import log10
from typing import Any

__all__ = ["closure_svg", "volcano_svg"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 640, 320, 52, 40, 12, 120
_COLOURS = {
    "emergent": "#d9480f",
    "rotated": "#7048e8",
    "reweighted": "#1971c2",
    "shared": "#adb5bd",
    "undetermined": "#dee2e6",
}
_CURVES = {"top": "#d9480f", "random": "#868e96", "bottom": "#ced4da"}


def volcano_svg(points: Sequence[tuple[int, float, float, str, int]], least_q: float) -> str:
    """Latents tested for their direction: E to the right, q upwards; a line at `least_q`."""
    if not points:
        return "<p>No latent could be tested.</p>"
    xs, ys = [float(point[1]) for point in points], [-log10(max(float(point[2]), 1e-6)) for point in points]
    x_of, y_of = _scale(min(*xs, -0.1), max(*xs, 0.1), *_across()), _scale(0, max(*ys, 2.0), *_up())
    order = sorted(range(len(points)), key=lambda i: points[i][3] not in ("shared", "undetermined"))
    dots = "".join(
        f'<circle cx="{x_of(xs[i]):.1f}" cy="{y_of(ys[i]):.1f}" r="3" fill="{_COLOURS[points[i][3]]}">'
        f"<title>latent {points[i][0]}: E {xs[i]:.3f}, q {points[i][2]:.3g}, {points[i][3]}, {points[i][4]} firings</title></circle>"
        for i in order
    )
    limit = y_of(-log10(least_q))
    line = f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{limit:.1f}" y2="{limit:.1f}" class="limit"/>'
    named = [name for name in _COLOURS if any(point[3] == name for point in points)]
    axes = _axes(
        x_of,
        y_of,
        _ticks(min(*xs, -0.1), max(*xs, 0.1)),
        [0, 1, 2],
        "E: match in its own model's seeds minus match in the base's",
        "-log10 q",
    )
    return _svg(
        "Each latent's emergence E against its false-discovery rate q",
        axes + line + dots + _legend([(name, _COLOURS[name]) for name in named]),
    )


def closure_svg(rows: Sequence[dict[str, Any]]) -> str:
    """Closure of the top, random and bottom sets by size, between the closure of nothing and the ceiling; "" where there are no such sets."""
    sized = [row for row in rows if row["name"] in _CURVES and row["closure"]["value"] is not None]
    if not sized:
        return ""
    sizes = sorted({row["n_latents"] for row in sized})
    flat = {
        row["name"]: row["closure"]["value"] for row in rows if row["name"] in ("nothing", "ceiling", "all", "error")
    }
    values = [
        row["closure"][key] for row in sized for key in ("value", "low", "high") if row["closure"][key] is not None
    ]
    values += [value for value in flat.values() if value is not None]
    x_of = _scale(log10(sizes[0]), max(log10(sizes[-1]), log10(sizes[0]) + 0.1), *_across())
    y_of = _scale(min(0.0, *values), max(1.0, *values), *_up())
    parts = []
    for name, value in flat.items():
        if value is not None:
            y = y_of(value)
            parts.append(
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="limit"/>'
                f'<text x="{_WIDTH - _RIGHT + 6}" y="{y + 4:.1f}">{escape(name)}</text>'
            )
    for name, colour in _CURVES.items():
        curve = [(x_of(log10(row["n_latents"])), row["closure"]) for row in sized if row["name"] == name]
        path = " ".join(f"{x:.1f},{y_of(each['value']):.1f}" for x, each in curve)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, each in curve:
            if each["low"] is not None:
                parts.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_of(each["low"]):.1f}" y2="{y_of(each["high"]):.1f}" stroke="{colour}"/>'
                )
    x_ticks = [(x_of(log10(size)), f"{size:,}") for size in sizes]
    y_ticks = [(y_of(value), f"{value:.1f}") for value in (0.0, 0.5, 1.0)]
    body = _frame(x_ticks, y_ticks, "latents put in", "closure") + "".join(parts)
    return _svg("Closure against the number of latents", body + _legend(list(_CURVES.items()), top=150))


def _across() -> tuple[float, float]:
    return _LEFT, _WIDTH - _RIGHT


def _up() -> tuple[float, float]:
    return _HEIGHT - _BOTTOM, _TOP


def _scale(low: float, high: float, start: float, end: float):
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    step = 0.1 if high - low < 1 else 0.25 if high - low < 2 else 0.5
    return [round(step * i, 2) for i in range(int(low / step), int(high / step) + 1)]


def _axes(x_of: Any, y_of: Any, xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str) -> str:
    return _frame([(x_of(x), f"{x:g}") for x in xs], [(y_of(y), f"{y:g}") for y in ys], x_name, y_name)


def _frame(x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_name: str, y_name: str) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" class="axis"/>']
    parts += [f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(name)}</text>' for x, name in x_ticks]
    parts += [f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>' for y, name in y_ticks]
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(
        f'<text x="12" y="{(_TOP + bottom) / 2}" text-anchor="middle" transform="rotate(-90 12 {(_TOP + bottom) / 2})">{escape(y_name)}</text>'
    )
    return "".join(parts)


def _legend(names: Sequence[tuple[str, str]], top: int = 24) -> str:
    x = _WIDTH - _RIGHT + 10
    return "".join(
        f'<circle cx="{x}" cy="{top + 18 * i}" r="4" fill="{colour}"/><text x="{x + 10}" y="{top + 4 + 18 * i}">{escape(name)}</text>'
        for i, (name, colour) in enumerate(names)
    )


def _svg(label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'
