"""Metrics to TensorBoard or Weights & Biases, on request, without ever holding up training.

Records go through a bounded queue to one thread; when the service lags the queue drops records and counts them, and when it fails the logger
is dropped with one loud line. `training.jsonl` is written by the trainer itself and always complete.
"""

import importlib
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sparsight.errors import RunError

__all__ = ["MetricLoggers"]

_log = logging.getLogger(__name__)
_QUEUE_RECORDS = 1000
_CLOSE_SECONDS = 10.0
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class MetricLoggers:
    """The loggers that a recipe names. Raises RunError when one of them is not installed."""

    def __init__(self, names: Sequence[str], folder: Path, run_name: str):
        self._queue: queue.Queue[tuple[str, int, dict[str, float]] | None] = queue.Queue(_QUEUE_RECORDS)
        self.n_dropped = 0
        self._makers = [partial(_make, name, _module(name), folder, run_name) for name in names]
        self._thread = threading.Thread(target=self._drain, daemon=True)
        if names:
            self._thread.start()

    def send(self, prefix: str, step: int, metrics: dict[str, float]) -> None:
        """Hands one record over; never waits."""
        if not self._makers:
            return
        try:
            self._queue.put_nowait((prefix, step, metrics))
        except queue.Full:
            self.n_dropped += 1

    def close(self) -> None:
        """Lets the thread finish, for at most ten seconds."""
        if self._thread.is_alive():
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                self.n_dropped += self._queue.qsize()
            self._thread.join(_CLOSE_SECONDS)
        if self.n_dropped:
            _log.warning(
                "%d metric records were not sent: the logger could not keep up. training.jsonl has all.", self.n_dropped
            )

    def _drain(self) -> None:
        """In the thread: logging in, too, may fail or take its time."""
        sinks = []
        for make in self._makers:
            with self._dropped_when_it_fails():
                sinks.append(make())
        while (record := self._queue.get()) is not None:
            for sink in list(sinks):
                sinks.remove(sink)
                with self._dropped_when_it_fails():
                    sink.write(*record)
                    sinks.append(sink)

    @contextmanager
    def _dropped_when_it_fails(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            _log.warning("A logger failed (%s) and is dropped; training goes on.", error)


class _TensorBoard:
    def __init__(self, module: Any, folder: Path, run_name: str):
        self.writer = module.SummaryWriter(str(folder / "tensorboard" / run_name))

    def write(self, prefix: str, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"{prefix}/{name}", value, step)
        self.writer.flush()


class _Wandb:
    def __init__(self, module: Any, folder: Path, run_name: str):
        self.run = module.init(project="sparsight", name=run_name, dir=str(folder), resume="allow")

    def write(self, prefix: str, step: int, metrics: dict[str, float]) -> None:
        self.run.log({f"{prefix}/{name}": value for name, value in metrics.items()} | {"step": step})


def _module(name: str) -> Any:
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError:
        raise RunError(
            f"train.loggers names {name}, which is not installed. `pip install {name}`, or leave it out."
        ) from None


def _make(name: str, module: Any, folder: Path, run_name: str) -> _TensorBoard | _Wandb:
    return (_TensorBoard if name == "tensorboard" else _Wandb)(module, folder, run_name)
