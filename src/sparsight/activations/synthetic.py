"""Activations made of a known dictionary, so that a trained one can be marked against the truth.

    x = sum_i fires_i * magnitude_i * features_i + noise

`features` are unit vectors in random directions. Feature i fires independently with probability p_i, which falls as
(i+1)^-skew and is scaled so that `mean_active` fire per token; with `hierarchy`, each feature of the second half fires
only together with its parent in the first half. Magnitudes are 1 plus an exponential of mean `spread`, so a firing
feature is never faint. The superposition is real when n_features > d.

Batch number i depends on (seed, i) alone, whichever batches were drawn before. Trade-off: real features are neither
independent nor equally strong; this is a test of the tool, not of a theory of language models.
"""

import hashlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparsight.activations.batch import ActivationBatch
from sparsight.errors import ActivationError

__all__ = ["SYNTHETIC_HOOK_POINT", "SyntheticActivations", "recovery"]

SYNTHETIC_HOOK_POINT = "synthetic"
_DOCUMENT_TOKENS = 128


class SyntheticActivations:
    """A planted dictionary and an endless supply of activations made of it."""

    features: Float[Tensor, "n_features d"]
    """Ground truth: unit vectors."""
    probabilities: Float[Tensor, " n_features"]
    """Share of tokens on which each feature fires."""

    def __init__(
        self,
        n_features: int,
        d: int,
        *,
        mean_active: float = 4.0,
        skew: float = 0.5,
        spread: float = 0.5,
        noise: float = 0.02,
        hierarchy: bool = False,
        seed: int = 0,
    ) -> None:
        """`noise`: standard deviation per dimension. `seed`: of the dictionary; batches have their own."""
        if n_features < 2 or d < 1 or not 0 < mean_active < n_features or min(skew, spread, noise) < 0:
            raise ActivationError(
                f"A synthetic dictionary cannot have {n_features} features in {d} dimensions, {mean_active} active: "
                "at least 2 features, more than are active, and no negative skew, spread or noise are expected."
            )
        generator = _generator("dictionary", seed)
        self.d, self.spread, self.noise, self.hierarchy = d, spread, noise, hierarchy
        self.features = functional.normalize(torch.randn(n_features, d, generator=generator), dim=1)
        shape = torch.arange(1, n_features + 1, dtype=torch.float32).pow(-skew)
        own = (shape * mean_active / shape.sum()).clamp_max(0.9)
        self._parents = torch.arange(n_features) - (n_features + 1) // 2
        self.probabilities = self._marginal(own)

    def batches(
        self, batch_tokens: int, n_batches: int, seed: int = 0, start_batch: int = 0
    ) -> Iterator[ActivationBatch]:
        """Batches number start_batch .. n_batches - 1 of this seed's endless row."""
        for index in range(start_batch, n_batches):
            yield self._batch(batch_tokens, index, seed)

    def _batch(self, n: int, index: int, seed: int) -> ActivationBatch:
        generator = _generator("batch", seed, index)
        fires = torch.rand(n, len(self.features), generator=generator) < self._conditional()
        if self.hierarchy:
            children = self._parents >= 0
            fires[:, children] &= fires[:, self._parents[children]]
        uniform = torch.rand(n, len(self.features), generator=generator)
        magnitudes = 1 - self.spread * torch.log1p(-uniform)
        x = (fires * magnitudes) @ self.features + self.noise * torch.randn(n, self.d, generator=generator)
        rows = torch.arange(index * n, (index + 1) * n)
        documents = rows // _DOCUMENT_TOKENS
        positions = (rows % _DOCUMENT_TOKENS).int()
        return ActivationBatch(
            {SYNTHETIC_HOOK_POINT: x}, torch.zeros(n, dtype=torch.int32), documents, positions, documents
        )

    def _marginal(self, own: Tensor) -> Tensor:
        if not self.hierarchy:
            return own
        children = self._parents >= 0
        marginal = own.clone()
        marginal[children] = torch.minimum(own[children], own[self._parents[children]])
        return marginal

    def _conditional(self) -> Tensor:
        if not self.hierarchy:
            return self.probabilities
        children = self._parents >= 0
        conditional = self.probabilities.clone()
        conditional[children] /= self.probabilities[self._parents[children]]
        return conditional


def _generator(*key: str | int) -> torch.Generator:
    """A stream of its own for each key.

    Hashed, because torch keeps 32 bits of a CPU seed, and because with plain equal seeds the dictionary and an SAE's
    initial decoder drew the same directions: the untrained SAE had "recovered" everything.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4]))


def recovery(W_dec: Float[Tensor, "F d"], features: Float[Tensor, "n_features d"]) -> float:
    """Mean over the features of the largest cosine that any decoder row has with it: 1 is perfect.

    Unrelated directions score well above 0 in few dimensions (about 0.4 for 256 rows in 32), so show a baseline beside.
    """
    cosines = functional.normalize(features, dim=1) @ functional.normalize(W_dec.to(features), dim=1).T
    return cosines.amax(1).mean().item()
