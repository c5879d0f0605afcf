"""Buffers that one step leaves to the next.

A step needs tens of megabytes for a moment. Asked from the system each time, their pages are made and cleared anew: at
d = 576, F = 4608, n = 1024 that was a third of the step. What is taken holds nothing defined, and what an earlier step
took under the same name is gone. SAEs that train in turn share one workspace.

On CUDA the buffers are those of each SAE's graph, and what is shared is the memory pool that graphs take them from.
"""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Workspace"]


class Workspace:
    """Named scratch tensors on the CPU, which grow and are never given back, and CUDA graphs' pool."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._graph_pool: Any = None

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor with undefined contents."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)

    def graph_pool(self) -> Any:
        """The memory pool of the CUDA graphs that are replayed in turn."""
        if self._graph_pool is None:
            self._graph_pool = torch.cuda.graph_pool_handle()
        return self._graph_pool
