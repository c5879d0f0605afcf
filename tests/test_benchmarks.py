"""The benchmark's arithmetic: interpolation, spread, ratios, the plan of jobs and the table. Nothing is measured here."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "peers"))

from plan import PARTS, QUICK, Sizes, best_rate, jobs_of, key_of
from summarise import chosen, fvu_at_l0, markdown, ratios, spread


def run(
    tool="sae-lens",
    setting="default",
    *,
    commit="abc",
    part="train",
    architecture="topk",
    seed=0,
    l1=None,
    lr=None,
    k=32,
    **result,
):
    job = {
        "part": part,
        "tool": tool,
        "setting": setting,
        "architecture": architecture,
        "seed": seed,
        "l1": l1,
        "lr": lr,
        "k": k,
    }
    filled = {"tokens_per_second": 100.0, "peak_megabytes": 500.0, "fvu": 0.5, "l0": 32.0, "dead_share": 0.0}
    return {"key": "", "commit": commit, "job": job | {"n_latents": 4608}, "result": filled | result}


def record(runs):
    hardware = {"cpu": "a processor", "cores": 2, "matrix_units": "avx2"}
    versions = {"sparsight": ["torch 2.13.0"]}
    head = {"command": "make bench", "commit": "abc", "repeats": 3, "hardware": hardware, "versions": versions}
    return head | {"runs": runs}


def test_fvu_at_l0_is_a_straight_line_in_logarithms():
    points = [(100.0, 0.1), (10.0, 0.4)]
    assert fvu_at_l0(points, 10.0) == pytest.approx(0.4)
    assert fvu_at_l0(points, 100.0) == pytest.approx(0.1)
    assert fvu_at_l0(points, 1000**0.5) == pytest.approx(0.2)  # the middle in log L0: the geometric mean of the two


def test_fvu_at_l0_does_not_extrapolate():
    assert fvu_at_l0([(10.0, 0.4), (100.0, 0.1)], 101.0) is None
    assert fvu_at_l0([(10.0, 0.4)], 9.0) is None
    assert fvu_at_l0([], 9.0) is None


def test_spread_and_ratios_compare_neighbours():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    assert ratios([10.0, 20.0, 30.0], [1.0, 4.0, 3.0]) == {"median": 10.0, "min": 5.0, "max": 10.0, "n": 3}


def test_the_best_rate_is_the_one_with_the_least_fvu_at_the_first_seed():
    runs = [run(setting="best", lr=lr, fvu=fvu) for lr, fvu in ((3e-4, 0.6), (1e-3, 0.3), (3e-3, 0.5))]
    runs.append(run(setting="best", lr=3e-3, fvu=0.1, seed=1))
    assert best_rate(runs) == {("sae-lens", "topk"): 1e-3}
    assert [each["job"]["lr"] for each in chosen(runs)] == [1e-3]


def test_relu_is_no_part_of_the_search():
    assert best_rate([run(setting="best", architecture="relu", l1=1.0, lr=1e-3)]) == {}


def test_later_seeds_wait_for_the_rate():
    def of_best(best):
        jobs = jobs_of("train", 1, Sizes(), best)
        return [job for job in jobs if job["setting"] == "best" and job["architecture"] != "relu"]

    without = of_best({})
    found = {("sae-lens", "topk"): 1e-3}
    with_rate = of_best(found)
    assert without == []
    assert {(job["tool"], job["architecture"], job["lr"]) for job in with_rate} == {
        ("sae-lens", "topk", 1e-3),
    }


def test_every_tool_gets_the_same_work():
    jobs = [job for part in PARTS for job in jobs_of(part, 0, QUICK, {}) if part != "width"]
    for name in ("batch_tokens", "context_tokens", "n_latents", "k"):
        assert len({job[name] for job in jobs}) == 1
    for part in PARTS:
        assert len({job["n_tokens"] for job in jobs_of(part, 0, QUICK, {})}) <= 1


def test_no_job_is_planned_twice():
    best = {(tool, kind): 1e-3 for tool in ("sparsight", "sae-lens") for kind in ("topk", "batchtopk")}
    keys = [key_of(job) for part in PARTS for repeat in range(3) for job in jobs_of(part, repeat, Sizes(), best)]
    assert len(set(keys)) == len(keys)


def test_the_table_has_ratios_repeat_by_repeat_and_names_what_failed():
    runs = [run("sparsight", seed=seed, tokens_per_second=1000.0 * (seed + 1)) for seed in range(3)]
    runs += [run(seed=seed, tokens_per_second=100.0) for seed in range(3)]
    runs.append(run("sparsify", error="ImportError: no"))
    text = markdown(record(runs))
    assert "20.0 (10.0 to 30.0)" in text
    assert "| train | sparsify, default | ImportError: no | 1 |" in text


def test_relu_is_compared_at_the_peers_l0():
    ours = [
        run("sparsight", "best", architecture="relu", l1=l1, lr=1e-3, l0=l0, fvu=fvu)
        for l1, l0, fvu in ((1.0, 100.0, 0.1), (2.0, 10.0, 0.4))
    ]
    ours.append(
        run("sparsight", "best", architecture="relu", l1=1.0, lr=1e-2, l0=100.0, fvu=0.05)
    )  # no curve: one point
    theirs = [run("sae-lens", "best", architecture="relu", l1=5.0, lr=1e-3, l0=1000**0.5, fvu=0.6)]
    assert "| relu | sae-lens, lr 0.001 | 31.6 | 0.600 | 0.200 |" in markdown(record([*ours, *theirs]))


def test_batchtopk_is_compared_at_the_peers_l0_by_several_k():
    points = {20: 0.6, 32: 0.4, 48: 0.3}
    ours = [
        run("sparsight", "best", architecture="batchtopk", lr=1e-3, k=k, l0=float(k), fvu=points[k]) for k in points
    ]
    theirs = run("sae-lens", "best", architecture="batchtopk", lr=3e-3, l0=48.0, fvu=0.35)
    assert "| batchtopk | sae-lens, lr 0.003 | 48.0 | 0.350 | 0.300 |" in markdown(record([*ours, theirs]))
    assert best_rate([ours[0]]) == {}  # the rate is searched at the k of all tools


def test_the_head_names_the_commit_of_each_part_where_they_differ():
    assert "commit abc;" in markdown(record([run()]))
    assert "commit abc (train); commit def (store)" in markdown(
        record([run(), run(commit="def", part="store", error="x")])
    )


def test_an_empty_record_still_says_what_it_is():
    assert "make bench" in markdown(record([]))
