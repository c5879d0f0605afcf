"""How much of a dictionary a second seed finds again.

    cosine_j        max over i of cos(W_dec[j], W_dec'[i]), and which i: the best partner by direction
    correlation_j   max over i of the Pearson correlation of z_j and z'_i over held-out tokens, and which i: the best by activation
    MMCS            mean of cosine_j over the latents                                  Sharkey 2022
    PW-MCC          mean cosine over the one-to-one matching with the largest total    Song 2025, arXiv:2505.20254

Dead latents keep the directions that they were drawn in, which no seed shares, so all means are over latents that were active on these tokens, in
both dictionaries for the matching. Two dictionaries of random directions also have best partners: `chance` is the same against the SAE's own
untrained directions, and a number means what it exceeds that by. A feature that one seed alone found need not be false, and one that
two found need not be true: it is what a third seed would probably find too (arXiv:2501.16615 saw 30 to 60 % shared).

Trade-off: the matching is exact (Hungarian) up to 8,192 latents alive, since its time grows with their cube; wider dictionaries have none, and the
report says so.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sparsight.errors import MetricError

__all__ = ["CrossMoments", "SeedStability", "best_partners", "matched_cosine", "seed_stability"]

_LARGEST_MATCHED = 8192
_BLOCK_LATENTS = 2048


@dataclass(frozen=True, kw_only=True)
class SeedStability:
    """Each latent's best partners in the second seed, and what that says of the whole."""

    cosine: Float[np.ndarray, " latents"]
    cosine_partner: Int[np.ndarray, " latents"]
    correlation: Float[np.ndarray, " latents"]
    """NaN for a latent that was never active."""
    correlation_partner: Int[np.ndarray, " latents"]
    mmcs: float
    pw_mcc: float | None
    chance_mmcs: float
    chance_pw_mcc: float | None
    n_alive: tuple[int, int]
    """Latents active on these tokens, in the SAE and in the second seed."""
    n_tokens: int


def best_partners(
    ours: Float[Tensor, "F d"], theirs: Float[Tensor, "G d"]
) -> tuple[Float[Tensor, " F"], Int[Tensor, " F"]]:
    """The largest cosine of each of our rows with any of theirs, and whose; blocks of rows at a time."""
    theirs = torch.nn.functional.normalize(theirs, dim=1)
    best = [
        (torch.nn.functional.normalize(rows, dim=1) @ theirs.T).max(dim=1) for rows in ours.split(_BLOCK_LATENTS)
    ]
    return torch.cat([each.values for each in best]), torch.cat([each.indices for each in best])


def matched_cosine(ours: Float[Tensor, "F d"], theirs: Float[Tensor, "G d"]) -> float | None:
    """Mean cosine over the one-to-one matching with the largest total; None when either has more than 8,192 rows or none."""
    if not 0 < min(len(ours), len(theirs)) or max(len(ours), len(theirs)) > _LARGEST_MATCHED:
        return None
    from scipy.optimize import linear_sum_assignment  # half a second to import

    first, second = (torch.nn.functional.normalize(rows, dim=1) for rows in (ours, theirs))
    cosines = (first @ second.T).cpu().numpy()
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    return float(cosines[rows, columns].mean())


class CrossMoments:
    """Sums over tokens from which every correlation between two dictionaries' latents follows; filled batch by batch.

    Holds F x G float32 numbers on the dictionaries' device: 85 MB at 4,608 latents, 1 GB at 16k.
    """

    def __init__(self, n_ours: int, n_theirs: int, device: torch.device | str = "cpu") -> None:
        self.n_tokens = 0
        self._products = torch.zeros(n_ours, n_theirs, device=device)
        self._ours, self._theirs = (torch.zeros(2, n, dtype=torch.float64, device=device) for n in (n_ours, n_theirs))

    def add(self, ours: Float[Tensor, "n F"], theirs: Float[Tensor, "n G"]) -> None:
        """Count a batch of dense latents of the same tokens."""
        if len(ours) != len(theirs):
            raise MetricError(f"Latents of {len(ours)} and {len(theirs)} tokens cannot be correlated.")
        self.n_tokens += len(ours)
        self._products.addmm_(ours.T, theirs)
        for sums, latents in ((self._ours, ours), (self._theirs, theirs)):
            sums[0] += latents.sum(0, dtype=torch.float64)
            sums[1] += latents.double().square().sum(0)

    def alive(self) -> tuple[Bool[Tensor, " F"], Bool[Tensor, " G"]]:
        """Which latents of each were ever active."""
        return self._ours[1] > 0, self._theirs[1] > 0

    def best(self) -> tuple[Float[Tensor, " F"], Int[Tensor, " F"]]:
        """The largest correlation of each of our latents with any of theirs, and with which; NaN where ours never varies."""
        n = max(self.n_tokens, 1)
        mean_ours, mean_theirs = self._ours[0] / n, self._theirs[0] / n
        spread_ours = (self._ours[1] / n - mean_ours.square()).clamp_min(0).sqrt()
        spread_theirs = (self._theirs[1] / n - mean_theirs.square()).clamp_min(0).sqrt()
        values, indices = [], []
        for start in range(0, len(self._products), _BLOCK_LATENTS):
            block = slice(start, start + _BLOCK_LATENTS)
            covariance = self._products[block].double() / n - mean_ours[block, None] * mean_theirs
            correlation = covariance / (spread_ours[block, None] * spread_theirs)
            found = torch.nan_to_num(correlation, nan=-1.0).max(dim=1)
            values.append(found.values.masked_fill(spread_ours[block] == 0, float("nan")))
            indices.append(found.indices)
        return torch.cat(values), torch.cat(indices)


@torch.no_grad()
def seed_stability(
    W_dec: Float[Tensor, "F d"],
    second: Float[Tensor, "G d"],
    untrained: Float[Tensor, "F d"],
    moments: CrossMoments,
) -> SeedStability:
    """`moments`: of the two trained dictionaries on held-out tokens; `untrained`: the SAE's decoder before its first step."""
    alive, alive_second = moments.alive()
    if not alive.any() or not alive_second.any():
        raise MetricError("No latent was active on these tokens, in the SAE or in its second seed: nothing can be matched.")
    cosine, partner = best_partners(W_dec, second)
    correlation, by_activation = moments.best()
    chance, _ = best_partners(W_dec[alive], untrained)
    return SeedStability(
        cosine=cosine.cpu().numpy(),
        cosine_partner=partner.cpu().numpy(),
        correlation=correlation.float().cpu().numpy(),
        correlation_partner=by_activation.cpu().numpy(),
        mmcs=float(cosine[alive].mean()),
        pw_mcc=matched_cosine(W_dec[alive], second[alive_second]),
        chance_mmcs=float(chance.mean()),
        chance_pw_mcc=matched_cosine(W_dec[alive], untrained[alive]),
        n_alive=(int(alive.sum()), int(alive_second.sum())),
        n_tokens=moments.n_tokens,
    )
