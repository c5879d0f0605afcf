"""Sums per document, and intervals that cover the truth as often as they say."""

import numpy as np
import pytest
import torch

from sparsight.errors import MetricError
from sparsight.metrics import DocumentSums, document_bootstrap, wilson_interval


def filled(batch_tokens: int) -> DocumentSums:
    sums = DocumentSums(["a", "b"], n_groups=2)
    documents = torch.tensor([7, 7, 3, 9, 3, 7])
    a, b = torch.tensor([1.0, 2, 3, 4, 5, 6]), torch.ones(6) * 2
    groups = torch.tensor([0, 1, 0, 0, 1, 1])
    for rows in torch.arange(6).split(batch_tokens):
        sums.add(documents[rows], {"a": a[rows], "b": b[rows]}, groups[rows])
    return sums


@pytest.mark.parametrize("batch_tokens", [1, 4, 6])
def test_sums_are_per_document_and_group_whatever_the_batches(batch_tokens):
    sums = filled(batch_tokens)
    assert sums.document_ids.tolist() == [3, 7, 9]
    assert sums.column("a").tolist() == [8, 9, 4]
    assert sums.column("a", group=1).tolist() == [5, 8, 0]
    assert sums.column("tokens").tolist() == [2, 3, 1]
    assert sums.total("b") == 12


def test_merging_equals_adding_everything_to_one():
    one, other = filled(6), filled(2)
    one.merge(other)
    assert one.column("a").tolist() == [16, 18, 8]


def test_an_estimate_is_the_ratio_of_sums_with_the_n_of_its_group():
    resampled = filled(6).resample(n_resamples=200, seed=0)
    whole = resampled.estimate({"a": 1}, {"tokens": 1})
    assert (whole.value, whole.n_tokens, whole.n_documents) == (21 / 6, 6, 3)
    assert whole.low is not None
    assert whole.high is not None
    assert whole.low <= whole.value <= whole.high
    group = resampled.estimate({"a": 1, "b": -1}, {"tokens": 1}, group=1)
    assert (group.value, group.n_tokens, group.n_documents) == (pytest.approx(7 / 3), 3, 2)


def test_an_estimate_without_meaning_or_without_documents_says_so():
    resampled = filled(6).resample(n_resamples=200, seed=0)
    assert resampled.estimate({"a": 1}, {"tokens": -1}).value is None
    single = DocumentSums(["a"])
    single.add(torch.tensor([1, 1]), {"a": torch.ones(2)})
    estimate = single.resample(n_resamples=200, seed=0).estimate({"a": 1}, {"tokens": 1})
    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)


def test_resampling_in_blocks_draws_as_many_sets(monkeypatch):
    whole = filled(6).resample(n_resamples=150, seed=4)
    monkeypatch.setattr("sparsight.metrics.intervals.WEIGHTS_AT_ONCE", 30)
    blocks = filled(6).resample(n_resamples=150, seed=4)
    assert np.array_equal(whole.drawn, blocks.drawn)


def test_the_same_seed_gives_the_same_interval_and_the_report_path_agrees_with_the_plain_function():
    rng = np.random.default_rng(0)
    numerators, denominators = rng.random(40), rng.random(40) + 1
    first = document_bootstrap(numerators, denominators, seed=3)
    assert first == document_bootstrap(numerators, denominators, seed=3)
    sums = DocumentSums(["top", "bottom"])
    sums.add(torch.arange(40), {"top": torch.from_numpy(numerators), "bottom": torch.from_numpy(denominators)})
    estimate = sums.resample(n_resamples=1000, seed=3).estimate({"top": 1}, {"bottom": 1})
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(first)


def test_intervals_cover_the_truth_where_token_intervals_would_not():
    """Tokens share their document's level: 95 % intervals over documents cover about 95 %, over tokens far fewer."""
    rng = np.random.default_rng(1)
    covered, naive, n_trials = 0, 0, 200
    for trial in range(n_trials):
        levels = rng.normal(1.0, 1.0, 60)
        values = levels[:, None] + rng.normal(0, 1, (60, 30))
        _, low, high = document_bootstrap(values.sum(1), np.full(60, 30.0), n_resamples=300, seed=trial)
        covered += low <= 1.0 <= high
        half = 1.96 * values.std() / np.sqrt(values.size)
        naive += abs(values.mean() - 1.0) <= half
    assert 0.89 <= covered / n_trials <= 0.99
    assert naive / n_trials < 0.6


def test_one_document_has_no_interval():
    with pytest.raises(MetricError, match="at least 2"):
        document_bootstrap(np.ones(1), np.ones(1))


def test_wilson_is_the_textbook_interval():
    low, high = wilson_interval(np.array([0.0, 0.5, 1.0]), 10)
    assert low.tolist() == pytest.approx([0.0, 0.2366, 0.7225], abs=1e-4)
    assert high.tolist() == pytest.approx([0.2775, 0.7634, 1.0], abs=1e-4)
