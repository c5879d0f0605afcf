"""The heavy matrix products of an SAE's training step, with their gradients written out.

    encode:  pre = (x - centre) W_enc + bias        d_W = (x - centre)^T g,  d_centre = -W_enc sum(g),  d_bias = sum(g)
    decode:  x_hat_p = z[:, :p] W_dec[:p]           d_W = z^T g,             d_z = g W_dec^T,  for each nested prefix p

Autograd would form g W_enc^T of shape [n, d] only to sum it over rows; a matrix-vector product suffices. Products run
in `dtype` (bfloat16 accumulates in float32 inside the product) and their results feed float32 sums, losses and Adam.

`decode_sparse` takes the k active latents per row. On CPU its forward gathers k rows of W_dec; measured there at
d=576, F=4608, n=1024, k=32, two cores: 1.5 ms against 3.9 for the dense product. Its backward is dense on
every device (d_z by product and gather 2.5 ms against 2.7 for embedding_bag's own and 35 for gather and bmm), since
bfloat16 products outrun gathers by more than the sparsity saves. On CUDA the forward is dense as well.
Trade-off: one dense [n, F] buffer in `dtype` per pass.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

__all__ = ["column_sums", "decode", "decode_prefixes", "decode_sparse", "encode", "product", "spread"]


def encode(
    x: Float[Tensor, "n d_in"],
    centre: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "d_in F"],
    bias: Float[Tensor, " F"],
    dtype: torch.dtype,
) -> Float[Tensor, "n F"]:
    """Pre-activations in `dtype`; gradients of centre, W_enc and bias in float32 (none for x)."""
    return _Encode.apply(x, centre, W_enc, bias, dtype)  # pyright: ignore[reportReturnType]


def decode(z: Float[Tensor, "n F"], W_dec: Float[Tensor, "F d_out"], dtype: torch.dtype) -> Float[Tensor, "n d_out"]:
    """z W_dec in float32, without bias."""
    return decode_prefixes(z, W_dec, (W_dec.shape[0],), dtype)[0]


def decode_prefixes(
    z: Float[Tensor, "n F"], W_dec: Float[Tensor, "F d_out"], prefixes: tuple[int, ...], dtype: torch.dtype
) -> Float[Tensor, "prefixes n d_out"]:
    """z[:, :p] W_dec[:p] for each prefix p, in float32, without bias, at the cost of one full decode."""
    return _DecodePrefixes.apply(z, W_dec, prefixes, dtype)  # pyright: ignore[reportReturnType]


def decode_sparse(
    indices: Int[Tensor, "n k"], values: Float[Tensor, "n k"], W_dec: Float[Tensor, "F d_out"], dtype: torch.dtype
) -> Float[Tensor, "n d_out"]:
    """Sum of values * W_dec[indices] per row in float32, without bias. Indices within a row must differ."""
    return _DecodeSparse.apply(indices, values, W_dec, dtype)  # pyright: ignore[reportReturnType]


def column_sums(z: Float[Tensor, "n F"]) -> Float[Tensor, " F"]:
    """Sums over rows in float32, as a product with ones: a summing kernel first copies bfloat16 input to float32."""
    return _ColumnSums.apply(z)  # pyright: ignore[reportReturnType]


def spread(indices: Int[Tensor, "n k"], values: Float[Tensor, "n k"], width: int) -> Float[Tensor, "n F"]:
    """A dense matrix with these values at these columns; indices within a row must differ.

    Without gradient. By flat index, since scatter_ copies its bfloat16 result twice on CPU: 0.5 ms against 5.
    """
    dense = values.new_zeros(len(indices), width)
    rows = torch.arange(len(indices), device=indices.device).unsqueeze(1) * width
    dense.view(-1)[(indices + rows).flatten()] = values.flatten()
    return dense


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, centre: Tensor, W_enc: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        centred, weights = (x - centre).to(dtype), W_enc.to(dtype)
        ctx.save_for_backward(centred, W_enc)
        return torch.addmm(bias.to(dtype), centred, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        centred, W_enc = ctx.saved_tensors
        grad = grads[0]
        sums = _sums(grad)
        d_centre = -(W_enc @ sums) if ctx.needs_input_grad[1] else None
        return None, d_centre, product(centred.T, grad), sums, None


class _DecodePrefixes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, W_dec: Tensor, prefixes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        z, weights = z.to(dtype), W_dec.to(dtype)
        ctx.save_for_backward(z, weights)
        ctx.prefixes = prefixes
        parts = [product(z[:, a:b], weights[a:b]) for a, b in _segments(prefixes)]
        return torch.stack(parts).cumsum_(0) if len(parts) > 1 else parts[0].unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, weights = ctx.saved_tensors
        grad = grads[0]
        if len(grad) > 1:  # a latent in segment s takes part in the reconstructions of all prefixes from s on
            grad = grad.flip(0).cumsum(0).flip(0)
        pairs = list(zip(grad.to(z.dtype), _segments(ctx.prefixes), strict=True))
        d_z = _joined([reaching @ weights[a:b].T for reaching, (a, b) in pairs], dim=1)
        d_W = _joined([product(z[:, a:b].T, reaching) for reaching, (a, b) in pairs], dim=0)
        return d_z, d_W, None, None


class _DecodeSparse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indices: Tensor, values: Tensor, W_dec: Tensor, dtype: torch.dtype) -> Tensor:
        weights = W_dec.to(dtype)
        ctx.save_for_backward(indices, values, weights)
        if W_dec.device.type == "cpu":
            return functional.embedding_bag(indices, W_dec, per_sample_weights=values.to(W_dec.dtype), mode="sum")
        return product(spread(indices, values.to(dtype), len(weights)), weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        indices, values, weights = ctx.saved_tensors
        grad = grads[0].to(weights.dtype)
        d_values = (grad @ weights.T).gather(1, indices).to(values.dtype)
        dense = spread(indices, values.to(weights.dtype), len(weights))
        return None, d_values, product(dense.T, grad), None


class _ColumnSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.rows, ctx.dtype = len(z), z.dtype
        return _sums(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].to(ctx.dtype).expand(ctx.rows, -1)


def _sums(z: Tensor) -> Tensor:
    return product(z.new_ones(1, len(z)), z)[0]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def _segments(prefixes: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip((0, *prefixes[:-1]), prefixes, strict=True))


def product(a: Float[Tensor, "n m"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """a @ b as float32; only CUDA can hand the float32 accumulator out, CPU rounds it to the inputs' type first."""
    if a.dtype != torch.float32 and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()
