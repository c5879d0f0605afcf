"""What a model writes and reads, against its own logits."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import make_documents
from sparsight.errors import MetricError
from sparsight.grounding import (
    Detail,
    FineTuningText,
    Tracer,
    WriteConfig,
    Written,
    mean_nll,
    ordinary_texts,
    read_activations,
    token_log2_p,
    write_texts,
)
from sparsight.lm import LanguageModel, ModelConfig, Piece, TextConfig, document_id, is_heldout, make_batches
from sparsight.sae import LatentEdit, SAEConfig, SparseAutoencoder

HOOK_POINT = "layers.1"


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LanguageModel:
    return LanguageModel.load(ModelConfig(id=str(model_folder), dtype="float32"))


@pytest.fixture(scope="module")
def sae() -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(16, 32, generator=generator), dim=1)
    weights = {"W_enc": W_dec.T.clone(), "W_dec": W_dec, "b_dec": torch.zeros(32), "b_enc": torch.zeros(16)}
    return SparseAutoencoder(SAEConfig(id="any", architecture="relu", n_latents=16, hook_point=HOOK_POINT), weights)


def prompts(n: int, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 400, rng.integers(3, 6)) for _ in range(n)]


def logits_of(model: LanguageModel, ids: np.ndarray, replace: dict | None = None) -> torch.Tensor:
    piece = Piece(0, 0, 0, 0, ids.astype(np.int32), True)
    (batch,) = make_batches([piece], batch_tokens=64, pad_id=0, isolation="documents", context_tokens=64, eos_id=0)
    return model.logits(batch, replace=replace)[0, : len(ids)]


def test_greedy_text_is_the_most_likely_token_each_time(model: LanguageModel) -> None:
    for prompt, written in zip(
        prompts(5), write_texts(model, prompts(5), WriteConfig(max_new_tokens=6, temperature=0)), strict=True
    ):
        assert written.n_prompt == len(prompt)
        assert (written.token_ids[: written.n_prompt] == prompt).all()
        best = logits_of(model, written.token_ids).argmax(-1).numpy()
        assert (best[written.n_prompt - 1 : -1] == written.token_ids[written.n_prompt :]).all()
        assert written.ended == (int(best[-1]) in model.stop_ids and len(written.token_ids) - written.n_prompt < 6)


def test_a_texts_draws_are_its_own(model: LanguageModel) -> None:
    alone, together = (
        write_texts(model, prompts(6), WriteConfig(max_new_tokens=8, seed=3, batch_rows=rows)) for rows in (1, 64)
    )
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
    same_prompt = write_texts(model, [prompts(1)[0]] * 4, WriteConfig(max_new_tokens=8))
    assert len({tuple(text.token_ids.tolist()) for text in same_prompt}) == 4


def test_an_edit_of_nothing_writes_the_same_and_an_ablation_does_not(
    model: LanguageModel, sae: SparseAutoencoder
) -> None:
    config = WriteConfig(max_new_tokens=12)
    plain = write_texts(model, prompts(8), config)
    unchanged = write_texts(model, prompts(8), config, sae=sae, edits=[LatentEdit(0, "scale", 1.0)])
    ablated = write_texts(model, prompts(8), config, sae=sae, edits=[LatentEdit(i, "ablate") for i in range(16)])
    assert [text.token_ids.tolist() for text in plain] == [text.token_ids.tolist() for text in unchanged]
    assert [text.token_ids.tolist() for text in plain] != [text.token_ids.tolist() for text in ablated]
    with pytest.raises(MetricError, match="need the SAE"):
        write_texts(model, prompts(2), config, edits=[LatentEdit(0, "ablate")])
    with pytest.raises(MetricError, match="at least one token"):
        write_texts(model, [np.array([], np.int64)], config)


def test_probabilities_are_those_of_the_logits(model: LanguageModel) -> None:
    texts = prompts(7, seed=1)
    found = token_log2_p(model, texts)
    for ids, log2_p in zip(texts, found, strict=True):
        nats = logits_of(model, ids).log_softmax(-1)[range(len(ids) - 1), ids[1:]]
        assert log2_p[0] == 0
        assert log2_p[1:] == pytest.approx(nats.numpy() / np.log(2), abs=1e-4)
    total = -sum(log2_p.sum() for log2_p in found) * np.log(2) / sum(len(ids) - 1 for ids in texts)
    assert mean_nll(model, texts) == pytest.approx(total, abs=1e-4)
    with pytest.raises(MetricError, match="two tokens"):
        mean_nll(model, [np.array([5])])


def test_the_cost_of_an_ablation_is_that_of_replacing_the_activation(
    model: LanguageModel, sae: SparseAutoencoder
) -> None:
    ids = prompts(1, seed=2)[0]

    def without_latent_2(x: torch.Tensor) -> torch.Tensor:
        return x - sae.encode(x.reshape(-1, 32))[:, [2]].reshape(*x.shape[:2], 1) * sae.W_dec[2]

    logits = logits_of(model, ids, {HOOK_POINT: without_latent_2})
    expected = -float(logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]].mean())
    assert mean_nll(model, [ids], sae=sae, edits=[LatentEdit(2, "ablate")]) == pytest.approx(expected, abs=1e-4)
    assert expected != pytest.approx(mean_nll(model, [ids]), abs=1e-4)


def test_activations_come_back_in_the_order_of_the_texts(model: LanguageModel) -> None:
    texts = prompts(6, seed=4)
    together = read_activations(model, texts, HOOK_POINT)
    for ids, x in zip(texts, together, strict=True):
        assert x.shape == (len(ids), 32)
        assert np.allclose(x, read_activations(model, [ids], HOOK_POINT)[0], atol=1e-4)


def test_ordinary_texts_are_the_beginnings_of_held_out_documents(model: LanguageModel, tmp_path: Path) -> None:
    documents = ["", " ", *make_documents(60, shortest=12, longest=40)]
    file = tmp_path / "web.jsonl"
    file.write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    config = TextConfig(files=(str(file),), context_tokens=10, heldout_fraction=0.5)
    heldout = [each for each in documents if each.strip() and is_heldout(document_id(each), 0.5)]
    assert len(heldout) > 12
    texts = ordinary_texts(config, model.tokenizer, 12)
    assert [text.tolist() for text in texts] == [model.tokenizer(each)["input_ids"][:10] for each in heldout[:12]]


def test_a_text_is_read_by_both_models_once(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    base = copy.copy(model)
    read: list[int] = []
    seen: list[list[int]] = []

    def predicted(reader: LanguageModel, ids: list[np.ndarray]) -> list[np.ndarray]:
        read.append(len(ids))
        return [text * (3 if reader is model else 1) for text in ids]

    def look(ids: np.ndarray, *_: object, advantage: np.ndarray, **__: object) -> list[Detail]:
        seen.append((advantage - 2 * ids).tolist())
        return []

    monkeypatch.setattr("sparsight.grounding.traced.token_log2_p", predicted)
    monkeypatch.setattr("sparsight.grounding.traced.find_details", look)
    tracer = Tracer(FineTuningText(prompts(40, seed=2), None), base, model, [], write=WriteConfig())
    texts = [Written(token_ids=ids, n_prompt=1, ended=True) for ids in prompts(6, seed=4)]
    for some in (texts[:4], texts, [texts[5], texts[0], texts[5]]):
        tracer.arrange(some)
    assert read == [4, 4, 2, 2]  # the other texts were known
    assert len(seen) == 4 + 6 + 3
    assert not np.concatenate(seen).any()
