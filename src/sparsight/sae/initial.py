"""Weights before training.

    tied     rows of W_dec in random directions (Gaussian), at norm decoder_init_norm for relu and 1 for the others;
             W_enc = W_dec^T for an autoencoder, directions of its own for a transcoder; all biases 0
    linear   uniform within 1/sqrt(fan_in): W_enc and b_enc by d_in, W_dec by n_latents; b_dec 0. torch's nn.Linear
             default, the founding choice. Unit-norm architectures then scale their decoder rows to 1.

Drawn on CPU from the configuration's seed, so that every device starts alike. From the first batch, later: b_dec, and for tied
autoencoders that select k latents the scale of W_enc, at which that batch is rebuilt with least error. Several random directions
that lean the same way each carry what they share; at scale 1 their sum overshoots, and the first hundred steps go into undoing it.
Sources: Gao 2024 (tied, unit norm), Anthropic April 2024 (norm 0.1), Bricken 2023 (geometric median).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.sae.activation import batch_topk, keep_topk
from sparsight.sae.config import SAEConfig

__all__ = ["fitted_scale", "geometric_median", "initial_weights"]

# rows that the encoder's scale is fitted on: one number needs no more, and n x F latents are dense for a moment
_FITTED_ROWS = 256
# batchtopk, matryoshka: the scale is at least this share of what k latents a token would have. Below it, latents that have learned
# outgrow those that have not, which then never reach the batch's k: half of them were dead at 64 times the width (docs/log.md)
_LEAST_SHARE = 0.7


def initial_weights(cfg: SAEConfig, d_in: int, d_out: int) -> dict[str, Tensor]:
    """The trained tensors by name, float32 on CPU: W_enc, W_dec, b_dec, b_enc, and log_threshold (jumprelu), or for
    gated b_gate, r_mag and b_mag in place of b_enc."""
    generator = torch.Generator().manual_seed(cfg.seed)
    n = cfg.n_latents
    if cfg.init == "linear":
        W_enc = _uniform(d_in, (d_in, n), generator)
        bias = _uniform(d_in, (n,), generator)
        W_dec = _uniform(n, (n, d_out), generator)
    else:
        W_dec = _directions(n, d_out, generator)
        W_enc = (_directions(n, d_in, generator) if cfg.is_transcoder else W_dec).T.contiguous()
        bias = torch.zeros(n)
    if cfg.unit_norm_decoder:
        W_dec = torch.nn.functional.normalize(W_dec, dim=1)
    elif cfg.init == "tied":
        W_enc, W_dec = W_enc * cfg.decoder_init_norm, W_dec * cfg.decoder_init_norm
    weights = {"W_enc": W_enc, "W_dec": W_dec, "b_dec": torch.zeros(d_out)}
    if cfg.architecture == "gated":
        return weights | {"b_gate": bias, "r_mag": torch.zeros(n), "b_mag": bias.clone()}
    if cfg.architecture == "jumprelu":
        weights["log_threshold"] = torch.full((n,), cfg.initial_threshold).log()
    return weights | {"b_enc": bias}


@torch.no_grad()
def fitted_scale(
    cfg: SAEConfig, weights: Mapping[str, Tensor], x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]
) -> Float[Tensor, ""]:
    """What to multiply W_enc by so that z W_dec is nearest to target - b_dec over the first rows; 1 where it is not fitted.

    Scaling the encoder scales the latents and changes none of the choice among them: sum(x_hat * wanted) / sum(x_hat^2).
    Where the k are the batch's, a few tokens with large norms take hundreds each and set a scale far too small for the
    others; see `_LEAST_SHARE`.
    """
    scale = torch.ones((), device=x.device)
    if not cfg.selects_k or cfg.init != "tied" or cfg.is_transcoder:
        return scale
    x, wanted = x[:_FITTED_ROWS] - weights["b_dec"], target[:_FITTED_ROWS] - weights["b_dec"]
    pre = x @ weights["W_enc"]
    fitted = _least_error(keep_topk(pre, cfg.k) @ weights["W_dec"], wanted)
    if cfg.architecture != "topk":
        by_batch = _least_error(batch_topk(pre, cfg.k)[0] @ weights["W_dec"], wanted)
        fitted = torch.maximum(by_batch, _LEAST_SHARE * fitted)
    return torch.where(torch.isfinite(fitted) & (fitted > 0), fitted, scale)


def _least_error(rebuilt: Float[Tensor, "n d_out"], wanted: Float[Tensor, "n d_out"]) -> Float[Tensor, ""]:
    """The number to multiply what was rebuilt by."""
    return (rebuilt * wanted).sum() / rebuilt.square().sum()


def geometric_median(x: Float[Tensor, "n d"], iterations: int = 50) -> Float[Tensor, " d"]:
    """The point with the least sum of distances to the rows, by Weiszfeld's iteration from the mean."""
    point = x.mean(0)
    for _ in range(iterations):
        weights = 1 / torch.linalg.vector_norm(x - point, dim=1, keepdim=True).clamp_min(1e-6)
        point = (x * weights).sum(0) / weights.sum()
    return point


def _uniform(fan_in: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) / fan_in**0.5


def _directions(n: int, d: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)
