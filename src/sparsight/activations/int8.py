"""Rows in a byte a number, with one float32 scale a row: row = int8 * scale, scale = max|row| / 127.

Half of bfloat16's room on disk; the error of a number is at most 1/254 of the largest one in its row, whatever its own size.
"""

import torch
from jaxtyping import Float, Int8, Shaped
from torch import Tensor

__all__ = ["decode_int8", "encode_int8"]


def encode_int8(rows: Shaped[Tensor, "n d"]) -> tuple[Int8[Tensor, "n d"], Float[Tensor, " n"]]:
    """int8 rows and the float32 scale of each."""
    rows = rows.float()
    scale = rows.abs().amax(dim=1) / 127
    return (rows / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().to(torch.int8), scale


def decode_int8(rows: Int8[Tensor, "n d"], scale: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """float32 rows from int8 rows and their scales."""
    return rows * scale[:, None]
