"""The plot of a PowerTable, as SVG: a column for each number of seeds, a line for each training length, intervals as bars.

Above recall against firing rate, below recall of the rarest against held-out tokens. Drawn by hand, like the package's own plots: the same bytes
every time, and a background of its own for pages in dark colours.
"""

from collections.abc import Callable, Iterator, Sequence
from math import log10

from sparsight.diff import PowerTable, Recall

_COLOURS = ("#ee9933", "#cc3377", "#3377bb", "#222255")  # told apart without red and green, dark on white
_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP, _ROW = 60, 62, 200, 170, 22, 236
_SHIFT = 2.5  # pixels between the bars of two lines


def power_svg(table: PowerTable, *, heldout_tokens: int) -> str:
    """`heldout_tokens`: of the upper row."""
    width, height = _LEFT + 3 * _WIDTH + 2 * _GAP + 20, _TOP + _ROW + _HEIGHT + 48
    parts = [f'<rect width="{width}" height="{height}" fill="#ffffff"/>']
    parts += [_text(_LEFT, 20, "Recall of planted changes", size=14, weight="bold"), *_legend(table)]
    rarest = table.rates[0]
    for column, seeds in enumerate(table.seeds):
        left = _LEFT + column * (_WIDTH + _GAP)

        def by_rate(train: int, rate: float, seeds: int = seeds) -> Recall | None:
            return table.recall(rate, seeds=seeds, train_tokens=train, heldout_tokens=heldout_tokens)

        def by_heldout(train: int, heldout: float, seeds: int = seeds) -> Recall | None:
            return table.recall(rarest, seeds=seeds, train_tokens=train, heldout_tokens=int(heldout))

        name = f"{seeds} seeds a model"
        above = f"firing rate ({heldout_tokens:,} held-out tokens)" if column == 1 else ""
        parts += _panel(left, _TOP, name, table.rates, lambda x: f"{100 * x:g} %", above, table, by_rate)
        below = f"held-out tokens (changes at {100 * rarest:g} %)" if column == 1 else ""
        parts += _panel(left, _TOP + _ROW, "", table.heldout_tokens, _short, below, table, by_heldout)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="#222222" role="img">\n<title>Recall of planted changes by firing rate, seeds and '
        f"tokens</title>\n{body}\n</svg>\n"
    )


def _panel(
    left: int,
    top: int,
    title: str,
    xs: Sequence[float],
    label: Callable[[float], str],
    x_name: str,
    table: PowerTable,
    recall: Callable[[int, float], Recall | None],
) -> Iterator[str]:
    """One frame with its ticks, and a line for each training length."""
    first, last = log10(xs[0]), log10(xs[-1])
    bottom, inner = top + _HEIGHT, _WIDTH - 24

    def x_of(x: float) -> float:
        return left + 12 + inner * (log10(x) - first) / (last - first)

    def y_of(share: float) -> float:
        return bottom - _HEIGHT * share

    yield _text(left + _WIDTH / 2, top - 6, title, anchor="middle", weight="bold")
    for share in (0, 0.25, 0.5, 0.75, 1):
        yield f'<path d="M{left} {y_of(share):.1f}h{_WIDTH}" stroke="#dddddd"/>'
        if left == _LEFT:
            yield _text(left - 6, y_of(share) + 4, f"{share:g}", anchor="end")
    if left == _LEFT:
        middle = (top + bottom) / 2
        yield f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">recall</text>'
    yield f'<path d="M{left} {top}V{bottom}h{_WIDTH}" fill="none" stroke="#333333"/>'
    for x in xs:
        yield f'<path d="M{x_of(x):.1f} {bottom}v4" stroke="#333333"/>'
        yield _text(x_of(x), bottom + 16, label(x), anchor="middle")
    yield _text(left + _WIDTH / 2, bottom + 34, x_name, anchor="middle")
    for number, (train, colour) in enumerate(zip(table.train_tokens, _COLOURS, strict=True)):
        shift = (number - 1.5) * _SHIFT
        found = [(x_of(x) + shift, each) for x in xs if (each := recall(train, x)) is not None]
        line = " ".join(f"{x:.1f},{y_of(each.value):.1f}" for x, each in found)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        bars = "".join(f"M{x:.1f} {y_of(each.low):.1f}V{y_of(each.high):.1f}" for x, each in found)
        yield f'<path d="{bars}" stroke="{colour}" stroke-opacity="0.6"/>'
        for x, each in found:
            yield f'<circle cx="{x:.1f}" cy="{y_of(each.value):.1f}" r="2.5" fill="{colour}"/>'


def _legend(table: PowerTable) -> Iterator[str]:
    x = _LEFT + 210
    yield _text(x, 20, "training tokens:")
    for train, colour in zip(table.train_tokens, _COLOURS, strict=True):
        x += 92
        yield f'<circle cx="{x}" cy="16" r="4" fill="{colour}"/>'
        yield _text(x + 9, 20, _short(train))


def _short(tokens: float) -> str:
    return f"{tokens / 1e6:.3g}M" if tokens >= 1e6 else f"{tokens / 1e3:.3g}k"


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, weight: str = "normal") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">{text}</text>'
