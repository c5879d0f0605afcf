"""The low-rank change of a matrix, y = W x + scale * B (A x), as a forward hook on the matrix's module.

Whoever computes W x without calling the module (blocks.py) finds the hook there and lets it add its term.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LowRank", "LowRankHook"]


@dataclass(frozen=True)
class LowRank:
    """The change of one matrix."""

    A: Float[Tensor, "r d_in"]
    B: Float[Tensor, "d_out r"]
    scale: float

    def delta(self) -> Float[Tensor, "d_out d_in"]:
        """The change as a matrix, in float32."""
        return self.scale * (self.B.float() @ self.A.float())


class LowRankHook:
    """Adds strength * the change to what the module gives; at strength 0 it is there and adds nothing."""

    def __init__(self, part: LowRank, strength: float):
        self._part, self._strength = part, strength
        self._cast: tuple[Tensor, Tensor] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # In place: the output is new, and we see it first.
        self.add_to(output.view(-1, output.shape[-1]), args[0].flatten(0, -2))
        return output

    def add_to(self, output: Float[Tensor, "n d_out"], x: Float[Tensor, "n d_in"]) -> None:
        """output += strength * scale * (x A') B', in place: a product in x's dtype that also adds, and rounds once."""
        if self._strength == 0:
            return
        A, B = self._matrices(x.dtype)
        output.addmm_(functional.linear(x, A), B.T)

    def _matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self._part.A.requires_grad:  # what is being learned is another matrix after each step
            return self._made(dtype)
        if self._cast is None or self._cast[0].dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():  # kept, and a later pass may want gradients through them
                self._cast = self._made(dtype)
        return self._cast

    def _made(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        part = self._part
        return part.A.to(dtype), (self._strength * part.scale * part.B).to(dtype)
