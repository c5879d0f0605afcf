"""Edits of latents inside a forward pass: each row of a batch its own, at the positions wanted.

Attention sinks, whose norm is many times the others', are masked in training; latents read there mean nothing, and a clamp there would
be a huge change. So they keep their activation, as special tokens do (the caller's part).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from sparsight.errors import SteeringError
from sparsight.sae import LatentEdit, SparseAutoencoder, edited

__all__ = ["LatentEditor"]

# As the default of `sink_norm_multiple` in [activations].
SINK_NORM_MULTIPLE = 10.0


class LatentEditor:
    """Edits of an SAE's latents, one list for each row; an empty list leaves the row alone.

    The norm above which a position is a sink is taken from the first pass, the prompt's.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        edits: Sequence[Sequence[LatentEdit]],
        *,
        hook_point: str,
        target_hook_point: str = "",
    ) -> None:
        self._sae = sae
        self._rows: dict[tuple[LatentEdit, ...], list[int]] = {}
        for row, wanted in enumerate(edits):
            if wanted:
                self._rows.setdefault(tuple(wanted), []).append(row)
        self._source, self._target = hook_point, target_hook_point or hook_point
        self._largest: float | None = None
        self.n_edited = 0
        """Positions edited so far, over all rows."""

    def hooks(self, where: Bool[Tensor, "rows positions"]) -> dict[str, Callable[[Tensor], Tensor]]:
        """What to replace in one forward pass, for `LanguageModel.logits` or `Decoding.feed`."""
        if not self._rows:
            return {}
        source: list[Tensor] = []

        def remember(x: Tensor) -> Tensor:
            source.append(x)
            return x

        def put(y: Tensor) -> Tensor:
            if self._source != self._target and not source:
                raise SteeringError(
                    f"{self._target} is computed before {self._source}; a transcoder's target must lie behind its input."
                )
            return self._edit(source.pop() if source else y, y, where.to(y.device))

        return {self._target: put} if self._source == self._target else {self._source: remember, self._target: put}

    def _edit(self, x: Tensor, y: Tensor, where: Tensor) -> Tensor:
        norms = x.float().norm(dim=-1)
        if self._largest is None:
            self._largest = SINK_NORM_MULTIPLE * float(norms.median())
        where = where & (norms <= self._largest)
        out = y.clone()
        for edits, rows in self._rows.items():
            chosen = torch.zeros_like(where)
            chosen[rows] = where[rows]
            if chosen.any():
                self.n_edited += int(chosen.sum())
                out[chosen] = edited(x[chosen], self._sae, edits, y[chosen])
        return out
