"""Closure: its value by hand, its ends by a dictionary that is perfect by construction, its ranking by arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adapters import write_adapter
from sparsight.activations import ActivationStore, CaptureConfig, PairedModels, paired_hook_points
from sparsight.collect import collect_activations
from sparsight.diff import (
    ClosureRow,
    DifferenceCode,
    attribute_latents,
    closure_curve,
    difference_lens,
    fit_difference,
    measure_closure,
    rank_latents,
    top_token_differences,
)
from sparsight.diff.closure import _plan_sets
from sparsight.errors import MetricError
from sparsight.findings import PairedRows
from sparsight.lm import LanguageModel, ModelConfig, TextConfig, load_models
from sparsight.metrics import SpliceText
from sparsight.sae import SAEConfig, SparseAutoencoder

POINT, D = "layers.1", 32
NAMES = ["base:layers.1", "tuned:layers.1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, LanguageModel]:
    folder = tmp_path_factory.mktemp("lora")
    write_adapter(folder, base=str(model_folder), size=0.15)
    return load_models(ModelConfig(id=str(model_folder), dtype="float32"), {"tuned": str(folder)})


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, LanguageModel], text_path: str
) -> ActivationStore:
    text = TextConfig(files=(text_path,), context_tokens=48, batch_tokens=512, heldout_fraction=0.2)
    options = {"n_tokens": 3000, "heldout_tokens": 900, "window_tokens": 1000, "dtype": "float32"}
    capture = CaptureConfig(hook_points=paired_hook_points([POINT]), sink_norm_multiple=1.5, **options)  # type: ignore[arg-type]
    return collect_activations(PairedModels(models), text, capture, tmp_path_factory.mktemp("store") / "activations")


@pytest.fixture(scope="module")
def splice(store: ActivationStore) -> SpliceText:
    return SpliceText.choose(store, 600)


def relu_sae(W_enc: Tensor, W_dec: Tensor, b_dec: Tensor | None = None) -> SparseAutoencoder:
    config = SAEConfig(id="by-hand", architecture="relu", n_latents=W_dec.shape[0])
    tensors = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.zeros(W_dec.shape[0])}
    return SparseAutoencoder(config, tensors | {"b_dec": torch.zeros(W_dec.shape[1]) if b_dec is None else b_dec})


def perfect(kind: str) -> DifferenceCode:
    """Codes every difference without error: one latent for each sign of each number."""
    signs = torch.cat([torch.eye(D), -torch.eye(D)])
    if kind == "difference":
        return DifferenceCode(relu_sae(signs.T, signs, torch.full((D,), 0.2)), kind)
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(2 * D, D, generator=generator)
    bias = torch.randn(D, generator=generator)
    sae = relu_sae(torch.cat([-signs.T, signs.T]), torch.cat([before, before + signs], dim=1), torch.cat([bias, bias]))
    return DifferenceCode(sae, kind)


def curve(
    models: dict[str, LanguageModel],
    store: ActivationStore,
    splice: SpliceText,
    code: DifferenceCode,
    **options: object,
) -> dict[tuple[str, int | None], ClosureRow]:
    ranking = rank_latents(code, store.batches("train", 500, hook_points=NAMES), POINT)
    arguments = {"hook_point": POINT, "forward_tokens": 256, "n_resamples": 100, "sizes": (4, 16)} | options
    rows = closure_curve(models["base"], models["tuned"], splice, code, ranking, **arguments)  # type: ignore[arg-type]
    return {(row.name, row.n_latents): row for row in rows}


def test_of_a_large_store_rows_spread_over_the_train_split_are_ranked_on(store: ActivationStore):
    rows = PairedRows(store, POINT)
    every = [batch["tuned:layers.1"] for batch in rows.trained_on()]
    assert len(every) > 1  # a small store is read whole
    wanted = store.n_tokens("train") // 2 + 1  # of which the store has less than twice
    assert [len(batch) for batch in rows.trained_on(wanted)] == [len(batch) for batch in every]
    half = [batch["tuned:layers.1"] for batch in rows.trained_on(store.n_tokens("train") // 2)]
    assert len(half) == -(-len(every) // 2)
    assert all(torch.equal(batch, every[2 * i]) for i, batch in enumerate(half))


def test_closure_is_what_its_formula_says(models: dict[str, LanguageModel], splice: SpliceText) -> None:
    def patches(h_base: Tensor, h_tuned: Tensor):
        yield "half", h_base + 0.5 * (h_tuned - h_base)

    sums = measure_closure(models["base"], models["tuned"], splice, patches, hook_point=POINT, forward_tokens=256)
    expected = torch.zeros(2, dtype=torch.float64)
    for batch, kept in splice.batches(256):
        read = {role: models[role].read(batch, [POINT])[POINT] for role in models}
        half = torch.where(kept[..., None], (read["base"] + read["tuned"]) / 2, read["base"])
        log_p = models["tuned"].logits(batch).log_softmax(-1)
        patched = models["tuned"].logits(batch, replace={POINT: lambda _, half=half: half})
        for i, logits in enumerate((models["base"].logits(batch), patched)):
            kl = (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)
            expected[i] += kl[batch.mask].sum()
    assert [sums.total("kl_base"), sums.total("kl_half")] == pytest.approx(expected.tolist(), rel=1e-4)
    assert sums.total("tokens") == len(splice.kept)


@pytest.mark.parametrize("kind", ["difference", "crosscoder"])
def test_a_dictionary_without_error_reaches_the_ceiling(
    models: dict[str, LanguageModel], store: ActivationStore, splice: SpliceText, kind: str
) -> None:
    rows = curve(models, store, splice, perfect(kind))

    def value(name: str, n: int | None = None) -> float:
        return rows[name, n].closure.value or 0.0

    assert value("all") == pytest.approx(value("ceiling"), abs=1e-4)
    assert value("error") == pytest.approx(value("nothing"), abs=1e-3)
    assert rows["all", None].of_ceiling.value == pytest.approx(1, abs=1e-3)
    assert rows["all", None].above_nothing.value == pytest.approx(1, abs=1e-3)
    assert rows["nothing", None].above_nothing.value == pytest.approx(0, abs=1e-9)
    # tokens that the store left out keep the base's activation
    assert not splice.kept.all()
    assert value("nothing") < value("ceiling") < 1
    assert value("top", 16) > value("random", 16) > value("bottom", 16)
    assert value("top", 16) > value("top", 4)
    assert (rows["random", 16].n_draws, rows["top", 16].n_draws) == (3, 1)
    assert (rows["random", 16].largest or 0) >= value("random", 16)
    assert rows["top", 16].to_json()["closure"]["n_documents"] > 5


def test_sets_are_their_own_latents_without_the_bias(
    models: dict[str, LanguageModel], store: ActivationStore, splice: SpliceText
) -> None:
    code = perfect("difference")
    ranking = rank_latents(code, store.batches("train", 500, hook_points=NAMES), POINT)
    top = ranking.order[:4]

    def patches(h_base: Tensor, h_tuned: Tensor):
        z = (torch.cat([torch.eye(D), -torch.eye(D)]) @ (h_tuned - h_base - 0.2).T).relu().T
        kept = torch.zeros(2 * D)
        kept[torch.from_numpy(top)] = 1
        yield "top-4", h_base + (z * kept)[:, :D] - (z * kept)[:, D:]
        yield "bias", h_base + 0.2

    sums = measure_closure(models["base"], models["tuned"], splice, patches, hook_point=POINT, forward_tokens=256)
    rows = curve(models, store, splice, code)
    for name, key in (("top-4", ("top", 4)), ("bias", ("bias", None))):
        by_hand = 1 - sums.total(f"kl_{name}") / sums.total("kl_base")
        assert rows[key].closure.value == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("kind", ["difference", "crosscoder"])
def test_attributions_add_up_to_what_the_difference_does(
    models: dict[str, LanguageModel], store: ActivationStore, splice: SpliceText, kind: str
) -> None:
    sums = measure_closure(
        models["base"],
        models["tuned"],
        splice,
        lambda h_base, h_tuned: iter([("nothing", h_base), ("ceiling", h_tuned)]),
        hook_point=POINT,
        forward_tokens=256,
    )
    done = (sums.total("kl_nothing") - sums.total("kl_ceiling")) / sums.total("tokens")
    code = perfect(kind)
    if kind == "difference":  # without a bias the latents are all there is
        code = DifferenceCode(relu_sae(code.sae.W_enc, code.sae.W_dec), kind)
    found = attribute_latents(
        models["base"], models["tuned"], splice, code, hook_point=POINT, forward_tokens=256, n_steps=16
    )
    assert found.score.sum() == pytest.approx(done, rel=0.002)
    assert found.n_tokens == len(splice.kept)
    np.testing.assert_allclose(found.rate[:D] + found.rate[D:], 1, atol=1e-6)
    by_energy = rank_latents(code, store.batches("train", 500, hook_points=NAMES), POINT)
    assert list(found.order) != list(by_energy.order)


def test_the_gradient_is_that_of_small_changes(models: dict[str, LanguageModel], splice: SpliceText) -> None:
    batch, _ = next(splice.batches(64))
    tuned = models["tuned"]
    h = tuned.read(batch, [POINT])[POINT]

    def loss(logits: Tensor) -> Tensor:
        return logits[0, :, 7].double().sum()

    gradient = tuned.gradient(batch, POINT, h, loss)
    direction = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
    ends = [tuned.logits(batch, replace={POINT: lambda _, s=s: h + s * direction}) for s in (1e-2, -1e-2)]
    slope = float(loss(ends[0]) - loss(ends[1])) / 2e-2
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_random_sets_hold_none_of_the_latents_they_stand_beside() -> None:
    live = np.random.default_rng(0).permutation(40)
    plan = _plan_sets(live, (8, 20, 21), {"found": [3, 5, 5]}, n_random=4, seed=0)
    assert {size for name, size in plan if name == "top"} == {8, 20}
    for name, size in (("random", 8), ("random", 20), ("random:found", 2)):
        beside = set(live[:size]) if name == "random" else {3, 5}
        assert len(plan[name, size]) == 4
        for members in plan[name, size].values():
            assert len(set(members)) == size
            assert not beside & set(members)
    assert set(plan["bottom", 8].popitem()[1]) == set(live[-8:])


def test_a_named_set_stands_beside_random_ones_of_its_size(
    models: dict[str, LanguageModel], store: ActivationStore, splice: SpliceText
) -> None:
    code = perfect("difference")
    ranking = rank_latents(code, store.batches("train", 500, hook_points=NAMES), POINT)
    rows = curve(models, store, splice, code, named={"emergent": ranking.order[:4], "none": []})
    assert rows["emergent", 4].closure == rows["top", 4].closure
    assert rows["random:emergent", 4].n_draws == 3
    assert rows["none", 0].closure == rows["random:none", 0].closure == rows["nothing", None].closure
    assert rows["without none", 0].closure == rows["ceiling", None].closure
    less = [rows[f"without {name}", 4].closure.value for name in ("emergent", "random:emergent")]
    assert less[0] < less[1] < rows["ceiling", None].closure.value
    with pytest.raises(MetricError, match="The set many has 40 latents of 64 live ones"):
        curve(models, store, splice, code, named={"many": range(40)})


def test_ranking_is_by_energy_on_the_store_s_rows(store: ActivationStore) -> None:
    scales = torch.linspace(0.5, 3, 2 * D)[:, None]
    signs = torch.cat([torch.eye(D), -torch.eye(D)])
    code = DifferenceCode(relu_sae(signs.T, signs * scales), "difference")
    ranking = rank_latents(code, store.batches("train", 500, hook_points=NAMES), POINT)
    rows = torch.cat(
        [batch["difference:layers.1"] for batch in store.batches("train", 500, hook_points=["difference:layers.1"])]
    )
    z = torch.cat([rows, -rows], dim=1).relu()
    energy = (z.square().mean(0) * scales[:, 0].square()).numpy()
    np.testing.assert_allclose(ranking.score, energy, rtol=1e-4)
    np.testing.assert_allclose(ranking.rate, (z > 0).float().mean(0).numpy())
    assert list(ranking.order) == list(np.argsort(-energy))
    assert ranking.n_tokens == 3000


def test_a_tuned_dictionary_adds_its_latents_to_the_base(
    models: dict[str, LanguageModel], store: ActivationStore, splice: SpliceText
) -> None:
    signs = torch.cat([torch.eye(D), -torch.eye(D)])
    code = DifferenceCode(relu_sae(signs.T, 0.01 * signs, torch.ones(D)), "tuned")
    assert not code.bias.any()
    h_base, h_tuned = torch.randn(2, 5, D)
    torch.testing.assert_close(code.values(h_base, h_tuned), torch.cat([h_tuned - 1, 1 - h_tuned], dim=1).relu())
    rows = curve(models, store, splice, code, sizes=(2, 1000))
    assert rows["bias", None].closure == rows["nothing", None].closure
    assert ("top", 1000) not in rows
    with pytest.raises(MetricError, match="kind 'both' codes no difference"):
        DifferenceCode(code.sae, "both")


def test_two_models_that_are_one_have_no_closure(
    models: dict[str, LanguageModel], store: ActivationStore, splice: SpliceText
) -> None:
    rows = curve({"base": models["base"], "tuned": models["base"]}, store, splice, perfect("difference"))
    assert {row.closure.value for row in rows.values()} == {None}
    assert rows["random", 4].largest is None


def test_dense_rows_stand_beside_the_latents(
    models: dict[str, LanguageModel], store: ActivationStore, splice: SpliceText
) -> None:
    dense = fit_difference(store.batches("train", 500, hook_points=["difference:layers.1"]), POINT, k=D, n_early=4)
    rows = curve(models, store, splice, perfect("difference"), dense=dense.patches((1, D)))
    closures = {name: rows[name, None].closure.value or 0.0 for name in ("mean", "pca-1", f"pca-{D}", "ceiling")}
    assert closures[f"pca-{D}"] == pytest.approx(closures["ceiling"], abs=1e-3)
    assert closures["pca-1"] < closures[f"pca-{D}"]


def test_means_and_components_are_those_of_the_rows(store: ActivationStore) -> None:
    names = ["difference:layers.1"]
    dense = fit_difference(store.batches("train", 500, hook_points=names), POINT, k=3, n_early=4)
    batches = list(store.batches("train", 500, hook_points=names))
    rows = torch.cat([batch[names[0]] for batch in batches]).double()
    positions = torch.cat([batch.positions for batch in batches])
    torch.testing.assert_close(dense.mean.double(), rows.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense.early[2].double(), rows[positions == 2].mean(0), atol=1e-5, rtol=1e-4)
    assert dense.early_tokens[2] == int((positions == 2).sum())
    values = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0)).flip(0)
    torch.testing.assert_close(dense.variance.double(), values[:3], atol=1e-6, rtol=1e-3)
    assert dense.total_variance == pytest.approx(float(values.sum()), rel=1e-3)
    assert dense.mean_share == pytest.approx(float(rows.mean(0).square().sum() / rows.square().sum(1).mean()), rel=1e-3)
    documents = torch.cat([batch.document_ids for batch in batches])
    one = ((documents >> 40) & 1).bool()
    cosine = torch.cosine_similarity(rows[one].mean(0), rows[~one].mean(0), dim=0)
    assert dense.agreement == pytest.approx(float(cosine), abs=1e-4)
    with pytest.raises(MetricError, match="at least 2 tokens; got 0"):
        fit_difference([], POINT)


def test_the_lens_and_the_predictions_name_what_changed(
    models: dict[str, LanguageModel], store: ActivationStore, splice: SpliceText
) -> None:
    dense = fit_difference(store.batches("train", 500, hook_points=["difference:layers.1"]), POINT, n_early=2)
    lens = difference_lens(models["tuned"], dense, n=5)
    weights = models["tuned"].unembed(dense.mean[None])[0]
    assert lens["mean"]["promoted_tokens"].tolist() == weights.topk(5).indices.tolist()
    assert {"mean", "position-1"} <= set(lens)
    rose, fell, n_documents = top_token_differences(models["base"], models["tuned"], splice, n=5, forward_tokens=256)
    means: dict[int, list[Tensor]] = {}
    for batch, _ in splice.batches(256):
        change = models["tuned"].logits(batch).softmax(-1) - models["base"].logits(batch).softmax(-1)
        for row in range(len(change)):
            means.setdefault(int(batch.document_ids[row, 0]), []).append(change[row][batch.mask[row]])
    documents = torch.stack([torch.cat(parts).mean(0) for parts in means.values()]).double()
    expected = documents.mean(0)
    assert [entry.token_id for entry in rose] == expected.topk(5).indices.tolist()
    assert fell[0].difference == pytest.approx(float(expected.min()), rel=1e-3)
    assert n_documents == len(documents)
    error = documents[:, rose[0].token_id].std() / len(documents) ** 0.5
    assert rose[0].standard_error == pytest.approx(float(error), rel=1e-2)
    assert rose[0].z == pytest.approx(rose[0].difference / float(error), rel=1e-2)
