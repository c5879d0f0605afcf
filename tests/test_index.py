"""build_index on hand-made activations: latents that fire on known tokens, and an index that is whole or absent."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.activations import ActivationStore
from sparsight.errors import MetricError, ModelError, RunError, SAEError, StoreError
from sparsight.features import (
    FeatureIndex,
    IndexConfig,
    column_values,
    columns_of,
    printable,
    quantile_contexts,
    random_contexts,
    readable_tokens,
    show_latent,
    top_contexts,
)
from sparsight.features.statistics import layout
from sparsight.index import build_index
from sparsight.lm import LanguageModel, Piece
from test_evaluate import identity_sae, make_window, relu_sae, tiny_model, write_store

HOOK, WIDTH = "layers.1", 16


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


def one_hot_store(
    path: Path, documents: list[list[int]], *, masked: int = -1, piece_tokens: int = 100
) -> ActivationStore:
    """A token with id t has the activation (offset + 1) * e_t; the token id `masked` is no row."""
    pieces, rows = [], []
    columns: dict[str, list[int]] = {"token_ids": [], "document_ids": [], "positions": [], "piece_ids": []}
    for document, ids in enumerate(documents):
        for number, start in enumerate(range(0, len(ids), piece_tokens)):
            part = np.array(ids[start : start + piece_tokens], np.int32)
            for offset, token in enumerate(part.tolist(), start):
                if token != masked:
                    values = (token, 100 + document, offset, len(pieces))
                    for name, value in zip(columns, values, strict=True):
                        columns[name].append(value)
                    rows.append((offset + 1) * torch.eye(WIDTH)[token])
            pieces.append(Piece(100 + document, document, number, start, part, True))
    types = {"token_ids": torch.int32, "document_ids": torch.int64, "positions": torch.int32, "piece_ids": torch.int32}
    tensors = {name: torch.tensor(values, dtype=types[name]) for name, values in columns.items()}
    window = make_window("heldout", pieces, {HOOK: torch.stack(rows)}, tensors)
    return write_store(path, {"heldout": window}, {HOOK: WIDTH})


DOCUMENTS = [[1, 2, 3, 2, 5], [2, 9, 9, 9], [7, 7, 7, 7, 7, 7, 2]]


@pytest.fixture
def store(tmp_path) -> ActivationStore:
    return one_hot_store(tmp_path / "store", DOCUMENTS, masked=9)


@pytest.fixture
def index(store, tmp_path) -> FeatureIndex:
    return build_index(
        identity_sae(), store, path=tmp_path / "index", config=IndexConfig(batch_tokens=3), hook_point=HOOK
    )


def test_density_and_values_of_a_latent_that_fires_on_a_known_token(index):
    tokens, values = index.activations(2)  # fires on token 2: offsets 1 and 3 of document 0, 0 of 1, 6 of 2
    assert index.piece_tokens[tokens].tolist() == [2, 2, 2, 2]
    assert values.tolist() == [2, 4, 1, 7]
    assert index.documents_of(tokens).tolist() == [100, 100, 101, 102]
    assert index.n_tokens == 13  # 16 tokens, 3 masked
    assert index.density[2] == pytest.approx(4 / 13)
    assert (index.n_documents[2], index.maximum[2], index.mean[2]) == (3, 7, 3.5)
    assert index.quantiles[2].tolist() == pytest.approx(np.quantile([1, 2, 4, 7], index.config["quantiles"]).tolist())
    assert index.histogram[2].sum() == 4
    assert index.histogram[2][[2, 5, 11, 19]].tolist() == [1, 1, 1, 1]  # 1/7, 2/7, 4/7, 7/7 of 20 bins
    assert len(index.activations(0)[0]) == 0


def test_an_index_whose_map_fails_holds_all_else_and_says_so(tmp_path, monkeypatch):
    pytest.importorskip("umap")
    program = tmp_path / "fails.py"
    program.write_text("raise SystemExit('no memory left')")
    monkeypatch.setattr(layout, "_PROGRAM", program)
    torch.manual_seed(0)
    sae = relu_sae(torch.randn(WIDTH, 140), torch.randn(140, WIDTH))
    rng = np.random.default_rng(0)
    store = one_hot_store(tmp_path / "store", [rng.integers(0, WIDTH, 50).tolist() for _ in range(8)])
    index = build_index(sae, store, path=tmp_path / "index", hook_point=HOOK)
    assert "no memory left" in index.about["why_no_map"]
    assert "map" not in index.arrays
    assert (index.arrays["coactive_latents"][:, 0] >= 0).sum() >= 100  # a map could have been made
    assert not (tmp_path / "index" / "scratch").exists()


def test_the_index_holds_what_encoding_everything_at_once_gives(tmp_path):
    torch.manual_seed(0)
    sae = relu_sae(torch.randn(WIDTH, 90), torch.randn(90, WIDTH))
    rng = np.random.default_rng(0)
    store = one_hot_store(tmp_path / "store", [rng.integers(0, WIDTH, 50).tolist() for _ in range(8)], piece_tokens=20)
    index = build_index(sae, store, path=tmp_path / "index", config=IndexConfig(batch_tokens=64), hook_point=HOOK)
    table, dense = store.pieces("heldout"), np.zeros((400, 90), np.float32)
    for batch in store.batches("heldout", 400):
        where = table.offsets[batch.piece_ids] + batch.positions.numpy() - table.starts[batch.piece_ids]
        dense[where] = sae.encode(batch[HOOK]).numpy()
    for latent in range(90):
        tokens, values = index.activations(latent)
        assert tokens.tolist() == np.flatnonzero(dense[:, latent]).tolist()
        assert np.allclose(values, dense[tokens, latent], rtol=1e-5)


def test_a_second_seed_gives_each_latent_its_partners(store, tmp_path):
    """The second seed has the same latents in another order, but for one whose direction and input are another's."""
    order = torch.arange(2 * WIDTH).flip(0)
    first = identity_sae()
    W_enc, W_dec = first.W_enc[:, order].clone(), 3 * first.W_dec[order]
    place = int((order == 5).nonzero())
    W_enc[:, place], W_dec[place] = W_enc[:, int((order == 3).nonzero())], torch.ones(WIDTH)
    index = build_index(
        first,
        store,
        second=relu_sae(W_enc, W_dec),
        path=tmp_path / "index",
        config=IndexConfig(batch_tokens=3),
        hook_point=HOOK,
    )
    again = FeatureIndex.open(tmp_path / "index")
    found = again.partner(2)
    assert found == index.partner(2)
    assert (found.cosine, found.correlation) == (pytest.approx(1), pytest.approx(1))
    assert order[found.cosine_latent] == order[found.correlation_latent] == 2
    assert 0 < found.chance_cosine < 1
    lost = again.partner(5)  # its own partner is gone; the one of ones is the nearest that was active
    assert (lost.cosine_latent, lost.cosine) == (place, pytest.approx(WIDTH**-0.5))
    assert lost.correlation < 0.5
    never = again.partner(0)
    assert never.correlation is None
    assert never.cosine_latent is not None
    assert "second seed: nearest direction cosine 1.00" in show_latent(again, tiny_model().tokenizer, 2)


def test_without_a_second_seed_there_are_no_such_columns(index):
    assert index.partner(2) is None
    assert not list(index.path.glob("seed_*"))
    assert "second seed: there was none to compare with" in show_latent(index, tiny_model().tokenizer, 2)


def test_a_second_seed_of_another_width_is_refused(store, tmp_path):
    with pytest.raises(SAEError, match=r"maps \(16, 16\), its second seed \(8, 8\)"):
        build_index(identity_sae(), store, second=identity_sae(8), path=tmp_path / "index", hook_point=HOOK)


def test_every_array_is_documented_and_there(model, store, tmp_path):
    index = build_index(identity_sae(), store, model, second=identity_sae(), path=tmp_path / "whole", hook_point=HOOK)
    documentation = sys.modules[FeatureIndex.__module__].__doc__ or ""
    named = set(re.findall(r"(\w+)\.npy", documentation))
    assert named - {"map"} == set(index.arrays) == {path.stem for path in index.path.glob("*.npy")}
    assert index.about["why_no_map"].endswith("a map takes 100")
    described = {"coactive", "clusters", "output_score", "chance_cosine", "mean_norm", "position_tokens"}
    assert described <= set(index.about)
    assert all(key in documentation for key in index.about)


def test_what_a_latents_tokens_and_company_say(index):
    """Latent l is active on token l alone, so no two together."""
    assert index.arrays["token_purity"][2] == 1
    assert index.arrays["top_token"][[0, 2, 7]].tolist() == [-1, 2, 7]
    lift = index.lift(7)  # five of its six next tokens are 7, as are five of all eleven
    assert (lift.token_ids.tolist(), lift.weights.tolist()) == ([7], pytest.approx([np.log2(6 / (6 * 5 / 11 + 1))]))
    bins, base = index.position(7)
    assert bins.tolist() == [1, 1, 2, 2, 0, 0, 0, 0]
    assert base.sum() == index.n_tokens == 13
    latents, cosines = index.neighbours(2)
    assert set(latents.tolist()) == {1, 3, 5, 7}  # those that were active
    assert cosines.tolist() == [0, 0, 0, 0]
    assert len(index.neighbours(0)[0]) == 0
    assert len(index.coactive(2).latents) == 0
    assert index.clusters() == []
    assert index.about["mean_norm"] == pytest.approx((15 + 1 + 28) / 13)  # offset + 1: 1..5, 1, 1..7
    for latent in (-1, 32):
        for ask in (index.neighbours, index.coactive, index.lift, index.position):
            with pytest.raises(RunError, match="no latent"):
                ask(latent)


def test_latents_that_are_active_together_are_each_others_company(tmp_path):
    """Latents 0 to 3 see token 1, latents 4 to 7 token 2; token 3 nobody."""
    W_enc = torch.zeros(WIDTH, 8)
    W_enc[1, :4], W_enc[2, 4:] = 1, torch.arange(1, 5)
    store = one_hot_store(tmp_path / "store", [[1, 2, 3, 3] * 20] * 2)
    index = build_index(relu_sae(W_enc, torch.eye(8, WIDTH)), store, path=tmp_path / "index", hook_point=HOOK)
    company = index.coactive(5)
    assert company.latents.tolist() == [4, 6, 7]
    assert company.jaccard.tolist() == [1, 1, 1]
    assert company.pmi.tolist() == pytest.approx([np.log2(41 / 11)] * 3)  # 40 of 160 tokens, 10 expected
    assert [cluster.latents.tolist() for cluster in index.clusters()] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert column_values(index, "cluster").tolist() == [0] * 4 + [1] * 4


def test_an_index_of_version_1_opens_without_what_came_later(index, model):
    description = json.loads((index.path / "index.json").read_text())
    first = {"n_documents", "maximum", "mean", "quantiles", "histogram", "measured"}
    for name in [*description["arrays"]]:
        if name not in first and not name.startswith(("piece_", "latent_", "activation_")):
            del description["arrays"][name]
            (index.path / f"{name}.npy").unlink()
    (index.path / "index.json").write_text(json.dumps(description | {"version": 1}))
    old = FeatureIndex.open(index.path)
    assert (old.neighbours(2), old.coactive(2), old.lift(2), old.position(2), old.clusters()) == (None,) * 5
    assert {column.name for column in columns_of(old)} == {
        *("n_active", "density", "n_documents", "maximum", "mean", "p99", "dead")
    }
    assert "earlier version" in show_latent(old, model.tokenizer, 2)


def test_top_contexts_are_one_a_document_strongest_first(index):
    contexts = top_contexts(index, 2, 10, before=2, after=1)
    assert [context.value for context in contexts] == [7, 4, 1]
    assert [context.document_id for context in contexts] == [102, 100, 101]
    second = contexts[1]
    assert second.token_ids.tolist() == [2, 3, 2, 5]
    assert second.values.tolist() == [2, 0, 4, 0]
    assert (second.peak, second.position) == (2, 1)
    assert contexts[2].measured.tolist() == [True, False]  # the masked 9 beside it


def test_passages_with_the_same_tokens_are_folded(tmp_path):
    store = one_hot_store(tmp_path / "store", [[4, 5, 6], [4, 5, 6], [4, 5, 6], [5, 6, 4]])
    index = build_index(identity_sae(), store, path=tmp_path / "index", hook_point=HOOK)
    contexts = top_contexts(index, 5)
    assert [context.token_ids.tolist() for context in contexts] == [[4, 5, 6], [5, 6, 4]]
    assert [context.n_folded for context in contexts] == [2, 0]


def test_passages_that_differ_only_far_from_the_peak_are_folded_too(tmp_path):
    store = one_hot_store(tmp_path / "store", [[1] * 7 + [5], [2] + [1] * 6 + [5], [1, 1, 1, 3, 1, 1, 1, 5]])
    index = build_index(identity_sae(), store, path=tmp_path / "index", hook_point=HOOK)
    assert [context.n_folded for context in top_contexts(index, 5)] == [1, 0]


def test_a_passage_ends_where_its_piece_ends(tmp_path):
    store = one_hot_store(tmp_path / "store", [[1, 2, 3, 4, 5, 6]], piece_tokens=3)
    index = build_index(identity_sae(), store, path=tmp_path / "index", hook_point=HOOK)
    (context,) = top_contexts(index, 4)
    assert context.token_ids.tolist() == [4, 5, 6]
    assert (context.position, context.peak, context.value) == (3, 0, 4)


def test_bands_split_the_activations_evenly_and_random_draws_are_seeded(tmp_path):
    store = one_hot_store(tmp_path / "store", [[3] * 40, [1] * 5 + [3] * 40])
    index = build_index(identity_sae(), store, path=tmp_path / "index", hook_point=HOOK)
    bands = quantile_contexts(index, 3, 2)
    assert [band.n_active for band in bands] == [20, 20, 20, 20]
    assert all(band.low <= context.value <= band.high for band in bands for context in band.contexts)
    assert [band.high for band in bands] == sorted(band.high for band in bands)
    first, again = (random_contexts(index, 3, 6, seed=1) for _ in range(2))
    assert [c.value for c in first] == [c.value for c in again]
    assert [c.value for c in first] != [c.value for c in random_contexts(index, 3, 6, seed=2)]
    # Uniform: the mean of all 80 values (1..40 and 6..45) is 23; 80 draws without replacement are all of them.
    everything = random_contexts(index, 3, 1000)
    assert np.mean([c.value for c in everything]) == pytest.approx(23)


def test_promoted_tokens_equal_a_direct_product(model, store, tmp_path):
    torch.manual_seed(3)
    sae = relu_sae(torch.randn(WIDTH, 40), torch.randn(40, WIDTH))
    config = IndexConfig(promoted_tokens=4)
    index = build_index(sae, store, model, path=tmp_path / "logits", config=config, hook_point=HOOK)
    module = model._module
    normed = sae.W_dec / (sae.W_dec.square().mean(-1, keepdim=True) + module.config.rms_norm_eps).sqrt()
    direct = (normed * module.model.norm.weight) @ module.lm_head.weight.T
    for latent in (0, 17, 39):
        promoted, suppressed = index.promoted(latent), index.suppressed(latent)
        assert promoted.token_ids.tolist() == direct[latent].topk(4).indices.tolist()
        assert suppressed.token_ids.tolist() == direct[latent].topk(4, largest=False).indices.tolist()
        assert np.allclose(promoted.weights, direct[latent].topk(4).values.detach(), atol=1e-4)


def test_without_a_model_there_are_no_promoted_tokens_and_the_index_says_why(index, store, model, tmp_path):
    assert not index.has_logits
    assert index.about["why_no_logits"] == "no language model was given"
    with pytest.raises(RunError, match="without a language model"):
        index.promoted(2)
    narrow = relu_sae(torch.randn(WIDTH, 8), torch.randn(8, 5), target_hook_point="layers.1.mlp.up_proj")
    index = build_index(narrow, store, model, path=tmp_path / "narrow", hook_point=HOOK)
    assert index.about["why_no_logits"] == "the SAE writes 5 numbers, the residual stream has 16"


def test_reopening_gives_the_same_memory_mapped_arrays(index):
    again = FeatureIndex.open(index.path)
    assert isinstance(again.activation_values, np.memmap)
    assert np.array_equal(again.activation_tokens, index.activation_tokens)
    assert sorted(path.name for path in index.path.parent.iterdir()) == ["index", "store"]  # no temp folder left


def test_half_precision_values_are_what_the_statistics_describe(store, tmp_path):
    config = IndexConfig(value_dtype="float16")
    sae = relu_sae(torch.eye(WIDTH) / 3, torch.eye(WIDTH))
    index = build_index(sae, store, path=tmp_path / "half", config=config, hook_point=HOOK)
    assert index.activation_values.dtype == np.float16
    assert index.maximum[2] == np.float16(7 / 3)
    huge = relu_sae(torch.eye(WIDTH) * 1e5, torch.eye(WIDTH))
    with pytest.raises(MetricError, match="beyond float16"):
        build_index(huge, store, path=tmp_path / "huge", config=config, hook_point=HOOK)


def test_a_failed_build_leaves_nothing_and_a_taken_path_is_refused(store, index, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="exists already"):
        build_index(identity_sae(), store, path=index.path, hook_point=HOOK)
    monkeypatch.setattr("sparsight.features.evidence.logit_weights", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_index(identity_sae(), store, tiny_model(), path=tmp_path / "other", hook_point=HOOK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "store"]


def test_a_truncated_model_is_refused_and_not_skipped(store, tmp_path):
    headless = LanguageModel.from_module(tiny_model()._module.model, tiny_model().tokenizer)
    with pytest.raises(ModelError, match="head"):
        build_index(identity_sae(), store, headless, path=tmp_path / "x", hook_point=HOOK)


def test_an_sae_that_does_not_fit_or_never_fires_is_an_error(store, tmp_path):
    with pytest.raises(SAEError, match="16 wide; this SAE expects d_in=4"):
        build_index(identity_sae(4), store, path=tmp_path / "x", hook_point=HOOK)
    silent = relu_sae(torch.zeros(WIDTH, 3), torch.zeros(3, WIDTH))
    with pytest.raises(MetricError, match="No latent"):
        build_index(silent, store, path=tmp_path / "x", hook_point=HOOK)


def change_array(path: Path, name: str, array: np.ndarray) -> None:
    np.save(path / f"{name}.npy", array)
    description = json.loads((path / "index.json").read_text())
    description["arrays"][name] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    (path / "index.json").write_text(json.dumps(description))


def damage(path: Path, how: str) -> None:
    values = path / "activation_values.npy"
    if how == "missing":
        values.unlink()
    elif how == "truncated":
        values.write_bytes(values.read_bytes()[:-8])
    elif how == "garbage":
        values.write_bytes(b"not an array")
    elif how == "other shape":
        np.save(values, np.zeros(3, np.float32))
    elif how == "pickle":
        np.save(values, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif how == "rows":
        change_array(path, "cluster", np.zeros(3, np.int32))
    elif how == "name":
        change_array(path, "../cluster", np.zeros(32, np.int32))
    elif how == "offsets":
        offsets = np.load(path / "latent_offsets.npy")
        np.save(path / "latent_offsets.npy", offsets[::-1].copy())
    else:
        description = json.loads((path / "index.json").read_text())
        changes = {"version": {"version": 99}, "array": {"arrays": {}}, "garbled": {"arrays": [1]}}[how]
        (path / "index.json").write_text(json.dumps(description | changes))


@pytest.mark.parametrize(
    "how",
    [
        "missing",
        "truncated",
        "garbage",
        "other shape",
        "pickle",
        "rows",
        "name",
        "offsets",
        "version",
        "array",
        "garbled",
    ],
)
def test_a_damaged_index_is_one_line_that_names_the_remedy(index, how):
    damage(index.path, how)
    with pytest.raises(StoreError) as caught:
        FeatureIndex.open(index.path)
    assert "ebuild" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_index_at_all_is_an_error_that_says_how_to_build_one(tmp_path):
    with pytest.raises(RunError, match="sparsight index"):
        FeatureIndex.open(tmp_path)


def test_tokens_are_readable_and_cannot_act_on_a_terminal(model):
    assert printable("a\nb\tc\x1b[31m\u202e \u2028é中") == "a⏎b⇥c\\x1b[31m\\u{202e} \\u{2028}é中"
    assert readable_tokens(model.tokenizer, [1, 5]) == ["w1", "w5"]
    assert readable_tokens(model.tokenizer, [10_000]) == ["<10000?>"]
