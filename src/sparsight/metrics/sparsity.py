"""How sparse a dictionary is: L0, the density of each latent, and the share of dead ones.

    L0         = mean over tokens of the number of latents that are not zero
    density_i  = tokens on which latent i is not zero / tokens
    dead share = latents that were never active / latents, always with the number of tokens it was counted on:
                 a latent that fires once in 100,000 tokens looks dead on 10,000

The histogram is over log10(density), in half decades; dead latents (log of 0) are counted beside it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.errors import MetricError

__all__ = ["DensityHistogram", "LatentCounts", "l0"]

# Half decades of density from one token in ten million to every token.
LOG10_EDGES = np.arange(-7.0, 0.01, 0.5)


def l0(latents: Float[Tensor, "n latents"]) -> Float[Tensor, " n"]:
    """Latents that are not zero, per token."""
    return (latents != 0).sum(-1).double()


@dataclass(frozen=True, kw_only=True)
class DensityHistogram:
    """How many latents have which density."""

    log10_edges: tuple[float, ...]
    """Bin edges in log10(density), ascending; half decades."""
    n_latents: tuple[int, ...]
    """Latents per bin (a bin holds its lower edge; the last also its upper)."""
    n_dead: int
    """Latents never active on these tokens."""
    n_tokens: int
    """Tokens counted on."""


class LatentCounts:
    """On how many tokens each latent was active; filled batch by batch, mergeable."""

    def __init__(self, n_latents: int) -> None:
        self.counts = torch.zeros(n_latents, dtype=torch.int64)
        self.n_tokens = 0

    def add(self, latents: Float[Tensor, "n latents"]) -> None:
        """Count a batch of dense latents."""
        self.add_counts((latents != 0).sum(0), len(latents))

    def add_counts(self, counts: Int[Tensor, " latents"], n_tokens: int) -> None:
        """Add counts made elsewhere over `n_tokens` tokens."""
        self.counts += counts.to(self.counts)
        self.n_tokens += n_tokens

    def merge(self, other: "LatentCounts") -> None:
        """Adds the counts of other tokens."""
        self.add_counts(other.counts, other.n_tokens)

    @property
    def density(self) -> Float[np.ndarray, " latents"]:
        """Share of tokens each latent is active on, 0 to 1."""
        if not self.n_tokens:
            raise MetricError("Density needs at least one token; none was counted.")
        return self.counts.numpy() / self.n_tokens

    @property
    def l0(self) -> float:
        """Mean number of active latents per token."""
        return float(self.density.sum())

    @property
    def dead_share(self) -> float:
        """Share of latents never active on the `n_tokens` counted."""
        return float((self.counts == 0).double().mean())

    def histogram(self) -> DensityHistogram:
        """Latents by decade of density, and those that never fired."""
        density = self.density
        alive = density[density > 0]
        logs = np.clip(np.log10(alive), LOG10_EDGES[0], LOG10_EDGES[-1])
        n_latents, _ = np.histogram(logs, LOG10_EDGES)
        return DensityHistogram(
            log10_edges=tuple(float(edge) for edge in LOG10_EDGES),
            n_latents=tuple(int(n) for n in n_latents),
            n_dead=int(len(density) - len(alive)),
            n_tokens=self.n_tokens,
        )
