"""What a training step does beside its matrix products, in plain torch on any device: `gpu` gives the same by kernels.

Two uses: the oracle that the kernels are compared with, and the step's own path on a CPU. Written to be read; nothing
here is fast. Names ending in `_` change their first argument.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["activate_", "batch_threshold", "centred", "mask_gradient_", "residual_", "select_topk_", "update_rows_"]


def centred(
    x: Float[Tensor, "n d"], scale: Float[Tensor, ""], centre: Float[Tensor, " d"], dtype: torch.dtype
) -> Float[Tensor, "n d"]:
    """x / scale - centre, computed in float32, in `dtype`."""
    return (x.float() / scale - centre).to(dtype)


def select_topk_(pre: Float[Tensor, "n F"], k: int) -> None:
    """Zeroes all but each row's k largest positive values; of equal ones the first are kept. No NaN may be there."""
    columns = pre.sort(dim=1, descending=True, stable=True).indices[:, :k]
    pre.copy_(torch.zeros_like(pre).scatter(1, columns, pre.gather(1, columns).relu()))


def batch_threshold(pre: Float[Tensor, "n F"], n_kept: int) -> Float[Tensor, ""]:
    """The n_kept-th largest value of all in float32, at least the type's smallest normal number. No NaN may be there."""
    return pre.flatten().float().topk(n_kept).values[-1].clamp_min(torch.finfo(pre.dtype).tiny)


def activate_(
    pre: Float[Tensor, "n F"], threshold: Float[Tensor, ""] | None = None, *, write: bool = True
) -> tuple[Float[Tensor, " F"], Float[Tensor, " F"]]:
    """Zeroes what is not positive or below the threshold; sums and numbers of what is kept by column, in float32.

    `write=False` promises that nothing needs zeroing.
    """
    kept = pre > 0 if threshold is None else (pre > 0) & (pre.float() >= threshold)
    if write:
        pre.masked_fill_(~kept, 0.0)
    return (pre.float() * kept).sum(0), kept.sum(0, dtype=torch.float32)


def residual_(
    x_hat: Float[Tensor, "n d"],
    bias: Float[Tensor, " d"],
    target: Float[Tensor, "n d"],
    scale: Float[Tensor, ""],
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, ""]]:
    """Makes x_hat (float32) the error e = x_hat + bias - target / scale.

    Returns the gradient of mean(e^2), 2 e / (n d) in `dtype`, and the sum of e^2.
    """
    x_hat.add_(bias).sub_(target.float() / scale)
    return (x_hat * (2 / x_hat.numel())).to(dtype), x_hat.square().sum()


def mask_gradient_(
    dz: Float[Tensor, "n F"], z: Float[Tensor, "n F"], shift: Float[Tensor, " F"] | None = None
) -> Float[Tensor, " F"]:
    """Adds `shift` to each row of dz, zeroes it where z is not positive, and gives its sums by column in float32."""
    shifted = dz.float() if shift is None else dz.float() + shift
    dz.copy_(shifted * (z > 0))
    return dz.float().sum(0)


def update_rows_(
    W: Float[Tensor, "rows d"],
    gradient: Float[Tensor, "rows d"],
    mean: Float[Tensor, "rows d"],
    square: Float[Tensor, "rows d"],
    rates: Float[Tensor, " 3"],
    *,
    betas: tuple[float, float],
    eps: float,
    unit_norm: bool = False,
    pull: Float[Tensor, " rows"] | None = None,
    shadow: Float[Tensor, "rows d"] | None = None,
    norms: Float[Tensor, " rows"] | None = None,
) -> None:
    """Adam on rows of float32 weights; `mean` and `square` are its moments.

    In order: `pull` * W joins the gradient, which is multiplied by rates[2]; with `unit_norm` its part along W leaves it;
    Adam; with `unit_norm` rows are divided by their norm; `shadow` gets a copy in its type, `norms` the rows' norms.
    rates: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t) and the gradient's factor. The gradient is left in an undefined state.
    """
    if pull is not None:
        gradient.addcmul_(pull.unsqueeze(1), W)
    gradient.mul_(rates[2])
    if unit_norm:
        gradient.addcmul_(W, torch.linalg.vecdot(gradient, W).unsqueeze(1), value=-1)
    mean.mul_(betas[0]).add_(gradient, alpha=1 - betas[0])
    square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    W.sub_(rates[0] * mean / (square.sqrt() * rates[1] + eps))
    if unit_norm:
        W.div_(torch.linalg.vector_norm(W, dim=1, keepdim=True))
    if shadow is not None:
        shadow.copy_(W)
    if norms is not None:
        norms.copy_(torch.linalg.vector_norm(W, dim=1))
