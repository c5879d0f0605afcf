"""A map: every latent a point of the plane, near to those that are active on the same tokens. UMAP (McInnes 2018), from the extra `maps`.

Neighbours are each latent's 10 strongest co-active ones, at the distance 2^-pmi, which is (expected + 1) / (seen + 1) of coactivation.py. A
latent without any has no place. A map shows some neighbourhoods truly and invents others, so its trustworthiness (Venna and Kaski 2001) comes
with it:

    T = 1 - 2 / (n k (2n - 3k - 1)) sum_i sum_j max(0, rank(i, j) - k)      j over the k = 10 nearest of i on the map

where rank(i, j) is j's place among all latents by pmi with i, ties by half: 1 if the map's neighbours are the true ones, about 0.5 if its points
are exchanged at random, which is the control. The sum over i is of up to 1,000 latents, evenly spaced; the interval takes them as independent.

UMAP runs in a process of its own (umap_process.py): it holds the interpreter while it runs, on one core since it is seeded, and beside it matrix
products keep another busy.

Trade-off: 4,608 latents take 4 s, and 7 more, at the beginning, to import and compile; 131,072 take minutes. [index] map = false skips it.
"""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from sparsight.errors import MetricError

__all__ = ["MapProcess", "map_facts", "trustworthiness", "why_no_map"]

_PROGRAM = Path(__file__).with_name("umap_process.py")
_FEWEST_LATENTS = 100
_TRUSTED_NEIGHBOURS = 10
_TRUST_SAMPLE = 1000
_QUERIES_AT_ONCE = 64


class MapProcess:
    """A map that is made while other work goes on: `begin`, then `points`. A context: leaving it ends the process.

    Where UMAP is not installed, or for too few latents, there is no process and `begin` must not be called; see `why_no_map`.
    """

    def __init__(self, n_latents: int, folder: Path) -> None:
        """`folder`: made for what the process reads and writes, and gone at the end."""
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        if not why_no_map(n_latents):
            self._folder.mkdir()
            with self._errors.open("w") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(_PROGRAM), str(self._folder)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for this process, which may have the map finished first
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _errors(self) -> Path:
        return self._folder / "errors.txt"

    def begin(
        self,
        latents: Int[np.ndarray, "n k"],
        pmi: Float[np.ndarray, "n k"],
        directions: Float[np.ndarray, "n d"],
        *,
        seed: int = 0,
    ) -> None:
        """Lays out n latents from their strongest co-active ones (rows padded with -1, none empty).

        `directions` only place components that no edge joins.
        """
        last = (latents >= 0).sum(1, keepdims=True) - 1
        distance = np.exp2(-np.where(latents >= 0, pmi, np.take_along_axis(pmi, last, 1)))
        itself = np.arange(len(latents), dtype=np.int32)[:, None]
        arrays = {
            "neighbours": np.hstack([itself, latents]),
            "distances": np.hstack([np.zeros_like(distance[:, :1]), distance]).astype(np.float32),
            "directions": np.ascontiguousarray(directions, np.float32),
        }
        for name, array in arrays.items():
            np.save(self._folder / f"{name}.npy", array)
        self._say(f"{seed}\n")

    def points(self) -> Float[np.ndarray, "n 2"]:
        """Coordinates, once they are there. Raises MetricError with the process' last words when it failed."""
        assert self._process is not None
        self._process.communicate()
        if self._process.returncode:
            last = self._errors.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise MetricError(f"The map could not be laid out ({last[0]}).")
        return np.load(self._folder / "points.npy")

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; `points` says why


def why_no_map(n_linked: int) -> str:
    """Why there can be no map of so many latents that have a co-active one; empty when there can."""
    if n_linked < _FEWEST_LATENTS:
        return f"{n_linked} latents are active with another more often than chance; a map takes {_FEWEST_LATENTS}"
    if importlib.util.find_spec("umap") is None:
        return "umap-learn is not installed (pip install umap-learn)"
    return ""


def map_facts(
    points: Float[np.ndarray, "n 2"], pmi_of: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m n"]]
) -> dict[str, Any]:
    """`trustworthiness` of a map with `low`, `high`, `chance` and what it is of. `pmi_of`: all pmi of some of the latents."""
    n = len(points)
    trust, low, high = trustworthiness(points, pmi_of)
    chance, *_ = trustworthiness(points[np.random.default_rng(0).permutation(n)], pmi_of)
    about = {"method": "umap", "by": "coactive_pmi", "latents": n, "trustworthiness": trust, "low": low, "high": high}
    return about | {"chance": chance, "k": _TRUSTED_NEIGHBOURS, "of_latents": min(n, _TRUST_SAMPLE)}


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
