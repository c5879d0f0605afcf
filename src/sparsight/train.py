"""train: activation batches -> trained SAEs.

Several SAEs (architectures, widths, sparsities, seeds, hook points) learn from one pass of one source: a batch is read once and every
trainer takes its step on it. `train_sae` is the plain form, any iterable in, an SAE out. `train_saes` works in a run directory: metrics in
`saes/ID/training.jsonl`, checkpoints that a kill cannot tear, the same weights whether or not it was interrupted.

Checkpoints: each SAE's `saes/ID/checkpoint/step-N.safetensors` is written first, then `saes/training.json` names N; only then are older ones
removed. So all SAEs always stand at the same batch.
"""

import io
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from sparsight.activations import ActivationBatch
from sparsight.artifact import (
    MetricLoggers,
    StopFlag,
    append_jsonl,
    atomic_path,
    read_json,
    read_jsonl,
    write_atomic,
    write_json,
)
from sparsight.errors import ActivationError, StoreError
from sparsight.recipe import TrainConfig
from sparsight.sae import SAEConfig, SAETrainer, SparseAutoencoder, untrained_sae

__all__ = ["BatchSource", "load_stream_state", "load_untrained", "train_sae", "train_saes"]

_log = logging.getLogger(__name__)


@runtime_checkable
class BatchSource(Protocol):
    """Where training batches come from: `StoreSource`, `ActivationStream`, or anything alike."""

    @property
    def hook_points(self) -> dict[str, int]:
        """Hook point -> width."""
        ...

    @property
    def n_rows(self) -> int:
        """Rows it will give."""
        ...

    def batches(self, batch_tokens: int, *, start_batch: int = 0) -> Iterator[ActivationBatch]:
        """Batches from number `start_batch` on, the same ones in every process."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs to go on; {} when nothing."""
        ...


def train_sae(
    batches: Iterable[ActivationBatch], config: SAEConfig, *, total_steps: int, device: str = "cpu"
) -> SparseAutoencoder:
    """Trains one SAE on `total_steps` batches of equal size from any iterable, and returns it ready for use.

    The hook point is the config's, or the only one in the batches. Raises ActivationError when the batches end early.
    """
    trainer = None
    for step, batch in enumerate(batches):
        x, target = _inputs(config, batch, device)
        if trainer is None:
            trainer = _new_trainer(config, x, target, total_steps, device)
        trainer.step(x, target)
        if step + 1 == total_steps:
            return trainer.finished()
    raise ActivationError(
        f"The batches ended before step {total_steps:,}; the learning rate is planned for all of them."
    )


def train_saes(
    source: BatchSource,
    configs: Sequence[SAEConfig],
    folder: Path,
    *,
    train: TrainConfig,
    metadata: dict[str, Any] | None = None,
    device: str = "cpu",
    stop: StopFlag | None = None,
    name: str = "run",
) -> list[SparseAutoencoder]:
    """Trains the SAEs that `folder` does not hold yet, all from one pass, and saves each to `folder`/ID.

    Resumes from the last checkpoint; with `stop` set by a signal, saves one and raises Interrupted. `metadata` goes into each cfg.json.
    Raises StoreError when the source has too few rows for one step, ActivationError when the loss stops being finite.
    """
    todo = [config for config in configs if not (folder / config.id / "cfg.json").exists()]
    if todo:
        session = _Session(source, todo, folder, train, device)
        loggers = MetricLoggers(train.loggers, folder, name)
        try:
            session.run(stop, loggers)
        finally:
            loggers.close()
        session.save_finished(metadata or {})
    _remove_checkpoints(configs, folder)
    return [SparseAutoencoder.load(folder / config.id) for config in configs]


def load_stream_state(folder: Path) -> dict[str, Any] | None:
    """What `ActivationStream` needs to go on where `train_saes` last saved in `folder`; None when there is nothing."""
    file = folder / "stream.npz"
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as state:
        return {
            "windows": json.loads(str(state["windows"])),
            "seen_ids": state["seen_ids"],
            "seen_rows": state["seen_rows"],
        }


def load_untrained(folder: Path) -> SparseAutoencoder:
    """The SAE in `folder` as it was before its first step: a baseline for evaluation, remade from its seed and `initial.safetensors`."""
    return untrained_sae(SparseAutoencoder.load(folder), load_file(folder / "initial.safetensors"))


def _inputs(config: SAEConfig, batch: ActivationBatch, device: str) -> tuple[Tensor, Tensor | None]:
    """The SAE's input and, for a transcoder, its target."""
    hook_point = config.hook_point or next(iter(batch.activations))
    x = batch[hook_point].to(device, non_blocking=True)
    return x, batch[config.target_hook_point].to(device, non_blocking=True) if config.is_transcoder else None


def _remove_checkpoints(configs: Sequence[SAEConfig], folder: Path) -> None:
    for config in configs:
        shutil.rmtree(folder / config.id / "checkpoint", ignore_errors=True)
    for name in ("training.json", "stream.npz"):
        (folder / name).unlink(missing_ok=True)


def _new_trainer(config: SAEConfig, x: Tensor, target: Tensor | None, total_steps: int, device: str) -> SAETrainer:
    d_out = x.shape[1] if target is None else target.shape[1]
    trainer = SAETrainer(config, x.shape[1], d_out, total_steps=total_steps, batch_tokens=len(x), device=device)
    trainer.initialize(x, target)
    return trainer


class _Session:
    """One pass over a source, with its trainers, from the last checkpoint to the last step."""

    def __init__(self, source: BatchSource, configs: list[SAEConfig], folder: Path, train: TrainConfig, device: str):
        self.source, self.configs, self.folder, self.train, self.device = source, configs, folder, train, device
        self.total_steps = source.n_rows // train.batch_tokens
        if self.total_steps == 0:
            raise StoreError(
                f"{source.n_rows:,} training rows are not enough for one step of {train.batch_tokens:,}. "
                "Collect more, or lower train.batch_tokens."
            )
        self.pointer = folder / "training.json"
        self.step = self._saved_step()
        self.trainers: dict[str, SAETrainer] = {}
        if self.step:
            self._load()

    def run(self, stop: StopFlag | None, loggers: MetricLoggers) -> None:
        """Takes the steps that are left."""
        if self.step == self.total_steps:
            return
        started, first = time.monotonic(), self.step
        batches = self.source.batches(self.train.batch_tokens, start_batch=self.step)
        bar = tqdm(total=self.total_steps, initial=self.step, unit=" steps", desc="train", disable=None, smoothing=0.1)
        with bar:
            for batch in batches:
                metrics = self._step_all(batch)
                bar.update()
                if self.step % self.train.log_every_steps == 0 or self.step == self.total_steps:
                    rate = (self.step - first) * self.train.batch_tokens / (time.monotonic() - started)
                    self._log(metrics, rate, loggers)
                if stop or self.step % self.train.checkpoint_every_steps == 0:
                    self._save()
                if stop:
                    stop.leave()
                if self.step == self.total_steps:
                    return
        _log.warning(
            "The activations ended at step %d of %d; the SAEs are saved as they stand.", self.step, self.total_steps
        )

    def save_finished(self, metadata: dict[str, Any]) -> None:
        """Writes the SAEs, then removes the checkpoints. Safe to be killed in: what is missing is made again from the last one."""
        self._save()
        for config in self.configs:
            trained = {
                "steps": self.step,
                "tokens": self.step * self.train.batch_tokens,
                "batch_tokens": self.train.batch_tokens,
            }
            extra = metadata | {"sparsight_training": trained}
            self.trainers[config.id].finished().save(self.folder / config.id, metadata=extra)

    def _step_all(self, batch: ActivationBatch) -> dict[str, dict[str, Tensor]]:
        metrics = {}
        for config in self.configs:
            x, target = _inputs(config, batch, self.device)
            if config.id not in self.trainers:
                self.trainers[config.id] = _new_trainer(config, x, target, self.total_steps, self.device)
                self._save_initial(config, x)
            metrics[config.id] = self.trainers[config.id].step(x, target)
        self.step += 1
        return metrics

    def _log(self, metrics: dict[str, dict[str, Tensor]], rate: float, loggers: MetricLoggers) -> None:
        for sae_id, values in metrics.items():
            record = {name: float(value) for name, value in values.items()}
            if not np.isfinite(record["loss"]):
                raise ActivationError(
                    f"SAE {sae_id}: the loss is {record['loss']} at step {self.step}. Lower sae.{sae_id}.lr, or look at the activations. "
                    "The last checkpoint is kept."
                )
            line = {
                "step": self.step,
                "tokens": self.step * self.train.batch_tokens,
                "tokens_per_second": round(rate),
                **record,
            }
            append_jsonl(self.folder / sae_id / "training.jsonl", line)
            loggers.send(sae_id, self.step, record)

    def _save_initial(self, config: SAEConfig, x: Tensor) -> None:
        with atomic_path(self.folder / config.id / "initial.safetensors") as temp:
            save_file(self.trainers[config.id].initial_state(x), temp)

    def _checkpoint(self, sae_id: str, step: int) -> Path:
        return self.folder / sae_id / "checkpoint" / f"step-{step:09d}.safetensors"

    def _saved_step(self) -> int:
        if not self.pointer.exists():
            return 0
        saved = read_json(self.pointer)
        known = {config.id for config in self.configs} <= set(saved["ids"]) and saved["total_steps"] == self.total_steps
        return saved["step"] if known else 0

    def _load(self) -> None:
        """Takes up where the last checkpoint stood; log lines after it are dropped, since their steps are taken again."""
        for config in self.configs:
            state = load_file(self._checkpoint(config.id, self.step))
            d_in = self.source.hook_points[config.hook_point]
            d_out = self.source.hook_points[config.target_hook_point or config.hook_point]
            trainer = SAETrainer(
                config,
                d_in,
                d_out,
                total_steps=self.total_steps,
                batch_tokens=self.train.batch_tokens,
                device=self.device,
            )
            trainer.load_state_dict(state)
            self.trainers[config.id] = trainer
            log = self.folder / config.id / "training.jsonl"
            kept = [record for record in read_jsonl(log) if record["step"] <= self.step]
            write_atomic(log, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def _save(self) -> None:
        """A checkpoint of all SAEs at this step; it counts from the moment that training.json names it."""
        for config in self.configs:
            with atomic_path(self._checkpoint(config.id, self.step)) as temp:
                save_file(
                    {name: value.contiguous() for name, value in self.trainers[config.id].state_dict().items()}, temp
                )
        if state := self.source.state_dict():
            buffer = io.BytesIO()
            np.savez(
                buffer, seen_ids=state["seen_ids"], seen_rows=state["seen_rows"], windows=json.dumps(state["windows"])
            )
            write_atomic(self.folder / "stream.npz", buffer.getvalue())
        ids = [config.id for config in self.configs]
        write_json(self.pointer, {"step": self.step, "total_steps": self.total_steps, "ids": ids})
        for config in self.configs:
            for file in self._checkpoint(config.id, self.step).parent.glob("step-*"):
                if file != self._checkpoint(config.id, self.step):
                    file.unlink()
