"""What a training step does beside its matrix products, as Triton kernels: the same functions as `eager`.

Importing this module imports Triton, so only a step on a CUDA device does (or a test, in Triton's interpreter). No
function waits for the device or asks it anything, so a CUDA graph can hold them all.

Bytes moved per step of n tokens, width d and F latents in bfloat16: 10 n F around the encoder's output and 60 F d for
both weight matrices, against 20 n F d operations of the products. The row update is the largest of these kernels.

Not yet run on a GPU: in Triton's interpreter they agree with `eager`, and they compile for three generations of GPUs.
Block sizes are reasoned, not tuned: rows of 256 bytes where columns are summed, and enough programs for 132 processors.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.sae.kernels import gpu_programs

__all__ = ["activate_", "batch_threshold", "centred", "mask_gradient_", "residual_", "select_topk_", "update_rows_"]

_programs: Any = gpu_programs  # to a type checker, Triton's launches are calls with unknown arguments
_COLUMN_BLOCK = {"BLOCK_N": 16, "BLOCK_F": 128}
_ROWS_EACH = 512
_ROW_BLOCK = 4096
_HISTOGRAM = {"TILES": 16, "BLOCK": 4096}
_BITS = {torch.bfloat16: 15, torch.float32: 31}


def centred(
    x: Float[Tensor, "n d"], scale: Float[Tensor, ""], centre: Float[Tensor, " d"], dtype: torch.dtype
) -> Float[Tensor, "n d"]:
    """x / scale - centre, computed in float32, in `dtype`."""
    n, d = _matrix(x)
    out = torch.empty_like(x, dtype=dtype)
    _programs.centre_program[(n,)](x, scale, centre, out, d, BLOCK=_block(d, 2048))
    return out


def select_topk_(pre: Float[Tensor, "n F"], k: int) -> None:
    """Zeroes all but each row's k largest positive values; of equal ones the first are kept. No NaN may be there."""
    n, F = _matrix(pre)
    _programs.select_program[(n,)](pre, F, k, BITS=_BITS[pre.dtype], BLOCK=_block(F, _ROW_BLOCK), num_warps=8)


def batch_threshold(pre: Float[Tensor, "n F"], n_kept: int) -> Float[Tensor, ""]:
    """The n_kept-th largest value of all in float32, at least the type's smallest normal number. No NaN may be there.

    Exact: a histogram of each 8 bits of the values' image, from the top, 2 passes for bfloat16 and 4 for float32.
    """
    _matrix(pre)
    bits = _BITS[pre.dtype]
    shifts = range(bits // 8 * 8, -1, -8)
    state = torch.zeros(2, dtype=torch.int32, device=pre.device)
    counts = torch.zeros(len(shifts), 256, dtype=torch.int32, device=pre.device)
    threshold = torch.empty((), device=pre.device)
    block = min(_HISTOGRAM["BLOCK"], _block(pre.numel(), _HISTOGRAM["BLOCK"]))
    grid = (_parts(pre.numel(), _HISTOGRAM["TILES"] * block),)
    for shift, row in zip(shifts, counts, strict=True):
        kind = {"FIRST": shift == shifts[0], "BITS": bits}
        _programs.histogram_program[grid](
            pre, state, row, pre.numel(), SHIFT=shift, TILES=_HISTOGRAM["TILES"], BLOCK=block, **kind
        )
        tiny = torch.finfo(pre.dtype).tiny
        _programs.pick_program[(1,)](state, row, threshold, n_kept, tiny, LAST=shift == 0, **kind)
    return threshold


def activate_(
    pre: Float[Tensor, "n F"], threshold: Float[Tensor, ""] | None = None, *, write: bool = True
) -> tuple[Float[Tensor, " F"], Float[Tensor, " F"]]:
    """Zeroes what is not positive or below the threshold; sums and numbers of what is kept by column, in float32.

    `write=False` promises that nothing needs zeroing.
    """
    n, F = _matrix(pre)
    grid, sums = _column_grid(n, F, pre.device)
    fired = torch.empty_like(sums)
    _programs.activate_program[grid](
        pre, pre if threshold is None else threshold, sums, fired, n, F, _ROWS_EACH,
        HAS_THRESHOLD=threshold is not None, WRITE=write, **_COLUMN_BLOCK,
    )  # fmt: skip
    return sums.sum(0), fired.sum(0)


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
    n, d = _matrix(x_hat, target)
    gradient = torch.empty_like(x_hat, dtype=dtype)
    squares = torch.empty(n, device=x_hat.device)
    _programs.residual_program[(n,)](
        x_hat, bias, target, scale, gradient, squares, d, 2 / x_hat.numel(), BLOCK=_block(d, 2048)
    )
    return gradient, squares.sum()


def mask_gradient_(
    dz: Float[Tensor, "n F"], z: Float[Tensor, "n F"], shift: Float[Tensor, " F"] | None = None
) -> Float[Tensor, " F"]:
    """Adds `shift` to each row of dz, zeroes it where z is not positive, and gives its sums by column in float32."""
    n, F = _matrix(dz, z)
    grid, sums = _column_grid(n, F, dz.device)
    _programs.mask_program[grid](
        dz, z, dz if shift is None else shift, sums, n, F, _ROWS_EACH, HAS_SHIFT=shift is not None, **_COLUMN_BLOCK
    )
    return sums.sum(0)


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
    """Adam on rows of float32 weights, in one pass over them; see `eager.update_rows_`."""
    rows, d = _matrix(W, gradient, mean, square, *([] if shadow is None else [shadow]))
    block = _power_of_2(d)
    _programs.update_program[(rows,)](
        W, gradient, mean, square, _or(shadow, W), _or(norms, W), _or(pull, W), rates, d,
        BETA1=betas[0], BETA2=betas[1], EPS=eps, UNIT_NORM=unit_norm, HAS_SHADOW=shadow is not None,
        HAS_NORMS=norms is not None, HAS_PULL=pull is not None, BLOCK=block, num_warps=max(1, min(32, block // 512)),
    )  # fmt: skip


def _matrix(*tensors: Tensor) -> tuple[int, int]:
    """Rows and columns of matrices of one shape without gaps, which the programs take for granted."""
    assert len({tuple(each.shape) for each in tensors}) == 1, "the kernel takes matrices of one shape"
    assert all(each.is_contiguous() for each in tensors), "the kernel takes matrices that lie row after row"
    return tensors[0].shape[0], tensors[0].shape[1]


def _power_of_2(n: int) -> int:
    """The least that is not below n."""
    return 1 << (n - 1).bit_length()


def _parts(n: int, each: int) -> int:
    return -(-n // each)


def _block(width: int, largest: int) -> int:
    return min(largest, _power_of_2(width))


def _column_grid(n: int, F: int, device: torch.device) -> tuple[tuple[int, int], Tensor]:
    parts = _parts(n, _ROWS_EACH)
    return (_parts(F, _COLUMN_BLOCK["BLOCK_F"]), parts), torch.empty(parts, F, device=device)


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    """A kernel wants some pointer also where it follows none."""
    return stand_in if tensor is None else tensor
