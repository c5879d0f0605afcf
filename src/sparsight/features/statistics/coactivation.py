"""Which latents are active on the same tokens more often than chance.

    expected  n_i n_j / N     of N tokens, were the two independent
    pmi       log2((n_ij + 1) / (expected + 1))   pointwise mutual information, shrunk to 0 where little was seen
    jaccard   n_ij / (n_i + n_j - n_ij)

Pairs active together on fewer than 5 tokens are left out, and what is kept is ordered by pmi. Without the shrinkage two latents that were active
once, on the same token, would come before all others.

All pairs of a token's active latents are counted by a product of sparse matrices, a range of latents at a time, so time grows with the sum
of squares of L0 over tokens and not with the number of latents. Where that sum is beyond `MOST_PRODUCTS` (dense SAEs), every so many-th token counts
alone; the result says how many tokens did.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from sparsight.features.statistics.grouped import log_ratio, strongest_of_each

__all__ = ["MOST_PRODUCTS", "N_COACTIVE", "Coactivation"]

N_COACTIVE = 10
_LEAST_SEEN = 5
MOST_PRODUCTS = 2**30
_MOST_PAIRS = 2**26
_PRODUCTS_AT_ONCE = 2**23
# Chance is taken of about this many latents, evenly spaced.
_CHANCE_LATENTS = 256


class Coactivation:
    """Which latent is active on which token, ready to be multiplied.

    `ranks`: the token of each activation, 0 to n_tokens - 1, grouped by latent as `latent_offsets` says.
    """

    def __init__(
        self, latent_offsets: Int[np.ndarray, " bounds"], ranks: Int[np.ndarray, " active"], n_tokens: int
    ) -> None:
        from scipy import sparse

        step, offsets, tokens = _step(ranks, n_tokens), latent_offsets, ranks
        if step > 1:
            kept = np.flatnonzero(ranks % step == 0)
            offsets, tokens = np.searchsorted(kept, latent_offsets), ranks[kept] // step
        self.n_latents, self.n_tokens = len(latent_offsets) - 1, -(-n_tokens // step)
        self.n_active: Int[np.ndarray, " latents"] = np.diff(offsets)
        ones, shape = np.ones(len(tokens), np.int32), (self.n_latents, self.n_tokens)
        self._of_latent = sparse.csr_array((ones, tokens.astype(np.int32), offsets), shape=shape)
        self._of_token = self._of_latent.T.tocsr()

    def strongest(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays coactive_latents, coactive_pmi, coactive_jaccard [latents, 10], padded with -1 and NaN; and what was counted: `tokens`, and of
        some latents the mean strongest `pmi`, beside `chance_pmi` with the tokens of those latents moved half the text away."""
        everyone = np.arange(self.n_latents)
        found = self._strongest(self._of_latent, everyone)
        some = everyone[self.n_active > 0][:: max(1, int((self.n_active > 0).sum()) // _CHANCE_LATENTS)]
        moved = self._of_latent[some]
        moved.indices = (moved.indices + self.n_tokens // 2) % self.n_tokens
        about = {
            "tokens": self.n_tokens,
            "pmi": _mean_strongest(found["coactive_pmi"][some]),
            "chance_pmi": _mean_strongest(self._strongest(moved, some)["coactive_pmi"]),
            "chance_latents": len(some),
        }
        return found, about

    def pmi(self, latents: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n latents"]:
        """Of some latents with every one, those hardly or never active together included; -inf with itself."""
        seen = (self._of_latent[latents] @ self._of_token).toarray()
        pmi = log_ratio(seen, self.n_active[latents, None].astype(np.float64) * self.n_active / self.n_tokens)
        pmi[np.arange(len(latents)), latents] = -np.inf
        return pmi

    def _strongest(self, rows: Any, latents: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
        """The three arrays for some latents, whose tokens are `rows`; a block of them at a time."""
        products = np.cumsum(rows @ np.diff(self._of_token.indptr).astype(np.float64))
        block = (products // _PRODUCTS_AT_ONCE).astype(np.int64)
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(block)) + 1, [len(latents)]])

        def count(start: int, end: int) -> dict[str, np.ndarray]:
            together = (rows[start:end] @ self._of_token).tocsr()
            return _of_block(together, latents[start:end], self.n_active, self.n_tokens)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # products and sorts let go of Python's lock
            parts = list(pool.map(count, bounds[:-1], bounds[1:]))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _step(ranks: Int[np.ndarray, " active"], n_tokens: int) -> int:
    """Every so many-th token is counted."""
    per_token = np.bincount(ranks, minlength=n_tokens).astype(np.float64)
    return max(1, int(np.ceil(np.square(per_token).sum() / MOST_PRODUCTS)), -(-len(ranks) // _MOST_PAIRS))


def _of_block(
    together: Any, latents: Int[np.ndarray, " n"], n_active: Int[np.ndarray, " latents"], n_tokens: int
) -> dict[str, np.ndarray]:
    often = np.flatnonzero(together.data >= _LEAST_SEEN)
    row = np.searchsorted(together.indptr, often, side="right") - 1
    other, seen = together.indices[often].astype(np.int64), together.data[often]
    ours, theirs = n_active[latents[row]], n_active[other]
    pmi = log_ratio(seen, ours.astype(np.float64) * theirs / n_tokens)
    jaccard = seen / (ours + theirs - seen)
    kept = np.flatnonzero((pmi > 0) & (latents[row] != other))
    kept = kept[np.argsort(row[kept] * len(n_active) + other[kept])]  # a product's columns are in no order
    best, shape = strongest_of_each(row[kept], pmi[kept], N_COACTIVE), (len(latents), N_COACTIVE)
    return {
        "coactive_latents": best.table(other[kept].astype(np.int32), shape, -1),
        "coactive_pmi": best.table(pmi[kept].astype(np.float32), shape, np.nan),
        "coactive_jaccard": best.table(jaccard[kept].astype(np.float32), shape, np.nan),
    }


def _mean_strongest(pmi: Float[np.ndarray, "latents n"]) -> float:
    """Over latents; 0 for those with none."""
    return float(np.nan_to_num(pmi[:, 0]).mean(dtype=np.float64))
