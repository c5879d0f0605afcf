"""What the active values of each latent are like, and in how many documents they occur."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sparsight.features.statistics.grouped import count_items, starts_of

__all__ = ["Bucket", "value_statistics"]


@dataclass(frozen=True)
class Bucket:
    """The active pairs of a range of latents, by latent and then by place."""

    n_latents: int
    """In the range, those never active included."""
    latents: Int[np.ndarray, " n"]
    """Counted from the first of the range."""
    places: Int[np.ndarray, " n"]
    """In `piece_tokens`."""
    values: Float[np.ndarray, " n"]
    """float32, above 0."""


def value_statistics(
    bucket: Bucket, documents: Int[np.ndarray, " tokens"], quantiles: tuple[float, ...], n_bins: int
) -> dict[str, np.ndarray]:
    """n_documents, maximum, mean, quantiles and histogram of the index; 0 for a latent never active."""
    n, values = bucket.n_latents, bucket.values
    starts = starts_of(bucket.latents, n)
    counts = np.diff(starts)
    alive = np.flatnonzero(counts)
    maximum = np.zeros(n, np.float32)
    maximum[alive] = np.maximum.reduceat(values, starts[alive]) if len(alive) else 0
    sums = np.bincount(bucket.latents, values, minlength=n)
    n_documents = np.bincount(
        count_items(bucket.latents, documents[bucket.places], int(documents.max(initial=0)) + 1).groups, minlength=n
    )
    # Bins are numbered here and not by np.histogram, whose edges underflow on subnormal values.
    bins = (values.astype(np.float64) / maximum[bucket.latents] * n_bins).astype(np.int64)
    histogram = np.bincount(bucket.latents * n_bins + np.minimum(bins, n_bins - 1), minlength=n * n_bins)
    return {
        "n_documents": n_documents,
        "maximum": maximum,
        "mean": (sums / np.maximum(counts, 1)).astype(np.float32),
        "quantiles": _quantiles(bucket, starts, alive, np.array(quantiles)),
        "histogram": histogram.reshape(n, n_bins),
    }


def _quantiles(
    bucket: Bucket, starts: np.ndarray, alive: np.ndarray, quantiles: Float[np.ndarray, " q"]
) -> Float[np.ndarray, "latents q"]:
    """Linear between the two values about each quantile, as np.quantile has them by default."""
    result = np.zeros((bucket.n_latents, len(quantiles)), np.float32)
    if not len(alive):
        return result
    ascending = _sorted_within(bucket.latents, bucket.values)
    first, last = starts[alive, None], starts[alive + 1, None] - 1
    place = first + quantiles * (last - first)
    low = np.floor(place).astype(np.int64)
    below, above = (ascending[i].astype(np.float64) for i in (low, np.minimum(low + 1, last)))
    result[alive] = below + (above - below) * (place - low)
    return result


def _sorted_within(groups: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The values, ascending within each group: one sort of integers, as the bits of positive float32 order like them; 5 times lexsort's speed."""
    keys = np.sort(groups.astype(np.uint64) << np.uint64(32) | values.astype(np.float32).view(np.uint32))
    return keys.astype(np.uint32).view(np.float32)
