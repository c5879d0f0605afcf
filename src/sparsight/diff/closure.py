"""Closure: how much of what a fine-tune changed in the predictions a set S of latents carries.

    h_S        = h_base + sum_{j in S} z_j d_j                   d_j: what latent j adds to the difference of the two models
    closure(S) = 1 - sum KL(p_tuned | p_S) / sum KL(p_tuned | p_base)          p_S: the fine-tune's upper layers on h_S

    dictionary        z                        d_j                       bias
    difference        of h_tuned - h_base      W_dec[j]                  b_dec
    crosscoder        of both, side by side    d_j tuned - d_j base      likewise
    tuned             of h_tuned               W_dec[j]                  0

The fine-tune's upper layers do something by themselves, and a bias is no latent: it would lift random sets as much as the top. So a
curve always stands between `nothing` (h_base alone) and `ceiling` (the true difference), beside the `bias` alone, all `latents` without
it, `all` with it, the `error` alone (what the dictionary leaves out), and, for each size, random sets and the bottom of the ranking.
Tokens that a store left out (special tokens, sinks) keep the base's activation, so that nothing enters except through the set; the
ceiling is therefore measured, and below 1. Rank on the train split, score on the held-out one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.activations import ActivationBatch
from sparsight.diff.where import run_both
from sparsight.errors import MetricError
from sparsight.lm import LanguageModel
from sparsight.metrics import DocumentSums, Estimate, SpliceText, token_kl
from sparsight.sae import SparseAutoencoder

__all__ = [
    "ClosureRow",
    "DifferenceCode",
    "LatentRanking",
    "Patches",
    "closure_curve",
    "measure_closure",
    "rank_latents",
]

Patches = Callable[[Float[Tensor, "n d"], Float[Tensor, "n d"]], Iterator[tuple[str, Float[Tensor, "n d"]]]]
"""(h_base, h_tuned) -> name and activation put in their place, one after another; always the same names."""

_WITHOUT = "without-"
_KINDS = ("difference", "crosscoder", "tuned")


@dataclass(frozen=True)
class DifferenceCode:
    """A dictionary as a code of the difference of two models."""

    sae: SparseAutoencoder
    kind: str
    """difference, crosscoder (an SAE on both models side by side, base first) or tuned."""

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise MetricError(
                f"A dictionary of kind {self.kind!r} codes no difference. Expected one of {', '.join(_KINDS)}."
            )

    @property
    def directions(self) -> Float[Tensor, "F d"]:
        """What each latent, at 1, adds to the difference."""
        return self._tuned_less_base(self.sae.W_dec)

    @property
    def bias(self) -> Float[Tensor, " d"]:
        """What is added whatever is active."""
        b_dec = self.sae.b_dec
        return torch.zeros_like(b_dec) if self.kind == "tuned" else self._tuned_less_base(b_dec)

    def values(self, h_base: Float[Tensor, "n d"], h_tuned: Float[Tensor, "n d"]) -> Float[Tensor, "n F"]:
        """The latents, dense."""
        given = {
            "difference": lambda: h_tuned - h_base,
            "crosscoder": lambda: torch.cat([h_base, h_tuned], dim=1),
            "tuned": lambda: h_tuned,
        }[self.kind]()
        return self.sae.encode(given.to(self.sae.W_enc.device))

    def _tuned_less_base(self, tensor: Tensor) -> Tensor:
        if self.kind != "crosscoder":
            return tensor
        before, after = tensor.chunk(2, dim=-1)
        return after - before


@dataclass(frozen=True, kw_only=True)
class LatentRanking:
    """Latents by what they do: how much of the difference they write, or of its effect they bring about."""

    score: Float[np.ndarray, " F"]
    """Of `rank_latents`, mean over tokens of |z_j d_j|^2; of `attribute_latents`, nats a token."""
    rate: Float[np.ndarray, " F"]
    """Share of tokens on which z_j is not 0."""
    n_tokens: int

    @property
    def order(self) -> Int[np.ndarray, " live"]:
        """Latents that were ever active, highest score first."""
        live = np.flatnonzero(self.rate > 0)
        return live[np.argsort(-self.score[live], kind="stable")]


@dataclass(frozen=True, kw_only=True)
class ClosureRow:
    """One set's closure."""

    name: str
    """nothing, bias, latents, all, error, ceiling; top, random, bottom; a named set, random:NAME and without either; or what a dense bar is
    called."""
    n_latents: int | None
    """Size of the set; None where the row is no set."""
    closure: Estimate
    of_ceiling: Estimate
    """Over the closure of the ceiling."""
    above_nothing: Estimate
    """(closure - that of nothing) / (that of the ceiling - that of nothing)."""
    n_draws: int = 1
    """Random sets that were averaged."""
    largest: float | None = None
    """Of the random sets, the largest closure."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@torch.inference_mode()
def rank_latents(code: DifferenceCode, batches: Iterable[ActivationBatch], hook_point: str) -> LatentRanking:
    """Ranks by energy on a paired store's batches, which hold base:HOOK_POINT and tuned:HOOK_POINT."""
    squares = torch.zeros(code.sae.n_latents, dtype=torch.float64)
    active = torch.zeros_like(squares)
    n_tokens = 0
    for batch in batches:
        z = code.values(batch[f"base:{hook_point}"].float(), batch[f"tuned:{hook_point}"].float())
        squares += z.double().square().sum(0).cpu()
        active += (z != 0).sum(0).cpu()
        n_tokens += len(batch)
    if n_tokens == 0:
        raise MetricError("There are no tokens to rank latents on. Collect more, or smaller batches.")
    energy = squares / n_tokens * code.directions.double().square().sum(1).cpu()
    return LatentRanking(score=energy.numpy(), rate=(active / n_tokens).numpy(), n_tokens=n_tokens)


@torch.inference_mode()
def measure_closure(
    base: LanguageModel,
    tuned: LanguageModel,
    text: SpliceText,
    patches: Patches,
    *,
    hook_point: str,
    forward_tokens: int,
) -> DocumentSums:
    """Sums per document of kl_base and kl_NAME for each patch, over all real tokens; patches see only the tokens that were kept."""
    sums: DocumentSums | None = None
    for batch, kept in text.batches(forward_tokens):
        (p_base, before), (p_tuned, after) = (run_both(model, batch, [hook_point]) for model in (base, tuned))
        h_base, h_tuned = before[hook_point], after[hook_point]
        scored, where = batch.mask.to(p_base.device), kept.to(h_base.device)
        p_tuned = p_tuned[scored]
        columns = {"kl_base": token_kl(p_tuned, p_base[scored])}
        for name, rows in patches(h_base[where].float(), h_tuned[where].float()):
            patched = h_base.clone()
            patched[where] = rows.to(patched)
            logits = tuned.logits_given(batch, hook_point, patched)
            columns[f"kl_{name}"] = token_kl(p_tuned, logits[scored])
            del logits
        sums = sums or DocumentSums(list(columns))
        sums.add(batch.document_ids[batch.mask], columns)
    if sums is None:
        raise MetricError("There is no text to measure closure on. Collect with heldout_tokens above 0.")
    return sums


def closure_curve(
    base: LanguageModel,
    tuned: LanguageModel,
    text: SpliceText,
    code: DifferenceCode,
    ranking: LatentRanking,
    *,
    hook_point: str,
    sizes: Sequence[int],
    forward_tokens: int,
    named: Mapping[str, Sequence[int]] | None = None,
    dense: Patches | None = None,
    n_random: int = 3,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[ClosureRow, ...]:
    """Closure of the top, of random and of the bottom sets of each size, between nothing and the ceiling.

    Random sets are drawn from the live latents outside the set they stand beside. Sizes beyond half of the live latents, where sets of
    that size could not be apart, are left out. `named` sets, such as the emergent latents, are measured too, each with random sets of
    its size under random:NAME; and taken out of the fine-tune under "without NAME", where 1 says that nothing is missed. `dense` adds rows
    of its own, such as those of `DenseDifference.patches`. Every value is None where the two models predict the same. Raises MetricError
    for a named set with more than half of the live latents.
    """
    plan = _plan_sets(ranking.order, sizes, named or {}, n_random, seed)
    sets = {column: members for columns in plan.values() for column, members in columns.items()}
    patches = _latent_patches(code, sets, dense)
    sums = measure_closure(base, tuned, text, patches, hook_point=hook_point, forward_tokens=forward_tokens)
    drawn = sums.resample(n_resamples=n_resamples, seed=seed)
    alone = [name for column in sums.names[2:] if (name := column.removeprefix("kl_")) not in sets]
    rows = [_row(sums, drawn, name, [name], None) for name in alone]
    rows += [_row(sums, drawn, name, list(columns), size) for (name, size), columns in plan.items()]
    return tuple(rows)


_Plan = dict[tuple[str, int], dict[str, np.ndarray]]
"""Name and size of a row -> column -> latents; several columns are averaged."""


def _plan_sets(
    live: np.ndarray, sizes: Sequence[int], named: Mapping[str, Sequence[int]], n_random: int, seed: int
) -> _Plan:
    def beside(members: np.ndarray, name: str) -> dict[str, np.ndarray]:
        others = np.setdiff1d(live, members)
        rng = np.random.default_rng((seed, len(members)))
        return {f"{name}-{draw}": rng.choice(others, len(members), replace=False) for draw in range(n_random)}

    plan: _Plan = {}
    for size in sorted(set(sizes)):
        if size <= len(live) // 2:
            plan["top", size] = {f"top-{size}": live[:size]}
            plan["random", size] = beside(live[:size], f"random-{size}")
            plan["bottom", size] = {f"bottom-{size}": live[-size:]}
    for name, latents in named.items():
        members = np.unique(np.asarray(latents, dtype=np.int64))
        if len(np.setdiff1d(live, members)) < len(members):
            raise MetricError(
                f"The set {name} has {len(members)} latents of {len(live)} live ones: too few are left to draw a random set of "
                "its size from. Train a wider dictionary, or name fewer latents."
            )
        sets = {name: {f"set-{name}": members}, f"random:{name}": beside(members, f"random-{name}")}
        for row, columns in sets.items():
            plan[row, len(members)] = columns
            plan[f"without {row}", len(members)] = {f"{_WITHOUT}{column}": each for column, each in columns.items()}
    return plan


def _row(sums: DocumentSums, drawn: Any, name: str, columns: list[str], n_latents: int | None) -> ClosureRow:
    n, total = len(columns), sums.total("kl_base")
    minus = {f"kl_{column}": -1 for column in columns}
    below_nothing = dict(minus)
    below_nothing["kl_nothing"] = below_nothing.get("kl_nothing", 0) + n
    closures = [1 - sums.total(column) / total for column in minus if total > 0]
    return ClosureRow(
        name=name,
        n_latents=n_latents,
        closure=drawn.estimate({"kl_base": n} | minus, {"kl_base": n}),
        of_ceiling=drawn.estimate({"kl_base": n} | minus, {"kl_base": n, "kl_ceiling": -n}),
        above_nothing=drawn.estimate(below_nothing, {"kl_nothing": n, "kl_ceiling": -n}),
        n_draws=n,
        largest=max(closures, default=None) if name.startswith("random") else None,
    )


def _latent_patches(code: DifferenceCode, sets: Mapping[str, np.ndarray], dense: Patches | None) -> Patches:
    directions, bias = code.directions, code.bias

    def patches(h_base: Tensor, h_tuned: Tensor) -> Iterator[tuple[str, Tensor]]:
        device = h_base.device
        z = code.values(h_base, h_tuned)
        latents = h_base + (z @ directions).to(device)
        everything = latents + bias.to(device)
        yield "nothing", h_base
        yield "bias", h_base + bias.to(device)
        yield "latents", latents
        yield "all", everything
        yield "error", h_base + (h_tuned - everything)
        yield "ceiling", h_tuned
        for name, members in sets.items():
            index = torch.from_numpy(members).to(z.device)
            written = (z[:, index] @ directions[index]).to(device)
            yield name, h_tuned - written if name.startswith(_WITHOUT) else h_base + written
        if dense is not None:
            yield from dense(h_base, h_tuned)

    return patches
