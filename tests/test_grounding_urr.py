"""Rates of ungrounded pairs, their chance level and their intervals, on details made by hand."""

import numpy as np
import pytest

from sparsight.errors import MetricError
from sparsight.grounding import (
    Arranged,
    ArrangementConfig,
    Detail,
    Outcome,
    URRConfig,
    arrange,
    measure_urr,
    pair_rate,
)


def detail(place: int, documents: list[int]) -> Detail:
    return Detail(
        start=place,
        core=place,
        end=place + 1,
        surprise_bits=25.0,
        advantage_bits=None,
        documents=np.array(documents, np.int64),
    )


def text(*supports: list[int]) -> Arranged:
    return arrange([detail(i, documents) for i, documents in enumerate(supports)], ArrangementConfig())


def test_the_rate_is_of_pairs_and_not_of_texts() -> None:
    texts = [text([0], [0], [0]), text([0], [1]), text([2]), text()]
    report = measure_urr(texts, URRConfig())
    assert pair_rate(texts) == report.urr == 1 / 4
    assert (report.n_texts, report.n_details, report.n_pairs) == (4, 6, 4)
    assert {outcome: share.n for outcome, share in report.outcomes.items()} == {
        Outcome.GROUNDED: 2,
        Outcome.RECOMBINED: 1,
        Outcome.NONE: 1,
    }


def test_chance_is_what_independent_details_give() -> None:
    # k values of two kinds, each held by one document; every text is grounded, by chance 1 pair in k would be
    k = 5
    texts = [text([i % k], [i % k]) for i in range(200)]
    report = measure_urr(texts, URRConfig(n_chance=400))
    assert report.urr == 0
    assert report.chance == pytest.approx(1 - 1 / k, abs=0.01)
    assert report.chance_low < 1 - 1 / k < report.chance_high
    assert report.p_below == pytest.approx(1 / 401)


def test_every_stratum_is_drawn_from_its_own() -> None:
    texts = [text([int(i % 5 == 0)], [int(i % 5 != 1)]) for i in range(200)]
    assert measure_urr(texts, URRConfig()).chance == pytest.approx(1 - (0.8 * 0.2 + 0.2 * 0.8), abs=0.02)


def test_details_without_order_are_at_chance() -> None:
    rng = np.random.default_rng(0)
    texts = [text([int(rng.integers(5))], [int(rng.integers(5))]) for _ in range(300)]
    report = measure_urr(texts, URRConfig())
    assert report.chance_low <= report.urr <= report.chance_high
    assert report.p_below > 0.05
    assert report.low < 0.8 < report.high


def test_strata_keep_kinds_apart() -> None:
    # kind 0 is always document 0 or 1, kind 1 document 0: mixed up, kind-0 details would meet each other
    texts = [text([0], [0]), text([1], [0])] * 20
    apart = measure_urr(texts, URRConfig())
    mixed = measure_urr(texts, URRConfig(), strata=[[0, 0]] * 40)
    assert apart.chance == pytest.approx(0.5, abs=0.02)
    assert mixed.chance == pytest.approx(1 - (0.75**2 + 0.25**2), abs=0.03)
    with pytest.raises(MetricError, match="one stratum"):
        measure_urr(texts, URRConfig(), strata=[[0]] * 40)


def test_the_interval_covers_the_truth_of_dependent_pairs() -> None:
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        whole = [text([0], [0], [0]) if rng.random() < 0.7 else text([0], [1], [2]) for _ in range(60)]
        report = measure_urr(whole, URRConfig(n_resamples=300, n_chance=20))
        covered += report.low <= 0.3 <= report.high
    assert covered >= 53  # 95 % of 60 less three standard errors


def test_texts_without_pairs_have_no_rate() -> None:
    report = measure_urr([text([0]), text()], URRConfig())
    assert (report.urr, report.low, report.chance, report.p_below) == (None, None, None, None)
    assert report.outcomes[Outcome.NONE].share == 0.5
    with pytest.raises(MetricError, match="got none"):
        measure_urr([], URRConfig())
