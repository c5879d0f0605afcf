"""Repeats into medians with their spread, ratios, FVU at a given L0, and the markdown table. Standard library only; nothing here measures.

FVU at equal L0: an SAE with a penalty cannot be asked for an L0, so ours is trained at several coefficients and log FVU is interpolated
linearly over log L0, between the two neighbours of the peer's L0; outside their range there is no value.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["fvu_at_l0", "groups", "markdown", "ratios", "spread"]

OURS = "sparsight"
Record = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Spread of ours / theirs, repeat by repeat: what ran next to each other is compared."""
    return spread([a / b for a, b in zip(ours, theirs, strict=False)])


def fvu_at_l0(points: Sequence[tuple[float, float]], l0: float) -> float | None:
    """FVU at `l0` from (L0, FVU) points; None outside their range."""
    ordered = sorted(points)
    for (low, at_low), (high, at_high) in itertools.pairwise(ordered):
        if low <= l0 <= high and low > 0:
            if high == low:
                return min(at_low, at_high)
            share = (math.log(l0) - math.log(low)) / (math.log(high) - math.log(low))
            return math.exp(math.log(at_low) * (1 - share) + math.log(at_high) * share)
    return None


def groups(runs: Sequence[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    """Finished runs by the values of their job's keys, in the order of their first run."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for run in runs:
        if "error" not in run["result"]:
            found.setdefault(tuple(run["job"].get(key) for key in keys), []).append(run)
    return found


def chosen(runs: Sequence[Record]) -> list[Record]:
    """Of a search, the runs at the rate that was best at the first seed."""
    first = [run for run in runs if run["job"]["seed"] == 0]
    best = min(first, key=lambda run: run["result"]["fvu"])["job"]["lr"]
    return [run for run in runs if run["job"]["lr"] == best]


def markdown(record: Record) -> str:
    """The tables, part by part; a part that did not run is left out."""
    runs = record["runs"]
    parts = [
        _head(record),
        _speed("Text to a trained SAE", runs, "end-to-end"),
        _speed("Text to activations", runs, "collect"),
        _training(runs),
        _equal_l0(runs),
        _store(runs),
        _plain(runs),
        _roofline(runs),
        _failures(runs),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(record: Record) -> str:
    hardware = record["hardware"]
    versions = ", ".join(f"{tool}: {' '.join(names)}" for tool, names in record["versions"].items())
    return (
        f"`{record['command']}`, {_commits(record['runs'])}; {hardware['cpu']}, {hardware['cores']} cores, {hardware['matrix_units']}; {versions}. "
        f"Median (least to greatest) of {record['repeats']} interleaved repeats; x: Sparsight's default over the tool's, repeat by repeat."
    )


def _commits(runs: Sequence[Record]) -> str:
    """Which commit was measured, part by part where they differ."""
    parts: dict[str, dict[str, None]] = {}
    for run in runs:
        parts.setdefault(run["commit"], {})[run["job"]["part"]] = None
    if len(parts) == 1:
        return f"commit {next(iter(parts))}"
    return "; ".join(f"commit {commit} ({', '.join(names)})" for commit, names in parts.items())


def _speed(title: str, runs: Sequence[Record], part: str) -> str:
    rows, found = [], groups(_of(runs, part), "tool", "setting")
    ours = found.get((OURS, "default"), [])
    for (tool, setting), group in found.items():
        times = "" if (tool, setting) == (OURS, "default") or not ours else _times(ratios(_rates(ours), _rates(group)))
        cells = [f"{tool}, {setting}", _cell(group, "tokens_per_second", 0), times]
        cells += [_cell(group, name, 0) for name in ("tokens_per_second_with_loading", "peak_megabytes")]
        if part == "end-to-end":
            cells += [_cell(group, "fvu", 3), _cell(group, "l0", 1), _cell(group, "dead_share", 3)]
        rows.append(cells)
    head = ["tool, setting", "tokens/s", "x", "tokens/s with loading", "peak MB"]
    return _table(title, head + (["FVU", "L0", "dead"] if part == "end-to-end" else []), rows)


def _training(runs: Sequence[Record]) -> str:
    rows = []
    by_case = groups(_of(runs, "train"), "architecture", "l1", "tool", "setting", "k")
    cases = [(key, part) for key, group in by_case.items() for part in _rates_apart(key[0], group)]
    for (architecture, l1, tool, setting, k), searched in cases:
        ours = _ours(by_case, architecture)
        same = tool == OURS and setting == "default"
        lr = searched[0]["job"]["lr"] or "its own"
        rows.append(
            [
                architecture + (f" {k}" if l1 is None else f" {l1:g}"),
                f"{tool}, {setting}",
                f"{lr}",
                _cell(searched, "tokens_per_second", 0),
                "" if same or not ours else _times(ratios(_rates(ours), _rates(searched))),
                *(
                    _cell(searched, name, n)
                    for name, n in (("peak_megabytes", 0), ("fvu", 3), ("l0", 1), ("dead_share", 3))
                ),
            ]
        )
    head = ["SAE, k or L1", "tool, setting", "lr", "tokens/s", "x", "peak MB", "held-out FVU", "L0", "dead"]
    return _table("Training from activations in memory", head, rows)


def _rates_apart(architecture: str, group: list[Record]) -> list[list[Record]]:
    """relu's rates each; of a search the best one."""
    if architecture == "relu":
        return list(groups(group, "lr").values())
    searched = group[0]["job"]["setting"] == "best" and any(run["job"]["seed"] == 0 for run in group)
    return [chosen(group) if searched else group]


def _ours(by_case: dict[tuple[Any, ...], list[Record]], architecture: str) -> list[Record]:
    """Ours at its default, of one coefficient: that does not change the speed."""
    cases = (group for key, group in by_case.items() if key[0] == architecture and key[2:4] == (OURS, "default"))
    return next(cases, [])


def _equal_l0(runs: Sequence[Record]) -> str:
    """Ours at each peer's L0, both at their best setting: for ours, at the better of its rates."""
    rows = []
    for architecture in ("batchtopk", "relu"):
        case = [run for run in _of(runs, "train") if run["job"]["architecture"] == architecture]
        rows += _equal_l0_of(architecture, [run for run in case if run["job"]["setting"] == "best"])
    head = ["SAE", "tool at its best setting", "L0", "its FVU", "Sparsight's at that L0"]
    return _table("Held-out FVU at equal L0", head, rows)


def _equal_l0_of(architecture: str, runs: Sequence[Record]) -> list[list[str]]:
    points = {
        key: tuple(statistics.median(run["result"][name] for run in group) for name in ("l0", "fvu"))
        for key, group in groups(runs, "tool", "lr", "l1", "k").items()
    }
    rates = {key[1] for key in points if key[0] == OURS}
    curves = [[point for key, point in points.items() if key[:2] == (OURS, rate)] for rate in rates]
    rows = []
    for (tool, lr, *_), (l0, theirs) in points.items():
        if tool == OURS:
            continue
        ours = [found for curve in curves if (found := fvu_at_l0(curve, l0)) is not None]
        rows.append(
            [
                architecture,
                f"{tool}, lr {lr:g}",
                f"{l0:.1f}",
                f"{theirs:.3f}",
                f"{min(ours):.3f}" if ours else "outside ours",
            ]
        )
    return rows


def _store(runs: Sequence[Record]) -> str:
    names = ("write_rows_per_second", "read_rows_per_second", "write_megabytes_per_second", "read_megabytes_per_second")
    rows = [
        [f"{tool}, {setting}", group[0]["result"]["dtype"], *(_cell(group, name, 0) for name in names)]
        for (tool, setting), group in groups(_of(runs, "store"), "tool", "setting").items()
    ]
    head = ["tool, setting", "dtype", "rows/s written", "rows/s read", "MB/s written", "MB/s read"]
    return _table("Activation store (through the page cache)", head, rows)


def _plain(runs: Sequence[Record]) -> str:
    rows = [
        [
            f"training at width {n:,}",
            f"{_cell(group, 'ms_per_step', 0)} ms a step",
            f"{_cell(group, 'peak_megabytes', 0)} MB",
        ]
        for (n,), group in groups(_of(runs, "width"), "n_latents").items()
    ]
    for group in groups(_of(runs, "index"), "tool").values():
        rows.append(["feature index", f"{_cell(group, 'tokens_per_second', 0)} tokens/s", ""])
    for group in groups(_of(runs, "many"), "tool").values():
        result = group[0]["result"]
        low, high = result["factor_range"]
        text = f"{result['factor_median']:.1f} ({low:.1f} to {high:.1f}) times faster than {result['n_saes']} studies"
        rows.append([f"{result['n_saes']} SAEs from one pass", text, ""])
    return _table("Sparsight alone", ["what", "", "peak"], rows)


def _roofline(runs: Sequence[Record]) -> str:
    found = _of(runs, "roofline")
    if not found or "error" in found[0]["result"]:
        return ""
    result = found[0]["result"]
    collection, stored = result["collection"], result["store"]
    rows = [
        [
            "forward pass",
            f"{collection['share_of_read']:.0%} of its bare projections",
            ", ".join(collection["largest"]),
        ],
        ["collection", f"{collection['share_of_collect']:.0%} of the same", ""],
    ]
    for name, share in result["training"].items():
        rows.append([f"step, {name}", f"encoder product {share['share']:.0%} of the step", ", ".join(share["largest"])])
    text = f"{stored['write_share_of_file']:.0%} of a plain file written, {stored['read_share_of_file']:.0%} read"
    hashing = stored["write_megabytes_per_second"] / result["rates"]["xxh3_megabytes_per_second"]
    rows.append(["store", text, f"its hash takes {hashing:.0%} of the writing"])
    rates = ", ".join(f"{name} {value:.0f}" for name, value in result["rates"].items())
    return (
        _table("Share of what the machine gives", ["stage", "reached", "most time of its own"], rows) + f"\n\n{rates}"
    )


def _failures(runs: Sequence[Record]) -> str:
    failed: dict[tuple[str, ...], int] = {}
    for run in runs:
        if "error" in run["result"]:
            key = (run["job"]["part"], f"{run['job']['tool']}, {run['job']['setting']}", run["result"]["error"])
            failed[key] = failed.get(key, 0) + 1
    return _table("Failed", ["part", "tool, setting", "error", "runs"], [[*key, str(n)] for key, n in failed.items()])


def _of(runs: Sequence[Record], part: str) -> list[Record]:
    return [run for run in runs if run["job"]["part"] == part]


def _rates(group: Sequence[Record]) -> list[float]:
    return [run["result"]["tokens_per_second"] for run in group]


def _times(found: dict[str, float]) -> str:
    return f"{found['median']:.1f} ({found['min']:.1f} to {found['max']:.1f})"


def _cell(group: Sequence[Record], name: str, digits: int) -> str:
    found = spread([run["result"][name] for run in group])
    median, low, high = (f"{found[key]:,.{digits}f}" for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} to {high})"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
