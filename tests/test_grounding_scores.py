"""Scores against scikit-learn's AUC, planted latents, and labels that mean nothing."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sparsight.errors import MetricError
from sparsight.grounding import ScoreConfig, Spans, found_again, linear_ceiling, score_latents, stratified_auc
from sparsight.grounding.scores import entity_folds, permuted_labels

CONFIG = ScoreConfig(n_permutations=99, n_splits=2)


def made_spans(n_entities: int = 60, each: int = 3, seed: int = 0) -> Spans:
    """Half of the entities recombined, one span of each of `each` strata."""
    rng = np.random.default_rng(seed)
    entities = np.repeat(np.arange(n_entities), each)
    return Spans(
        recombined=entities % 2 == 1,
        entities=entities,
        strata=np.tile(np.arange(each), n_entities),
        log_probability=rng.normal(size=len(entities)),
    )


def made_latents(spans: Spans, n: int, seed: int = 0) -> np.ndarray:
    """Sparse latents that differ between entities and know nothing of labels."""
    rng = np.random.default_rng(seed)
    per_entity = rng.normal(size=(int(spans.entities.max()) + 1, n))[spans.entities]
    return np.maximum(per_entity + 0.5 * rng.normal(size=(len(spans), n)), 0)


def test_auc_in_one_stratum_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, 4, (80, 5)).astype(float), rng.random(80) < 0.4
    found = stratified_auc(values, labels, np.zeros(80, np.int64))
    assert found == pytest.approx([roc_auc_score(labels, values[:, j]) for j in range(5)])


def test_auc_compares_within_strata_alone() -> None:
    strata, labels = np.array([0, 0, 0, 1, 1, 2]), np.array([True, False, False, True, False, True])
    values = np.array([[1.0], [0.0], [2.0], [100.0], [100.0], [-9.0]])
    # stratum 0: one of two pairs; stratum 1: a tie; stratum 2 has no pair
    assert stratified_auc(values, labels, strata)[0] == pytest.approx((1 + 0.5) / 3)
    assert np.isnan(stratified_auc(values[5:], labels[5:], strata[5:])[0])


def test_a_planted_latent_is_found_and_no_other() -> None:
    spans = made_spans()
    z = made_latents(spans, 50)
    z[:, 7] = np.where(spans.recombined, 1.0, 0.0) * (np.arange(len(spans)) % 10 > 1)
    z[:, 8] = np.where(spans.recombined, 0.0, 1.0)
    scores = score_latents(z, spans, CONFIG)
    assert scores.found.tolist() == [8, 7]
    assert scores.sign[[7, 8]].tolist() == [1, -1]
    assert scores.auc[8] == 1
    assert scores.auc[7] == pytest.approx(0.9, abs=0.03)
    assert scores.p[7] == scores.p[8] == 1 / 100
    assert scores.n_entities == 60


def test_random_latents_are_found_no_more_often_than_alpha() -> None:
    found = 0
    for seed in range(40):
        spans = made_spans(30, 2, seed)
        found += len(score_latents(made_latents(spans, 30, seed), spans, CONFIG).found) > 0
    assert found <= 6  # 5 % of 40, and three standard errors


def test_spans_of_one_entity_do_not_count_as_independent() -> None:
    """Shuffled span by span, latents that differ between entities would be found all the time."""
    spans = made_spans(20, 20)
    z = made_latents(spans, 40)
    rng = np.random.default_rng(0)
    shuffled = [stratified_auc(z, rng.permutation(spans.recombined), spans.strata) for _ in range(50)]
    scores = score_latents(z, spans, CONFIG)
    assert np.max(np.abs(stratified_auc(z, spans.recombined, spans.strata) - 0.5)) > np.max(
        np.abs(np.array(shuffled) - 0.5)
    )
    assert not len(scores.found)


def test_what_log_probability_or_the_base_tells_is_no_discovery() -> None:
    spans = made_spans()
    z = made_latents(spans, 20)
    z[:, 3] = np.where(spans.recombined, 1.0, 0.0)
    unsure = np.where(spans.recombined, -3.0, -0.1)
    known = Spans(recombined=spans.recombined, entities=spans.entities, strata=spans.strata, log_probability=unsure)
    scores = score_latents(z, known, CONFIG)
    assert scores.log_probability_auc == 1
    assert not len(scores.found)
    assert scores.p_auc[3] == 1 / 100
    assert scores.telling.tolist() == [3]
    z_base = made_latents(spans, 20, 5)
    z_base[:, 9] = z[:, 3]
    with_base = score_latents(z, spans, CONFIG, z_base=z_base)
    assert with_base.base_auc == 1
    assert not len(with_base.found)
    assert score_latents(z, spans, CONFIG, z_base=made_latents(spans, 20, 5)).found.tolist() == [3]


def test_folds_never_split_an_entity_and_draws_keep_its_labels_together() -> None:
    spans = made_spans(21, 4)
    for fold in entity_folds(spans, CONFIG):
        assert all(len(set(fold[spans.entities == entity])) == 1 for entity in range(21))
        assert {True, False} == set(spans.recombined[fold].tolist())
    draws = permuted_labels(spans, CONFIG)
    assert len(draws) == 99
    for labels in draws:
        assert labels.sum() == spans.recombined.sum()
        assert all(len(set(labels[spans.entities == entity])) == 1 for entity in range(21))


def test_entities_exchange_labels_only_with_those_of_as_many_spans() -> None:
    entities = np.array([0, 0, 1, 2, 2, 3, 4, 5, 6, 7])
    recombined = np.array([1, 1, 0, 0, 1, 1, 0, 1, 0, 1], bool)
    spans = Spans(recombined=recombined, entities=entities, strata=np.zeros(10, np.int64), log_probability=np.zeros(10))
    pairs = {tuple(labels[[0, 1, 3, 4]].tolist()) for labels in permuted_labels(spans, CONFIG)}
    assert pairs == {(True, True, False, True), (False, True, True, True)}


def test_a_linear_signal_has_a_ceiling_and_none_has_none() -> None:
    spans = made_spans(40, 2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(spans), 40))
    nothing = linear_ceiling(x, spans, CONFIG, n_draws=19)
    assert nothing.p > 0.05
    assert abs(nothing.auc - 0.5) < 0.15  # trained on the fold itself it would be near 1
    assert abs(nothing.null_auc.mean() - 0.5) < 0.1
    x = x[:, :6]
    x[:, :3] += np.where(spans.recombined, 0.8, -0.8)[:, None]
    something = linear_ceiling(x, spans, CONFIG, n_draws=19)
    assert something.p == 0.05
    assert something.auc > 0.9 > something.null_auc.max()


def test_a_find_counts_again_where_another_seed_found_its_direction() -> None:
    W_dec = np.eye(4)
    other = np.array([[0.0, 2.0, 0.0, 0.0], [0.9, 0.0, 0.4, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert found_again([0, 1, 3], W_dec, [([0, 1], other), ([], other), ([0], other)], 0.8).tolist() == [1, 2, 0]
    assert found_again([], W_dec, [([0], other)], 0.8).tolist() == []


def test_tables_that_do_not_fit_are_refused() -> None:
    spans = made_spans()
    with pytest.raises(MetricError, match="one row each"):
        score_latents(np.zeros((3, 2)), spans, CONFIG)
    with pytest.raises(MetricError, match="at least 4"):
        Spans(
            recombined=np.array([True, False]),
            entities=np.arange(2),
            strata=np.zeros(2, np.int64),
            log_probability=np.zeros(2),
        )
    with pytest.raises(MetricError, match="scores:"):
        ScoreConfig(n_folds=1)
