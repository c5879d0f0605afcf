"""Communities of latents: groups whose members are active together more often than with the rest.

An edge joins two latents, one of which has the other among its strongest co-active ones, with their pmi as weight (coactivation.py). Directions
would do too, but say less: on the demo the graph of nearest directions is no more modular than chance, that of co-activation three times as much
(docs/decisions.md).

Communities maximise modularity by Louvain's method (Blondel 2008), with one change: a random half of the latents moves at once, to what was the
best community for each before the round, so that a round is a sort over the edges and not a loop over latents. The best partition met is kept;
it is as modular as networkx' Louvain's to within 1 %.

Any graph has communities, a random one too: `chance_modularity` is that of the same edges with their ends exchanged at random.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

__all__ = ["Edges", "communities", "edges_of"]

_SMALLEST = 3
_MOST_LEVELS, _MOST_ROUNDS, _PATIENCE = 20, 60, 6

Edges = tuple[Int[np.ndarray, " e"], Int[np.ndarray, " e"], Float[np.ndarray, " e"]]


def edges_of(latents: Int[np.ndarray, "latents n"], weights: Float[np.ndarray, "latents n"]) -> Edges:
    """Both ends and the weight of each edge, every edge once; rows are padded with -1."""
    here = np.repeat(np.arange(len(latents)), latents.shape[1])
    there, weight = latents.ravel().astype(np.int64), weights.ravel().astype(np.float64)
    kept = there >= 0
    here, there, weight = here[kept], there[kept], weight[kept]
    low, high = np.minimum(here, there), np.maximum(here, there)
    _, first = np.unique(low * len(latents) + high, return_index=True)
    return low[first], high[first], weight[first]


def communities(edges: Edges, n: int, *, seed: int = 0) -> tuple[Int[np.ndarray, " n"], dict[str, Any]]:
    """The community of each of n nodes, 0 the largest, -1 for those in one of fewer than 3; and `number`, `modularity`, `chance_modularity`."""
    labels, modularity = _louvain(edges, n, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    shuffled = (edges[0], rng.permutation(edges[1]), edges[2])
    sizes = np.bincount(labels, minlength=1)
    order = np.argsort(-sizes, kind="stable")
    number = np.empty(len(sizes), np.int32)
    number[order] = np.arange(len(sizes))
    kept = sizes >= _SMALLEST
    about = {
        "number": int(kept.sum()),
        "modularity": modularity,
        "chance_modularity": _louvain(shuffled, n, rng)[1],
    }
    return np.where(kept[labels], number[labels], -1).astype(np.int32), about


def _louvain(edges: Edges, n: int, rng: np.random.Generator) -> tuple[Int[np.ndarray, " n"], float]:
    labels = np.arange(n)
    if not len(edges[0]):
        return labels, 0.0
    here, there, weight = np.append(*edges[:2]), np.append(*edges[1::-1]), np.tile(edges[2], 2)
    modularity = _modularity(here, there, weight, labels)
    for _ in range(_MOST_LEVELS):
        moved, better = _move(here, there, weight, n, rng)
        if better <= modularity + 1e-9:
            break
        names, moved = np.unique(moved, return_inverse=True)
        labels, modularity, n = moved[labels], better, len(names)
        here, there, weight = _merge(moved[here], moved[there], weight, n)
    return labels, modularity


def _move(
    here: Int[np.ndarray, " e"], there: Int[np.ndarray, " e"], weight: Float[np.ndarray, " e"], n: int, rng: Any
) -> tuple[Int[np.ndarray, " n"], float]:
    """Move nodes between communities until it no longer helps; every node starts alone."""
    labels, stale = np.arange(n), 0
    best, highest = labels, _modularity(here, there, weight, labels)
    degree, total = np.bincount(here, weight, minlength=n), weight.sum()
    apart = here != there
    here_apart, there_apart, weight_apart = here[apart], there[apart], weight[apart]
    for _ in range(_MOST_ROUNDS):
        target, gain = _best_move(here_apart, labels[there_apart], weight_apart, labels, degree, total)
        moves = (gain > 1e-12) & (rng.random(n) < 0.5)
        if not (gain > 1e-12).any():
            break
        labels = np.where(moves, target, labels)
        modularity = _modularity(here, there, weight, labels)
        stale = 0 if modularity > highest else stale + 1
        if modularity > highest:
            best, highest = labels, modularity
        if stale == _PATIENCE:
            break
    return best, highest


def _best_move(
    here: Int[np.ndarray, " e"],
    joined: Int[np.ndarray, " e"],
    weight: Float[np.ndarray, " e"],
    labels: Int[np.ndarray, " n"],
    degree: Float[np.ndarray, " n"],
    total: float,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each node the community to go to, and what it gains over staying; `joined`: the community at the edge's other end."""
    n = len(labels)
    nodes, targets, weights = _merge(here, joined, weight, n)
    size = np.bincount(labels, degree, minlength=n)
    own = labels[nodes] == targets
    gain = weights - degree[nodes] * (size[targets] - own * degree[nodes]) / total
    stay = -degree * (size[labels] - degree) / total  # what a node without an edge into its own community has
    stay[nodes[own]] = gain[own]
    order = np.lexsort((-gain, nodes))
    first = order[np.searchsorted(nodes, np.unique(nodes))]
    target, improvement = labels.copy(), np.zeros(n)
    target[nodes[first]], improvement[nodes[first]] = targets[first], gain[first] - stay[nodes[first]]
    return target, improvement


def _merge(
    here: Int[np.ndarray, " e"], there: Int[np.ndarray, " e"], weight: Float[np.ndarray, " e"], n: int
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Edges between the same two ends become one, their weights added; by end."""
    keys, inverse = np.unique(here * np.int64(n) + there, return_inverse=True)
    return *np.divmod(keys, n), np.bincount(inverse, weight)


def _modularity(
    here: Int[np.ndarray, " e"], there: Int[np.ndarray, " e"], weight: Float[np.ndarray, " e"], labels: np.ndarray
) -> float:
    total = weight.sum()
    inside = weight[labels[here] == labels[there]].sum()
    size = np.bincount(labels[here], weight)
    return float(inside / total - np.square(size / total).sum())
