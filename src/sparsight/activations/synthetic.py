"""Activations made of a known dictionary, so that a trained one can be marked against the truth.

    x = sum_i fires_i * magnitude_i * features_i + noise

`features` are unit vectors in random directions; with n_features > d they are in superposition. Feature i fires with probability p_i, which falls
as (i+1)^-skew and is scaled so that `mean_active` fire per token. What else is known of the firing makes the four `KINDS`:

    sparse         each feature fires independently, all equally often
    correlated     features of a group fire together: a Gaussian copula, g_i = sqrt(r) shared + sqrt(1-r) own, fires_i = [Phi(g_i) < p_i], which
                   leaves every p_i as it is; r is the Gaussians' correlation, that of the firing is lower (`correlation`)
    hierarchical   a child fires only when its parent does, and the parent's direction is there as well: x has both. One level. It is the setting in
                   which a dictionary saves an active latent by letting the child's carry the parent ("absorption", Chanin 2024, arXiv:2409.14507)
    skewed         independent with Zipf's rates, skew = 1: few features fire often, many rarely

Batch number i depends on (seed, i) alone, whichever batches were drawn before. Trade-off: real features are not drawn from any of these; this is a
test of the tool, not of a theory of language models.
"""

import hashlib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sparsight.activations.batch import ActivationBatch
from sparsight.errors import ActivationError

__all__ = ["KINDS", "MAGNITUDES", "SYNTHETIC_HOOK_POINT", "PlantedBatch", "SyntheticActivations", "recovery", "seeded"]

SYNTHETIC_HOOK_POINT = "synthetic"
MAGNITUDES = ("exponential", "lognormal", "half-normal")
KINDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "sparse": {"skew": 0.0},
        "correlated": {"skew": 0.0, "correlation": 0.8, "group_size": 4},
        "hierarchical": {"skew": 0.0, "children": 3, "child_share": 0.2},
        "skewed": {"skew": 1.0},
    }
)
"""Options of `SyntheticActivations` for each kind of dictionary."""

_DOCUMENT_TOKENS = 128
_HIGHEST_RATE = 0.9


class PlantedBatch(NamedTuple):
    """Activations and the truth behind them."""

    x: Float[Tensor, "n d"]
    magnitudes: Float[Tensor, "n n_features"]
    """0 where the feature does not fire."""


class SyntheticActivations:
    """A planted dictionary and an endless supply of activations made of it."""

    features: Float[Tensor, "n_features d"]
    """Ground truth: unit vectors."""
    probabilities: Float[Tensor, " n_features"]
    """Share of tokens on which each feature fires."""
    parents: Int[Tensor, " n_features"]
    """The feature without which this one does not fire; negative: none."""
    groups: Int[Tensor, " n_features"]
    """Number of the group that it fires together with; a group each where correlation = 0."""

    def __init__(
        self,
        n_features: int,
        d: int,
        *,
        mean_active: float = 4.0,
        skew: float = 0.5,
        magnitude: str = "exponential",
        spread: float = 0.5,
        noise: float = 0.02,
        correlation: float = 0.0,
        group_size: int = 4,
        hierarchy: bool = False,
        children: int = 1,
        child_share: float | None = None,
        seed: int = 0,
    ) -> None:
        """The dictionary is drawn from `seed`; batches have their own.

        `magnitude`: exponential, 1 plus an exponential of mean `spread`, so that no firing feature is faint; lognormal, exp(spread * normal);
        half-normal, |normal| of mean 1, where many are faint. `noise`: standard deviation per dimension.
        `correlation`: of the Gaussians of features in one group of `group_size` neighbours in rate, 0 to 1. At rates of 0.02, 0.8 gives the firing a
        correlation of 0.41.
        `hierarchy` (or a `child_share`): `children` for each parent. `child_share`: of the parent's tokens on which a child fires, each for itself;
        None: what its rank gives it. Raises ActivationError.
        """
        hierarchy = hierarchy or child_share is not None
        if n_features < 2 or d < 1 or not 0 < mean_active < n_features or min(skew, spread, noise) < 0:
            raise ActivationError(
                f"A synthetic dictionary cannot have {n_features} features in {d} dimensions, {mean_active} active: "
                "at least 2 features, more than are active, and no negative skew, spread or noise are expected."
            )
        _check_dependence(hierarchy, children, child_share, correlation, group_size)
        if magnitude not in MAGNITUDES:
            raise ActivationError(f"Magnitudes {magnitude!r} are unknown; choose from {', '.join(MAGNITUDES)}.")
        generator = seeded("dictionary", seed)
        self.d, self.magnitude, self.spread, self.noise = d, magnitude, spread, noise
        self.hierarchy, self.correlation = hierarchy, correlation
        self.features = functional.normalize(torch.randn(n_features, d, generator=generator), dim=1)
        ranks = torch.arange(n_features)
        self.groups = ranks // (group_size if correlation else 1)
        n_roots = -(-n_features // (1 + children)) if hierarchy else n_features
        self.parents = torch.where(ranks < n_roots, -1, ranks % n_roots)
        self.probabilities = self._rates(mean_active, skew, child_share)

    @classmethod
    def of_kind(cls, kind: str, n_features: int, d: int, **options: Any) -> "SyntheticActivations":
        """A dictionary of one of `KINDS`, with further or other options. Raises ActivationError for another kind."""
        if kind not in KINDS:
            raise ActivationError(f"Dictionaries of kind {kind!r} are unknown; choose from {', '.join(KINDS)}.")
        return cls(n_features, d, **{**KINDS[kind], **options})

    def batches(
        self, batch_tokens: int, n_batches: int, seed: int = 0, start_batch: int = 0
    ) -> Iterator[ActivationBatch]:
        """Batches number start_batch .. n_batches - 1 of this seed's endless row."""
        for index in range(start_batch, n_batches):
            n, rows = batch_tokens, torch.arange(index * batch_tokens, (index + 1) * batch_tokens)
            documents, positions = rows // _DOCUMENT_TOKENS, (rows % _DOCUMENT_TOKENS).int()
            x = self.planted(n, index, seed).x
            yield ActivationBatch(
                {SYNTHETIC_HOOK_POINT: x}, torch.zeros(n, dtype=torch.int32), documents, positions, documents
            )

    def planted(self, n: int, index: int, seed: int = 0) -> PlantedBatch:
        """Batch number `index` of `batches`, n rows, with its truth."""
        generator = seeded("batch", seed, index)
        fires = self._fires(n, generator)
        magnitudes = fires * self._magnitudes(n, generator)
        x = magnitudes @ self.features + self.noise * torch.randn(n, self.d, generator=generator)
        return PlantedBatch(x, magnitudes)

    def _fires(self, n: int, generator: torch.Generator) -> Tensor:
        conditional, children = self.probabilities.clone(), self.parents >= 0
        conditional[children] /= self.probabilities[self.parents[children]]
        if self.correlation:
            shared = torch.randn(n, int(self.groups[-1]) + 1, generator=generator)[:, self.groups]
            own = torch.randn(n, len(self.features), generator=generator)
            gaussian = self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * own
            return gaussian < torch.special.ndtri(conditional)
        fires = torch.rand(n, len(self.features), generator=generator) < conditional
        fires[:, children] &= fires[:, self.parents[children]]
        return fires

    def _magnitudes(self, n: int, generator: torch.Generator) -> Tensor:
        shape = n, len(self.features)
        if self.magnitude == "exponential":
            return 1 - self.spread * torch.log1p(-torch.rand(shape, generator=generator))
        normal = torch.randn(shape, generator=generator)
        return (self.spread * normal).exp() if self.magnitude == "lognormal" else normal.abs() * (torch.pi / 2) ** 0.5

    def _rates(self, mean_active: float, skew: float, child_share: float | None) -> Tensor:
        shape = torch.arange(1, len(self.features) + 1, dtype=torch.float32).pow(-skew)
        children = self.parents >= 0
        if child_share is not None:
            shape[children] = child_share * shape[self.parents[children]]
        rates = (shape * mean_active / shape.sum()).clamp_max(_HIGHEST_RATE)
        rates[children] = torch.minimum(rates[children], rates[self.parents[children]])
        return rates


def _check_dependence(
    hierarchy: bool, children: int, child_share: float | None, correlation: float, group_size: int
) -> None:
    if children < 1 or group_size < 1 or not 0 <= correlation < 1 or not 0 < (child_share or 1.0) <= 1:
        raise ActivationError(
            f"{children} children of share {child_share} and groups of {group_size} with correlation {correlation} cannot "
            "be planted: at least one child and one in a group, a share above 0 up to 1, and a correlation from 0 to below 1 are expected."
        )
    if hierarchy and correlation:
        raise ActivationError(
            f"A hierarchy with correlation = {correlation} has no rates that we could state: plant one or the other."
        )


def seeded(*key: str | int) -> torch.Generator:
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
