"""Decoder blocks through torch.compile: their norms, activations and residual sums fused, a block at a time.

Blocks of one kind share one compilation, since their weights are inputs to it; rows and positions are symbols in it,
because batches come in dozens of shapes and each would be compiled for minutes. A compiled block cannot see hooks that
are set on its parts later, so a block runs as written whenever a part of it has one: hook points work everywhere.

Nothing fails or slows down silently. Where compilation fails or its results differ too much at the hook points, all
blocks run as written, a warning says why, and the record that goes into the provenance holds it.
Trade-off: the first passes compile, half a minute to minutes. On a CPU nothing is gained, and on a GPU it has not run
yet, so only `model.compile = "layers"` asks for it.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparsight.lm.hookpoint import find_trunk

__all__ = ["compile_blocks"]

_LOG = logging.getLogger(__name__)

# kinds of blocks, times the few shapes that are special (one row, 24 tokens of the check): more means that a guard
# depends on the layer, and compiling would not end
_MOST_COMPILATIONS = 32


def compile_blocks(
    module: nn.Module,
    read: Callable[[], Mapping[str, Tensor]],
    *,
    largest_difference: float,
    backend: str = "inductor",
) -> dict[str, Any]:
    """Compiles the decoder blocks of `module` in place and holds the activations that `read` gives against plain ones.

    Returns a record: `blocks` compiled, `difference` (largest relative one, norm over norm, at any hook point), and
    `failed` with the reason when blocks run as written after all; a later failure is added to the same dict.
    """
    blocks = list(find_trunk(module).blocks)
    plain = {name: value.clone() for name, value in read().items()}
    record: dict[str, Any] = {"mode": "layers", "blocks": len(blocks), "failed": None}
    for block in blocks:
        block.forward = _Block(block, record, backend)  # an attribute of this block; its class stays as it is
    compiled = read()
    record["difference"] = max((_difference(compiled[name], plain[name]) for name in plain), default=0.0)
    if record["failed"] is None and not record["difference"] <= largest_difference:
        _give_up(record, f"activations differ by {record['difference']:.2g}; up to {largest_difference:g} is rounding")
    return record


class _Block:
    """A block's forward: compiled while that works and no part of the block has a hook."""

    def __init__(self, block: nn.Module, record: dict[str, Any], backend: str):
        from torch._dynamo import config, exc  # here, not above: it takes a second that most users need not spend

        limits = {"recompile_limit": _MOST_COMPILATIONS, "fail_on_recompile_limit_hit": True}
        self._strict = partial(config.patch, limits)
        self._failures = (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)
        self._parts = [part for part in block.modules() if part is not block]
        self._record = record
        self._plain = block.forward
        self._compiled = torch.compile(block.forward, dynamic=True, backend=backend)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._record["failed"] is not None or any(
            part._forward_hooks or part._forward_pre_hooks for part in self._parts
        ):
            return self._plain(*args, **kwargs)
        try:
            with self._strict():
                return self._compiled(*args, **kwargs)
        except self._failures as error:
            _give_up(self._record, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return self._plain(*args, **kwargs)


def _give_up(record: dict[str, Any], reason: str) -> None:
    record["failed"] = reason
    _LOG.warning("The decoder blocks run uncompiled (%s).", reason)


def _difference(value: Tensor, reference: Tensor) -> float:
    return float((value.float() - reference.float()).norm() / reference.float().norm().clamp_min(1e-30))
