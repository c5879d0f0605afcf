"""A training step as one CUDA graph: a few hundred launches become one, and Python is out of the way.

The first steps run plainly (they compile kernels and let libraries choose algorithms), then the same call is captured,
and from there on replayed. Both are real steps; nothing is run twice. A graph reads and writes fixed addresses: batches
are copied into buffers made with the first, metrics are handed out as copies. On a CPU every step runs plainly.

Capturing tolerates other threads that use the device meanwhile, as a live stream's reader does. Several SAEs may share
a memory pool, since a graph leaves nothing in it that is needed after its replay.
Not yet run on a GPU: there is none of its speed to report; tests run the step plainly, and a trace of it repeated.
Trade-off: batches must all have one size, and each graph keeps the step's temporary buffers from being used for
anything else between steps.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import SAEError
from sparsight.sae.dense import DenseStep

__all__ = ["GraphedStep"]

_PLAIN_STEPS = 3


class GraphedStep:
    """Takes the steps of a `DenseStep`."""

    def __init__(self, dense: DenseStep, *, steps_done: int = 0, pool: Any = None) -> None:
        """`steps_done`: where the dense step's state stands; `pool`: from `torch.cuda.graph_pool_handle`, to be shared."""
        self.dense, self._pool = dense, pool
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._plain_steps = 0
        self.reload(steps_done)

    def reload(self, steps_done: int) -> None:
        """Take the weights as they are now, after `steps_done` steps; needed whenever others change them in place."""
        self.dense.reload(steps_done)
        self.steps_done = steps_done

    def step(
        self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None, *, with_metrics: bool = True
    ) -> dict[str, Float[Tensor, ""]]:
        """See `TrainingStep`; metrics are copies, and computed also where they are not asked for.

        Raises SAEError when a batch differs in shape or type from the first, or when all planned steps are done.
        """
        if self.steps_done >= self.dense.total_steps:
            raise SAEError(f"SAE {self.dense.cfg.id}: all {self.dense.total_steps} planned steps are done.")
        inputs = self._buffered(x, target)
        if self._graph is None and (self.dense.device.type != "cuda" or self._plain_steps < _PLAIN_STEPS):
            self.dense(*inputs)
            self._plain_steps += 1
        else:
            graph = self._graph or self._capture(inputs)
            graph.replay()
        self.steps_done += 1
        if not with_metrics:
            return {}
        return dict(zip(self.dense.metric_names, self.dense.metrics.clone().unbind(), strict=True))

    def _buffered(self, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """The batch, in the buffers that the graph reads."""
        if self._inputs is None:
            own, other = (
                None if given is None else torch.empty(given.shape, dtype=given.dtype, device=self.dense.device)
                for given in (x, target)
            )
            assert own is not None
            self._inputs = own, own if other is None else other
        for given, buffer in zip((x, target), self._inputs, strict=True):
            if given is None:
                continue
            if (given.shape, given.dtype) != (buffer.shape, buffer.dtype):
                wanted, got = (f"{tuple(each.shape)} of {each.dtype}" for each in (buffer, given))
                raise SAEError(f"SAE {self.dense.cfg.id}: a batch is {got}; all must be {wanted}, as the first was.")
            buffer.copy_(given, non_blocking=True)
        return self._inputs

    def _capture(self, inputs: tuple[Tensor, Tensor]) -> torch.cuda.CUDAGraph:
        """Records a step without running it."""
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
            self.dense(*inputs)
        return self._graph
