"""How well activations are rebuilt: the fraction of variance unexplained (FVU) and the cosine similarity.

    FVU    = sum |x - x_hat|^2 / sum |x - mean(x)|^2      both sums over all tokens at once
    cosine = mean over tokens of  x . x_hat / (|x| |x_hat|), 0 where either is the zero vector

FVU is 0 for a perfect copy and 1 for one that always says the mean; it has no upper bound. Averaging it over batches,
or dividing by |x|^2, gives other and flattering numbers, so neither exists here.

`ReconstructionSums` computes both from one pass over batches of any size. It sums in float64 about a fixed centre c
near the mean and moves to the true mean m at the end:  sum|x-m|^2 = sum|x-c|^2 - 2 (m-c).sum(x-c) + n |m-c|^2.  That
is exact for the total and for every class of tokens (all classes use the mean of all tokens, so they add up to the
total).
Trade-off: per document, the small correction is spread evenly over tokens, as the exact one needs a vector for each
document; it touches only the width of the interval, and only by the distance between c and m.

Source of FVU: the normalised MSE of Gao et al. 2024, arXiv:2406.04093.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.errors import MetricError
from sparsight.metrics.intervals import DocumentSums

__all__ = ["ReconstructionSums", "cosine", "fvu"]


def fvu(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> float:
    """Fraction of variance unexplained: sum|x-x_hat|^2 / sum|x-mean(x)|^2.

    Over all n tokens at once, never averaged over batches. Unitless: 0 perfect, 1 no better than the mean.
    Raises MetricError if x has no variance or either holds NaN or infinity.
    Source: the normalised MSE of Gao et al. 2024, arXiv:2406.04093.
    """
    x, x_hat = x.double(), x_hat.double()
    variance = (x - x.mean(0)).square().sum().item()
    error = (x - x_hat).square().sum().item()
    return _fvu(error, variance, len(x))


def cosine(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> float:
    """Mean over tokens of the cosine between x and x_hat, not centred; a zero vector counts as 0."""
    if not len(x):
        raise MetricError("The cosine of 0 tokens has no meaning; give at least one.")
    return _cosines(x, x_hat).mean().item()


class ReconstructionSums:
    """Sums over a stream of tokens from which FVU and cosine of several methods follow, with intervals.

    Columns of the finished sums: `tokens`, `variance`, `error_NAME` and `cosine_NAME` for each method, then the `extra`
    ones, which are summed as given (such as L0).
    """

    def __init__(
        self, methods: Sequence[str], centre: Float[Tensor, " d"], *, n_groups: int = 1, extra: Sequence[str] = ()
    ) -> None:
        self.methods = tuple(methods)
        self.centre = centre.double()
        columns = [f"{kind}_{method}" for method in self.methods for kind in ("error", "cosine")]
        self._sums = DocumentSums(["variance", *columns, *extra], n_groups)
        self._shift = torch.zeros(n_groups, len(centre), dtype=torch.float64, device=centre.device)

    def add(
        self,
        x: Float[Tensor, "n d"],
        x_hats: Mapping[str, Float[Tensor, "n d"]],
        document_ids: Int[Tensor, " n"],
        groups: Int[Tensor, " n"] | None = None,
        *,
        extra: Mapping[str, Float[Tensor, " n"]] | None = None,
    ) -> None:
        """Add a batch: the true activations and what each method made of them."""
        x = x.double()
        shifted = x - self.centre
        values = {"variance": shifted.square().sum(-1), **(extra or {})}
        for method in self.methods:
            x_hat = x_hats[method].double()
            values[f"error_{method}"] = (x - x_hat).square().sum(-1)
            values[f"cosine_{method}"] = _cosines(x, x_hat)
        self._sums.add(document_ids, values, groups)
        group = torch.zeros(len(x), dtype=torch.long) if groups is None else groups.long()
        self._shift.index_add_(0, group.to(x.device), shifted)

    def merge(self, other: "ReconstructionSums") -> None:
        """Add another stream's sums; both must have used the same centre and methods."""
        if not torch.equal(self.centre, other.centre):
            raise MetricError("Cannot merge reconstruction sums about different centres; give both the same one.")
        self._sums.merge(other._sums)
        self._shift += other._shift

    def finish(self) -> DocumentSums:
        """The sums with `variance` about the mean of all tokens. Raises MetricError if there is none."""
        documents, sums = self._sums.document_ids, self._sums.sums.copy()
        tokens = sums[..., 0].sum(0)
        shift = self._shift.cpu().numpy()
        delta = shift.sum(0) / max(1.0, tokens.sum())
        per_token = 2 * (shift @ delta) / np.maximum(tokens, 1) - delta @ delta
        sums[..., 1] -= sums[..., 0] * per_token
        for column, method in enumerate(self.methods):
            _fvu(float(sums[..., 2 + 2 * column].sum()), float(sums[..., 1].sum()), int(tokens.sum()), method)
        return DocumentSums.from_table(self._sums.names, documents, sums)

    def fvu(self, method: str) -> float:
        """FVU of one method over everything added."""
        sums = self.finish()
        return sums.total(f"error_{method}") / sums.total("variance")


def _fvu(error: float, variance: float, n_tokens: int, method: str = "x_hat") -> float:
    if not np.isfinite(error) or not np.isfinite(variance):
        raise MetricError(f"FVU of {method}: NaN or infinity among {n_tokens} tokens; expected finite numbers.")
    if variance <= 0:
        raise MetricError(f"FVU needs activations that vary; these {n_tokens} tokens are all the same.")
    return error / variance


def _cosines(x: Float[Tensor, "n d"], x_hat: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    x, x_hat = x.double(), x_hat.double()
    norms = x.norm(dim=-1) * x_hat.norm(dim=-1)
    return torch.where(norms > 0, (x * x_hat).sum(-1) / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
