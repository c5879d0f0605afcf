"""A program of its own that lays out a map with UMAP: python -P umap_process.py FOLDER, run by `layout.MapProcess`.

It imports and compiles UMAP first, which takes some 7 s, waits for a line of input, reads FOLDER/{neighbours,distances,directions}.npy and writes
FOLDER/points.npy. End of input without a line ends it. It imports nothing of the package, so that it starts at once.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from umap import UMAP

_COMPILED_ON = 200  # points: as few as take the same way through UMAP as many


def lay_out(neighbours: np.ndarray, distances: np.ndarray, directions: np.ndarray, seed: int) -> np.ndarray:
    """Coordinates [n, 2] of n points from their neighbours [n, k], each itself first, and the distances to them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that other points could not be added later
        points = UMAP(
            n_neighbors=neighbours.shape[1],
            metric="cosine",
            precomputed_knn=(neighbours, distances, None),
            force_approximation_algorithm=True,  # else it would compare all pairs again where they are few
            random_state=seed,
            n_jobs=1,
        ).fit_transform(directions)
    return np.asarray(points, np.float32)


def _compile() -> None:
    """Compiles what a map calls, on a ring of points."""
    k, numbers = 11, np.arange(_COMPILED_ON, dtype=np.int32)
    neighbours = (numbers[:, None] + np.arange(k, dtype=np.int32)) % _COMPILED_ON
    distances = np.tile(np.arange(k, dtype=np.float32), (_COMPILED_ON, 1))
    lay_out(neighbours, distances, np.random.default_rng(0).normal(size=(_COMPILED_ON, 8)).astype(np.float32), 0)


def main() -> None:
    """Waits for a seed on its input, then lays out."""
    folder = Path(sys.argv[1])
    _compile()
    line = sys.stdin.readline()
    if line:
        neighbours, distances, directions = (
            np.load(folder / f"{name}.npy") for name in ("neighbours", "distances", "directions")
        )
        np.save(folder / "points.npy", lay_out(neighbours, distances, directions, int(line)))


if __name__ == "__main__":
    main()
