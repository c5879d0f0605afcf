"""L0, density, dead share and the histogram on hand-made latents."""

import numpy as np
import pytest
import torch

from sparsight.errors import MetricError, SparsightError
from sparsight.metrics import EvaluateConfig, LatentCounts, TokenClasses, l0


def test_l0_counts_latents_that_are_not_zero():
    assert l0(torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]])).tolist() == [2, 0]


def test_density_dead_share_and_l0_come_from_the_same_counts():
    counts = LatentCounts(4)
    counts.add(torch.tensor([[1.0, 0, 0, 2], [1.0, 0, 0, 0]]))
    other = LatentCounts(4)
    other.add(torch.tensor([[1.0, 3, 0, 0], [1.0, 0, 0, 0]]))
    counts.merge(other)
    assert counts.density.tolist() == [1.0, 0.25, 0.0, 0.25]
    assert (counts.l0, counts.dead_share, counts.n_tokens) == (1.5, 0.25, 4)


def test_histogram_puts_each_latent_in_its_half_decade_and_keeps_the_dead_apart():
    counts = LatentCounts(5)
    counts.add_counts(torch.tensor([0, 1, 10, 1000, 500]), 1000)
    histogram = counts.histogram()
    by_edge = dict(zip(histogram.log10_edges, histogram.n_latents, strict=False))
    assert histogram.n_dead == 1
    assert (by_edge[-3.0], by_edge[-2.0], by_edge[-0.5]) == (1, 1, 2)
    assert sum(histogram.n_latents) + histogram.n_dead == 5


def test_density_of_nothing_is_an_error():
    with pytest.raises(MetricError, match="at least one token"):
        _ = LatentCounts(3).density


def test_token_classes_follow_the_train_frequencies():
    # id 5 makes 50 %, ids 1 and 2 make 30 and 12 %, id 3 makes 5 %, id 4 makes 3 %
    tokens = np.repeat([5, 1, 2, 3, 4], [50, 30, 12, 5, 3])
    classes = TokenClasses.from_tokens(tokens)
    ids = torch.tensor([5, 1, 2, 3, 4, 0, 999, 5])
    positions = torch.tensor([4, 9, 9, 9, 9, 9, 9, 3])
    names = ["first", "frequent", "middle", "rare"]
    assert [names[i] for i in classes.classify(ids, positions)] == [
        "frequent",
        "middle",
        "middle",
        "rare",
        "rare",
        "rare",  # never seen, inside the table
        "rare",  # never seen, beyond it
        "first",
    ]


def test_an_impossible_setting_names_itself_and_what_was_expected():
    with pytest.raises(SparsightError, match="n_resamples = 5; expected at least 100"):
        EvaluateConfig(n_resamples=5)
