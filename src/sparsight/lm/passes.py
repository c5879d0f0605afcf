"""Forward passes that are read, replaced, begun late and cut short.

Plain PyTorch hooks on the module that a hook point names; nothing stands between them and Transformers. Hooks live for one call and are gone after
it, also when it raises. No attention mask is passed: padding is on the right, where a causal model cannot see it; the self-check verifies just that.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from sparsight.errors import ModelError
from sparsight.lm.adapter import AdapterHooks
from sparsight.lm.hookpoint import HookPoint, find_trunk
from sparsight.lm.hooks import StopForward, hooked, skipped

__all__ = ["Passes"]


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Of one module, with the adapters that are set on it meanwhile."""

    module: PreTrainedModel
    name: str
    """Of the model, for what an error says."""
    device: torch.device
    adapters: tuple[tuple[AdapterHooks, float], ...] = ()
    """Each with its strength."""

    def with_adapters(self, adapters: tuple[tuple[AdapterHooks, float], ...], name: str) -> "Passes":
        """Passes of the same module, with these in place of its adapters."""
        return dataclasses.replace(self, adapters=adapters, name=name)

    def forward(
        self, input_ids: Int[Tensor, "rows positions"], *, n_before: int = 0, use_cache: bool = False, **more: Any
    ) -> Any:
        """The module's own output; `more` goes to its forward. Raises ModelError when a row, with the `n_before` cached tokens, is too long."""
        longest = getattr(self.module.config.get_text_config(), "max_position_embeddings", None)
        n_tokens = n_before + input_ids.shape[1]
        if longest and n_tokens > longest:
            remedy = "Give a shorter text, or fewer new tokens." if use_cache else "Lower text.context_tokens."
            raise ModelError(f"A row holds {n_tokens} tokens; {self.name} takes {longest}. {remedy}")
        with ExitStack() as adapted:
            for hooks, strength in self.adapters:
                adapted.enter_context(hooks.applied(strength))
            return self.module(input_ids=input_ids.to(self.device, non_blocking=True), use_cache=use_cache, **more)

    def read(
        self, input_ids: Int[Tensor, "rows positions"], hook_points: Sequence[str]
    ) -> dict[str, Float[Tensor, "rows positions _"]]:
        """Activations at the hook points; the pass stops at the deepest. Raises ModelError where one of them never fires."""
        found: dict[str, Tensor] = {}

        def reader(name: str) -> Callable[[Tensor], None]:
            def take(value: Tensor) -> None:
                found[name] = value
                if len(found) == len(wanted):
                    raise StopForward

            return take

        wanted = {name: reader(name) for name in hook_points}
        with torch.inference_mode(), hooked(self.module, wanted):
            try:
                self.forward(input_ids)
            except StopForward:
                return {name: found[name] for name in hook_points}
        silent = ", ".join(name for name in hook_points if name not in found)
        raise ModelError(f"{silent} never fires in a forward pass on text. Choose a module that the model calls.")

    def replacing(self, edits: Mapping[str, Callable[[Tensor], Tensor]] | None) -> AbstractContextManager[None]:
        """Meanwhile the activation at each hook point is what its function makes of it; ModelError where that has another shape."""
        return hooked(self.module, {name: _replacer(name, edit) for name, edit in (edits or {}).items()})

    def logits_given(
        self,
        input_ids: Int[Tensor, "rows positions"],
        hook_point: str,
        value: Float[Tensor, "rows positions d"],
        *,
        left_out: Sequence[nn.Module],
    ) -> Float[Tensor, "rows positions vocab"]:
        """Logits with `value` in the place of the activation at the hook point; the modules left out hand on what they are given."""
        with skipped(left_out), self.replacing({hook_point: lambda _: value}):
            return self.forward(input_ids).logits

    def blocks_before(self, hook_point: str) -> list[nn.Module]:
        """The decoder blocks whose work is lost when the activation there is given."""
        return list(find_trunk(self.module).blocks)[: HookPoint.parse(hook_point).first_needed]


def _replacer(name: str, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def replace(value: Tensor) -> Tensor:
        replaced = edit(value)
        if replaced.shape != value.shape:
            raise ModelError(
                f"The replacement at {name} has shape {tuple(replaced.shape)}. Expected {tuple(value.shape)}."
            )
        return replaced.to(value.dtype)

    return replace
