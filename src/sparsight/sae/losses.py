"""The training objective of each architecture, in normalised units.

    relu                    mse + c * l1
    topk, batchtopk         mse + a * auxk
    matryoshka              mean over prefixes p of mse(z[:, :p] W_dec[:p] + b_dec) + a * auxk
    jumprelu                mse + c * l0
    gated                   mse + c * l1 of relu(gate) + mse of relu(gate) through a frozen decoder

Scales. mse is the mean over tokens and dimensions; with rms-normalised activations it is close to FVU, and equals the
papers' sum over dimensions for inputs of mean square norm 1. l1 "raw" is the mean of |z| over all elements, as in
`F.mse_loss + c * z.abs().mean()`; l1 "decoder-norm" is the mean over tokens of sum_j z_j |W_dec_j|, over d_out. auxk
is the mean square error of the dead latents' reconstruction of the detached residual, over that residual's variance: 1
when they explain nothing, whatever the scale. Matryoshka averages over prefixes (the paper sums) to keep mse's scale.

Both L1 penalties are reported for every architecture, each as a mean over all elements, so that their ratio is the
z-weighted mean decoder norm: a raw penalty that falls while this ratio grows is being cheated.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sparsight.sae.activation import batch_topk, gated_magnitude, jumprelu_train, keep_topk, topk
from sparsight.sae.config import SAEConfig
from sparsight.sae.crosscoder import latent_weights
from sparsight.sae.products import column_sums, decode, decode_prefixes, decode_sparse, encode

__all__ = ["LossInput", "Losses", "auxk_loss", "training_losses"]


@dataclass(frozen=True, kw_only=True)
class LossInput:
    """One normalised batch and the trainer's state that the objective looks at."""

    x: Float[Tensor, "n d_in"]
    """Normalised input."""
    target: Float[Tensor, "n d_out"]
    """Normalised target; the input itself for an autoencoder."""
    centre: Float[Tensor, " d_in"]
    """Subtracted from the input: b_dec for an autoencoder, the input's mean for a transcoder."""
    dead: Bool[Tensor, " F"]
    """Latents that have not fired for dead_after_tokens tokens."""
    sparsity_weight: float
    """Warm-up factor of the sparsity penalty, from 0 to 1."""
    threshold: Float[Tensor, ""]
    """Running mean of batchtopk's smallest kept value; 0 at first."""
    bandwidth: Float[Tensor, ""]
    """Width of jumprelu's kernel in normalised units."""

    @property
    def n_tokens(self) -> int:
        """Tokens in the batch."""
        return len(self.x)


@dataclass(kw_only=True)
class Losses:
    """What one forward pass gives: the loss to differentiate, and detached parts of it."""

    loss: Float[Tensor, ""]
    mse: Float[Tensor, ""]
    latent_sums: Float[Tensor, " F"]
    """Sum of each latent over the batch; positive exactly when it fired."""
    l0: Float[Tensor, ""]
    """Active latents per token."""
    sparsity: Float[Tensor, ""] | None = None
    """The penalty before its coefficient."""
    aux: Float[Tensor, ""] | None = None
    threshold: Float[Tensor, ""] | None = None
    """batchtopk: the smallest kept value."""


def training_losses(cfg: SAEConfig, weights: Mapping[str, Tensor], batch: LossInput) -> Losses:
    """The objective of `cfg.architecture` on one batch. `weights`: the trained tensors by name."""
    dtype = torch.bfloat16 if cfg.precision == "bfloat16" else torch.float32
    bias = weights["b_gate" if cfg.architecture == "gated" else "b_enc"]
    pre = encode(batch.x, batch.centre, weights["W_enc"], bias, dtype)
    objective = {"relu": _relu, "topk": _topk, "jumprelu": _jumprelu, "gated": _gated}.get(cfg.architecture, _batchtopk)
    return objective(cfg, weights, batch, pre)


def auxk_loss(
    pre: Float[Tensor, "n F"],
    W_dec: Float[Tensor, "F d_out"],
    residual: Float[Tensor, "n d_out"],
    dead: Bool[Tensor, " F"],
    k_aux: int,
) -> Float[Tensor, ""]:
    """How badly the k_aux strongest dead latents of each token rebuild the residual: 1 explains nothing of it.

    Gradients reach the dead latents' encoder (through `pre`) and decoder rows, and no other latent's; without dead
    latents it is 0.
    CPU looks at the dead columns alone; on CUDA, where counting them would wait for the device, all others are masked.
    """
    residual = residual.detach()
    if pre.device.type == "cpu":
        columns = dead.nonzero().squeeze(1)
        if len(columns) == 0:
            return residual.new_zeros(())
        pre, W_dec = pre.index_select(1, columns), W_dec.index_select(0, columns)
    else:
        pre = pre.masked_fill(~dead, 0.0)
    rebuilt = decode(keep_topk(pre, k_aux), W_dec, pre.dtype)
    variance = (residual - residual.mean(0)).square().mean().clamp_min(torch.finfo(residual.dtype).tiny)
    return functional.mse_loss(rebuilt, residual) / variance * dead.any()


def _relu(cfg: SAEConfig, weights: Mapping[str, Tensor], batch: LossInput, pre: Tensor) -> Losses:
    z = pre.relu()
    x_hat = decode(z, weights["W_dec"], pre.dtype) + weights["b_dec"]
    mse = functional.mse_loss(x_hat, batch.target)
    penalty = _l1(cfg, z, weights["W_dec"])
    loss = mse + cfg.l1_coefficient * batch.sparsity_weight * penalty
    return Losses(loss=loss, mse=mse, sparsity=penalty, **_summary(z))


def _topk(cfg: SAEConfig, weights: Mapping[str, Tensor], batch: LossInput, pre: Tensor) -> Losses:
    indices, values = topk(pre, cfg.k)
    x_hat = decode_sparse(indices, values, weights["W_dec"], pre.dtype) + weights["b_dec"]
    mse = functional.mse_loss(x_hat, batch.target)
    loss, aux = _with_auxk(cfg, weights, batch, pre, x_hat, mse)
    detached = values.detach().float()
    sums = torch.zeros_like(weights["W_dec"][:, 0]).index_add_(0, indices.flatten(), detached.flatten())
    l0 = detached.sign().sum() / batch.n_tokens
    return Losses(loss=loss, mse=mse, latent_sums=sums, l0=l0, aux=aux)


def _batchtopk(cfg: SAEConfig, weights: Mapping[str, Tensor], batch: LossInput, pre: Tensor) -> Losses:
    z, smallest = _weighed_topk(cfg, weights["W_dec"], pre, 0.9 * batch.threshold)
    x_hats = decode_prefixes(z, weights["W_dec"], cfg.prefixes, pre.dtype) + weights["b_dec"]
    mse = (x_hats - batch.target).square().mean((1, 2))
    loss, aux = _with_auxk(cfg, weights, batch, pre, x_hats[-1], mse.mean())
    return Losses(loss=loss, mse=mse[-1], aux=aux, threshold=smallest, **_summary(z))


def _jumprelu(cfg: SAEConfig, weights: Mapping[str, Tensor], batch: LossInput, pre: Tensor) -> Losses:
    z, l0 = jumprelu_train(pre, weights["log_threshold"].exp(), batch.bandwidth)
    x_hat = decode(z, weights["W_dec"], pre.dtype) + weights["b_dec"]
    mse = functional.mse_loss(x_hat, batch.target)
    loss = mse + cfg.l0_coefficient * batch.sparsity_weight * l0
    return Losses(loss=loss, mse=mse, sparsity=l0, **_summary(z))


def _gated(cfg: SAEConfig, weights: Mapping[str, Tensor], batch: LossInput, pre: Tensor) -> Losses:
    z = gated_magnitude(pre, *(weights[name].to(pre.dtype) for name in ("b_gate", "r_mag", "b_mag")))
    x_hat = decode(z, weights["W_dec"], pre.dtype) + weights["b_dec"]
    mse = functional.mse_loss(x_hat, batch.target)
    gate = pre.relu()
    through_gate = decode(gate, weights["W_dec"].detach(), pre.dtype) + weights["b_dec"].detach()
    aux = functional.mse_loss(through_gate, batch.target)
    penalty = _l1(cfg, gate, weights["W_dec"].detach())
    loss = mse + cfg.l1_coefficient * batch.sparsity_weight * penalty + aux
    return Losses(loss=loss, mse=mse, sparsity=penalty, aux=aux, **_summary(z))


def _with_auxk(
    cfg: SAEConfig, weights: Mapping[str, Tensor], batch: LossInput, pre: Tensor, x_hat: Tensor, mse: Tensor
) -> tuple[Tensor, Tensor | None]:
    if cfg.auxk_coefficient == 0:
        return mse, None
    k_aux = cfg.aux_latents(batch.x.shape[1])
    aux = auxk_loss(pre, weights["W_dec"], batch.target - x_hat, batch.dead, k_aux)
    return mse + cfg.auxk_coefficient * aux, aux


def _l1(cfg: SAEConfig, z: Tensor, W_dec: Tensor) -> Tensor:
    sums = column_sums(z)
    if cfg.l1_penalty == "raw":
        return sums.sum() / z.numel()
    weights = latent_weights(cfg, W_dec)
    weights = torch.linalg.vector_norm(W_dec, dim=1) if weights is None else weights
    return (sums * weights).sum() / (len(z) * W_dec.shape[1])


def _weighed_topk(cfg: SAEConfig, W_dec: Tensor, pre: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
    """The batch's k largest of z w, w being 1 but for crosscoders, and the smallest of them; w takes part in the choice alone."""
    weights = latent_weights(cfg, W_dec.detach())
    if weights is None:
        return batch_topk(pre, cfg.k, hint=hint)
    kept, smallest = batch_topk((pre * weights).to(pre.dtype), cfg.k, hint=hint)
    return (kept / weights).to(pre.dtype), smallest


def _summary(z: Tensor) -> dict[str, Tensor]:
    z = z.detach()
    return {"latent_sums": column_sums(z), "l0": z.sign().sum(dtype=torch.float32) / len(z)}
