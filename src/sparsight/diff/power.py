"""Power: the share of planted changes that a comparison finds, by firing rate, seeds and tokens, as it was measured.

    recall            planted features that an SAE labels rightly / those planted, over SAEs, kinds of change and repetitions
    interval          Wilson's, 95 %, with n = planted features: the SAEs of one model see the same feature, so they count once
    false discovery   latents labelled wrongly with a change / so labelled, a mean over repetitions

power.json beside this file is made by benchmarks/validate_compare/power.py, which says what was planted and how it was looked for. It holds counts at
a few rates, seeds, training and held-out tokens. Between two of them recall is a straight line in the logarithm; beyond the largest the largest
counts, below the smallest nothing is said. Recall does not follow from how often a feature was seen (rate x tokens) alone: with 3 or 4 seeds and
few training tokens changes are missed at every rate, since two half-trained seeds of one model differ by as much.

Trade-off: planted features are independent and far apart, which a language model's are not, and dictionaries had 128 latents. So it is the most that
can be hoped for, and where it is low a comparison is not worth running.

Source of the interval: Wilson 1927, JASA 22.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sparsight.errors import MetricError
from sparsight.metrics import wilson_interval

__all__ = ["PowerTable", "Recall", "power_table"]


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Share of planted changes found, with the limits of its interval."""

    value: float
    low: float
    high: float
    n_features: int
    """Planted features behind it, for each rate and setting."""


@dataclass(frozen=True, kw_only=True)
class PowerTable:
    """What was found of what was planted at every setting. All axes ascend."""

    rates: tuple[float, ...]
    """Share of tokens on which a feature fires."""
    seeds: tuple[int, ...]
    """SAEs of each model."""
    train_tokens: tuple[int, ...]
    """Rows that each SAE was trained on."""
    heldout_tokens: tuple[int, ...]
    """Rows that latents were compared on."""
    found: Int[np.ndarray, "seeds train heldout rates"]
    """Planted features found, counted over SAEs."""
    n_features: int
    """Planted features of each rate, over kinds and repetitions; each is looked for by as many SAEs as there are seeds."""
    false_share: Float[np.ndarray, "seeds train heldout"]
    """False discovery."""
    passes: int
    """Passes over the same tokens that were measured to be worth as much as so many times the tokens."""
    source: str
    """The record that it was made of."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PowerTable":
        """Raises MetricError where the counts do not fit the axes."""
        axes = {name: tuple(values[name]) for name in ("rates", "seeds", "train_tokens", "heldout_tokens")}
        found, false_share = np.array(values["found"]), np.array(values["false_share"])
        shape = tuple(len(axes[name]) for name in ("seeds", "train_tokens", "heldout_tokens", "rates"))
        if found.shape != shape or false_share.shape != shape[:3]:
            raise MetricError(
                f"A table of power with counts of shape {found.shape} and {false_share.shape}; {shape} is expected."
            )
        rest = {name: values[name] for name in ("n_features", "passes", "source")}
        return cls(**axes, found=found, false_share=false_share, **rest)

    def rows_trained_on(self, n_tokens: int, epochs: int) -> int:
        """`train_tokens` of a training that reads n tokens in several passes, of which no more count than were measured."""
        return n_tokens * min(epochs, self.passes)

    def recall(self, rate: float, *, seeds: int, train_tokens: int, heldout_tokens: int) -> Recall | None:
        """Of changes of features that fire at this rate; None outside what was measured."""
        places = self._places(seeds, train_tokens, heldout_tokens)
        at = _place(self.rates, rate)
        if places is None or at is None:
            return None
        share = self.found / (self.n_features * np.array(self.seeds)[:, None, None, None])
        limits = (share, *wilson_interval(share, self.n_features))
        value, low, high = (_between(each, [*places, at]) for each in limits)
        return Recall(value=value, low=low, high=high, n_features=self.n_features)

    def false_discovery(self, *, seeds: int, train_tokens: int, heldout_tokens: int) -> float | None:
        """Of all changes called at this setting; None outside what was measured."""
        places = self._places(seeds, train_tokens, heldout_tokens)
        return None if places is None else _between(self.false_share, places)

    def _places(self, seeds: int, train_tokens: int, heldout_tokens: int) -> "list[_Place] | None":
        if seeds < self.seeds[0]:
            return None
        kept = max(index for index, measured in enumerate(self.seeds) if measured <= seeds)
        places = [_place(self.train_tokens, train_tokens), _place(self.heldout_tokens, heldout_tokens)]
        known = [each for each in places if each is not None]
        return [(kept, kept, 0.0), *known] if len(known) == len(places) else None


@lru_cache
def power_table() -> PowerTable:
    """The one that the package carries."""
    return PowerTable.from_json(json.loads(Path(__file__).with_name("power.json").read_text(encoding="utf-8")))


_Place = tuple[int, int, float]
"""Two neighbours on an axis, and the share of the second."""


def _place(axis: Sequence[float], value: float) -> _Place | None:
    """Where a value lies, in the logarithm; the last place beyond the axis's end, None before its beginning."""
    if value < axis[0]:
        return None
    above = next((index for index, measured in enumerate(axis) if measured >= value), len(axis) - 1)
    if axis[above] <= value:
        return above, above, 0.0
    below = above - 1
    return below, above, log(value / axis[below]) / log(axis[above] / axis[below])


def _between(table: np.ndarray, places: Sequence[_Place]) -> float:
    """Linear along every axis in turn."""
    for below, above, share in places:
        table = (1 - share) * table[below] + share * table[above]
    return float(table)
