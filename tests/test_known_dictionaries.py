"""The benchmark's search, spread and tables. Nothing is trained here."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from known_dictionaries import next_coefficient, spread, table


def test_the_search_interpolates_in_logarithms_and_goes_on_beyond():
    assert next_coefficient([(1.0, 16.0), (4.0, 1.0)], 4.0) == pytest.approx(2.0)
    assert next_coefficient([(1.0, 6.0)], 3.0) == pytest.approx(2.0)
    assert next_coefficient([(1.0, 300.0)], 3.0) == pytest.approx(8.0)
    assert next_coefficient([(1.0, 0.0)], 3.0) == pytest.approx(1 / 8)


def test_the_search_finds_a_coefficient_whatever_the_curve():
    def l0(coefficient):
        return 40 / (1 + coefficient**1.7)

    tries = [(1.0, l0(1.0))]
    for _ in range(6):
        c = next_coefficient(tries, 3.0)
        tries.append((c, l0(c)))
    assert min(abs(reached / 3 - 1) for _, reached in tries) < 0.1


def test_spread_says_how_many_could_be_measured():
    nan = float("nan")
    assert spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert spread([nan, 1.0, 2.0]) == "1.50 (1.00 to 2.00, 2 of 3)"
    assert spread([nan]) == "-"


def test_a_table_has_a_row_for_each_method():
    runs = [{"method": name, "l0": value} for name, value in (("a", 1), ("b", 5), ("a", 3))]
    assert table(runs, {"L0": lambda run: run["l0"]})[2:] == [
        "| a | 2.00 (1.00 to 3.00) |",
        "| b | 5.00 (5.00 to 5.00) |",
    ]
