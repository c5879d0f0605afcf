"""The CPU's kernels behind tensors: selection, sparse decode with its gradients, one pass over the weights.

`pre` is bfloat16 throughout, weights and sums float32; tests/test_sae_kernels.py holds the torch form of each.

    select_topk        each row's k largest, rectified
    select_at_least    all values of at least a bound, rectified; `batch_bound` finds batchtopk's
    decode             e = z W_dec + b_dec - target,  d_x_hat = 2 e / e.numel(),  d_z = [z > 0] (d_x_hat W_dec^T + penalty)
    gradients          sums over rows of d_z x and z d_x_hat, for each latent
    chosen_products    of each row with some rows of a matrix, in float32
    update             gradient projection, Adam, norm, bfloat16 copy

On a 2-core Xeon with AMX (d = 576, F = 4608, k = 32, n = 1024; ms, within a step): selection 0.5, decode with d_z 1.2, gradients
1.5, update 3.8, beside 2.9 for the encoder's product. The torch forms, each alone: topk 7.7, decode with d_z 5.4, dense products
for the gradients 6.4. The update is bound by memory: 28 bytes of weights and moments a parameter.
Trade-off: plain C that needs a compiler at run time; without one `available` is False and the autograd form trains.
"""

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import BFloat16, Float, Float32, Float64, Int32, Int64, Shaped
from torch import Tensor

from sparsight.artifact.native import native_library
from sparsight.sae.kernels.workspace import Workspace

__all__ = [
    "SMALLEST",
    "Active",
    "AdamStep",
    "Columns",
    "Decoded",
    "Rows",
    "available",
    "batch_bound",
    "centre",
    "chosen_products",
    "copy_bias",
    "decode",
    "encoder_copy",
    "gradient_rows",
    "gradient_squares",
    "mask_columns",
    "padded",
    "residual",
    "select_at_least",
    "select_topk",
    "sort_entries",
    "transpose",
    "update_rows",
    "update_vector",
]

# the smallest normal bfloat16: what counts as positive
SMALLEST = 2.0**-126

_SOURCE = Path(__file__).with_suffix(".c")

# rows that together have up to this many bytes are gathered whole, since a core's own cache (2 MiB here) holds them; of more, a few columns
# at a time: at 4,096 rows of 576, 64 columns take 3.4 ms, 128 3.8, 256 5.0 and all 5.6
_CACHED_BYTES = 3 * 2**19
_BLOCK_COLUMNS = 64


class Rows(NamedTuple):
    """Rows as they came, which stand for rows / scale: read where they are needed instead of written out."""

    given: Shaped[Tensor, "n d"]
    """bfloat16 or float32, contiguous."""
    scale: float

    @classmethod
    def of(cls, x: Float[Tensor, "n d"], scale: float) -> "Rows":
        """Rows of any float type."""
        return cls(x.contiguous() if x.dtype in (torch.bfloat16, torch.float32) else x.float().contiguous(), scale)


class Active(NamedTuple):
    """The active latents of n rows: those of row i are entries starts[i] to starts[i + 1], in rising order."""

    starts: Int64[Tensor, " n+1"]
    latents: Int32[Tensor, " entries"]
    values: BFloat16[Tensor, " entries"]


class Columns(NamedTuple):
    """The same by latent: entries order[starts[j]] to order[starts[j + 1]], which are in rows `rows`."""

    starts: Int64[Tensor, " F+1"]
    rows: Int32[Tensor, " entries"]
    order: Int32[Tensor, " entries"]


class Decoded(NamedTuple):
    """What the error of a reconstruction gives."""

    d_x_hat: BFloat16[Tensor, "n d"]
    """Gradient of the mean square error."""
    d_bias: Float32[Tensor, " d"]
    """Its sum over rows."""
    d_values: Float32[Tensor, " entries"] | None
    """Gradient of each active latent; None where a product gives it."""
    squares: Float64[Tensor, " n"]
    """Squared error of each row."""


@dataclass(frozen=True, kw_only=True)
class AdamStep:
    """One step of Adam (Kingma 2014), with torch's placement of eps; `steps_done` counts the steps before this one."""

    lr: float
    betas: tuple[float, float]
    eps: float
    steps_done: int
    factor: float = 1.0
    """What every gradient is multiplied by first."""


class _Adam(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_float) for name in ("lr", "beta1", "beta2", "eps", "correction1", "correction2", "factor")
    ]


class _Rows(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("is_bf16", ctypes.c_int64), ("factor", ctypes.c_float)]


@cache
def available() -> bool:
    """Whether the kernels can be had; the first call compiles them, and says aloud when that fails."""
    return native_library(_SOURCE) is not None


def select_topk(pre: BFloat16[Tensor, "n F"], k: int, space: Workspace) -> Active:
    """Each row's k largest positive values; of equal ones the lower latents; missing ones are latent 0, value 0."""
    n = len(pre)
    latents, values = _entries(space, n * k)
    _call("select_topk", pre, n, pre.shape[1], k, latents, values)
    return Active(_evenly(n, k), latents, values)


@lru_cache(maxsize=8)
def _evenly(n: int, k: int) -> Int64[Tensor, " n+1"]:
    return torch.arange(n + 1) * k


def chosen_products(
    x: Float32[Tensor, "n d"], W: Float32[Tensor, "F d"], latents: Int32[Tensor, "n m"]
) -> Float32[Tensor, "n m"]:
    """Each row's products with its own rows of W."""
    out = torch.empty(latents.shape)
    _call("chosen_products", *x.shape, latents.shape[1], x, W, latents, out)
    return out


def batch_bound(pre: BFloat16[Tensor, "n F"], count: int, hint: float) -> float:
    """The count-th largest of all positive values, exactly; the smallest positive number when fewer are positive.

    Values under `hint` are looked at only if those above do not suffice.
    """
    library = _library()
    for least in (max(_bits(SMALLEST), _bits(hint)), _bits(SMALLEST)):
        found = library.kth_largest(*_arguments(pre, len(pre), pre.shape[1], count, least))
        if found:
            return float(torch.tensor(found, dtype=torch.int16).view(torch.bfloat16))
    return SMALLEST


def select_at_least(
    pre: BFloat16[Tensor, "n F"], bound: float, space: Workspace, limit: int | None = None
) -> Active | None:
    """All values of at least `bound`, which is positive and a bfloat16; None when there are more than `limit`."""
    starts = torch.empty(len(pre) + 1, dtype=torch.int64)
    bits = _bits(bound)
    _call("count_rows", pre, len(pre), pre.shape[1], bits, starts)
    n_entries = int(starts[-1])
    if limit is not None and n_entries > limit:
        return None
    latents, values = _entries(space, n_entries)
    _call("fill_rows", pre, len(pre), pre.shape[1], bits, starts, latents, values)
    return Active(starts, latents, values)


def padded(d: int) -> int:
    """Columns of the encoder's operands: d, two for the halves of the bias, up to the next multiple of 32."""
    return (d + 2 + 31) // 32 * 32


def centre(x: Rows, centre: Float32[Tensor, " d"], space: Workspace) -> BFloat16[Tensor, "n padded"]:
    """x / scale - centre in bfloat16 with columns 1, 1, 0, ... behind."""
    n, d = x.given.shape
    centred = space.take("centred", n, padded(d), dtype=torch.bfloat16)
    _call("centre_rows", x, n, d, padded(d), centre, centred)
    return centred


def encoder_copy(W_enc: Float32[Tensor, "F d"], bias: Float32[Tensor, " F"]) -> BFloat16[Tensor, "F padded"]:
    """The encoder's operand anew: weights, then what `copy_bias` writes, then zeros."""
    copy = torch.zeros(len(W_enc), padded(W_enc.shape[1]), dtype=torch.bfloat16)
    copy[:, : W_enc.shape[1]] = W_enc
    copy_bias(copy, bias, W_enc.shape[1])
    return copy


def copy_bias(copy: BFloat16[Tensor, "F padded"], bias: Float32[Tensor, " F"], d: int) -> None:
    """The bias beside the weights, as two bfloat16 numbers whose sum has twice their precision.

    As part of the product it is free; a product onto a broadcast bias writes and reads the pre-activations once more.
    """
    copy[:, d] = bias
    copy[:, d + 1] = bias - copy[:, d].float()


def decode(
    active: Active,
    W_dec: BFloat16[Tensor, "F d"],
    b_dec: Float32[Tensor, " d"],
    target: Rows,
    space: Workspace,
    *,
    penalty: Float32[Tensor, " F"] | None = None,
) -> Decoded:
    """Error of the sparse reconstruction, its gradients; `penalty` is added to the gradient of every positive value."""
    n, d = target.given.shape
    out = _decoded(target, space, len(active.values))
    _call(
        "decode_rows", n, d, None, *active, W_dec, b_dec, target, _factor(target), penalty,
        out.d_x_hat, out.d_bias, out.d_values, out.squares,
    )  # fmt: skip
    return out


def residual(x_hat: BFloat16[Tensor, "n d"], b_dec: Float32[Tensor, " d"], target: Rows, space: Workspace) -> Decoded:
    """The same from a dense reconstruction without its bias."""
    n, d = target.given.shape
    out = _decoded(target, space, None)
    _call(
        "decode_rows", n, d, x_hat, None, None, None, None, b_dec, target, _factor(target), None,
        out.d_x_hat, out.d_bias, None, out.squares,
    )  # fmt: skip
    return out


def transpose(active: Active, width: int, space: Workspace) -> Columns:
    """The active entries in the order of their latents; within a latent, in the order of rows."""
    rows, order = (space.take(name, len(active.values), dtype=torch.int32) for name in ("rows", "order"))
    columns = Columns(torch.empty(width + 1, dtype=torch.int64), rows, order)
    _call("transpose_rows", len(active.starts) - 1, width, active.starts, active.latents, *columns)
    return columns


def sort_entries(
    columns: Columns, entries: Float[Tensor, " entries"], name: str, space: Workspace
) -> tuple[BFloat16[Tensor, " entries"], Float32[Tensor, " F"]]:
    """Entries (float32 or bfloat16) in the order of their latents, and the sum of each latent's; a `name` for each such."""
    ordered = space.take(f"sorted {name}", len(entries), dtype=torch.bfloat16)
    sums = torch.empty(len(columns.starts) - 1)
    is_bf16 = int(entries.dtype == torch.bfloat16)
    _call("sort_entries", len(sums), columns.starts, columns.order, entries, is_bf16, ordered, sums)
    return ordered, sums


def gradient_rows(
    columns: Columns,
    sorted_entries: BFloat16[Tensor, " entries"],
    other: BFloat16[Tensor, "n d_or_padded"],
    out: BFloat16[Tensor, "F d"],
) -> BFloat16[Tensor, "F d"]:
    """For each latent the sum over its entries of entry * other[row], into `out`: d_z^T x, or z^T d_x_hat."""
    width, d = out.shape
    block = d if len(other) * d * other.element_size() <= _CACHED_BYTES else _BLOCK_COLUMNS
    _call(
        "gather_gradients", width, d, other.shape[1], block, columns.starts, columns.rows, sorted_entries, other, out
    )  # fmt: skip
    return out


def mask_columns(
    z: BFloat16[Tensor, "n F"], d_z: BFloat16[Tensor, "n F"], penalty: Float32[Tensor, " F"]
) -> tuple[Float32[Tensor, " F"], Float32[Tensor, " F"], Float32[Tensor, " F"]]:
    """d_z becomes [z > 0] (d_z + penalty); column sums of z and of d_z, and how many of each column of z are positive."""
    sums = torch.empty(3, z.shape[1])
    _call("mask_columns", *z.shape, z, d_z, penalty, *sums)
    return sums[0], sums[1], sums[2]


def gradient_squares(
    gradient: BFloat16[Tensor, "F d"],
    weight: Float32[Tensor, "F d"],
    *,
    pull: Float32[Tensor, " F"] | None = None,
    coefficients: Float32[Tensor, " F"] | None = None,
) -> tuple[float, Float32[Tensor, " d"] | None]:
    """Sum of squares of the gradient that `update_rows` would follow, and what it would return."""
    weighted = None if coefficients is None else torch.empty(weight.shape[1])
    arguments = _arguments(*weight.shape, gradient, weight, pull, coefficients, weighted)
    return _library().gradient_squares(*arguments), weighted


def update_rows(
    gradient: BFloat16[Tensor, "F d"],
    weight: Float32[Tensor, "F d"],
    moments: tuple[Float32[Tensor, "F d"], Float32[Tensor, "F d"]],
    copy: BFloat16[Tensor, "F d_or_padded"],
    adam: AdamStep,
    *,
    unit_norm: bool = False,
    pull: Float32[Tensor, " F"] | None = None,
    coefficients: Float32[Tensor, " F"] | None = None,
) -> Float32[Tensor, " d"] | None:
    """One optimiser step on a weight matrix and its bfloat16 copy, in place.

    unit_norm: the gradient's part along each row is removed, and rows end with norm 1. pull: added to the gradient of the
    row's norm. coefficients: returns their product with the matrix as it was before.
    """
    weighted = None if coefficients is None else torch.empty(weight.shape[1])
    step = _adam(adam)
    _call(
        "update_rows", *weight.shape, copy.shape[1], gradient, weight, *moments, copy, step, int(unit_norm), pull,
        coefficients, weighted,
    )  # fmt: skip
    return weighted


def update_vector(
    gradient: Float32[Tensor, " d"],
    weight: Float32[Tensor, " d"],
    moments: tuple[Float32[Tensor, " d"], Float32[Tensor, " d"]],
    adam: AdamStep,
) -> None:
    """One optimiser step on a bias, in place."""
    _call("update_vector", len(weight), gradient, weight, *moments, _adam(adam))


def _entries(space: Workspace, n: int) -> tuple[Tensor, Tensor]:
    return space.take("latents", n, dtype=torch.int32), space.take("values", n, dtype=torch.bfloat16)


def _decoded(target: Rows, space: Workspace, n_entries: int | None) -> Decoded:
    n, d = target.given.shape
    return Decoded(
        space.take("d_x_hat", n, d, dtype=torch.bfloat16),
        torch.empty(d),
        None if n_entries is None else space.take("d_values", n_entries),
        torch.empty(n, dtype=torch.float64),
    )


def _factor(target: Rows) -> ctypes.c_float:
    return ctypes.c_float(2 / target.given.numel())


def _adam(step: AdamStep) -> Any:
    corrections = (1 - beta ** (step.steps_done + 1) for beta in step.betas)
    return ctypes.byref(_Adam(step.lr, *step.betas, step.eps, *corrections, step.factor))


def _bits(value: float) -> int:
    """A positive bfloat16 as the integer that orders it."""
    return int(torch.tensor(value, dtype=torch.float64).bfloat16().view(torch.int16))


@cache
def _library() -> Any:
    library = native_library(_SOURCE)
    assert library is not None, "available() comes first"
    library.kth_largest.restype = ctypes.c_int64
    library.gradient_squares.restype = ctypes.c_double
    return library


def _call(name: str, *arguments: Any) -> None:
    getattr(_library(), name)(*_arguments(*arguments))


def _arguments(*arguments: Any) -> Iterable[Any]:
    """Tensors as pointers, integers as int64_t; the rest as it is."""
    for argument in arguments:
        if isinstance(argument, Rows):
            x = argument.given
            yield ctypes.byref(_Rows(x.data_ptr(), int(x.dtype == torch.bfloat16), 1 / argument.scale))
        elif isinstance(argument, Tensor):
            assert argument.is_contiguous(), argument.stride()
            yield ctypes.c_void_p(argument.data_ptr())
        else:
            yield ctypes.c_int64(argument) if isinstance(argument, int) else argument
