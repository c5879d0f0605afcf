"""What every runner measures with, ours and the peers' alike, in whatever environment: time per step, peak memory, reconstructions.

A runner is `python run_TOOL.py JOB.json RESULT.json`. Imports and model loading come before the work that is timed; `seconds_with_loading`
adds them. Peak memory is read when the work ends, before anything is evaluated. Only torch and safetensors are imported here.
"""

import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["Work", "batches_of", "peak_megabytes", "run_job", "timed_steps", "write_reconstruction"]

WARMUP_STEPS = 5
_EVALUATION_ROWS = 1024

Job = dict[str, Any]


def run_job(parts: dict[str, Callable[[Job], dict[str, Any]]]) -> None:
    """Reads the job, runs its part, writes the result; an exception becomes a result with its last line."""
    job, result_file = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    torch.manual_seed(job["seed"])
    try:
        result = parts[job["part"]](job)
    except Exception as error:
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    result_file.write_text(json.dumps(result))


class Work:
    """Times a `with` block, and says when it began after the process was started."""

    def __init__(self, job: Job, tokens: int):
        self.job, self.tokens = job, tokens
        self.result: dict[str, Any] = {}

    def __enter__(self) -> "Work":
        self._loading = time.time() - self.job["started"]
        self._began, self._used = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._began
        self.result = {
            "tokens": self.tokens,
            "seconds": seconds,
            "processor_seconds": time.process_time() - self._used,
            "tokens_per_second": self.tokens / seconds,
            "seconds_with_loading": seconds + self._loading,
            "tokens_per_second_with_loading": self.tokens / (seconds + self._loading),
            "peak_megabytes": peak_megabytes(),
            "threads": torch.get_num_threads(),
        }


class Marks:
    """Notes the time at the start of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def mark(self) -> None:
        """A step begins, or the last one has ended."""
        self.times.append(time.perf_counter())

    def through(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; asking for one begins a step, which thereby includes getting it."""
        while True:
            self.mark()
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch

    def __len__(self) -> int:
        return len(self.times)


def timed_steps(marks: Marks, batch_tokens: int) -> dict[str, Any]:
    """Rate over the steps after the first WARMUP_STEPS, between the marks; n + 1 marks are n steps."""
    spans = [later - earlier for earlier, later in zip(marks.times, marks.times[1:], strict=False)]
    timed = spans[WARMUP_STEPS:] or spans
    return {
        "steps": len(spans),
        "timed_steps": len(timed),
        "tokens_per_second": batch_tokens * len(timed) / sum(timed),
        "ms_per_step": 1000 * sum(timed) / len(timed),
        "ms_per_step_median": 1000 * sorted(timed)[len(timed) // 2],
        "peak_megabytes": peak_megabytes(),
        "threads": torch.get_num_threads(),
    }


def batches_of(job: Job) -> tuple[Tensor, list[Tensor]]:
    """The training rows, in an order drawn from the seed, and their batches: the same for every tool, in every epoch."""
    rows = load_file(job["files"]["train"])["rows"][: job["n_tokens"]]
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(job["seed"]))]
    size = job["batch_tokens"]
    batches = [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
    return rows, batches * job["epochs"]


@torch.no_grad()
def write_reconstruction(job: Job, through: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Held-out rows through the tool's own encoder and decoder (`through`: rows -> latents, reconstruction) into a file.

    Latents count as active when they are not 0; either dense [n, F], or with `indices` the active ones alone: see run_sparsify.
    """
    rows = load_file(job["files"]["heldout"])["rows"]
    fired = torch.zeros(job["n_latents"], dtype=torch.int64)
    l0, x_hat = [], []
    for block in rows.split(_EVALUATION_ROWS):
        latents, rebuilt = through(block)
        active = latents.to_dense() != 0
        if active.shape != (len(block), job["n_latents"]):
            raise ValueError(f"{tuple(active.shape)} latents; expected {(len(block), job['n_latents'])}")
        fired += active.sum(0)
        l0.append(active.sum(1))
        x_hat.append(rebuilt.float())
    save_file({"x_hat": torch.cat(x_hat).contiguous(), "l0": torch.cat(l0), "fired": fired}, job["reconstruction"])


def peak_megabytes() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)
