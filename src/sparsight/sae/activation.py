"""The activation functions of sparse autoencoders, in training and at inference.

    topk       ReLU after keeping the k largest pre-activations of each token      Gao 2024, arXiv:2406.04093
    batchtopk  keeps the n*k largest over a batch of n tokens; at inference, those Bussmann 2024, arXiv:2412.06410
               above a fixed threshold, the running mean of the smallest kept one
    jumprelu   z * [z > threshold], threshold trained through a rectangle kernel   Rajamanoharan 2024, arXiv:2407.14435
    gated      [gate > 0] * relu(magnitude), both from one product                 Rajamanoharan 2024, arXiv:2404.16014

Ties: batchtopk keeps every value equal to the smallest kept one, so the choice depends on the values alone and not on
an algorithm's order; in bfloat16, where ties are common, slightly more than n*k latents may fire.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sparsight.sae.products import column_sums, spread

__all__ = ["batch_topk", "gated_magnitude", "jumprelu", "jumprelu_train", "keep_topk", "kth_largest", "topk"]


def topk(pre: Float[Tensor, "n F"], k: int) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Indices and rectified values of each row's k largest pre-activations, in no order."""
    return _TopK.apply(pre, k)  # pyright: ignore[reportReturnType]


def keep_topk(pre: Float[Tensor, "n F"], k: int) -> Float[Tensor, "n F"]:
    """Dense form of `topk`: everything but each row's k largest rectified values is zero."""
    if k >= pre.shape[1]:
        return pre.relu()
    indices, values = topk(pre, k)
    return torch.zeros_like(pre).scatter(1, indices, values)


def batch_topk(
    pre: Float[Tensor, "n F"], k: int, hint: Float[Tensor, ""] | None = None
) -> tuple[Float[Tensor, "n F"], Float[Tensor, ""]]:
    """Rectified n*k largest pre-activations of the batch, dense, and the smallest of them.

    `hint`: a value that the smallest is expected to exceed; it saves time when right and changes nothing when wrong.
    """
    smallest = kth_largest(pre.detach(), len(pre) * k, hint).clamp_min(torch.finfo(pre.dtype).tiny)
    if pre.device.type == "cpu":  # one fused pass each way, 1.3 ms; comparison and product take 10 on bfloat16
        below = torch.nextafter(smallest, torch.zeros_like(smallest)).item()
        return functional.threshold(pre, below, 0.0), smallest.float()
    return pre * (pre >= smallest), smallest.float()


def kth_largest(values: Float[Tensor, "n F"], k: int, hint: Float[Tensor, ""] | None = None) -> Float[Tensor, ""]:
    """The k-th largest of all values, exactly.

    On CPU, values under the hint are dropped first: at 1024 x 4608 values and k = 32768 that takes 5 ms, a selection
    over all of them 64. If the hint was too high, everything is looked at. On CUDA dropping would wait for the device.
    """
    flat = values.flatten()
    if hint is not None and flat.device.type == "cpu":
        candidates = flat[flat > hint.to(flat.dtype)]
        if len(candidates) >= k:
            flat = candidates
    return flat.topk(k, sorted=False).values.amin()


def jumprelu(pre: Float[Tensor, "n F"], threshold: Float[Tensor, " F"]) -> Float[Tensor, "n F"]:
    """relu(pre) where pre exceeds the latent's threshold, else 0: the inference form."""
    return pre.relu() * (pre > threshold)


def jumprelu_train(
    pre: Float[Tensor, "n F"], threshold: Float[Tensor, " F"], bandwidth: Float[Tensor, ""]
) -> tuple[Float[Tensor, "n F"], Float[Tensor, ""]]:
    """JumpReLU and its L0 (active latents per token), with the paper's pseudo-derivatives for the threshold.

    With K the rectangle of width `bandwidth` and height 1/bandwidth about the threshold t:
    dz/dt = -t K(pre - t),  dL0/dt = -K(pre - t),  dz/dpre = [pre > t],  dL0/dpre = 0.
    """
    return _JumpReLU.apply(pre, threshold, bandwidth)  # pyright: ignore[reportReturnType]


def gated_magnitude(
    gate: Float[Tensor, "n F"],
    b_gate: Float[Tensor, " F"],
    r_mag: Float[Tensor, " F"],
    b_mag: Float[Tensor, " F"],
) -> Float[Tensor, "n F"]:
    """[gate > 0] * relu(exp(r_mag) * (gate - b_gate) + b_mag), where gate = (x - b_dec) W_enc + b_gate."""
    magnitude = torch.exp(r_mag) * (gate - b_gate) + b_mag
    return magnitude.relu() * (gate > 0)


class _TopK(torch.autograd.Function):
    """Autograd's own backward of topk scatters, which is slow: see `spread`."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, indices = pre.topk(k, dim=1, sorted=False)
        values = values.relu_()
        ctx.save_for_backward(indices, values)
        ctx.mark_non_differentiable(indices)
        ctx.width = pre.shape[1]
        return indices, values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        indices, values = ctx.saved_tensors
        return spread(indices, grads[1] * (values > 0), ctx.width), None


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> tuple[Tensor, Tensor]:
        level, width = threshold.to(pre.dtype), bandwidth.to(pre.dtype)
        z = jumprelu(pre, level)
        ctx.save_for_backward(pre, level, width, threshold, bandwidth)
        return z, z.sign().sum(dtype=torch.float32) / len(pre)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, level, width, threshold, bandwidth = ctx.saved_tensors
        d_z, d_l0 = grads
        kernel = _in_kernel(pre, level, width).to(pre.dtype)
        from_z = threshold * column_sums(kernel * d_z)
        from_l0 = d_l0 / len(pre) * column_sums(kernel)
        return d_z * (pre > level), -(from_z + from_l0) / bandwidth, None


def _in_kernel(pre: Tensor, level: Tensor, width: Tensor) -> Bool[Tensor, "n F"]:
    return (pre - level).abs_() < width / 2
