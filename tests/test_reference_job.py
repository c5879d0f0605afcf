"""The reference job's code runs, in toy sizes; without a GPU it neither measures nor pretends to."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

JOB = Path(__file__).parent.parent / "benchmarks" / "reference_job.py"


@pytest.fixture(scope="module")
def job():
    spec = importlib.util.spec_from_file_location("reference_job", JOB)
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference_job"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_the_tiny_job_measures_everything(job, tmp_path):
    assert job.main(["--tiny", "--record", str(tmp_path / "record.json")]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["status"] == "toy sizes on a CPU: the numbers mean nothing"
    assert record["collect"]["plain"]["tokens_per_second"] > 0
    names = {f"{kind}-{width}" for kind in ("founding", "founding-bfloat16", "batchtopk") for width in (128, 256)}
    assert set(record["train"]) == set(record["predicted"]) == names
    for sae in record["train"].values():
        assert all(each["share"] > 0 for each in sae.values())
    assert all(each["tokens_per_second"] > 0 for each in record["live"].values())
    train = record["train"]["founding-128"]["closed form"]
    assert train["flops_per_token"] == 10 * 64 * 128
    predicted = record["predicted"]["founding-128"]["rtx-4090"]
    collect = record["collect"]["plain"]
    expected = 5e7 * collect["flops_per_token"] / (165.2e12 * collect["share"])
    expected += 5e7 * train["flops_per_token"] / (82.6e12 * train["share"])
    assert predicted["seconds"] == pytest.approx(expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which the job would run for minutes")
def test_without_a_gpu_the_job_says_so_in_one_line(job, capsys):
    assert job.main([]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith("--tiny runs the same code on the CPU.")
    assert len(said.splitlines()) == 1


def test_the_committed_record_is_of_a_gpu_or_says_that_there_was_none():
    record = json.loads((JOB.parent / "records" / "reference_job.json").read_text())
    assert record["command"]
    assert record["status"] == "not measured on a GPU" or record["device"]["kind"] == "cuda"
