"""All dictionaries of two models matched with each other, and what follows of it for each of the tests: gaps and nulls.

Trade-off: with K seeds a model that is K (2 K - 1) pairs, with a null fine-tune K (3 K - 1) / 2 more, each of which takes a product of F x G
correlations; so it is done once, and fewer seeds or another null are looked at in what was matched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsight.diff.emergence import LEAST_PERMUTED, Gaps, gap_null, latent_gaps, permuted_gaps
from sparsight.diff.matching import Dictionary, Partners, matched
from sparsight.errors import MetricError

__all__ = ["SeedTables"]


@dataclass(frozen=True, kw_only=True)
class SeedTables:
    """Every pair of dictionaries matched, once for all tests: own[model][s][t] and other[model][s][t] of latents of seed s in seed t."""

    firings: Mapping[str, Sequence[np.ndarray]]
    own: Mapping[str, Sequence[Sequence[Partners | None]]]
    """Of "base", "tuned" and "null", whose seeds may be none."""
    other: Mapping[str, Sequence[Sequence[Partners]]]
    """Of "base" in the fine-tune, and of "tuned" and "null" in the base; of "base in null" as well."""

    @classmethod
    def of(
        cls, base: Sequence[Dictionary], tuned: Sequence[Dictionary], null: Sequence[Dictionary] = ()
    ) -> "SeedTables":
        """All read on the same tokens. Raises MetricError with fewer than 3 seeds of a model, or 1 of the null fine-tune."""
        if min(len(base), len(tuned)) < 3 or len(null) == 1:
            raise MetricError(
                f"{len(base)} seeds of the base, {len(tuned)} of the fine-tune and {len(null)} of the null fine-tune cannot say what seeds "
                "differ by: 3 at least, 5 better, are expected, and of the null fine-tune none or 2."
            )
        seeds = {"base": base, "tuned": tuned, "null": null}
        there, back = _between(tuned, base)
        null_there, null_back = _between(null, base)
        return cls(
            firings={name: [each.firings for each in of_model] for name, of_model in seeds.items()},
            own={name: _within(of_model) for name, of_model in seeds.items()},
            other={"tuned": there, "base": back, "null": null_there, "base in null": null_back},
        )

    def first(self, n: int, *, null: bool = False) -> "SeedTables":
        """Of the first n seeds of each model, with or without the null fine-tune's."""
        kept = {name: n if null or "null" not in name else 0 for name in (*self.own, *self.other)}
        return SeedTables(
            firings={name: each[: kept[name]] for name, each in self.firings.items()},
            own={name: [row[:n] for row in table[: kept[name]]] for name, table in self.own.items()},
            other={name: [row[:n] for row in table[: n if kept[name] else 0]] for name, table in self.other.items()},
        )

    def gaps(self, name: str, against: str | None = None) -> list[Gaps]:
        """E of every seed's latents of one model; of the base's `against` the null fine-tune with "base in null"."""
        return [
            latent_gaps([each for each in own if each is not None], other, firings)
            for own, other, firings in zip(self.own[name], self.other[against or name], self.firings[name], strict=True)
        ]

    def nulls(self, name: str, null: str = "auto") -> list[Gaps]:
        """The null of each SAE of "tuned" or "base": the null fine-tune's where there is one, else by `LabelConfig.null`."""
        n_seeds = min(len(self.own["base"]), len(self.own["tuned"]))
        if self.own["null"]:
            found = self.gaps("null") if name == "tuned" else self.gaps("base", "base in null")
            return [Gaps.joined(found)] * len(self.own[name])
        if null == "permuted" or (null == "auto" and n_seeds >= LEAST_PERMUTED):
            tables = zip(self.own[name], self.other[name], self.firings[name], strict=True)
            return [
                permuted_gaps([each for each in own if each is not None], other, firings)
                for own, other, firings in tables
            ]
        reference = "base" if name == "tuned" else "tuned"
        return [gap_null(self.own[reference], self.firings[reference])] * len(self.own[name])

    def control(self, seed: int) -> tuple[Gaps, Gaps]:
        """One seed of the base as if it were fine-tuned, half of the others its own; and the null of those without it."""
        own, firings = self.own["base"], self.firings["base"]
        others = [index for index in range(len(own)) if index != seed]
        sides = others[: len(others) // 2], others[len(others) // 2 :]
        near, far = ([each for index in side if (each := own[seed][index]) is not None] for side in sides)
        gaps = latent_gaps(near, far, firings[seed])
        if len(others) < 3:  # 3 seeds leave 2, which have no null of their own
            return gaps, gap_null(own, firings)
        return gaps, gap_null([[own[i][j] for j in others] for i in others], [firings[index] for index in others])


def _within(seeds: Sequence[Dictionary]) -> list[list[Partners | None]]:
    tables: list[list[Partners | None]] = [[None] * len(seeds) for _ in seeds]
    for i in range(len(seeds)):
        for j in range(i + 1, len(seeds)):
            tables[i][j], tables[j][i] = matched(seeds[i], seeds[j])
    return tables


def _between(
    ours: Sequence[Dictionary], theirs: Sequence[Dictionary]
) -> tuple[list[list[Partners]], list[list[Partners]]]:
    both = [[matched(one, other) for other in theirs] for one in ours]
    there = [[pair[0] for pair in row] for row in both]
    return there, [[row[index][1] for row in both] for index in range(len(theirs))]
