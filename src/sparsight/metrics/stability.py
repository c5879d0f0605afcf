"""How much of a dictionary a second seed finds again.

    cosine_j        max over i of cos(W_dec[j], W_dec'[i]), and which i: the nearest direction
    correlation_j   max over i of the Pearson correlation of z_j and z'_i over held-out tokens, and which i: the most alike in activation
    MMCS            mean of cosine_j over the latents                                  Sharkey 2022
    PW-MCC          mean cosine over the one-to-one matching with the largest total    Song 2025, arXiv:2505.20254

Only latents that were active on these tokens count, on both sides: the others keep the directions that they were drawn in. Random
directions have near partners too, so `chance` is the same against the second seed's directions before its first step, which no data shaped. (The
SAE's own would not do: trained directions still lean towards those.) A feature that one seed alone found need not be false, and one that two
found need not be true: it is what a third seed would probably find too (arXiv:2501.16615: 30 % of 131k latents were shared).

Intervals are over latents, taken as independent: mean +- 1.96 standard errors.
Trade-off: the matching is exact (Hungarian) up to 8,192 latents alive, since its time grows with their cube, and correlations need F x G numbers
(2 GB at most); beyond, they are left out, and what reads them says so.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.artifact.native import native_library
from sparsight.errors import MetricError
from sparsight.metrics.recovery import match_features
from sparsight.sae import SparseLatents

__all__ = [
    "CrossMoments",
    "LatentMean",
    "SeedPartners",
    "SeedStability",
    "adds_pairs",
    "fits_memory",
    "seed_partners",
    "seed_stability",
]

_LARGEST_MATCHED = 8192
_MOST_BYTES = 2**31
_BLOCK_LATENTS = 2048
# Adding the active pairs one by one costs what some 500 multiplications of a dense product cost on a CPU.
_PAIR_COST = 500
_PAIRS_AT_ONCE = 2**21
_SOURCE = Path(__file__).with_name("pairs.c")


@dataclass(frozen=True, kw_only=True)
class LatentMean:
    """A mean over latents with its 95 % interval."""

    value: float
    low: float | None
    """None with a single latent."""
    high: float | None
    """None with a single latent."""
    n_latents: int

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"]) -> "LatentMean":
        """Of one number a latent."""
        mean, n = float(values.mean(dtype=np.float64)), len(values)
        half = 1.96 * float(values.std(ddof=1, dtype=np.float64)) / n**0.5 if n > 1 else None
        return cls(
            value=mean,
            low=None if half is None else mean - half,
            high=None if half is None else mean + half,
            n_latents=n,
        )


@dataclass(frozen=True, kw_only=True)
class SeedStability:
    """What two seeds share as a whole, each beside its chance level."""

    n_alive: tuple[int, int]
    """Latents active on the held-out tokens, in the SAE and in the second seed."""
    mmcs: LatentMean
    chance_mmcs: LatentMean
    pw_mcc: LatentMean | None
    """None where either has more than 8,192 latents alive."""
    chance_pw_mcc: LatentMean | None


@dataclass(frozen=True, kw_only=True)
class SeedPartners:
    """Each latent's best partners among those of the second seed that were active."""

    cosine: Float[np.ndarray, " F"]
    cosine_latent: Int[np.ndarray, " F"]
    chance_cosine: float
    """Mean over the latents alive of the same against the second seed's directions before training."""
    correlation: Float[np.ndarray, " F"] | None
    """NaN for a latent whose activation never varied; None where F x G numbers are too many."""
    correlation_latent: Int[np.ndarray, " F"] | None


def fits_memory(n_ours: int, n_theirs: int) -> bool:
    """Whether the correlations of so many latents are computed."""
    return 4 * n_ours * n_theirs <= _MOST_BYTES


def adds_pairs(active_ours: float, active_theirs: float, n_ours: int, n_theirs: int, kind: str) -> bool:
    """Whether products are summed pair by pair of active latents, or as one dense product, on a `kind` of device."""
    return kind == "cpu" and _PAIR_COST * active_ours * active_theirs < n_ours * n_theirs


class CrossMoments:
    """Sums over tokens from which every correlation between two dictionaries' latents follows; filled batch by batch.

    Holds F x G float32 numbers on the dictionaries' device, where they fit: 85 MB at 4,608 latents, 1 GB at 16k.
    """

    def __init__(self, n_ours: int, n_theirs: int, device: torch.device | str = "cpu") -> None:
        self.n_tokens = 0
        self._sizes, self._device = (n_ours, n_theirs), torch.device(device)
        self._products = torch.zeros(n_ours, n_theirs, device=device) if fits_memory(n_ours, n_theirs) else None
        self._sums = tuple(torch.zeros(2, n, dtype=torch.float64, device=device) for n in self._sizes)

    def add(self, ours: SparseLatents, theirs: SparseLatents) -> None:
        """Count a batch: both dictionaries' latents of the same tokens."""
        if len(ours.values) != len(theirs.values):
            raise MetricError(f"Latents of {len(ours.values)} and {len(theirs.values)} tokens cannot be correlated.")
        self.n_tokens += len(ours.values)
        for sums, latents in zip(self._sums, (ours, theirs), strict=True):
            places, values = latents.indices.flatten(), latents.values.flatten().double()
            sums[0].index_add_(0, places, values)
            sums[1].index_add_(0, places, values.square())
        if self._products is None:
            return
        active = ours.values.shape[1], theirs.values.shape[1]
        if adds_pairs(*active, *self._sizes, self._device.type):
            _add_pairs(self._products, ours, theirs)
        else:
            self._products.addmm_(_dense(ours, self._sizes[0]).T, _dense(theirs, self._sizes[1]))

    def alive(self) -> tuple[Bool[Tensor, " F"], Bool[Tensor, " G"]]:
        """Which latents of each were ever active."""
        return self._sums[0][1] > 0, self._sums[1][1] > 0

    def best(self) -> tuple[Float[Tensor, " F"], Int[Tensor, " F"]] | None:
        """The largest correlation of each of our latents with any of theirs, and with which; NaN where ours never varies."""
        if self._products is None:
            return None
        values, indices = [], []
        for block, varies in self._blocks():
            found = block.max(dim=1)
            values.append(found.values.masked_fill(~varies, float("nan")))
            indices.append(found.indices)
        return torch.cat(values), torch.cat(indices)

    def correlations(self) -> Float[Tensor, "F G"]:
        """Of every pair, float32; -1 where either never varies. Raises MetricError where F x G numbers are too many."""
        if self._products is None:
            raise MetricError(
                f"The correlations of {self._sizes[0]:,} with {self._sizes[1]:,} latents take more than {_MOST_BYTES / 2**30:.0f} GB. "
                "Compare narrower dictionaries."
            )
        return torch.cat([block.float() for block, _ in self._blocks()])

    def _blocks(self) -> Iterator[tuple[Float[Tensor, "f G"], Bool[Tensor, " f"]]]:
        """Correlations of our latents with all of theirs, some of ours at a time, and whether ours vary."""
        assert self._products is not None
        n = max(self.n_tokens, 1)
        means = [sums[0] / n for sums in self._sums]
        spreads = [
            (sums[1] / n - mean.square()).clamp_min(0).sqrt() for sums, mean in zip(self._sums, means, strict=True)
        ]
        for start in range(0, len(self._products), _BLOCK_LATENTS):
            block = slice(start, start + _BLOCK_LATENTS)
            covariance = self._products[block].double() / n - means[0][block, None] * means[1]
            correlation = covariance / (spreads[0][block, None] * spreads[1])
            yield torch.nan_to_num(correlation, nan=-1.0, posinf=-1.0, neginf=-1.0), spreads[0][block] > 0


@torch.no_grad()
def seed_stability(
    W_dec: Float[Tensor, "F d"],
    second: Float[Tensor, "G d"],
    untrained: Float[Tensor, "G d"],
    alive: tuple[Bool[Tensor, " F"], Bool[Tensor, " G"]],
) -> SeedStability | None:
    """What the two share; `untrained`: the second seed's directions before its first step. None when either is all dead."""
    ours, theirs, drawn = W_dec[alive[0]], second[alive[1]], untrained[alive[1]]
    if not len(ours) or not len(theirs):
        return None
    best, chance = (_nearest(ours, others)[0].cpu().numpy() for others in (theirs, drawn))
    return SeedStability(
        n_alive=(len(ours), len(theirs)),
        mmcs=LatentMean.of(best),
        chance_mmcs=LatentMean.of(chance),
        pw_mcc=_matched(ours, theirs),
        chance_pw_mcc=_matched(ours, drawn),
    )


@torch.no_grad()
def seed_partners(
    W_dec: Float[Tensor, "F d"], second: Float[Tensor, "G d"], untrained: Float[Tensor, "G d"], moments: CrossMoments
) -> SeedPartners | None:
    """Each latent's partners; `moments` of the two on held-out tokens, `untrained` as above. None when either is all dead."""
    alive, alive_second = moments.alive()
    if not alive.any() or not alive_second.any():
        return None
    cosine, place = _nearest(W_dec, second[alive_second])
    chance = _nearest(W_dec[alive], untrained[alive_second])[0]
    correlations = moments.best()
    return SeedPartners(
        cosine=cosine.cpu().numpy(),
        cosine_latent=alive_second.nonzero()[:, 0][place].int().cpu().numpy(),
        chance_cosine=float(chance.double().mean()),
        correlation=None if correlations is None else correlations[0].float().cpu().numpy(),
        correlation_latent=None if correlations is None else correlations[1].int().cpu().numpy(),
    )


def _nearest(ours: Float[Tensor, "F d"], theirs: Float[Tensor, "G d"]) -> tuple[Float[Tensor, " F"], Int[Tensor, " F"]]:
    """The largest cosine of each of our rows with any of theirs, and whose; blocks of rows at a time."""
    theirs = torch.nn.functional.normalize(theirs, dim=1)
    best = [(torch.nn.functional.normalize(rows, dim=1) @ theirs.T).max(dim=1) for rows in ours.split(_BLOCK_LATENTS)]
    return torch.cat([each.values for each in best]), torch.cat([each.indices for each in best])


def _matched(ours: Float[Tensor, "F d"], theirs: Float[Tensor, "G d"]) -> LatentMean | None:
    """Mean cosine over the one-to-one matching with the largest total; None when either has too many rows."""
    if max(len(ours), len(theirs)) > _LARGEST_MATCHED:
        return None
    matching = match_features(theirs, ours)
    return LatentMean.of(matching.cosine[matching.latent >= 0])


def _add_pairs(products: Float[Tensor, "F G"], ours: SparseLatents, theirs: SparseLatents) -> None:
    """Adds each token's products of active latents, pair by pair; compiled, a third of the time (pairs.c)."""
    parts = [part.contiguous() for pair in (ours, theirs) for part in (pair.indices.long(), pair.values.float())]
    library = native_library(_SOURCE)
    if library is not None:
        sizes = (len(ours.values), ours.values.shape[1], theirs.values.shape[1], *products.shape)
        pointers = (ctypes.c_void_p(part.data_ptr()) for part in (*parts, products))
        library.add_pairs(*map(ctypes.c_int64, sizes), *pointers)
        return
    n_rows = max(1, _PAIRS_AT_ONCE // max(1, ours.values.shape[1] * theirs.values.shape[1]))
    for latents, values, others, theirs_there in zip(*(part.split(n_rows) for part in parts), strict=True):
        places = latents[:, :, None] * products.shape[1] + others[:, None, :]
        products.view(-1).index_add_(0, places.flatten(), (values[:, :, None] * theirs_there[:, None, :]).flatten())


def _dense(latents: SparseLatents, n_latents: int) -> Float[Tensor, "n F"]:
    values = latents.values
    return values.new_zeros(len(values), n_latents).scatter_add_(1, latents.indices, values)
