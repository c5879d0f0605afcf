"""The small fine-tune: it learns, it goes on where it was killed with the same bytes, and PEFT's readers read it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import write_texts
from sparsight.artifact import Interrupted, StopFlag
from sparsight.errors import ModelError, TextError
from sparsight.lm import (
    Adapter,
    FinetuneConfig,
    LanguageModel,
    ModelConfig,
    TextConfig,
    iter_pieces,
    load_models,
    make_batches,
    train_adapter,
)

SENTENCE = "the red cat sleeps under the old tree and the blue dog runs over the green house"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextConfig:
    documents = [f"{i} {SENTENCE} {i % 7}" for i in range(60)]
    return TextConfig(
        files=(write_texts(tmp_path_factory.mktemp("text"), documents),), context_tokens=64, heldout_fraction=0.2
    )


@pytest.fixture(scope="module")
def model(model_folder: Path) -> ModelConfig:
    return ModelConfig(id=str(model_folder), dtype="float32")


def config(**changes: object) -> FinetuneConfig:
    options = {"rank": 4, "alpha": 8.0, "steps": 12, "batch_tokens": 200, "lr": 1e-2, "checkpoint_every_steps": 5}
    return FinetuneConfig(**options | changes)  # type: ignore[arg-type]


def test_the_loss_on_text_it_never_saw_falls(model: ModelConfig, text: TextConfig, tmp_path: Path) -> None:
    record = train_adapter(model, text, config(), tmp_path / "lora")
    assert record["heldout_loss_after"] < 0.8 * record["heldout_loss_before"]
    assert record["loss_last"] < record["loss_first"]
    assert train_adapter(model, text, config(), tmp_path / "lora") == json.loads(
        (tmp_path / "lora/finetune.json").read_text()
    )
    models = load_models(model, {"tuned": str(tmp_path / "lora")})
    ids = torch.tensor([models["base"].tokenizer(f"61 {SENTENCE} 5")["input_ids"]])
    losses = {}
    for role, each in models.items():
        with torch.no_grad():
            logits, _ = each.next_logits(ids[:, :-1])
        losses[role] = -float(logits.log_softmax(-1)[0, ids[0, -1]])
    assert losses["tuned"] < losses["base"]
    assert models["tuned"].provenance["adapter"]["n_modules"] == 4 * 7


def test_the_loss_is_that_of_next_tokens_alone(model: ModelConfig, text: TextConfig, tmp_path: Path) -> None:
    record = train_adapter(model, text, config(steps=1, heldout_tokens=10**6), tmp_path)
    base = LanguageModel.load(model)
    total = n_tokens = 0
    for piece in iter_pieces(text, base.tokenizer):
        if piece.heldout:
            options = {"isolation": "documents", "context_tokens": 64, "eos_id": 0}
            batch = make_batches([piece], batch_tokens=64, pad_id=0, **options)[0]
            n = len(piece.token_ids)
            log_p = base.logits(batch)[0, : n - 1].log_softmax(-1)
            total -= float(log_p[torch.arange(n - 1), batch.input_ids[0, 1:n]].sum())
            n_tokens += n - 1
    assert n_tokens > 100
    assert record["heldout_loss_before"] == pytest.approx(total / n_tokens, rel=1e-5)


def test_killed_and_gone_on_is_as_if_never_killed(
    model: ModelConfig, text: TextConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_adapter(model, text, config(), tmp_path / "whole")
    stop = StopFlag()
    training = sys.modules["sparsight.lm.finetune"]._Training
    update, n_updates = training._update, 0

    def counted(self: object, pieces: object) -> float:
        nonlocal n_updates
        n_updates += 1
        if n_updates == 7:
            stop.receive(15, None)
        return update(self, pieces)

    monkeypatch.setattr(training, "_update", counted)
    with pytest.raises(Interrupted):
        train_adapter(model, text, config(), tmp_path / "parts", stop=stop)
    assert (tmp_path / "parts/checkpoint.safetensors").exists()
    assert n_updates == 7
    train_adapter(model, text, config(checkpoint_every_steps=3), tmp_path / "parts")
    assert n_updates == 12
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "parts/checkpoint.safetensors").exists()
    logs = [(tmp_path / name / "training.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_another_seed_or_rank_is_another_adapter(model: ModelConfig, text: TextConfig, tmp_path: Path) -> None:
    train_adapter(model, text, config(steps=2), tmp_path)
    with pytest.raises(ModelError, match=r"holds a fine-tune with finetune = .* Choose another folder"):
        train_adapter(model, text, config(steps=2, rank=2), tmp_path)
    (tmp_path / "finetune.json").unlink()
    with pytest.raises(ModelError, match=r"holds an adapter that was not trained here"):
        train_adapter(model, text, config(steps=2), tmp_path)


def test_only_the_matrices_asked_for_change(model: ModelConfig, text: TextConfig, tmp_path: Path) -> None:
    train_adapter(model, text, config(steps=2, targets=("q_proj",)), tmp_path / "q")
    names = load_file(tmp_path / "q/adapter_model.safetensors")
    assert len(names) == 8
    assert all(".self_attn.q_proj." in name for name in names)
    with pytest.raises(ModelError, match=r"finetune\.targets is w_proj; the matrices in the blocks are down_proj"):
        train_adapter(model, text, config(targets=("w_proj",)), tmp_path / "w")


def test_mistakes_are_told(model: ModelConfig, tmp_path: Path) -> None:
    one = TextConfig(files=(write_texts(tmp_path, ["a"]),), min_document_tokens=1, heldout_fraction=0.0)
    with pytest.raises(TextError, match="no train documents of two tokens"):
        train_adapter(model, one, config(), tmp_path / "none")
    with pytest.raises(ModelError, match=r"finetune\.steps is 0"):
        config(steps=0)
    with pytest.raises(ModelError, match="Expected both above 0"):
        config(lr=0.0)


def test_the_base_is_known_again_by_its_hash(model: ModelConfig, text: TextConfig, tmp_path: Path) -> None:
    train_adapter(model, text, config(steps=1), tmp_path / "lora")
    base = LanguageModel.load(model)
    base.provenance["sampled_sha256"] = "0" * 64
    with pytest.raises(ModelError, match=r"was made for .*tiny-llama"):
        base.with_adapters({"tuned": Adapter.read(tmp_path / "lora")})
