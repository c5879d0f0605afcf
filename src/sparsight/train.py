"""train: activation batches -> trained SAEs.

Several SAEs (architectures, widths, sparsities, seeds, hook points) learn from one pass of one source: a batch is read once and every
trainer takes its step on it. `train_sae` is the plain form, any iterable in, an SAE out. `train_saes` works in a run directory: metrics in
`saes/ID/training.jsonl`, checkpoints that a kill cannot tear, the same weights whether or not it was interrupted.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from sparsight.activations import ActivationBatch
from sparsight.artifact import MetricLoggers, StopFlag, append_jsonl, atomic_path
from sparsight.errors import ActivationError, StoreError
from sparsight.recipe import TrainConfig
from sparsight.sae import Checkpoints, SAEConfig, SAETrainer, SparseAutoencoder, Workspace

__all__ = ["BatchSource", "train_sae", "train_saes"]

_log = logging.getLogger(__name__)

# a checkpoint has three times the bytes of the finished SAE: after less than this, taking the steps again in the rare case costs less
_WORTH_SAVING_SECONDS = 60.0


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

    @property
    def counts(self) -> dict[str, int]:
        """Tokens read, and how many were left out, by reason; recorded with the SAE."""
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
            trainer = _new_trainer(config, x, target, total_steps, device, Workspace())
        trainer.step(x, target, with_metrics=False)
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
    checkpoints = Checkpoints(folder)
    for group in _passes(todo, checkpoints.begun()):
        session = _Session(source, group, folder, train, device)
        loggers = MetricLoggers(train.loggers, folder, name)
        try:
            session.run(stop, loggers)
        finally:
            loggers.close()
        session.save_finished(metadata or {})
        checkpoints.remove([config.id for config in group])
    checkpoints.remove([config.id for config in configs])  # a kill may have come between the two lines above
    return [SparseAutoencoder.load(folder / config.id) for config in configs]


def _passes(todo: list[SAEConfig], begun: set[str]) -> list[list[SAEConfig]]:
    """Those that a checkpoint holds go on first; those added since get a pass of their own, from its start."""
    groups = [[config for config in todo if config.id in begun], [config for config in todo if config.id not in begun]]
    return [group for group in groups if group]


def _inputs(config: SAEConfig, batch: ActivationBatch, device: str) -> tuple[Tensor, Tensor | None]:
    """The SAE's input and, for a transcoder, its target."""
    hook_point = config.hook_point or next(iter(batch.activations))
    x = batch[hook_point].to(device, non_blocking=True)
    return x, batch[config.target_hook_point].to(device, non_blocking=True) if config.is_transcoder else None


def _new_trainer(
    config: SAEConfig, x: Tensor, target: Tensor | None, total_steps: int, device: str, space: Workspace
) -> SAETrainer:
    d_out = x.shape[1] if target is None else target.shape[1]
    trainer = SAETrainer(
        config, x.shape[1], d_out, total_steps=total_steps, batch_tokens=len(x), device=device, space=space
    )
    trainer.initialize(x, target)
    if config.start_from:
        trainer.start_from(SparseAutoencoder.load(Path(config.start_from)))
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
        ids = [config.id for config in configs]
        self.checkpoints = Checkpoints(folder)
        self.step = self.checkpoints.step(ids, self.total_steps)
        self.checkpoints.trim_logs(ids, self.step)
        self.saved_at = time.monotonic()
        self.space = Workspace()
        self.trainers: dict[str, SAETrainer] = {}
        if self.step:
            self.trainers = {config.id: self._resumed(config) for config in configs}

    def run(self, stop: StopFlag | None, loggers: MetricLoggers) -> None:
        """Takes the steps that are left."""
        if self.step == self.total_steps:
            return
        started, first = time.monotonic(), self.step
        batches = self.source.batches(self.train.batch_tokens, start_batch=self.step)
        with tqdm(
            total=self.total_steps, initial=self.step, unit=" steps", desc="train", disable=None, smoothing=0.1
        ) as bar:
            for batch in batches:
                metrics = self._step_all(batch)
                bar.update()
                if metrics:
                    rate = (self.step - first) * self.train.batch_tokens / (time.monotonic() - started)
                    self._log(metrics, rate, loggers)
                if stop or self.step % self.train.checkpoint_every_steps == 0:
                    self._save()
                if stop:
                    stop.leave()
                if self.step == self.total_steps:
                    return
        if self.step == 0:
            raise StoreError(f"The activations ended before one batch of {self.train.batch_tokens:,} rows was full.")
        _log.warning(
            "The activations ended at step %d of %d; the SAEs are saved as they are.", self.step, self.total_steps
        )

    def save_finished(self, metadata: dict[str, Any]) -> None:
        """Writes the SAEs. Safe to be killed in: what is missing is made again from the checkpoint saved first."""
        if time.monotonic() - self.saved_at > _WORTH_SAVING_SECONDS:
            self._save()
        trained = {
            "steps": self.step,
            "tokens": self.step * self.train.batch_tokens,
            "batch_tokens": self.train.batch_tokens,
            "activations": self.source.counts,
        }
        for config in self.configs:
            self.trainers[config.id].finished().save(
                self.folder / config.id, metadata=metadata | {"sparsight_training": trained}
            )

    def _step_all(self, batch: ActivationBatch) -> dict[str, dict[str, Tensor]]:
        """One step of every SAE; the metrics at those steps that are logged, else nothing."""
        metrics = {}
        logged = (self.step + 1) % self.train.log_every_steps == 0 or self.step + 1 == self.total_steps
        for config in self.configs:
            x, target = _inputs(config, batch, self.device)
            if config.id not in self.trainers:
                self.trainers[config.id] = _new_trainer(config, x, target, self.total_steps, self.device, self.space)
                with atomic_path(self.folder / config.id / "initial.safetensors") as temp:
                    save_file(self.trainers[config.id].initial_state(x), temp)
            metrics[config.id] = self.trainers[config.id].step(x, target, with_metrics=logged)
        self.step += 1
        return metrics if logged else {}

    def _log(self, metrics: dict[str, dict[str, Tensor]], rate: float, loggers: MetricLoggers) -> None:
        for sae_id, values in metrics.items():
            record = {name: float(value) for name, value in values.items()}
            if not math.isfinite(record["loss"]):
                raise ActivationError(
                    f"SAE {sae_id}: the loss is {record['loss']} at step {self.step}. Lower sae.{sae_id}.lr, or look at "
                    "the activations. The last checkpoint is kept."
                )
            line = {"step": self.step, "tokens": self.step * self.train.batch_tokens, "tokens_per_second": round(rate)}
            append_jsonl(self.folder / sae_id / "training.jsonl", line | record)
            loggers.send(sae_id, self.step, record)

    def _save(self) -> None:
        states = {config.id: self.trainers[config.id].state_dict() for config in self.configs}
        self.checkpoints.save(states, self.step, self.total_steps, self.source.state_dict())
        self.saved_at = time.monotonic()

    def _resumed(self, config: SAEConfig) -> SAETrainer:
        d_in = self.source.hook_points[config.hook_point]
        d_out = self.source.hook_points[config.target_hook_point or config.hook_point]
        trainer = SAETrainer(
            config,
            d_in,
            d_out,
            total_steps=self.total_steps,
            batch_tokens=self.train.batch_tokens,
            device=self.device,
            space=self.space,
        )
        trainer.load_state_dict(self.checkpoints.load(config.id, self.step))
        return trainer
