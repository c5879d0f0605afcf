"""A map: every latent a point of the plane, near to those that are active on the same tokens. UMAP (McInnes 2018), from the extra `maps`.

Neighbours are each latent's 10 strongest co-active ones, at the distance 2^-pmi, which is (expected + 1) / (seen + 1) of coactivation.py. A
latent without any has no place. A map shows some neighbourhoods truly and invents others, so its trustworthiness (Venna and Kaski 2001) comes
with it:

    T = 1 - 2 / (n k (2n - 3k - 1)) sum_i sum_j max(0, rank(i, j) - k)      j over the k = 10 nearest of i on the map

where rank(i, j) is j's place among all latents by pmi with i, ties by half: 1 if the map's neighbours are the true ones, about 0.5 if its points
are exchanged at random, which is the control. The sum over i is of up to 1,000 latents, evenly spaced; the interval takes them as independent.

Trade-off: seeded, hence on one core. 4,608 latents take 15 s, and 20 more to import and compile; 131,072 take minutes. [index] map = false skips it.
"""

import importlib
import importlib.util
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

__all__ = ["lay_out", "preload", "trustworthiness", "why_no_map"]

_FEWEST_LATENTS = 100
_TRUSTED_NEIGHBOURS = 10
_TRUST_SAMPLE = 1000
_QUERIES_AT_ONCE = 64


def preload(n_latents: int) -> None:
    """Begin to import UMAP behind what comes before a map of so many latents: it compiles for 10 s, on a core that matrix products leave idle."""
    if n_latents >= _FEWEST_LATENTS and importlib.util.find_spec("umap") is not None:
        threading.Thread(target=importlib.import_module, args=("umap",), name="import umap").start()


def why_no_map(n_linked: int) -> str:
    """Why there can be no map of so many latents that have a co-active one; empty when there can."""
    if n_linked < _FEWEST_LATENTS:
        return f"{n_linked} latents are active with another more often than chance; a map takes {_FEWEST_LATENTS}"
    if importlib.util.find_spec("umap") is None:
        return "umap-learn is not installed (pip install umap-learn)"
    return ""


def lay_out(
    latents: Int[np.ndarray, "n k"],
    pmi: Float[np.ndarray, "n k"],
    directions: Float[np.ndarray, "n d"],
    pmi_of: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m n"]],
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "n 2"], dict[str, Any]]:
    """Coordinates of n latents from their strongest co-active ones (rows padded with -1, none empty); and `trustworthiness` with `low`, `high`,
    `chance` and what it is of.

    `pmi_of`: all pmi of some of the latents. `directions` only place components that no edge joins.
    """
    from umap import UMAP  # 10 s to import; see preload

    n, k = latents.shape
    last = (latents >= 0).sum(1, keepdims=True) - 1
    distance = np.exp2(-np.where(latents >= 0, pmi, np.take_along_axis(pmi, last, 1)))
    itself = np.arange(n, dtype=np.int32)[:, None]
    graph = np.hstack([itself, latents]), np.hstack([np.zeros((n, 1)), distance]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that other points could not be added later
        points = UMAP(
            n_neighbors=k + 1,
            metric="cosine",
            precomputed_knn=(*graph, None),
            force_approximation_algorithm=True,  # else it would compare all pairs again where they are few
            random_state=seed,
            n_jobs=1,
        ).fit_transform(directions)
    points = np.asarray(points, np.float32)
    trust, low, high = trustworthiness(points, pmi_of)
    chance, *_ = trustworthiness(points[np.random.default_rng(seed).permutation(n)], pmi_of)
    about = {"method": "umap", "by": "coactive_pmi", "latents": n, "trustworthiness": trust, "low": low, "high": high}
    return points, about | {"chance": chance, "k": _TRUSTED_NEIGHBOURS, "of_latents": min(n, _TRUST_SAMPLE)}


def trustworthiness(
    points: Float[np.ndarray, "n 2"], similarity_of: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m n"]]
) -> tuple[float, float, float]:
    """T and its 95 % interval over latents; `similarity_of`: of some with all, the largest the nearest, -inf with itself. At least 20 points."""
    n, k = len(points), _TRUSTED_NEIGHBOURS
    assert n >= 2 * k
    some = np.unique(np.linspace(0, n - 1, min(n, _TRUST_SAMPLE)).astype(np.int64))
    penalty = np.empty(len(some))
    for start in range(0, len(some), _QUERIES_AT_ONCE):
        queries = some[start : start + _QUERIES_AT_ONCE]
        similarity = similarity_of(queries)
        apart = np.square(points[queries, None] - points).sum(-1)
        apart[np.arange(len(queries)), queries] = np.inf
        near = np.take_along_axis(similarity, np.argpartition(apart, k, axis=1)[:, :k], 1)
        ascending = np.sort(similarity, axis=1)
        for row in range(len(queries)):
            below, upto = (np.searchsorted(ascending[row], near[row], side=side) for side in ("left", "right"))
            ranks = n - upto + (upto - below + 1) / 2
            penalty[start + row] = np.maximum(ranks - k, 0).sum()
    each = 1 - 2 / (k * (2 * n - 3 * k - 1)) * penalty
    mean, half = float(each.mean()), 1.96 * float(each.std(ddof=1)) / len(each) ** 0.5
    return mean, mean - half, mean + half
