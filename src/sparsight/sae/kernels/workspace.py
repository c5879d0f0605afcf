"""Buffers that one step leaves to the next.

A step needs tens of megabytes for a moment. Asked from the system each time, their pages are made and cleared anew: at
d = 576, F = 4608, n = 1024 that was a third of the step. What is taken holds nothing defined, and what an earlier step
took under the same name is gone. SAEs that train in turn share one workspace.
"""

import math

import torch
from torch import Tensor

__all__ = ["Workspace"]


class Workspace:
    """Named scratch tensors on the CPU, which grow and are never given back."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor with undefined contents."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)
