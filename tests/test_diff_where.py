"""Where a model changed: CKA by its definition, norms by hand, and a change in one layer found in that layer."""

from itertools import permutations
from pathlib import Path

import pytest
import torch

from adapters import write_adapter
from sparsight.activations import ActivationStore, CaptureConfig, PairedModels, paired_hook_points
from sparsight.collect import collect_activations
from sparsight.diff import LayerChange, layer_closure, measure_layers
from sparsight.diff.alignment import CKASums, unbiased_hsic
from sparsight.errors import MetricError
from sparsight.lm import LanguageModel, ModelConfig, TextConfig, load_models
from sparsight.metrics import SpliceText

LAYERS = [f"layers.{layer}" for layer in range(4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, LanguageModel]:
    """The fine-tune changes block 1 alone."""
    folder = tmp_path_factory.mktemp("one-layer")
    write_adapter(folder, base=str(model_folder), layers=(1,), size=0.3)
    return load_models(ModelConfig(id=str(model_folder), dtype="float32"), {"tuned": str(folder)})


@pytest.fixture(scope="module")
def splice(tmp_path_factory: pytest.TempPathFactory, models: dict[str, LanguageModel], text_path: str) -> SpliceText:
    text = TextConfig(files=(text_path,), context_tokens=48, batch_tokens=512, heldout_fraction=0.2)
    capture = CaptureConfig(
        hook_points=paired_hook_points(["layers.1"]),
        n_tokens=100,
        heldout_tokens=900,
        window_tokens=1000,
        dtype="float32",
    )
    store: ActivationStore = collect_activations(
        PairedModels(models), text, capture, tmp_path_factory.mktemp("store") / "activations"
    )
    return SpliceText.choose(store, 600)


def test_hsic_is_its_sum_over_four_different_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)
    K, L = x @ x.T, y @ y.T
    terms = [float(K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q])) for i, j, q, r in permutations(range(6), 4)]
    assert unbiased_hsic(K, L) == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    with pytest.raises(MetricError, match="at least 4 tokens; got 3"):
        unbiased_hsic(K[:3, :3], L[:3, :3])


def test_cka_forgives_rotation_scale_and_shift_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    turned, unrelated = CKASums(), CKASums()
    rotation = torch.linalg.qr(torch.randn(200, 200, generator=generator)).Q
    for _ in range(20):
        x = torch.randn(50, 200, generator=generator)
        turned.add(x, 3 * x @ rotation + 5, n_documents=1)
        unrelated.add(x, torch.randn(50, 200, generator=generator))
    same, other = turned.estimate(), unrelated.estimate()
    assert same.value == pytest.approx(1, abs=1e-4)
    # with the biased estimator, 50 unrelated tokens of 200 dimensions would give 0.8
    assert abs(other.value or 1) < 0.02
    assert (other.low or 1) < 0 < (other.high or -1)
    assert (same.n_tokens, same.n_documents) == (1000, 20)
    assert CKASums().estimate().value is None


def test_norms_are_those_of_the_activations(models: dict[str, LanguageModel], splice: SpliceText) -> None:
    changes = measure_layers(models["base"], models["tuned"], splice, LAYERS, forward_tokens=256, n_resamples=200)
    sums = torch.zeros(4, 2)
    for batch, kept in splice.batches(256):
        before, after = (models[role].read(batch, LAYERS) for role in ("base", "tuned"))
        for i, name in enumerate(LAYERS):
            sums[i] += torch.stack(
                [(after[name] - before[name])[kept].square().sum(), before[name][kept].square().sum()]
            )
    for i, change in enumerate(changes):
        assert isinstance(change, LayerChange)
        assert change.hook_point == LAYERS[i]
        assert change.relative_norm.value == pytest.approx(float((sums[i, 0] / sums[i, 1]).sqrt()), rel=1e-4, abs=1e-9)
        assert change.relative_norm.n_tokens == int(splice.kept.sum())
    assert changes[0].relative_norm.value == 0
    assert changes[0].cka.value == pytest.approx(1, abs=1e-6)
    for change in changes[1:]:
        assert (change.relative_norm.low or 0) <= (change.relative_norm.value or 0) <= (change.relative_norm.high or 0)
        assert (change.relative_norm.value or 0) > 0.05
        assert (change.cka.value or 1) < 0.999


def test_a_change_in_one_block_is_found_in_that_block(models: dict[str, LanguageModel], splice: SpliceText) -> None:
    closures = layer_closure(models["base"], models["tuned"], splice, LAYERS, forward_tokens=256, n_resamples=100)
    for name, (below, above) in closures.items():
        behind = name != "layers.0"  # of block 1, or block 1 itself
        assert below.value == pytest.approx(float(behind), abs=1e-4)
        assert above.value == pytest.approx(float(not behind), abs=1e-4)
        assert below.n_documents > 5


def test_two_models_that_are_one_have_nothing_to_close(models: dict[str, LanguageModel], splice: SpliceText) -> None:
    base = models["base"]
    below, above = layer_closure(base, base, splice, ["layers.1"], forward_tokens=256, n_resamples=50)["layers.1"]
    assert (below.value, above.value) == (None, None)
    assert below.n_tokens == len(splice.kept)
    (change,) = measure_layers(base, base, splice, ["layers.1"], forward_tokens=256, n_resamples=50)
    assert (change.relative_norm.value, change.relative_norm.high) == (0, 0)


def test_sinks_of_a_layer_are_left_out_there(models: dict[str, LanguageModel], splice: SpliceText) -> None:
    pair = models["base"], models["tuned"]
    every, few = (
        measure_layers(
            *pair, splice, ["layers.0", "layers.2"], forward_tokens=10**6, sink_norm_multiple=multiple, n_resamples=50
        )
        for multiple in (0.0, 1.2)
    )
    ((batch, kept),) = splice.batches(10**6)
    for i, name in enumerate(("layers.0", "layers.2")):
        norms = [model.read(batch, [name])[name][kept].norm(dim=1) for model in pair]
        usual = torch.stack([each <= 1.2 * each.median() for each in norms]).all(0)
        assert few[i].relative_norm.n_tokens == few[i].cka.n_tokens == int(usual.sum()) < int(splice.kept.sum())
        assert every[i].relative_norm.n_tokens == int(splice.kept.sum())
