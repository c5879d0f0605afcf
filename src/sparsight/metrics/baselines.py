"""The linear baseline an SAE has to beat: PCA with as many components as the SAE has active latents.

    x_hat = mean + (x - mean) V_k V_k^T        V_k: the k leading eigenvectors of the covariance of train activations

For a transcoder (input x, target y) the equal is rank-k linear regression, which also sees only the input:

    y_hat = mean_y + (x - mean_x) B V_k V_k^T  B: least squares from x to y; V_k: leading eigenvectors of cov(x B)

With y = x that B is the identity and the two are one formula. At k numbers per token PCA is the best any linear code
can do on the text it was fitted on, so an SAE with L0 = k that does not beat it has learned nothing that needs
sparsity. (An SAE also says *which* k latents are active; equal L0 is not equal bits.)

Source of rank-k regression: Izenman 1975, reduced-rank regression with identity weights.
Trade-off: the covariance is d x d in float64 and eigh costs d^3: d = 4096 takes 130 MB and, on a CPU, about a minute.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import MetricError

__all__ = ["LinearBaseline", "LinearFit"]

# Ridge relative to the mean eigenvalue: enough to solve with fewer tokens than dimensions, too little to show.
RELATIVE_RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class LinearBaseline:
    """A rank-k linear map from activations to activations."""

    input_mean: Float[Tensor, " d_in"]
    encoder: Float[Tensor, "d_in k"]
    decoder: Float[Tensor, "k d_out"]
    output_mean: Float[Tensor, " d_out"]
    n_tokens: int
    """Train tokens it was fitted on."""

    @property
    def k(self) -> int:
        """Components, that is numbers kept per token."""
        return self.decoder.shape[0]

    def reconstruct(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """The target predicted from the k components alone."""
        return (x.float() - self.input_mean) @ self.encoder @ self.decoder + self.output_mean


class LinearFit:
    """Collects means and covariances of train activations batch by batch; then makes baselines of any k."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._shifts: tuple[Tensor, Tensor] | None = None

    def add(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None) -> None:
        """Add a batch of inputs and, for a transcoder only, its targets."""
        x = x.float()
        y = x if target is None else target.float()
        if self._shifts is None:
            self._shifts = (x.mean(0), y.mean(0))
            self._same = target is None
            inputs, targets = (torch.zeros(t.shape[1], dtype=torch.float64, device=t.device) for t in (x, y))
            self._sums = [inputs, inputs if self._same else targets]
            d_in, d_out = x.shape[1], y.shape[1]
            self._xx = torch.zeros(d_in, d_in, dtype=torch.float64, device=x.device)
            self._xy = self._xx if self._same else torch.zeros(d_in, d_out, dtype=torch.float64, device=x.device)
        # Shifted by the first batch's mean, so that float32 products lose nothing to a large mean; summed in float64.
        x = x - self._shifts[0]
        self._sums[0] += x.sum(0, dtype=torch.float64)
        self._xx += x.T @ x
        if not self._same:
            y = y - self._shifts[1]
            self._sums[1] += y.sum(0, dtype=torch.float64)
            self._xy += x.T @ y
        self.n_tokens += len(x)

    @property
    def output_mean(self) -> Float[Tensor, " d_out"]:
        """Mean target activation, float32: what mean ablation puts in place."""
        return self._mean(1)

    def baseline(self, k: int) -> LinearBaseline:
        """The baseline with k components; k is cut to the width. Raises MetricError without two tokens."""
        if self.n_tokens < 2:
            raise MetricError(f"PCA needs at least 2 train tokens; got {self.n_tokens}. Collect more text.")
        n = self.n_tokens
        centred = [total / n for total in self._sums]
        xx = self._xx / n - torch.outer(centred[0], centred[0])
        if self._same:
            vectors = _leading(xx, k)
            encoder = vectors
        else:
            xy = self._xy / n - torch.outer(centred[0], centred[1])
            ridge = RELATIVE_RIDGE * xx.diagonal().mean()
            slope = torch.linalg.solve(xx + ridge * torch.eye(len(xx), dtype=xx.dtype, device=xx.device), xy)
            vectors = _leading(slope.T @ xx @ slope, k)
            encoder = slope @ vectors
        return LinearBaseline(
            input_mean=self._mean(0),
            encoder=encoder.float(),
            decoder=vectors.T.float().contiguous(),
            output_mean=self._mean(1),
            n_tokens=n,
        )

    def spectrum(self, k: int) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"], float]:
        """The inputs' k leading principal components, the variance along each, and the whole variance."""
        mean = self._sums[0] / self.n_tokens
        covariance = self._xx / self.n_tokens - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        leading = vectors.flip(-1)[:, :k].contiguous().float()
        return leading, values.flip(-1)[:k].clamp_min(0).float(), float(covariance.diagonal().sum())

    def _mean(self, side: int) -> Tensor:
        if self._shifts is None:
            raise MetricError("A mean needs at least one train token; none was added. Collect more text.")
        return (self._shifts[side].double() + self._sums[side] / self.n_tokens).float()


def _leading(covariance: Float[Tensor, "d d"], k: int) -> Float[Tensor, "d k"]:
    _, vectors = torch.linalg.eigh(covariance)
    return vectors.flip(-1)[:, :k].contiguous()
