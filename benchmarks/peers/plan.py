"""Which jobs make up the comparison, in the order in which they run: repeat by repeat, tool by tool.

What is the same for everyone stands in `Sizes`. A job is a plain dict; its key decides whether `--resume` has it already.
A learning rate is searched at the first seed (three rates); the other seeds run at the best, so their jobs come once it is known.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["PARTS", "QUICK", "TRAINED", "Sizes", "best_rate", "jobs_of", "key_of", "new_job"]

TOOLS = ("sparsight", "sae-lens", "dictionary-learning", "sparsify")
PARTS = ("train", "end-to-end", "collect", "store", "index", "width", "roofline", "many")  # training finds the rates
TRAINED = ("topk", "batchtopk", "relu")
ARCHITECTURES = {
    "sparsight": ("topk", "batchtopk", "relu"),
    "sae-lens": ("topk", "batchtopk", "relu"),
    "dictionary-learning": ("topk", "batchtopk", "relu"),
    "sparsify": ("topk",),
}
# Around each optimiser's own default: Adam's for three tools, signum's for sparsify (whose own is 9.4e-3 at this width).
RATES = dict.fromkeys(TOOLS, (1e-3, 3e-3, 5e-3)) | {"sparsify": (3e-3, 5e-3, 1e-2)}
RELU_RATES = (
    3e-3,
    5e-3,
    8e-3,
)  # at 1e-3 L0 is still in the hundreds to thousands after these few steps, for every tool
# Coefficients that end between L0 30 and 300 here; each tool scales its penalty its own way. Ours are several, so that FVU can be read
# at each peer's own L0.
L1 = {
    "sparsight": (0.7, 1.0, 1.5, 2.2),
    "sae-lens": (2.0,),
    "dictionary-learning": (3.0,),
}
# A batchtopk SAE's L0 is that of its threshold, not k; ours runs at several k for the same reason.
OTHER_K = (20, 48)
WIDTHS = (4608, 16_384, 65_536, 131_072)

Job = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much work, the same for every tool."""

    stream_tokens: int = 24_576
    """Training tokens of `end-to-end`."""
    collect_tokens: int = 24_576
    """Tokens of `collect`."""
    train_rows: int = 98_304
    """Rows of `train`, read once."""
    heldout_rows: int = 20_480
    """Rows on which FVU, L0 and dead share are taken."""
    store_rows: int = 65_536
    """Rows of `store` and `index`."""
    width_steps: int = 12
    """Steps at each width; the first five do not count."""
    batch_tokens: int = 1024
    relu_epochs: int = 2
    """Passes over the rows for relu, whose L0 falls slowly from thousands."""
    context_tokens: int = 128
    n_latents: int = 4608
    k: int = 32
    repeats: int = 3
    """Interleaved repeats, each with a seed of its own."""


QUICK = Sizes(
    stream_tokens=4096,
    collect_tokens=4096,
    train_rows=8192,
    heldout_rows=2048,
    store_rows=8192,
    width_steps=7,
    repeats=1,
)


def jobs_of(part: str, repeat: int, sizes: Sizes, best: dict[tuple[Any, ...], float]) -> Iterator[Job]:
    """The jobs of one repeat of a part. `best` gives the learning rate found, by (tool, architecture)."""
    if part in ("index", "many", "roofline", "width") and repeat:
        return  # ours alone: nothing to interleave with; `many` repeats by itself
    if part == "train":
        yield from _training(repeat, sizes, best)
        return
    for tool in TOOLS:
        if part != "end-to-end" and tool not in _TOOLS_OF[part]:
            continue
        for setting in _settings(tool, part):
            common = {"part": part, "tool": tool, "setting": setting, "n_tokens": _n_tokens(part, sizes)}
            # The best rate after as few steps as these is not that of `train`, but it is the only one that was searched.
            lr = best.get((tool, "topk")) if setting == "best" and part == "end-to-end" else None
            for n_latents in WIDTHS if part == "width" else (sizes.n_latents,):
                yield new_job(sizes, repeat, **common, n_latents=n_latents, lr=lr)


_TOOLS_OF = {
    "collect": ("sparsight", "sae-lens", "dictionary-learning"),
    "store": ("sparsight", "sae-lens"),
    "index": ("sparsight",),
    "many": ("sparsight",),
    "width": ("sparsight",),
    "roofline": ("sparsight",),
}


def _settings(tool: str, part: str) -> tuple[str, ...]:
    if part in ("index", "many", "width", "roofline"):
        return ("default",)
    if part == "store":
        return ("default", "float32") if tool == "sparsight" else ("default",)
    if part == "collect" and tool == "sparsight":
        return ("default", "float32")
    return ("default", "best", "float32") if tool == "sparsight" else ("default", "best")


def _n_tokens(part: str, sizes: Sizes) -> int:
    sizes_of = {"end-to-end": sizes.stream_tokens, "width": sizes.width_steps * sizes.batch_tokens}
    return sizes_of.get(part, sizes.store_rows if part in ("store", "index") else sizes.collect_tokens)


def _training(repeat: int, sizes: Sizes, best: dict[tuple[Any, ...], float]) -> Iterator[Job]:
    """relu runs at all its rates: a rate changes L0 too, so FVU alone cannot choose one."""
    for architecture in TRAINED:
        for tool in TOOLS:
            if architecture not in ARCHITECTURES[tool]:
                continue
            coefficients = L1[tool] if architecture == "relu" else (None,)
            middle = coefficients[len(coefficients) // 2]
            common = {"part": "train", "tool": tool, "architecture": architecture, "n_tokens": sizes.train_rows}
            common["epochs"] = sizes.relu_epochs if architecture == "relu" else 1
            for setting in ("default", "float32") if tool == "sparsight" and architecture == "topk" else ("default",):
                yield new_job(sizes, repeat, **common, setting=setting, l1=middle)
            found = best.get((tool, architecture))
            searched = RATES[tool] if repeat == 0 else (found,) if found else ()
            for l1 in coefficients:
                for lr in RELU_RATES if architecture == "relu" else searched:
                    yield new_job(sizes, repeat, **common, setting="best", l1=l1, lr=lr)
            found = best.get((tool, architecture))  # the search of the first repeat has run by now
            if (tool, architecture) == ("sparsight", "batchtopk") and found:
                for k in OTHER_K:
                    yield new_job(sizes, repeat, **common, setting="best", lr=found, k=k)


def new_job(sizes: Sizes, seed: int, **options: Any) -> Job:
    defaults = {"architecture": "topk", "lr": None, "l1": None, "seed": seed, "n_latents": sizes.n_latents}
    fixed = {"batch_tokens": sizes.batch_tokens, "context_tokens": sizes.context_tokens, "k": sizes.k, "epochs": 1}
    return defaults | fixed | options


def best_rate(runs: list[Job]) -> dict[tuple[Any, ...], float]:
    """(tool, architecture) -> the searched rate with the least held-out FVU at the first seed."""
    found: dict[tuple[Any, ...], tuple[float, float]] = {}
    for run in runs:
        job, result = run["job"], run["result"]
        if job["part"] != "train" or job["setting"] != "best" or job["seed"] or "fvu" not in result:
            continue
        if job["architecture"] == "relu" or job["k"] in OTHER_K:
            continue
        key = (job["tool"], job["architecture"])
        found[key] = min(found.get(key, (float("inf"), 0.0)), (result["fvu"], job["lr"]))
    return {key: rate for key, (_, rate) in found.items()}


def key_of(job: Job) -> str:
    """A hash of what the job asks for."""
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
