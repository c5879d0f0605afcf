"""PyTorch hooks that live for one call: they see an activation, may replace it, and are gone afterwards.

A module's activation is its output, or the first entry where the output is a tuple; with `.input` it is the first
argument it is given, or `hidden_states`. Registering costs microseconds a call, against a model that keeps no state
between calls.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sparsight.errors import ModelError
from sparsight.lm.hookpoint import HookPoint

__all__ = ["StopForward", "hooked", "skipped"]


class StopForward(Exception):
    """Raised by an action to end the forward pass: everything wanted has been seen."""


@contextmanager
def hooked(model: nn.Module, actions: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Calls each action with the activation at its hook point; what it returns, if anything, takes its place.

    Raises HookPointError for an unknown hook point. The hooks are removed when the block ends, also by an error.
    """
    points = [(HookPoint.parse(name), action) for name, action in actions.items()]
    modules = [point.resolve(model) for point, _ in points]
    handles = []
    try:
        for (point, action), module in zip(points, modules, strict=True):
            if point.reads_input:
                handles.append(module.register_forward_pre_hook(_on_input(point.name, action), with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(_on_output(action)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipped(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """These modules hand on what they are given, for whoever replaces what the last of them gives."""
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = _hand_on
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


def _hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def _on_output(action: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return action(output)
        replaced = action(output[0])
        return None if replaced is None else (replaced, *output[1:])

    return hook


def _on_input(name: str, action: Callable[[Tensor], Tensor | None]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            replaced = action(args[0])
            return None if replaced is None else ((replaced, *args[1:]), kwargs)
        if "hidden_states" not in kwargs:
            raise ModelError(f"{name}: the module is given {', '.join(kwargs) or 'nothing'}. Expected hidden_states.")
        replaced = action(kwargs["hidden_states"])
        return None if replaced is None else (args, kwargs | {"hidden_states": replaced})

    return hook
