"""Two models with known dictionaries, read on the same tokens, so that a comparison can be marked against the truth.

    base  = sum_i fires_i * magnitude_i * gain_i_base  * direction_i_base  + noise
    tuned = sum_i fires_i * magnitude_i * gain_i_tuned * direction_i_tuned + noise of its own

Firing and magnitude belong to the token and are the same for both. What fine-tuning did to feature i is its kind:

    shared       the same direction and gain
    emergent     gain 0 in the base
    lost         gain 0 in the tuned
    rotated      another direction, at cosine `rotation_cosine`; when and how much it fires is the same
    reweighted   the same direction, `gain` times as strong in the tuned

A third model, the null fine-tune, has none of this: every direction of the tuned and of the null has moved by `drift` besides, which is what training
on more of the same data does. Shared features fire at rates spread evenly in logarithm over `rates`; each kind of change has features at every rate.

Trade-off: features fire independently, as nowhere in a language model; what is tested is the tool.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparsight.activations.batch import ActivationBatch
from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, seeded
from sparsight.errors import ActivationError

__all__ = ["MODELS", "PLANTED_KINDS", "PairedBatch", "PlantedPair"]

PLANTED_KINDS = ("shared", "emergent", "lost", "rotated", "reweighted")
MODELS = ("base", "tuned", "null")
_DOCUMENT_TOKENS = 128


class PairedBatch(NamedTuple):
    """Activations of the models on the same tokens, and the truth behind them."""

    x: Mapping[str, Float[Tensor, "n d"]]
    """By the names in MODELS."""
    magnitudes: Float[Tensor, "n n_features"]
    """Before any model's gain; 0 where the feature does not fire."""


class PlantedPair:
    """A base, a fine-tune and a null fine-tune with planted dictionaries, and an endless supply of paired activations."""

    kinds: tuple[str, ...]
    """What fine-tuning did to each feature: one of PLANTED_KINDS."""
    directions: Mapping[str, Float[Tensor, "n_features d"]]
    """Ground truth by model: unit vectors."""
    gains: Mapping[str, Float[Tensor, " n_features"]]
    """Ground truth by model; 0: the model lacks it."""
    probabilities: Float[Tensor, " n_features"]
    """Share of tokens on which each feature fires, in those models that have it."""

    def __init__(
        self,
        n_shared: int,
        d: int,
        *,
        changed: Mapping[str, int] | None = None,
        rates: Sequence[float] = (0.001, 0.003, 0.01, 0.03, 0.1),
        rotation_cosine: float = 0.5,
        gain: float = 2.0,
        drift: float = 0.0,
        noise: float = 0.02,
        spread: float = 0.5,
        seed: int = 0,
    ) -> None:
        """`changed`: features planted of each kind at each of the ascending `rates`; None: one of each.

        A magnitude is 1 plus an exponential of mean `spread`; `noise`: standard deviation per dimension; `drift`: length of the random vector
        added to a unit direction before it is made a unit again. Raises ActivationError.
        """
        changed = dict.fromkeys(PLANTED_KINDS[1:], 1) if changed is None else changed
        _check(n_shared, d, changed, rates, rotation_cosine, gain, min(drift, noise, spread))
        generator = seeded("pair", seed)
        self.d, self.noise, self.spread = d, noise, spread
        planted = [(kind, rate) for kind, n in changed.items() for rate in rates for _ in range(n)]
        shared = torch.logspace(math.log10(rates[0]), math.log10(rates[-1]), n_shared)
        self.kinds = ("shared",) * n_shared + tuple(kind for kind, _ in planted)
        self.probabilities = torch.cat([shared, torch.tensor([rate for _, rate in planted])])
        n = len(self.kinds)
        base = _units(torch.randn(n, d, generator=generator))
        tuned = self._where("rotated", _rotated(base, rotation_cosine, generator), base)
        self.directions = {
            "base": base,
            "tuned": _drifted(tuned, drift, generator),
            "null": _drifted(base, drift, generator),
        }
        ones, zeros = torch.ones(n), torch.zeros(n)
        in_base = self._where("emergent", zeros, ones)
        in_tuned = self._where("lost", zeros, self._where("reweighted", gain * ones, ones))
        self.gains = {"base": in_base, "tuned": in_tuned, "null": in_base}

    def is_kind(self, kind: str) -> Tensor:
        """Which features are of this kind, [n_features]."""
        return torch.tensor([each == kind for each in self.kinds])

    def planted(self, n: int, index: int, seed: int = 0) -> PairedBatch:
        """Batch number `index` of this seed's endless row, n rows, with its truth."""
        generator = seeded("pair batch", seed, index)
        shape = n, len(self.kinds)
        fires = torch.rand(shape, generator=generator) < self.probabilities
        magnitudes = fires * (1 - self.spread * torch.log1p(-torch.rand(shape, generator=generator)))
        x = {
            model: (magnitudes * self.gains[model]) @ self.directions[model]
            + self.noise * torch.randn(n, self.d, generator=generator)
            for model in MODELS
        }
        return PairedBatch(x, magnitudes)

    def batches(
        self, batch_tokens: int, n_batches: int, seed: int = 0, start_batch: int = 0
    ) -> Iterator[ActivationBatch]:
        """Batches with the hook points base:, tuned:, null:, difference: and both:synthetic, as a paired store gives them."""
        for index in range(start_batch, n_batches):
            rows = torch.arange(index * batch_tokens, (index + 1) * batch_tokens)
            documents = rows // _DOCUMENT_TOKENS
            x = self.planted(batch_tokens, index, seed).x
            views = {**x, "difference": x["tuned"] - x["base"], "both": torch.cat([x["base"], x["tuned"]], 1)}
            yield ActivationBatch(
                {f"{name}:{SYNTHETIC_HOOK_POINT}": value for name, value in views.items()},
                torch.zeros(batch_tokens, dtype=torch.int32),
                documents,
                (rows % _DOCUMENT_TOKENS).int(),
                documents,
            )

    def _where(self, kind: str, planted: Tensor, other: Tensor) -> Tensor:
        mask = self.is_kind(kind)
        return torch.where(mask[:, None] if planted.ndim == 2 else mask, planted, other)


def _units(rows: Tensor) -> Float[Tensor, "n d"]:
    return functional.normalize(rows, dim=1)


def _rotated(rows: Tensor, cosine: float, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Unit rows at exactly this cosine to the given unit rows."""
    random = torch.randn(rows.shape, generator=generator)
    across = _units(random - (random * rows).sum(1, keepdim=True) * rows)
    return cosine * rows + (1 - cosine**2) ** 0.5 * across


def _drifted(rows: Tensor, drift: float, generator: torch.Generator) -> Float[Tensor, "n d"]:
    return _units(rows + drift * _units(torch.randn(rows.shape, generator=generator)))


def _check(
    n_shared: int,
    d: int,
    changed: Mapping[str, int],
    rates: Sequence[float],
    rotation_cosine: float,
    gain: float,
    least: float,
) -> None:
    if not set(changed) <= set(PLANTED_KINDS[1:]) or min(changed.values(), default=0) < 0:
        raise ActivationError(
            f"Changes {dict(changed)} cannot be planted; numbers of {PLANTED_KINDS[1:]} are expected."
        )
    if n_shared < 1 or d < 2 or gain <= 0 or not -1 <= rotation_cosine <= 1 or least < 0:
        raise ActivationError(
            f"A pair cannot have {n_shared} shared features in {d} dimensions with gain {gain}, rotation_cosine {rotation_cosine} "
            f"and {least} as the least of drift, noise and spread: at least 1 in 2 dimensions, a gain above 0, a cosine and nothing negative."
        )
    if not rates or list(rates) != sorted(rates) or not 0 < rates[0] <= rates[-1] < 1:
        raise ActivationError(
            f"Rates {tuple(rates)} cannot be planted; shares of the tokens in ascending order are expected."
        )
