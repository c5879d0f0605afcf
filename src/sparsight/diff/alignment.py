"""CKA: how alike two models arrange the same tokens, whatever rotation and scale their activations have.

    CKA  = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))       K = X X^T, L = Y Y^T over the n tokens of a batch

    HSIC = 1/(n(n-3)) [tr(K~ L~) + sum(K~) sum(L~) / ((n-1)(n-2)) - 2/(n-2) sum_i (K~ 1)_i (L~ 1)_i],   K~: zero diagonal

HSIC is Song's unbiased estimator, summed over batches before the ratio is taken; the plain one tends to 1 wherever there are
fewer tokens than dimensions. 1: the same up to rotation, scale and shift; 0: unrelated. It is blind to a change that is small
beside the variance of the activations, which is what a fine-tune mostly makes: read it beside the relative norm of the difference.

Source: Kornblith et al. 2019, arXiv:1905.00414; in batches, Nguyen et al. 2021, arXiv:2010.15327; Song et al. 2012, JMLR 13.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import MetricError
from sparsight.metrics import Estimate

__all__ = ["CKASums", "unbiased_hsic"]

_LEAST_ROWS = 4


def unbiased_hsic(K: Float[Tensor, "n n"], L: Float[Tensor, "n n"]) -> float:
    """Song's estimator; can be negative. Raises MetricError for fewer than 4 tokens."""
    n = len(K)
    if n < _LEAST_ROWS:
        raise MetricError(
            f"CKA needs batches of at least {_LEAST_ROWS} tokens; got {n}. Raise the tokens of a forward pass."
        )
    K, L = (_hollow(each) for each in (K, L))
    rows_k, rows_l = K.sum(1), L.sum(1)
    product = (K * L).sum() + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_k @ rows_l)
    return float(product / (n * (n - 3)))


class CKASums:
    """The three HSICs of each batch; the ratio of their sums, with an interval by resampling batches."""

    def __init__(self) -> None:
        self._batches: list[tuple[float, float, float]] = []
        self._n_tokens = self._n_documents = 0

    def add(self, x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"], *, n_documents: int = 0) -> None:
        """A batch of the same tokens in both models; one with fewer than 4 is left out."""
        if len(x) < _LEAST_ROWS:
            return
        x, y = (each.double() - each.double().mean(0) for each in (x, y))  # a shift changes nothing but the rounding
        K, L = x @ x.T, y @ y.T
        self._batches.append((unbiased_hsic(K, L), unbiased_hsic(K, K), unbiased_hsic(L, L)))
        self._n_tokens += len(x)
        self._n_documents += n_documents

    def estimate(self, *, n_resamples: int = 1000, seed: int = 0) -> Estimate:
        """CKA and its 95 % interval; None where a model's activations do not vary."""
        table, n = np.array(self._batches), len(self._batches)
        value = float(_ratio(table.sum(0, keepdims=True))[0]) if n else np.nan
        low = high = None
        if n > 1 and np.isfinite(value):
            ratios = _ratio(np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples) @ table)
            low, high = map(float, np.percentile(ratios[np.isfinite(ratios)], (2.5, 97.5)))
        known = value if np.isfinite(value) else None
        return Estimate(value=known, low=low, high=high, n_tokens=self._n_tokens, n_documents=self._n_documents)


def _ratio(sums: np.ndarray) -> np.ndarray:
    squared = sums[:, 1] * sums[:, 2]
    good = (sums[:, 1] > 0) & (sums[:, 2] > 0)
    return np.where(good, sums[:, 0] / np.sqrt(np.where(good, squared, 1.0)), np.nan)


def _hollow(K: Tensor) -> Tensor:
    return K.double() - torch.diag(K.diagonal().double())
