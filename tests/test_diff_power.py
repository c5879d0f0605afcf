"""Power: the packaged table is the committed record's, recall and its interval by hand, and what the record is made by."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsight.diff import PowerTable, power_table
from sparsight.errors import MetricError

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "validate_compare"))

import pairs
import power

RECORDS = Path(__file__).resolve().parents[1] / "benchmarks" / "records"
BY_HAND = {
    "rates": [0.001, 0.1],
    "seeds": [3, 5],
    "train_tokens": [1000, 4000],
    "heldout_tokens": [500],
    "passes": 4,
    "n_features": 4,
    "found": [[[[0, 6]], [[6, 12]]], [[[0, 20]], [[10, 20]]]],
    "false_share": [[[0.5], [0.1]], [[0.0], [0.0]]],
    "source": "by hand",
}


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((RECORDS / "compare-power.json").read_text())


@pytest.fixture
def table() -> PowerTable:
    return PowerTable.from_json(BY_HAND)


# --- the table that is packaged


def test_the_packaged_table_is_the_committed_records(record: dict):
    assert json.loads(power.TABLE.read_text()) == power.packed(record)
    assert str(len(record["runs"])) in power_table().source


def test_the_records_page_and_plot_are_made_of_it(record: dict):
    assert (RECORDS / "compare-power.md").read_text() == power.markdown(record)
    svg = power.power_svg(power_table(), heldout_tokens=power.SHOWN)
    assert (RECORDS / "compare-power.svg").read_text() == svg


def test_the_setting_that_another_record_measures_is_found_there_count_for_count(record: dict):
    planted = {
        run["number"]: run["planted"] for run in json.loads((RECORDS / "compare-planted.json").read_text())["runs"]
    }
    compared = 0
    for run in record["runs"]:
        for seeds, name in ((3, "3, seeds, scaling"), (5, "5, permuted, scaling")):
            (cell,) = power.at({"runs": [run]}, seeds, 512_000, 1, 40_960)
            there = planted.get(run["number"], {}).get(name)
            if there is not None:
                compared += 1
                counts = {kind: [found for found, _, _ in rates.values()] for kind, rates in there["recall"].items()}
                assert cell["found"] == counts
                assert (cell["called"], cell["wrong"]) == (sum(there["called"].values()), sum(there["wrong"].values()))
    assert compared >= 8


# --- what it answers


def test_recall_is_found_over_planted_with_wilsons_interval(table: PowerTable):
    recall = table.recall(0.001, seeds=3, train_tokens=4000, heldout_tokens=500)
    assert recall is not None
    assert recall.value == 6 / 12
    # n = 4, z = 1.96: 0.5 +- (1.96 / (1 + 3.8416 / 4)) * sqrt(0.25 / 4 + 3.8416 / 64)
    assert (recall.low, recall.high) == pytest.approx((0.15, 0.85), abs=0.001)
    sure = table.recall(0.1, seeds=5, train_tokens=4000, heldout_tokens=500)
    assert sure is not None
    assert (sure.value, sure.high) == (1.0, pytest.approx(1.0))
    assert sure.low == pytest.approx(4 / (4 + 3.8416), abs=0.001)


def test_between_two_settings_it_is_a_straight_line_in_the_logarithm(table: PowerTable):
    half = table.recall(0.01, seeds=3, train_tokens=4000, heldout_tokens=500)
    assert half is not None
    assert half.value == pytest.approx((0.5 + 1.0) / 2)
    near = table.recall(0.001 * 100**0.25, seeds=3, train_tokens=4000, heldout_tokens=500)
    assert near is not None
    assert near.value == pytest.approx(0.75 * 0.5 + 0.25 * 1.0)
    both = table.recall(0.01, seeds=3, train_tokens=2000, heldout_tokens=500)
    assert both is not None
    assert both.value == pytest.approx((0 + 0.5 + 0.5 + 1.0) / 4)
    assert table.false_discovery(seeds=3, train_tokens=2000, heldout_tokens=500) == pytest.approx(0.3)


def test_beyond_the_largest_the_largest_counts_and_below_the_smallest_nothing_is_said(table: PowerTable):
    at = {"seeds": 3, "train_tokens": 4000, "heldout_tokens": 500}
    assert table.recall(0.5, **at) == table.recall(0.1, **at)
    assert table.recall(0.1, **at | {"train_tokens": 10**9}) == table.recall(0.1, **at)
    assert table.recall(0.1, **at | {"seeds": 4}) == table.recall(0.1, **at)
    assert table.recall(0.1, **at | {"seeds": 9}) == table.recall(0.1, **at | {"seeds": 5})
    for smaller in ({"seeds": 2}, {"train_tokens": 999}, {"heldout_tokens": 499}):
        assert table.recall(0.1, **at | smaller) is None
        assert table.false_discovery(**at | smaller) is None
    assert table.recall(0.0009, **at) is None


def test_passes_count_as_far_as_they_were_measured(table: PowerTable):
    assert [table.rows_trained_on(100, epochs) for epochs in (1, 4, 9)] == [100, 400, 400]


def test_counts_that_do_not_fit_their_axes_are_refused():
    with pytest.raises(MetricError, match="shape"):
        PowerTable.from_json(BY_HAND | {"rates": [0.001]})


# --- how it is measured


def test_a_repetition_counts_every_setting():
    run = power.repetition(0, train=((12, 1), (12, 4)), heldout=(1, 2))
    places = [(cell["seeds"], cell["train"], cell["passes"], cell["heldout"]) for cell in run["cells"]]
    assert places == [(n, t, p, h) for t, p in ((12288, 1), (3072, 4)) for h in (1024, 2048) for n in (3, 4, 5)]
    for cell in run["cells"]:
        assert set(cell["found"]) == {"emergent", "rotated", "reweighted", "lost"}
        for kind, found in cell["found"].items():
            assert len(found) == len(power.RATES)
            assert all(0 <= a <= b <= cell["seeds"] for a, b in zip(found, cell["learned"][kind], strict=True))
        assert 0 <= cell["wrong"] <= cell["called"]


def test_the_first_batches_alone_are_what_reading_so_many_gives():
    pair = pairs.drawn(1)
    saes = pairs.trained(pair, 4, 1, arms=("base", "tuned"))
    cut, alone = pairs.Arms(pair, saes, 3).first(2), pairs.Arms(pair, saes, 2)
    for arm in saes:
        (one,), (other,) = cut.read[arm], alone.read[arm]
        assert np.array_equal(one.firings, other.firings)
        assert one.n_tokens == other.n_tokens == 2048
        assert (one.latents.values == other.latents.values).all()
    for side, (scaling,) in cut.scaling("tuned").items():
        assert np.array_equal(scaling.nu, alone.scaling("tuned")[side][0].nu, equal_nan=True)


def test_reading_tokens_again_takes_the_first_batches_in_turn():
    pair = pairs.drawn(1)
    once, again = (pairs.trained(pair, 2, 1, arms=("base",), distinct=n)["base"][0] for n in (2, 1))
    assert not (once.W_dec == again.W_dec).all()
    same = pairs.trained(pair, 1, 1, arms=("base",), distinct=1)["base"][0]
    assert (same.W_dec == pairs.trained(pair, 1, 1, arms=("base",))["base"][0].W_dec).all()


def test_a_record_with_other_settings_is_not_filled_up(tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"settings": {"d": 1}, "runs": []}))
    with pytest.raises(SystemExit, match="other settings"):
        pairs.fill(path, {"d": 2}, power.repetition, 1, 1)
    assert pairs.fill(path, {"d": 1}, power.repetition, 0, 1) == {"settings": {"d": 1}, "runs": []}


def test_the_plot_shows_a_line_for_each_setting_and_a_bar_for_each_number(table: PowerTable):
    wider = replace(
        table,
        seeds=(3, 4, 5),
        train_tokens=(1, 2, 3, 4),
        found=np.zeros((3, 4, 1, 2), int),
        heldout_tokens=(10,),
        false_share=np.zeros((3, 4, 1)),
    )
    two = replace(wider, heldout_tokens=(10, 20), found=np.zeros((3, 4, 2, 2), int), false_share=np.zeros((3, 4, 2)))
    svg = power.power_svg(two, heldout_tokens=10)
    assert svg.count("<polyline") == 2 * 3 * 4
    assert svg.count("<circle") == 2 * 3 * 4 * 2 + 4  # and a legend
