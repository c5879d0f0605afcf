"""train: many SAEs from one pass, the same as alone; logs, checkpoints and the seam to any iterable."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsight.activations import ActivationBatch, CaptureConfig
from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations
from sparsight.artifact import StopFlag, read_json, read_jsonl
from sparsight.artifact.rundir import Interrupted
from sparsight.collect import collect_activations
from sparsight.errors import ActivationError, RunError, StoreError
from sparsight.lm import LanguageModel, TextConfig
from sparsight.recipe import TrainConfig
from sparsight.sae import SAEConfig, SparseAutoencoder, load_untrained
from sparsight.train import train_sae, train_saes


@dataclass
class SyntheticSource:
    """A known dictionary as a source of 4,000 rows."""

    data: SyntheticActivations
    n_rows: int = 4000
    poison_at: int = -1

    @property
    def hook_points(self) -> dict[str, int]:
        return {SYNTHETIC_HOOK_POINT: self.data.features.shape[1]}

    def batches(self, batch_tokens: int, *, start_batch: int = 0) -> Iterator[ActivationBatch]:
        n = self.n_rows // batch_tokens
        for number, batch in enumerate(self.data.batches(batch_tokens, n, start_batch=start_batch), start=start_batch):
            if number == self.poison_at:
                batch[SYNTHETIC_HOOK_POINT][0, 0] = float("inf")
            yield batch

    @property
    def counts(self) -> dict[str, int]:
        return {"tokens": self.n_rows}

    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.fixture
def source() -> SyntheticSource:
    return SyntheticSource(SyntheticActivations(48, 24, mean_active=3))


def sae(sae_id: str, architecture: str = "topk", **changes: Any) -> SAEConfig:
    options = {"n_latents": 64, "k": 4, "warmup_steps": 5, "hook_point": SYNTHETIC_HOOK_POINT}
    return SAEConfig(id=sae_id, architecture=architecture, **options | changes)


TRAIN = TrainConfig(batch_tokens=100, checkpoint_every_steps=10, log_every_steps=5)


def test_an_sae_trained_beside_others_equals_itself_alone(tmp_path: Path, source: SyntheticSource) -> None:
    configs = [sae("a"), sae("b", "batchtopk", seed=1), sae("c", "relu", n_latents=32)]
    together = train_saes(source, configs, tmp_path / "all", train=TRAIN)
    for config, one in zip(configs, together, strict=True):
        (alone,) = train_saes(source, [config], tmp_path / config.id, train=TRAIN)
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), alone.state_dict().values(), strict=True)
        )


def test_the_plain_form_trains_the_same_sae(tmp_path: Path, source: SyntheticSource) -> None:
    (in_run,) = train_saes(source, [sae("a")], tmp_path, train=TRAIN)
    plain = train_sae(source.batches(100), sae("a"), total_steps=40)
    assert all(
        torch.equal(a, b) for a, b in zip(in_run.state_dict().values(), plain.state_dict().values(), strict=True)
    )
    with pytest.raises(ActivationError, match="ended before step 41"):
        train_sae(source.batches(100), sae("a"), total_steps=41)


def test_a_stop_saves_and_the_rest_gives_the_same_weights(tmp_path: Path, source: SyntheticSource) -> None:
    (whole,) = train_saes(source, [sae("a")], tmp_path / "whole", train=TRAIN)
    stop = StopFlag()

    class Stopping(SyntheticSource):
        def batches(self, batch_tokens: int, *, start_batch: int = 0) -> Iterator[ActivationBatch]:
            for number, batch in enumerate(super().batches(batch_tokens, start_batch=start_batch)):
                if number == 16:
                    stop.signal_number = 15
                yield batch

    with pytest.raises(Interrupted):
        train_saes(Stopping(source.data), [sae("a")], tmp_path / "cut", train=TRAIN, stop=stop)
    assert read_json(tmp_path / "cut" / "training.json")["step"] == 17
    (resumed,) = train_saes(source, [sae("a")], tmp_path / "cut", train=TRAIN)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    steps = [record["step"] for record in read_jsonl(tmp_path / "cut" / "a" / "training.jsonl")]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]
    assert not (tmp_path / "cut" / "training.json").exists()
    assert not (tmp_path / "cut" / "a" / "checkpoint").exists()


@pytest.mark.parametrize("took_long", [True, False])
def test_a_kill_between_two_finished_saes_costs_no_steps_that_took_long(
    tmp_path: Path, source: SyntheticSource, monkeypatch: pytest.MonkeyPatch, took_long: bool
) -> None:
    monkeypatch.setattr("sparsight.train._WORTH_SAVING_SECONDS", 0.0 if took_long else 1e6)
    configs = [sae("a"), sae("b", seed=1)]
    whole = train_saes(source, configs, tmp_path / "whole", train=TRAIN)
    real = SparseAutoencoder.save

    def killed_at_b(self: SparseAutoencoder, folder: Path, **options: Any) -> None:
        if folder.name == "b":
            raise KeyboardInterrupt
        real(self, folder, **options)

    monkeypatch.setattr(SparseAutoencoder, "save", killed_at_b)
    with pytest.raises(KeyboardInterrupt):
        train_saes(source, configs, tmp_path / "cut", train=TRAIN)
    monkeypatch.undo()

    class NothingLeft(SyntheticSource):
        def batches(self, batch_tokens: int, *, start_batch: int = 0) -> Iterator[ActivationBatch]:
            raise AssertionError("no step is left, so no batch may be asked for")

    before = (tmp_path / "cut" / "a" / "sae_weights.safetensors").stat().st_mtime_ns
    left = NothingLeft(source.data) if took_long else source
    again = train_saes(left, configs, tmp_path / "cut", train=TRAIN)
    assert (tmp_path / "cut" / "a" / "sae_weights.safetensors").stat().st_mtime_ns == before
    for a, b in zip(whole, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_an_sae_added_later_is_trained_alone(tmp_path: Path, source: SyntheticSource) -> None:
    train_saes(source, [sae("a")], tmp_path, train=TRAIN)
    before = (tmp_path / "a" / "sae_weights.safetensors").stat().st_mtime_ns
    train_saes(source, [sae("a"), sae("b")], tmp_path, train=TRAIN)
    assert (tmp_path / "a" / "sae_weights.safetensors").stat().st_mtime_ns == before
    assert (tmp_path / "b" / "cfg.json").exists()


def test_an_sae_added_in_mid_training_waits_for_those_begun(tmp_path: Path, source: SyntheticSource) -> None:
    whole = train_saes(source, [sae("a"), sae("b", seed=1)], tmp_path / "whole", train=TRAIN)
    source.poison_at = 23
    with pytest.raises(ActivationError):
        train_saes(source, [sae("a")], tmp_path / "cut", train=TRAIN)
    source.poison_at = -1
    starts = []
    real = SyntheticSource.batches

    def noting(self: SyntheticSource, batch_tokens: int, *, start_batch: int = 0) -> Iterator[ActivationBatch]:
        starts.append(start_batch)
        return real(self, batch_tokens, start_batch=start_batch)

    source.__class__ = type("Noting", (SyntheticSource,), {"batches": noting})
    both = train_saes(source, [sae("a"), sae("b", seed=1)], tmp_path / "cut", train=TRAIN)
    assert starts == [20, 0]
    for a, b in zip(whole, both, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("poison_at", [3, 8])
def test_a_failure_before_the_first_checkpoint_leaves_no_doubled_log(
    tmp_path: Path, source: SyntheticSource, poison_at: int
) -> None:
    source.poison_at = poison_at
    with pytest.raises(ActivationError):
        train_saes(source, [sae("a")], tmp_path, train=TRAIN)
    source.poison_at = -1
    train_saes(source, [sae("a")], tmp_path, train=TRAIN)
    steps = [record["step"] for record in read_jsonl(tmp_path / "a" / "training.jsonl")]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]


def test_a_checkpoint_that_cannot_be_taken_up_is_never_dropped_silently(
    tmp_path: Path, source: SyntheticSource
) -> None:
    source.poison_at = 23
    with pytest.raises(ActivationError):
        train_saes(source, [sae("a")], tmp_path, train=TRAIN)
    source.n_rows = 6000
    with pytest.raises(RunError, match="was for 40 steps, not 60"):
        train_saes(source, [sae("a")], tmp_path, train=TRAIN)
    source.n_rows = 4000
    next((tmp_path / "a" / "checkpoint").iterdir()).unlink()
    with pytest.raises(RunError, match="lacks a"):
        train_saes(source, [sae("a")], tmp_path, train=TRAIN)


def test_a_loss_that_is_not_finite_stops_with_one_line(tmp_path: Path, source: SyntheticSource) -> None:
    source.poison_at = 23
    with pytest.raises(ActivationError, match=r"SAE a: the loss is (nan|inf) at step 25"):
        train_saes(source, [sae("a")], tmp_path, train=TRAIN)
    assert read_json(tmp_path / "training.json")["step"] == 20


def test_too_few_rows_are_refused(tmp_path: Path, source: SyntheticSource) -> None:
    source.n_rows = 99
    with pytest.raises(StoreError, match="99 training rows are not enough for one step of 100"):
        train_saes(source, [sae("a")], tmp_path, train=TRAIN)


def test_the_untrained_baseline_is_much_worse_than_the_sae(tmp_path: Path, source: SyntheticSource) -> None:
    source.n_rows = 20_000
    (trained,) = train_saes(source, [sae("a", lr=3e-3)], tmp_path, train=TRAIN)
    x = next(source.batches(1000))[SYNTHETIC_HOOK_POINT]
    errors = [(one.reconstruct(x) - x).square().sum() for one in (trained, load_untrained(tmp_path / "a"))]
    assert errors[0] < 0.6 * errors[1]


def test_a_transcoder_learns_from_two_hook_points(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    capture = CaptureConfig(
        hook_points=("layers.2.mlp.input", "layers.2.mlp"), n_tokens=4000, heldout_tokens=0, window_tokens=1000
    )
    store = collect_activations(reader, TextConfig(files=(text_path,), context_tokens=64), capture, tmp_path)
    config = sae("t", hook_point="layers.2.mlp.input", target_hook_point="layers.2.mlp", lr=3e-3, k=8)
    transcoder = train_sae(store.batches("train", 100, epochs=4), config, total_steps=160)
    batch = next(store.batches("train", 2000))
    x, y = batch["layers.2.mlp.input"].float(), batch["layers.2.mlp"].float()
    fvu = (transcoder.reconstruct(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert fvu < 0.8
