"""The numbers of the index: hand-computed, against plain loops, planted, and against libraries' own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.activations import PieceTable
from sparsight.errors import MetricError
from sparsight.features.statistics import (
    Bucket,
    Coactivation,
    IndexedText,
    MapProcess,
    centred_embeddings,
    chance_nearest,
    communities,
    edges_of,
    layout,
    map_facts,
    nearest,
    output_scores,
    place_statistics,
    token_coherence,
    trustworthiness,
    value_statistics,
    why_no_map,
)
from sparsight.features.statistics.grouped import count_items, log_ratio, strongest_of_each
from test_evaluate import VOCAB, tiny_model

QUANTILES = (0.1, 0.5, 0.99)


def table(pieces: list[tuple[int, int, list[int]]]) -> PieceTable:
    """Of (document, start, token ids)."""
    return PieceTable(
        np.concatenate([np.array(ids, np.int32) for *_, ids in pieces]),
        np.cumsum([0, *(len(ids) for *_, ids in pieces)]).astype(np.int64),
        np.array([document for document, *_ in pieces], np.int64),
        np.array([start for _, start, _ in pieces], np.int32),
        np.zeros(len(pieces), np.int64),
    )


def random_text(seed: int, n_pieces: int = 40, n_ids: int = 12) -> tuple[PieceTable, np.ndarray]:
    rng = np.random.default_rng(seed)
    pieces, starts = [], {}
    for _ in range(n_pieces):
        document, length = int(rng.integers(15)), int(rng.integers(1, 30))
        pieces.append((document, starts.get(document, 0), rng.integers(0, n_ids, length).tolist()))
        starts[document] = starts.get(document, 0) + length
    pieces = table(pieces)
    return pieces, rng.random(len(pieces.token_ids)) < 0.8


def random_bucket(seed: int, places: np.ndarray, n_latents: int = 7) -> Bucket:
    """Latents of all densities; 0 and the last are never active."""
    rng = np.random.default_rng(seed)
    active = [np.sort(rng.permutation(places)[: len(places) * i**2 // n_latents**2]) for i in range(n_latents)]
    active[-1] = active[0]
    latents = np.repeat(np.arange(n_latents), [len(a) for a in active])
    values = rng.exponential(1, len(latents)).astype(np.float32)
    values[rng.random(len(latents)) < 0.3] = 0.5  # ties
    return Bucket(n_latents, latents, np.concatenate(active), values)


def test_grouped_counts_and_ranks_on_a_hand_made_case():
    counts = count_items(np.array([1, 0, 1, 1, 0]), np.array([2, 2, 2, 0, 2]), 3)
    assert [part.tolist() for part in counts] == [[0, 1, 1], [2, 0, 2], [2, 1, 2]]
    best = strongest_of_each(np.array([0, 0, 0, 2]), np.array([1.0, 3.0, 3.0, 5.0]), 2)
    found = best.table(np.array([10, 11, 12, 13]), (3, 2), -1)
    assert found.tolist() == [[11, 12], [-1, -1], [13, -1]]
    assert log_ratio(np.array([3, 0]), np.array([0.0, 1.0])).tolist() == [2.0, -1.0]
    empty = np.zeros(0, np.int64)
    assert [len(part) for part in count_items(empty, empty, 5)] == [0, 0, 0]


def test_the_texts_columns_on_a_hand_made_case():
    pieces = table([(7, 0, [5, 6, 7]), (9, 2, [8]), (7, 3, [5, 6])])
    text = IndexedText(pieces, np.array([True, True, False, True, True, True]))
    assert text.next_ids.tolist() == [6, 7, -1, -1, 6, -1]
    assert text.documents.tolist() == [0, 0, 0, 1, 0, 0]
    assert text.position_bins.tolist() == [0, 1, 2, 2, 2, 3]  # offsets 0 1 2 | 2 | 3 4
    assert text.position_tokens().tolist() == [1, 1, 2, 1, 0, 0, 0, 0]
    assert text.next_tokens()[[5, 6, 7]].tolist() == [0, 2, 1]
    assert text.half_turn(np.array([0, 1, 3, 4, 5])).tolist() == [3, 4, 5, 0, 1]  # five measured, moved by two
    assert text.ranks(np.array([3, 5])).tolist() == [2, 4]


@pytest.mark.parametrize("seed", range(3))
def test_value_statistics_equal_those_of_a_loop_over_latents(seed):
    pieces, measured = random_text(seed)
    text = IndexedText(pieces, measured)
    bucket = random_bucket(seed, np.flatnonzero(measured))
    found = value_statistics(bucket, text.documents, QUANTILES, 5)
    for latent in range(bucket.n_latents):
        own = bucket.latents == latent
        values = bucket.values[own]
        if not own.any():
            assert not any(found[name][latent].any() for name in found)
            continue
        assert found["maximum"][latent] == values.max()
        assert found["mean"][latent] == pytest.approx(values.mean(), rel=1e-6)
        assert np.allclose(found["quantiles"][latent], np.quantile(values, QUANTILES), rtol=1e-6)
        assert found["histogram"][latent].tolist() == np.histogram(values, 5, (0, values.max()))[0].tolist()
        assert found["n_documents"][latent] == len(set(text.documents[bucket.places[own]].tolist()))


@pytest.mark.parametrize("seed", range(3))
def test_place_statistics_equal_those_of_a_loop_over_latents(seed):
    pieces, measured = random_text(seed)
    text = IndexedText(pieces, measured)
    bucket = random_bucket(seed, np.flatnonzero(measured))
    found = place_statistics(bucket, text)
    following = text.next_ids[measured]
    base = np.bincount(following[following >= 0], minlength=12) / (following >= 0).sum()
    positions = text.position_tokens() / measured.sum()
    for latent in range(bucket.n_latents):
        places = bucket.places[bucket.latents == latent]
        if not len(places):
            assert np.isnan(found["token_purity"][latent])
            assert (found["top_token"][latent], found["lift_tokens"][latent].max()) == (-1, -1)
            assert np.isnan(found["position_bits"][latent])
            continue
        counts = np.bincount(pieces.token_ids[places])
        shares = counts[counts > 0] / len(places)
        assert found["token_purity"][latent] == pytest.approx(shares.max())
        assert found["top_token"][latent] == counts.argmax()
        assert found["token_entropy"][latent] == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-6)
        bins = np.bincount(text.position_bins[places], minlength=8)
        assert found["position_bins"][latent].tolist() == bins.tolist()
        q = bins / len(places)
        kl = sum(a * np.log2(a / b) for a, b in zip(q, positions, strict=True) if a)
        kl -= ((positions > 0).sum() - 1) / (2 * len(places) * np.log(2))
        assert found["position_bits"][latent] == pytest.approx(max(kl, 0), abs=1e-6)
        after = text.next_ids[places]
        seen = np.bincount(after[after >= 0], minlength=12)
        lift = np.log2((seen + 1) / (base * (after >= 0).sum() + 1))
        lift = np.where((seen >= 3) & (lift > 0), lift, -1)
        best = [token for token in np.argsort(-lift, kind="stable")[:5] if lift[token] > 0]
        assert [token for token in found["lift_tokens"][latent] if token >= 0] == best
        assert np.allclose(found["lift_values"][latent][: len(best)], lift[best], atol=1e-5)
        assert found["lift_counts"][latent][: len(best)].tolist() == seen[best].tolist()


def test_the_controls_are_the_statistics_of_the_moved_activations():
    pieces, measured = random_text(5)
    text = IndexedText(pieces, measured)
    bucket = random_bucket(5, np.flatnonzero(measured))
    moved = text.half_turn(bucket.places)
    order = np.lexsort((moved, bucket.latents))
    again = place_statistics(Bucket(bucket.n_latents, bucket.latents, moved[order], bucket.values[order]), text)
    found = place_statistics(bucket, text)
    for name in ("token_purity", "token_entropy", "position_bits"):
        assert np.allclose(found[f"chance_{name}"], again[name], equal_nan=True)
    assert np.allclose(found["chance_lift"], again["lift_values"][:, 0], equal_nan=True)


def test_planted_token_lift_and_position_latents_stand_out_from_their_controls():
    """Of 3,000 random tokens: latent 0 is active on token 3, latent 1 before token 7, latent 2 on the first of each document."""
    rng = np.random.default_rng(0)
    pieces = table([(d, 0, rng.integers(0, 50, 60).tolist()) for d in range(50)])
    text = IndexedText(pieces, np.ones(3000, bool))
    planted = [pieces.token_ids == 3, text.next_ids == 7, text.position_bins == 0]
    latents, places = np.nonzero(planted)
    found = place_statistics(Bucket(3, latents, places, np.ones(len(latents), np.float32)), text)
    assert (found["token_purity"][0], found["token_entropy"][0], found["top_token"][0]) == (1, 0, 3)
    assert found["chance_token_purity"][0] < 0.15
    assert found["chance_token_entropy"][0] > 4
    n = int(planted[1].sum())
    expected = n * (text.next_tokens()[7] / text.next_tokens().sum())
    assert found["lift_tokens"][1, 0] == 7
    assert found["lift_values"][1, 0] == pytest.approx(np.log2((n + 1) / (expected + 1)))
    assert found["lift_values"][1, 0] > found["chance_lift"][1] + 2
    assert text.position_tokens().tolist() == [50, 50, 100, 200, 400, 800, 1400, 0]
    # one of 60 positions; 7 bins are there
    assert found["position_bits"][2] == pytest.approx(np.log2(60) - 6 / (2 * 50 * np.log(2)), abs=1e-5)
    assert found["position_bits"][0] < 0.1


def pairs(active: np.ndarray) -> Coactivation:
    """Of a dense [tokens, latents] bool."""
    latents, tokens = np.nonzero(active.T)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(latents, minlength=active.shape[1]))])
    return Coactivation(offsets, tokens, len(active))


def test_coactivation_equals_dense_counts(monkeypatch):
    monkeypatch.setattr("sparsight.features.statistics.coactivation._PRODUCTS_AT_ONCE", 2000)  # several blocks
    rng = np.random.default_rng(0)
    active = rng.random((400, 30)) < np.linspace(0, 0.3, 30)
    active[:, 5] = active[:, 20] & (rng.random(400) < 0.9)
    found, about = pairs(active).strongest()
    seen, n = active.T.astype(int) @ active, active.sum(0)
    pmi = np.log2((seen + 1) / (np.outer(n, n) / 400 + 1))
    allowed = (seen >= 5) & (pmi > 0) & ~np.eye(30, dtype=bool)
    for latent in range(30):
        order = [int(i) for i in np.argsort(-pmi[latent], kind="stable") if allowed[latent, i]][:10]
        assert [i for i in found["coactive_latents"][latent] if i >= 0] == order
        assert np.allclose(found["coactive_pmi"][latent][: len(order)], pmi[latent, order], atol=1e-5)
        jaccard = seen[latent, order] / (n[latent] + n[order] - seen[latent, order])
        assert np.allclose(found["coactive_jaccard"][latent][: len(order)], jaccard, atol=1e-5)
        assert np.isnan(found["coactive_pmi"][latent][len(order) :]).all()
    assert found["coactive_latents"][5, 0] == 20
    assert about["tokens"] == 400
    some = np.array([3, 20])
    np.fill_diagonal(pmi, -np.inf)
    assert np.allclose(pairs(active).pmi(some), pmi[some])


def test_coactivation_of_dense_saes_counts_every_so_many_th_token(monkeypatch):
    rng = np.random.default_rng(0)
    active = rng.random((900, 40)) < 0.5
    monkeypatch.setattr("sparsight.features.statistics.coactivation.MOST_PRODUCTS", 20 * 20 * 300)
    found, about = pairs(active).strongest()
    assert 150 <= about["tokens"] <= 300
    step = -(-900 // about["tokens"])
    again, _ = pairs(active[::step]).strongest()
    assert np.array_equal(found["coactive_latents"], again["coactive_latents"])


def test_planted_groups_are_found_as_coactive_and_as_communities():
    """20 groups of 15 latents; a token has a few latents of one group, and some of any."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.arange(300) % 20)
    active = np.zeros((6000, 301), bool)
    for token in range(6000):
        active[token, rng.choice(np.flatnonzero(group == rng.integers(20)), 3, replace=False)] = True
        active[token, rng.integers(0, 300, 3)] = True
    found, about = pairs(active).strongest()
    latents = found["coactive_latents"][:300]
    assert (group[latents] == group[:, None])[latents >= 0].mean() > 0.95
    assert about["pmi"] > about["chance_pmi"] + 0.5
    labels, facts = communities(edges_of(found["coactive_latents"], found["coactive_pmi"]), 301)
    assert (facts["number"], labels[300]) == (20, -1)  # the last is never active
    assert all(len(set(group[labels[:300] == label].tolist())) == 1 for label in range(20))
    assert facts["modularity"] > facts["chance_modularity"] + 0.3


def test_communities_are_as_modular_as_those_of_networkx():
    networkx = pytest.importorskip("networkx")
    graph = networkx.powerlaw_cluster_graph(600, 4, 0.5, seed=1)
    ends = np.array(graph.edges)
    weight = np.random.default_rng(0).random(len(ends)) + 0.1
    labels, facts = communities((ends[:, 0], ends[:, 1], weight), 600)
    for (a, b), w in zip(ends.tolist(), weight.tolist(), strict=True):
        graph[a][b]["weight"] = w
    theirs = networkx.community.modularity(graph, networkx.community.louvain_communities(graph, seed=0))
    assert facts["modularity"] > theirs - 0.01
    whole = [set(np.flatnonzero(labels == label).tolist()) for label in range(facts["number"])]
    if sum(len(each) for each in whole) == 600:
        assert facts["modularity"] == pytest.approx(networkx.community.modularity(graph, whole))
    assert [len(each) for each in whole] == sorted((len(each) for each in whole), reverse=True)


def test_no_edges_make_no_communities():
    labels, facts = communities(edges_of(np.full((4, 2), -1, np.int32), np.full((4, 2), np.nan, np.float32)), 4)
    assert labels.tolist() == [-1] * 4
    assert facts == {"number": 0, "modularity": 0.0, "chance_modularity": 0.0}


def test_nearest_equals_a_full_sort_and_leaves_out_the_dead(monkeypatch):
    monkeypatch.setattr("sparsight.features.statistics.neighbours._BLOCK_ELEMENTS", 200)
    directions = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    alive = np.arange(50) % 5 != 0
    latents, cosines = nearest(directions, alive, 6)
    unit = (directions / directions.norm(dim=1, keepdim=True)).numpy()
    full = np.where(alive, unit @ unit.T, -2)
    np.fill_diagonal(full, -2)
    for latent in np.flatnonzero(alive):
        order = np.argsort(-full[latent])[:6]
        assert latents[latent].tolist() == order.tolist()
        assert np.allclose(cosines[latent], full[latent, order], atol=1e-6)
    assert (latents[~alive] == -1).all()
    assert np.isnan(cosines[~alive]).all()
    few, _ = nearest(directions, np.arange(50) < 3, 6)
    assert (few[:3] >= 0).sum(1).tolist() == [2, 2, 2]
    assert (nearest(directions, np.arange(50) < 1, 6)[0] == -1).all()


def test_the_cosine_of_chance_is_that_of_random_directions():
    directions = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    _, cosines = nearest(directions, np.ones(2000, bool), 1)
    assert chance_nearest(2000, 64) == pytest.approx(cosines.mean(), rel=0.05)


def test_trustworthiness_is_scikit_learns():
    manifold = pytest.importorskip("sklearn.manifold")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 6))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    points = x[:, :2].astype(np.float32)

    def similarity(some: np.ndarray) -> np.ndarray:
        result = unit[some] @ unit.T
        result[np.arange(len(some)), some] = -np.inf
        return result

    found, low, high = trustworthiness(points, similarity)
    assert found == pytest.approx(manifold.trustworthiness(unit, points, n_neighbors=10), abs=1e-6)
    assert low < found < high
    shuffled, *_ = trustworthiness(points[rng.permutation(150)], similarity)
    assert shuffled == pytest.approx(0.5, abs=0.05)


def laid_out(folder: Path, *graph: np.ndarray) -> np.ndarray:
    with MapProcess(len(graph[0]), folder / "map") as process:
        process.begin(*graph)
        return process.points()


@pytest.mark.slow  # UMAP compiles itself
def test_a_map_shows_planted_groups_and_is_the_same_each_time(tmp_path):
    pytest.importorskip("umap")
    group = np.arange(240) % 4
    rng = np.random.default_rng(0)
    similarity = 3.0 * (group[:, None] == group) + rng.random((240, 240))
    np.fill_diagonal(similarity, -np.inf)
    latents = np.argsort(-similarity, axis=1)[:, :10].astype(np.int32)
    pmi = np.take_along_axis(similarity, latents, 1).astype(np.float32)
    latents[::7, 6:], pmi[::7, 6:] = -1, np.nan  # some have fewer
    directions = rng.normal(size=(240, 5)).astype(np.float32)
    points = laid_out(tmp_path, latents, pmi, directions)
    about = map_facts(points, lambda some: similarity[some])
    apart = np.square(points[:, None] - points).sum(-1)
    near = np.argsort(apart, axis=1)[:, 1:11]
    assert (group[near] == group[:, None]).mean() > 0.95
    assert about["trustworthiness"] > 0.8 > 0.6 > about["chance"]
    assert np.array_equal(points, laid_out(tmp_path, latents, pmi, directions))


def test_a_map_that_fails_says_why_and_one_that_nobody_wants_ends(monkeypatch, tmp_path):
    pytest.importorskip("umap")
    graph = np.zeros((120, 2), np.int32), np.ones((120, 2), np.float32), np.ones((120, 4), np.float32)
    program = tmp_path / "fails.py"
    program.write_text("raise SystemExit('no memory left')")
    monkeypatch.setattr(layout, "_PROGRAM", program)
    with MapProcess(120, tmp_path / "map") as process, pytest.raises(MetricError, match="no memory left"):
        process.begin(*graph)
        process.points()
    program.write_text("import time; time.sleep(600)")
    with MapProcess(120, tmp_path / "map") as process:
        started = process._process
    assert started.poll() is not None
    assert not (tmp_path / "map").exists()


def test_there_is_no_map_of_few_latents():
    assert "a map takes 100" in why_no_map(64)


def test_the_output_score_tells_a_latent_that_writes_its_tokens_from_one_that_does_not():
    """Latents are rows of the output matrix, read at the last block's output: each promotes its own token."""
    model = tiny_model()
    directions = model._module.lm_head.weight.detach().float()
    pieces = table([(d, 0, [1 + d, 2, 3]) for d in range(6)])
    alive = np.ones(VOCAB, bool)
    alive[9] = False
    config = {"target_hook_point": "layers.2", "n_latents": 100}
    own, other = np.arange(VOCAB)[:, None], (np.arange(VOCAB)[:, None] + 1) % VOCAB
    scores, about = output_scores(model, directions, own, alive, pieces, **config)
    assert np.isnan(scores[9])
    assert scores[alive].mean() > 0.95
    assert (about["latents"], about["prompts"]) == (VOCAB - 1, 4)
    assert about["chance"] == pytest.approx(0.5, abs=0.1)
    wrong, _ = output_scores(model, directions, other, alive, pieces, **config)
    assert np.nanmean(wrong) == pytest.approx(0.5, abs=0.1)
    reversed_, _ = output_scores(model, -directions, own, alive, pieces, **config)
    assert np.nanmean(reversed_) < 0.2


def test_output_scores_of_a_sample_say_so():
    model = tiny_model()
    pieces = table([(d, 0, [1 + d, 2, 3]) for d in range(6)])
    scores, about = output_scores(
        model,
        torch.ones(20, 16),
        np.ones((20, 2), int),
        np.ones(20, bool),
        pieces,
        target_hook_point="layers.1",
        n_latents=5,
    )
    assert np.flatnonzero(~np.isnan(scores)).tolist() == [0, 4, 9, 14, 19]
    assert about["latents"] == 5
    none, about = output_scores(
        model,
        torch.ones(20, 16),
        np.ones((20, 2), int),
        np.ones(20, bool),
        pieces,
        target_hook_point="layers.1",
        n_latents=0,
    )
    assert np.isnan(none).all()
    assert about["mean"] is None


def test_coherence_is_the_mean_cosine_over_activations_on_different_tokens():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(12, 5)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    token_ids = [rng.integers(0, 12, n) for n in (40, 0, 7, 3)] + [np.full(9, 4)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in token_ids])])
    found = token_coherence(offsets, np.concatenate(token_ids), embeddings)
    for ids, value in zip(token_ids, found, strict=True):
        cosines = [embeddings[a] @ embeddings[b] for a in ids for b in ids if a != b]
        assert (np.isnan(value) and not cosines) or value == pytest.approx(np.mean(cosines), abs=1e-5)


def test_coherence_knows_tokens_of_a_kind_from_tokens_of_none():
    rng = np.random.default_rng(1)
    kinds = rng.normal(size=(5, 16)).repeat(20, 0)
    vectors = centred_embeddings((kinds + 0.5 * rng.normal(size=(100, 16)) + 3).astype(np.float32), np.arange(100))
    of_one_kind, of_any = rng.integers(20, 40, 200), rng.integers(0, 100, 200)
    found = token_coherence(np.array([0, 200, 400]), np.concatenate([of_one_kind, of_any]), vectors)
    assert found[0] > 0.5
    assert abs(found[1]) < 0.1
