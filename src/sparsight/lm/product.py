"""The C products of product.c, called with tensors: weights packed into AMX tiles once, norm and sum within the product.

Packed weights are a second copy of the projections (7 MB a layer for SmolLM2-135M), so only models up to 2 GB of them are
packed, and only blocks as wide as the kernels gain from. The modules keep their own weights, and a copy that does not hold
what they hold now is not used: each call asks torch's version counters, and compares 64 numbers of each weight for what
is written past the counters (`weight.data`). The trade-off: a few numbers written that way may go unnoticed.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsight.artifact.native import native_library

__all__ = ["FEWEST_ROWS", "Norm", "Packed", "Products", "can_be_packed"]

FEWEST_ROWS = 256  # below, torch's product, which also splits columns, keeps more threads busy
_MOST_BYTES = 2 << 30
_MOST_ROWS = 256  # for SmolLM2-135M groups of 128 rows are 13 % slower, of 384 1 %
_LEAST_ROWS = 128
_GROUP_BYTES = 3 << 19  # of a thread's L2, 2 MB on every processor with AMX
_SAMPLES = 64
_BLOCK = 32


@dataclass(frozen=True)
class Norm:
    """An RMSNorm, by offset + weight."""

    weight: Tensor
    offset: float
    eps: float


class Packed:
    """A weight [d_out, d_in] in tiles, made of the weights of one or more projections."""

    def __init__(self, linears: tuple[nn.Linear, ...], alternate: bool = False):
        """`alternate`: 16 rows of the first and 16 of the second take turns."""
        self._weights = [linear.weight.detach() for linear in linears]  # held, so that an address stays theirs
        self._versions = [linear.weight._version for linear in linears]
        self.d_in = linears[0].in_features
        halves = [weight.view(-1, 16, self.d_in) for weight in self._weights]
        rows = torch.stack(halves, dim=1).view(-1, self.d_in) if alternate else torch.cat(self._weights)
        self.d_out = len(rows)
        tiles = rows.view(self.d_out // _BLOCK, 2, 16, self.d_in // _BLOCK, 16, 2)
        self.tiles = tiles.permute(0, 3, 1, 4, 2, 5).contiguous()
        strides = [max(1, weight.numel() // _SAMPLES) | 1 for weight in self._weights]  # odd: not always one column
        self._samples = [w.view(-1)[::stride].clone() for w, stride in zip(self._weights, strides, strict=True)]
        self._sampled = [
            (weight.data_ptr(), sample.data_ptr(), len(sample), stride)
            for weight, sample, stride in zip(self._weights, self._samples, strides, strict=True)
        ]


class Products:
    """The C functions, called with tensors; `empty` gives memory."""

    def __init__(self, library: ctypes.CDLL, empty: Callable[..., Tensor]):
        pointer, number, size = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64
        self._empty = empty
        self.packed_bytes = 0
        self._product, self._gated, self._scratch = library.product, library.gated, library.product_scratch
        self._product.argtypes = [pointer] * 2 + [number] * 2 + [pointer] * 4 + [size] * 4 + [ctypes.c_int]
        self._gated.argtypes = [pointer] * 2 + [number] * 2 + [pointer] * 5 + [size] * 4 + [ctypes.c_int]
        self._differ = library.samples_differ
        self._differ.argtypes = [pointer] * 2 + [size] * 2
        self._scratch.argtypes, self._scratch.restype = [size] * 3, size

    @staticmethod
    def library() -> ctypes.CDLL | None:
        """The compiled products; None where they cannot be had. Ask for the tiles (kernels.c's support) first."""
        library = native_library(Path(__file__).with_suffix(".c"))
        return library if library is not None and library.has_product() else None

    def pack(self, *linears: nn.Linear, hidden: int = 0, alternate: bool = False) -> Packed | None:
        """Their weights as one; None where the kernels do not apply. `hidden`: the width between two products."""
        widths = [hidden, linears[0].in_features, *(linear.out_features for linear in linears)]
        if any(width % _BLOCK for width in widths) or any(linear.weight.is_inference() for linear in linears):
            return None
        if not all(linear.weight.is_contiguous() for linear in linears):
            return None
        if 2 * _LEAST_ROWS * (linears[0].in_features + hidden) > _GROUP_BYTES:
            return None
        packed = Packed(linears, alternate)
        self.packed_bytes += packed.tiles.nbytes
        return packed

    def holds(self, packed: Packed, *linears: nn.Linear) -> bool:
        """Whether the projections still hold what was packed."""
        for linear, version, sampled in zip(linears, packed._versions, packed._sampled, strict=True):
            if type(linear) is not nn.Linear or linear.weight._version != version:
                return False
            if linear.weight.data_ptr() != sampled[0] or self._differ(*sampled):
                return False
        return True

    def product(self, x: Tensor, norm: Norm | None, weight: Packed, base: Tensor | None) -> Tensor:
        """norm(x) weight' + base for x [n, d_in], base [n, d_out]; without norm or base where they are None."""
        some, threads, scratch = self._grouping(len(x), weight.d_in, 0)
        out = self._empty(len(x), weight.d_out)
        pointers = weight.tiles.data_ptr(), _address(base), out.data_ptr(), scratch.data_ptr()
        self._product(x.data_ptr(), *_parts(norm), *pointers, len(x), weight.d_in, weight.d_out, some, threads)
        return out

    def gated(self, x: Tensor, norm: Norm | None, gate_up: Packed, down: Packed, base: Tensor | None) -> Tensor:
        """(silu(h gate') * (h up')) down' + base for h = norm(x), x and base [n, d_in]; gate and up alternate."""
        some, threads, scratch = self._grouping(len(x), gate_up.d_in, down.d_in)
        out = self._empty(len(x), down.d_out)
        weights = gate_up.tiles.data_ptr(), down.tiles.data_ptr()
        pointers = *weights, _address(base), out.data_ptr(), scratch.data_ptr()
        self._gated(x.data_ptr(), *_parts(norm), *pointers, len(x), gate_up.d_in, down.d_in, some, threads)
        return out

    def _grouping(self, rows: int, d_in: int, hidden: int) -> tuple[int, int, Tensor]:
        """How many rows a thread takes at a time, the number of threads, and their scratch memory."""
        threads = torch.get_num_threads()
        most = min(_MOST_ROWS, _GROUP_BYTES // (2 * (d_in + hidden)) // _BLOCK * _BLOCK)
        groups = -(-rows // most)
        groups += -groups % threads  # the same number for each
        some = -(-rows // groups // _BLOCK) * _BLOCK
        return some, threads, self._empty(threads * self._scratch(some, d_in, hidden))


def can_be_packed(model: nn.Module) -> bool:
    """Whether a second copy of the model's projections is acceptable."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return sum(linear.weight.numel() * linear.weight.element_size() for linear in linears) <= _MOST_BYTES


def _parts(norm: Norm | None) -> tuple[int | None, float, float]:
    return (None, 0.0, 0.0) if norm is None else (norm.weight.data_ptr(), norm.offset, norm.eps)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
