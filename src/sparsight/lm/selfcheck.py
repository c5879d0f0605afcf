"""Whether a model does at a hook point what is expected of it, by passes over one short text.

Checked of a hook point: it fires once a pass, gives one finite vector a token of the expected width, the same in a second pass, and the same when
other text stands to its right or in another row, for no attention mask is passed. Checked of the head: `unembed` gives the model's own logits.
Asked when it first matters: whether a pass may begin at a hook point.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from sparsight.errors import ModelError
from sparsight.lm.head import has_head, unembed
from sparsight.lm.hookpoint import HookPoint, find_trunk
from sparsight.lm.hooks import hooked
from sparsight.lm.passes import Passes

__all__ = ["LEAK_TOLERANCE", "SelfCheck", "check_ids"]

_CHECK_TEXT = "The cat sat on the mat, and then it said: 3 + 4 = 7, while (x > 0) { return; } Why?"
_CHECK_TOKENS = 24
LEAK_TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 0.02,
    torch.bfloat16: 0.1,
}
"""Relative difference that is put down to rounding, by the model's dtype: other shapes round otherwise."""


@dataclass(frozen=True, kw_only=True)
class SelfCheck:
    """What was found out about a model's hook points so far."""

    passes: Passes
    ids: Int[Tensor, "1 positions"]
    dtype: torch.dtype
    """Of the model."""
    widths: dict[str, int] = field(default_factory=dict)
    """Numbers in an activation at each hook point that was checked."""
    beginnings: dict[str, bool] = field(default_factory=dict)
    """Whether a pass may begin at each hook point that was asked about."""

    def check(self, hook_points: Sequence[str]) -> dict[str, Any]:
        """What a model's provenance says of it. Raises ModelError naming the hook point, or the head, that is not as expected."""
        ids = self.ids
        beside = torch.cat([torch.cat([ids, ids], dim=1), torch.cat([ids.flip(1), ids], dim=1)])
        first = {name: self._activation(name) for name in hook_points}
        if hook_points:
            second, wide = self.passes.read(ids, hook_points), self.passes.read(beside, hook_points)
            for name in hook_points:
                _check_equal(name, first[name], second[name], wide[name][:1, : ids.shape[1]])
        self.widths.update({name: value.shape[2] for name, value in first.items()})
        if has_head(self.passes.module):
            self._check_head()
        return {"hook_points": sorted(self.widths), "tokens": ids.shape[1], "passed": True}

    def not_needed(self, hook_point: str) -> list[nn.Module]:
        """The blocks that a pass may leave out when the activation there is given; none, where that changes logits."""
        blocks = self.passes.blocks_before(hook_point)
        if blocks and hook_point not in self.beginnings:
            self.beginnings[hook_point] = self._may_begin(hook_point, blocks)
        return blocks if self.beginnings.get(hook_point) else []

    def _may_begin(self, hook_point: str, blocks: Sequence[nn.Module]) -> bool:
        value = self.passes.read(self.ids, [hook_point])[hook_point].flip(1)  # not what the blocks would give
        whole = self.passes.logits_given(self.ids, hook_point, value, left_out=[])
        try:
            short = self.passes.logits_given(self.ids, hook_point, value, left_out=blocks)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            return False
        return torch.equal(short, whole)

    def _activation(self, name: str) -> Float[Tensor, "rows positions d"]:
        values: list[Tensor] = []
        with torch.inference_mode(), hooked(self.passes.module, {name: values.append}):
            self.passes.forward(self.ids)
        if len(values) != 1:
            raise ModelError(
                f"{name} fires {len(values)} times in a forward pass. Expected once: choose another module."
            )
        value = values[0]
        hidden = self.passes.module.config.get_text_config().hidden_size
        point = HookPoint.parse(name)
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[:2] != self.ids.shape:
            raise ModelError(f"{name} gives {shape}. Expected one vector a token: [1, {self.ids.shape[1]}, width].")
        if point.layer is not None and not point.module and value.shape[2] != hidden:
            raise ModelError(f"{name} gives {shape}. Expected the residual stream's width {hidden}.")
        if not value.isfinite().all():
            raise ModelError(f"{name} gives NaN or infinity on plain text in {self.dtype}. Try model.dtype = float32.")
        return value

    def _check_head(self) -> None:
        module = self.passes.module
        trunk = find_trunk(module)
        last: list[Tensor] = []
        with torch.inference_mode(), hooked(module, {f"layers.{len(trunk.blocks) - 1}": last.append}):
            logits = self.passes.forward(self.ids).logits[0].float()
            if not logits.isfinite().all():
                raise ModelError(f"{self.passes.name} gives NaN or infinite logits on plain text in {self.dtype}.")
            difference = _relative(unembed(module, last[0][0]), logits)
        if not difference <= LEAK_TOLERANCE[self.dtype]:
            raise ModelError(
                f"Final norm and head of {type(trunk.module).__name__} do not give the model's own logits (relative "
                f"difference {difference:.2g}). This architecture scales its logits in a way that is not known here."
            )


def check_ids(tokenizer: PreTrainedTokenizerBase, model: str) -> Int[Tensor, "1 positions"]:
    """The short text. Raises ModelError when the tokenizer of that model gives no tokens for it."""
    token_ids = tokenizer(_CHECK_TEXT, add_special_tokens=False)["input_ids"][:_CHECK_TOKENS]
    if not token_ids:
        raise ModelError(f"The tokenizer of {model} gives no tokens for plain text.")
    return torch.tensor([token_ids])


def _check_equal(name: str, first: Tensor, second: Tensor, beside_other_text: Tensor) -> None:
    if not torch.equal(first, second):
        raise ModelError(f"{name} differs between two passes over the same tokens. Expected a deterministic model.")
    difference = _relative(beside_other_text, first)
    if not difference <= LEAK_TOLERANCE[first.dtype]:
        raise ModelError(
            f"{name} changes by {difference:.2g} (relative) when other text stands to the right or in another row. "
            "Expected a causal model."
        )


def _relative(value: Tensor, reference: Tensor) -> float:
    tiny = torch.finfo(torch.float32).tiny
    return float((value.float() - reference.float()).norm() / reference.float().norm().clamp_min(tiny))
