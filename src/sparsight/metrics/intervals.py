"""Sums per document, and the 95 % intervals that come of resampling documents.

Tokens of one document resemble each other, so an interval that resamples tokens is far too narrow. Every metric here
is a ratio of two sums over tokens; the sums are kept per document, and the bootstrap draws whole documents with
replacement (multinomial weights). All columns share one set of draws, so two methods measured on the same text are
compared in pairs.

Source: Efron & Tibshirani 1993, ch. 8 (resample the independent unit) and ch. 13 (percentile interval).
Trade-off: percentile intervals of few documents (under about 20) are somewhat too narrow; the number of documents is
therefore printed with each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.errors import MetricError

__all__ = [
    "DocumentSums",
    "Estimate",
    "ResampledSums",
    "document_bootstrap",
    "document_weights",
    "outcome_of",
    "wilson_interval",
]

PERCENTILES = (2.5, 97.5)
_Z = 1.959964  # the 97.5th percentile of a normal distribution
# Resampling weights are made in blocks of this many numbers (float64), so 100,000 documents need no 800 MB matrix.
WEIGHTS_AT_ONCE = 4_000_000
# Batches are reduced into one table when this many rows wait, so memory follows documents and not tokens.
PENDING_ROWS = 200_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One number with its interval and with what it was measured on."""

    value: float | None
    """The ratio over all tokens; None where it has no meaning (a denominator of zero or less)."""
    low: float | None
    """2.5th percentile over resampled documents; None with fewer than two documents."""
    high: float | None
    """97.5th percentile over resampled documents; None with fewer than two documents."""
    n_tokens: int
    """Tokens measured."""
    n_documents: int
    """Documents these tokens come from."""

    def to_json(self) -> dict[str, float | int | None]:
        """As plain values."""
        return asdict(self)


class DocumentSums:
    """Named sums per document and group of tokens, filled batch by batch, mergeable; float64 throughout.

    `names` are the columns beside `tokens`, which counts the rows and is always there. Groups are classes of tokens,
    numbered from 0; a total is the sum over groups.
    """

    def __init__(self, names: Sequence[str], n_groups: int = 1) -> None:
        self.names = ("tokens", *names)
        self.n_groups = n_groups
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []

    @classmethod
    def from_table(
        cls,
        names: Sequence[str],
        document_ids: Int[np.ndarray, " documents"],
        sums: Float[np.ndarray, "documents groups columns"],
    ) -> "DocumentSums":
        """Sums made elsewhere; `names` begins with `tokens`, documents are distinct and ascending."""
        table = cls(names[1:], sums.shape[1])
        table._pending = [(document_ids, sums)]
        return table

    def add(
        self,
        document_ids: Int[Tensor, " n"],
        values: Mapping[str, Float[Tensor, " n"]],
        groups: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Add one value per token to each column; `values` must hold every name but `tokens`."""
        if set(values) != set(self.names[1:]):
            raise MetricError(f"Got columns {sorted(values)}; expected {sorted(self.names[1:])}.")
        documents = document_ids.cpu().numpy()
        unique, inverse = np.unique(documents, return_inverse=True)
        cell = inverse * self.n_groups + (0 if groups is None else groups.cpu().numpy())
        n_cells = len(unique) * self.n_groups
        columns: list[np.ndarray] = [np.bincount(cell, minlength=n_cells).astype(np.float64)]
        for name in self.names[1:]:
            weights = values[name].detach().double().cpu().numpy()
            columns.append(np.bincount(cell, weights=weights, minlength=n_cells))
        self._pending.append((unique, np.stack(columns, -1).reshape(len(unique), self.n_groups, -1)))
        if sum(len(ids) for ids, _ in self._pending) > PENDING_ROWS:
            self._compact()

    def merge(self, other: "DocumentSums") -> None:
        """Add another accumulator's sums; both must have the same columns and groups."""
        if (self.names, self.n_groups) != (other.names, other.n_groups):
            raise MetricError(f"Cannot merge sums of {other.names} into sums of {self.names}.")
        self._pending.extend(other._pending)

    @property
    def document_ids(self) -> np.ndarray:
        """Documents seen, ascending, [documents]."""
        return self._compact()[0]

    @property
    def sums(self) -> np.ndarray:
        """Sums [documents, groups, columns], float64."""
        return self._compact()[1]

    def column(self, name: str, group: int | None = None) -> np.ndarray:
        """One column per document, over all groups or in one, [documents]."""
        table = self.sums[..., self.names.index(name)]
        return table.sum(-1) if group is None else table[:, group]

    def total(self, name: str, group: int | None = None) -> float:
        """Sum of a column over all documents."""
        return float(self.column(name, group).sum())

    def resample(self, *, n_resamples: int, seed: int) -> "ResampledSums":
        """Draw documents with replacement `n_resamples` times; the same draws for every column."""
        sums = self.sums
        flat = sums.reshape(len(sums), -1)
        drawn = np.empty((n_resamples, flat.shape[1]))
        rng = np.random.default_rng(seed)
        rows = max(1, WEIGHTS_AT_ONCE // max(1, len(sums)))
        for start in range(0, n_resamples, rows):
            n_rows = min(rows, n_resamples - start)
            drawn[start : start + n_rows] = document_weights(rng, len(sums), n_rows) @ flat
        return ResampledSums(names=self.names, sums=sums, drawn=drawn.reshape(n_resamples, *sums.shape[1:]))

    def _compact(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._pending:
            empty = np.zeros((0, self.n_groups, len(self.names)))
            return np.zeros(0, np.int64), empty
        if len(self._pending) > 1:
            ids, inverse = np.unique(np.concatenate([ids for ids, _ in self._pending]), return_inverse=True)
            sums = np.zeros((len(ids), self.n_groups, len(self.names)))
            np.add.at(sums, inverse, np.concatenate([sums for _, sums in self._pending]))
            self._pending = [(ids, sums)]
        return self._pending[0]


@dataclass(frozen=True, kw_only=True)
class ResampledSums:
    """Sums per document, and the totals of each resampled set of documents."""

    names: tuple[str, ...]
    """Columns; the first is `tokens`."""
    sums: np.ndarray
    """[documents, groups, columns]"""
    drawn: np.ndarray
    """[resamples, groups, columns]"""

    def estimate(
        self, numerator: Mapping[str, int], denominator: Mapping[str, int], *, group: int | None = None
    ) -> Estimate:
        """The ratio of two sums of columns with signs, such as {"ce_zero": 1, "ce_sae": -1} over {"tokens": 1}."""
        totals, drawn = self._in_group(self.sums.sum(0), group), self._in_group(self.drawn, group)
        n_tokens, n_documents = self._measured(group)
        value = _ratio(self._combine(totals, numerator), self._combine(totals, denominator))
        low, high = None, None
        if n_documents > 1 and np.isfinite(value):
            ratios = _ratio(self._combine(drawn, numerator), self._combine(drawn, denominator))
            ratios = ratios[np.isfinite(ratios)]
            if len(ratios):
                low, high = (float(bound) for bound in np.percentile(ratios, PERCENTILES))
        return Estimate(
            value=float(value) if np.isfinite(value) else None,
            low=low,
            high=high,
            n_tokens=n_tokens,
            n_documents=n_documents,
        )

    def _measured(self, group: int | None) -> tuple[int, int]:
        tokens = self._in_group(self.sums, group)[..., 0]
        return round(float(tokens.sum())), int((tokens > 0).sum())

    def _in_group(self, table: np.ndarray, group: int | None) -> np.ndarray:
        return table.sum(-2) if group is None else table[..., group, :]

    def _combine(self, table: np.ndarray, weights: Mapping[str, int]) -> np.ndarray:
        combined = np.zeros(table.shape[:-1])
        for name, weight in weights.items():
            combined += weight * table[..., self.names.index(name)]
        return combined


def document_bootstrap(
    numerators: Float[np.ndarray, " documents"],
    denominators: Float[np.ndarray, " documents"],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """(ratio, low, high) of sum(numerators) / sum(denominators), 95 % by resampling documents.

    Raises MetricError with fewer than two documents, or when the denominators do not sum to more than zero.
    """
    if len(numerators) < 2:
        raise MetricError(f"An interval over documents needs at least 2 of them; got {len(numerators)}.")
    value = float(_ratio(numerators.sum(), denominators.sum()))
    if not np.isfinite(value):
        raise MetricError(f"A ratio needs denominators that sum to more than 0; got {denominators.sum():g}.")
    weights = document_weights(np.random.default_rng(seed), len(numerators), n_resamples)
    ratios = _ratio(weights @ numerators, weights @ denominators)
    low, high = np.percentile(ratios[np.isfinite(ratios)], PERCENTILES)
    return value, float(low), float(high)


def document_weights(
    rng: np.random.Generator, n_documents: int, n_resamples: int
) -> Float[np.ndarray, "n_resamples n_documents"]:
    """How often each document is drawn in each resample of as many documents."""
    share = np.full(n_documents, 1 / max(1, n_documents))
    return rng.multinomial(n_documents, share, size=n_resamples).astype(np.float64)


def wilson_interval(
    share: Float[np.ndarray, "*any"], n: int
) -> tuple[Float[np.ndarray, "*any"], Float[np.ndarray, "*any"]]:
    """95 % of shares of n independent trials, each low and high. Source: Wilson 1927."""
    scale = 1 + _Z**2 / n
    middle = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def _ratio(numerator: float | np.ndarray, denominator: float | np.ndarray) -> np.ndarray:
    """numerator / denominator; NaN where the denominator is not positive."""
    positive = np.asarray(denominator) > 0
    return np.where(positive, numerator / np.where(positive, denominator, 1.0), np.nan)


def outcome_of(value: float | None, low: float | None, high: float | None, seed_difference: float | None) -> str:
    """better | worse | tie, of a difference that is positive in the SAE's favour and its 95 % interval.

    A tie where the interval holds zero or is unknown, or where a second seed of the SAE differs from it by as much.
    """
    if value is None or low is None or high is None or low <= 0 <= high:
        return "tie"
    if abs(value) <= abs(seed_difference or 0.0):
        return "tie"
    return "better" if low > 0 else "worse"
