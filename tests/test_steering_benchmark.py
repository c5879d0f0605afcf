"""The steering benchmark's measurements where the answer is known: directions that write to single tokens."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import steering

from sparsight.index import build_index
from sparsight.lm import LanguageModel
from test_evaluate import WIDTH, make_window, relu_sae, tiny_model, tiny_pieces, write_store

LAST = "layers.2"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


@pytest.fixture(scope="module")
def subject(model, tmp_path_factory) -> steering.Subject:
    """At the last layer, where what a latent promotes is exactly what its direction does to the logits."""
    from sparsight.lm import make_batches

    pieces = tiny_pieces(model, 40, 0)
    rows, columns = [], {"token_ids": [], "document_ids": [], "positions": [], "piece_ids": []}
    for batch in make_batches(pieces, batch_tokens=128, pad_id=0, isolation="documents", context_tokens=14, eos_id=0):
        rows.append(model.read(batch, [LAST])[LAST][batch.mask])
        columns["token_ids"].append(batch.input_ids[batch.mask].int())
        for name in ("document_ids", "positions", "piece_ids"):
            columns[name].append(getattr(batch, name)[batch.mask])
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    window = make_window("heldout", pieces, {LAST: torch.cat(rows)}, joined)
    folder = tmp_path_factory.mktemp("benchmark")
    store = write_store(folder / "store", {"heldout": window}, {LAST: WIDTH})
    generator = torch.Generator().manual_seed(0)
    w_dec = torch.nn.functional.normalize(torch.randn(48, WIDTH, generator=generator), dim=1)
    sae = relu_sae(w_dec.T.contiguous(), w_dec)
    index = build_index(sae, store, model, path=folder / "index", hook_point=LAST)
    return steering.Subject(model, sae, index, LAST)


@pytest.fixture(scope="module", autouse=True)
def small_sizes():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BOOST_TEXTS": 6, "BOOST_TOKENS": 8, "ABLATE_TEXTS": 6, "N_RESAMPLES": 200}.items():
            patch.setattr(steering, name, value)
        yield


def test_directions_of_the_last_layer_move_their_tokens_beyond_random_ones(subject):
    features = steering.draw_features(subject.index, 12, 0)
    boosts = steering.measure_boost(subject, features, 0)
    contrast = steering.compared([pair[1] for pair in boosts["2"]], 1, crossed=True)
    assert contrast["beyond_random"]["low"] > 0
    assert contrast["share_beyond_random"]["value"] > 0.9
    ablations = steering.measure_ablation(subject, features, 0)
    contrast = steering.compared([pair[1] for pair in ablations], -1, crossed=False)
    assert contrast["effect"]["high"] < 0
    assert contrast["share_as_predicted"]["value"] > 0.9


def test_a_changes_outcomes_are_the_promoted_and_that_minus_the_suppressed(subject):
    batch = steering.boost_texts(subject.index, 0)
    tokens = subject.tokens(5)
    clean = steering.log_p(subject.model, batch, tokens, {})
    expected = subject.model.logits(batch).float().log_softmax(-1)[:, :, tokens]
    assert torch.allclose(clean, expected, atol=1e-5)
    edits = [steering.LatentEdit(5, "add", 1.0)] * len(batch.input_ids)
    promoted, contrast = subject.changes(batch, edits, batch.mask, tokens, clean)
    direction = subject.sae.W_dec[5]
    edited = subject.model.logits(batch, replace={LAST: lambda x: x + direction}).log_softmax(-1)[:, :, tokens] - clean
    special = batch.input_ids == 0
    by_hand = edited[:, :, :10].mean(-1)
    assert torch.allclose(promoted[~special], by_hand[~special], atol=1e-4)
    assert torch.allclose(contrast[~special], (by_hand - edited[:, :, 10:].mean(-1))[~special], atol=1e-4)


def test_intervals_hold_the_mean_and_know_what_was_drawn():
    rng = np.random.default_rng(0)
    noisy = [rng.normal(1, 1, size=20) for _ in range(30)]
    crossed, apart = (steering.interval(noisy, crossed=each) for each in (True, False))
    assert crossed["value"] == apart["value"] == pytest.approx(np.mean(noisy))
    assert apart["low"] < apart["value"] < apart["high"]
    shared = [
        rng.normal(0, 0.01, size=20) + np.linspace(-3, 3, 20) for _ in range(30)
    ]  # the documents differ, not the features
    wide, narrow = (steering.interval(shared, crossed=each) for each in (True, False))
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])


def test_a_comparison_counts_in_the_predicted_direction():
    pairs = [np.array([[-2.0, -4.0], [-1.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])]
    found = steering.compared(pairs, -1, crossed=False)
    assert found["effect"]["value"] == -1
    assert found["random"]["value"] == 0
    assert found["beyond_random"]["value"] == 1
    assert found["share_as_predicted"]["value"] == 0.5
    assert found["n_documents"] == 4
