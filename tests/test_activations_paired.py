"""Paired stores: each model's own activations on the same tokens, and the views made of them when they are read."""

from pathlib import Path

import pytest
import torch

from adapters import merge_by_hand, write_adapter
from sparsight.activations import ActivationStore, CaptureConfig, PairedModels, StoreSource, paired_hook_points
from sparsight.collect import collect_activations
from sparsight.errors import HookPointError, StoreError
from sparsight.lm import LanguageModel, ModelConfig, TextConfig, iter_pieces, load_models, make_batches
from sparsight.metrics import kept_tokens
from sparsight.recipe import TrainConfig
from sparsight.sae import SAEConfig
from sparsight.train import train_saes

POINTS = ("layers.1", "layers.2.mlp")


@pytest.fixture(scope="module")
def text(text_path: str) -> TextConfig:
    return TextConfig(files=(text_path,), context_tokens=64, batch_tokens=512, heldout_fraction=0.2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, LanguageModel]:
    folder = tmp_path_factory.mktemp("pair")
    write_adapter(folder / "tuned", base=str(model_folder))
    products = write_adapter(folder / "other", base=str(model_folder), seed=1, size=0.05)
    merge_by_hand(model_folder, products, 2.0, folder / "null")
    config = ModelConfig(id=str(model_folder), dtype="float32")
    others = {"tuned": str(folder / "tuned"), "null": str(folder / "null")}
    return load_models(config, others, hook_points=POINTS)


def capture(**changes: object) -> CaptureConfig:
    roles = changes.pop("roles", ("base", "tuned", "null"))
    options = {
        "hook_points": paired_hook_points(POINTS, roles),  # type: ignore[arg-type]
        "n_tokens": 3000,
        "heldout_tokens": 600,
        "window_tokens": 1000,
        "dtype": "float32",
    }
    return CaptureConfig(**options | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, LanguageModel], text: TextConfig
) -> ActivationStore:
    return collect_activations(PairedModels(models), text, capture(), tmp_path_factory.mktemp("store"))


def test_rows_are_each_model_s_own_on_the_same_tokens(
    store: ActivationStore, models: dict[str, LanguageModel], text: TextConfig
) -> None:
    batch = next(store.batches("heldout", 600))
    oracle = {}
    for piece in iter_pieces(text, models["base"].tokenizer):
        options = {"isolation": "documents", "context_tokens": 64, "eos_id": 0}
        tokens = make_batches([piece], batch_tokens=64, pad_id=0, **options)[0]
        read = {role: model.read(tokens, ["layers.1"])["layers.1"][0] for role, model in models.items()}
        for i in range(len(piece.token_ids)):
            oracle[piece.document_id, piece.start + i] = {role: values[i] for role, values in read.items()}
    for i in range(0, 600, 11):
        for role, row in oracle[int(batch.document_ids[i]), int(batch.positions[i])].items():
            torch.testing.assert_close(batch[f"{role}:layers.1"][i], row, atol=1e-5, rtol=1e-5)


def test_views_are_made_of_what_is_stored(store: ActivationStore) -> None:
    names = ["difference:layers.1", "both:layers.1", "null-difference:layers.1", "base:layers.1"]
    stored = next(store.batches("train", 100, hook_points=paired_hook_points(["layers.1"], ("base", "tuned", "null"))))
    derived = next(store.batches("train", 100, hook_points=names))
    base, tuned, null = (stored[f"{role}:layers.1"] for role in ("base", "tuned", "null"))
    assert list(derived.activations) == names
    assert torch.equal(derived["difference:layers.1"], tuned - base)
    assert torch.equal(derived["both:layers.1"], torch.cat([base, tuned], dim=1))
    assert torch.equal(derived["null-difference:layers.1"], null - base)
    assert torch.equal(derived.document_ids, stored.document_ids)
    assert [store.width(name) for name in names] == [32, 64, 32, 32]
    assert float((tuned - base).norm() / base.norm()) > 0.05
    with pytest.raises(StoreError, match=r"has no hook point difference:layers\.3; it has base:layers\.1"):
        store.width("difference:layers.3")


def test_a_view_goes_on_in_the_middle_and_over_epochs(store: ActivationStore) -> None:
    names = ["difference:layers.1"]
    every = list(store.batches("train", 250, hook_points=names, epochs=2, seed=3))
    later = list(store.batches("train", 250, hook_points=names, epochs=2, seed=3, start_batch=9))
    assert len(every) == 24
    for one, other in zip(every[9:], later, strict=True):
        assert torch.equal(one[names[0]], other[names[0]])


def test_every_train_row_is_found_among_the_pieces(store: ActivationStore) -> None:
    pieces = store.pieces("train")
    kept = kept_tokens(store, pieces, "train")
    assert kept.sum() == store.n_tokens("train")
    assert sum(len(batch) for batch in store.batches("train", 700, hook_points=[], drop_last=False)) == 3000


def test_a_sink_of_one_model_is_masked_for_all(
    models: dict[str, LanguageModel], text: TextConfig, tmp_path: Path
) -> None:
    # One window of the whole text, so that every capture compares with the same medians.
    options = {"sink_norm_multiple": 1.3, "n_tokens": 10**6, "heldout_tokens": 0, "window_tokens": 10**6}
    kept = {}
    for roles in (("base",), ("tuned",), ("base", "tuned")):
        asked = capture(**options, roles=roles, allow_short=True)
        store = collect_activations(PairedModels(models), text, asked, tmp_path / "-".join(roles))
        batch = next(store.batches("train", store.n_tokens("train"), hook_points=[]))
        kept[roles] = set(zip(batch.document_ids.tolist(), batch.positions.tolist(), strict=True))
        assert store.counts["train"]["sinks"] > 0
    assert kept["base",] != kept["tuned",]
    assert kept["base", "tuned"] == kept["base",] & kept["tuned",]


def test_dictionaries_of_every_kind_train_from_one_pass(store: ActivationStore, tmp_path: Path) -> None:
    names = ("base:layers.1", "tuned:layers.1", "difference:layers.1", "both:layers.1")
    configs = [
        SAEConfig(id=name.partition(":")[0], architecture="topk", n_latents=48, k=4, hook_point=name, warmup_steps=2)
        for name in names
    ]
    source = StoreSource(store, names, epochs=2, seed=0)
    saes = train_saes(source, configs, tmp_path, train=TrainConfig(batch_tokens=100, epochs=2))
    assert [sae.d_in for sae in saes] == [32, 32, 32, 64]
    held = next(store.batches("heldout", 600, hook_points=names))
    for sae, name in zip(saes, names, strict=True):
        x = held[name]
        error = (sae.reconstruct(x) - x).square().sum() / (x - x.mean(0)).square().sum()
        assert error < 0.9, name


def test_a_store_is_not_taken_up_with_another_fine_tune(
    models: dict[str, LanguageModel], text: TextConfig, model_folder: Path, tmp_path: Path
) -> None:
    pair = {role: models[role] for role in ("base", "tuned")}
    small = capture(roles=("base", "tuned"), n_tokens=500, heldout_tokens=100)
    collect_activations(PairedModels(pair), text, small, tmp_path / "store")
    folder = Path(models["tuned"].provenance["adapter"]["name"])
    again = {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    try:
        write_adapter(folder, base=str(model_folder), seed=5)
        other = load_models(models["base"].config, {"tuned": str(folder)}, hook_points=POINTS)
        with pytest.raises(StoreError, match="was collected with model sha256"):
            collect_activations(PairedModels(other), text, small, tmp_path / "store")
    finally:
        for name, data in again.items():
            (folder / name).write_bytes(data)


def test_a_hook_point_without_its_model_is_refused(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(HookPointError, match=r"'layers\.1' names no model and hook point.*base, tuned, null"):
        PairedModels(models).width("layers.1")
