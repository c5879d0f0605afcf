"""The C kernels of kernels.c, called with tensors, and the buffers that they and the products write to.

A forward pass asks for the same few sizes again and again. Fresh memory of megabytes is page-faulted in each time, so a
buffer is used again, but only once no tensor on it is left: what a hook or a caller keeps is never overwritten. The
trade-off: the buffers of one block (about 50 MB for SmolLM2-135M at 2,048 tokens) stay with the model.
"""

import ctypes
import threading
from pathlib import Path

import torch
from torch import Tensor

from sparsight.artifact.native import native_library
from sparsight.lm.product import Products

__all__ = ["Kernels", "kernel_library"]

_KEPT_FOR = 64  # requests that an idle buffer survives; a block makes ten


def kernel_library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they cannot be had. Its support() is 0, 1 (by vectors) or 2 (AMX tiles too)."""
    return native_library(Path(__file__).with_suffix(".c"))


class Kernels:
    """The C functions, called with tensors, and the buffers they write to."""

    def __init__(self, library: ctypes.CDLL):
        pointer, number, size = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64
        self.has_tiles = library.support() > 1
        self._norm, self._silu_mul = library.rms_norm, library.silu_mul
        self._norm.argtypes = [pointer] * 3 + [number] * 2 + [pointer] * 2 + [size] * 2
        self._silu_mul.argtypes = [pointer] * 2 + [size] * 2
        self._attention, self._scratch = library.attention, library.attention_scratch
        self._attention.argtypes = [pointer] * 5 + [number] + [size] * 5 + [ctypes.c_int] * 2
        self._scratch.argtypes, self._scratch.restype = [size] * 2, size
        self.products: Products | None = None  # for models whose projections may be packed
        self._lock = threading.Lock()
        self._buffers: list[_Buffer] = []
        self._n_asked = 0

    def empty(self, *shape: int) -> Tensor:
        """An uninitialised bfloat16 tensor; its memory is used again once no tensor on it is left."""
        size = torch.Size(shape).numel()
        with self._lock:
            self._n_asked += 1
            fitting = [b for b in self._buffers if size <= b.flat.numel() <= 2 * size and b.is_idle()]
            if fitting:
                buffer = min(fitting, key=lambda buffer: buffer.flat.numel())
            else:
                oldest = self._n_asked - _KEPT_FOR
                self._buffers = [b for b in self._buffers if b.asked_at > oldest or not b.is_idle()]
                buffer = _Buffer(size + size // 8)  # the next batch may be a few rows longer
                self._buffers.append(buffer)
            buffer.asked_at = self._n_asked
            return buffer.flat[:size].view(shape)

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x weight' for x [n, d_in], weight [d_out, d_in]."""
        return torch.mm(x, weight.t(), out=self.empty(len(x), len(weight)))

    def norm(self, x: Tensor, weight: Tensor, offset: float, eps: float) -> Tensor:
        """RMSNorm of rows, times offset + weight."""
        out, rows = self.empty(*x.shape), x.numel() // x.shape[-1]
        self._norm(x.data_ptr(), None, weight.data_ptr(), offset, eps, None, out.data_ptr(), rows, x.shape[-1])
        return out

    def add_norm(self, x: Tensor, delta: Tensor, weight: Tensor, offset: float, eps: float) -> tuple[Tensor, Tensor]:
        """x + delta, and its RMSNorm."""
        total, out, rows = self.empty(*x.shape), self.empty(*x.shape), x.numel() // x.shape[-1]
        pointers = (x.data_ptr(), delta.data_ptr(), weight.data_ptr()), (total.data_ptr(), out.data_ptr())
        self._norm(*pointers[0], offset, eps, *pointers[1], rows, x.shape[-1])
        return total, out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(first half of a row) * second half."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = self.empty(rows, width)
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width)
        return out

    def attention(self, qkv: Tensor, cos: Tensor, sin: Tensor, shape: tuple[int, ...], scale: float) -> Tensor:
        """Causal attention of rotated q and k; shape: sequences, positions, heads, key heads, head width."""
        sequences, positions, heads, _, width = shape
        out, threads = self.empty(sequences * positions, heads * width), torch.get_num_threads()
        scratch = self.empty(threads * self._scratch(positions, width))
        pointers = (qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(), scratch.data_ptr())
        self._attention(*pointers, scale, *shape, threads, self.has_tiles)
        return out


class _Buffer:
    """Memory that knows whether any tensor on it is left."""

    def __init__(self, size: int):
        with torch.inference_mode(False):  # may be written in either mode
            self.flat = torch.empty(size, dtype=torch.bfloat16)
        self._storage = self.flat.untyped_storage()
        self._n_own = self._n_users()
        self.asked_at = 0

    def is_idle(self) -> bool:
        """Whether nobody else holds a tensor on it."""
        return self._n_users() == self._n_own

    def _n_users(self) -> int:
        return torch._C._storage_Use_Count(self._storage._cdata)
