"""What the machine gives, and which share of it each stage reaches: rates measured in the same process as the stages.

    collection   the time of the bare projections of the layers read, at the model's number type, over the time of a forward pass, and over
                 the time of the whole collection
    training     the time of one encoder product [B, d] x [d, F] in bfloat16 over the time of a step; a step needs at least three such
                 products for relu (encoder forward, its weight's gradient, decoder), so a third is the most that a dense one can reach
    store        its write and read rate over that of a plain file (both through the page cache)

The next bottleneck is the operation with the most time of its own, by torch.profiler.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from measure import Job, batches_of
from torch import Tensor

from sparsight.sae.kernels import cpu

SECONDS = 0.5
_BANDWIDTH_BYTES = 1 << 28
_FILE_BYTES = 1 << 28


def machine_rates(job: Job) -> dict[str, float]:
    """GFLOP/s of products at the job's shapes, GB/s of memory, MB/s of a file and of the store's hash."""
    batch, n_latents = job["batch_tokens"], job["n_latents"]
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        rates[f"encoder_product_gflops_{name}"] = _product_gflops(batch, 576, n_latents, dtype)
        rates[f"projection_gflops_{name}"] = _product_gflops(4096, 576, 1536, dtype)
    block = bytes(64 << 20)
    rates["xxh3_megabytes_per_second"] = len(block) / seconds_of(lambda: xxhash.xxh3_128_digest(block)) / 1e6
    rates |= _memory_rates() | _file_rates(Path(job["scratch"]) / "plain")
    return rates


def _product_gflops(n: int, d_in: int, d_out: int, dtype: torch.dtype) -> float:
    a, b = torch.randn(n, d_in).to(dtype), torch.randn(d_in, d_out).to(dtype)
    out = torch.empty(n, d_out, dtype=dtype)
    return 2 * n * d_in * d_out / seconds_of(lambda: torch.mm(a, b, out=out)) / 1e9


def _memory_rates() -> dict[str, float]:
    n = _BANDWIDTH_BYTES // 4
    a, b, c = torch.ones(n), torch.ones(n), torch.ones(n)
    return {
        "copy_gigabytes_per_second": 2 * _BANDWIDTH_BYTES / seconds_of(lambda: a.copy_(b)) / 1e9,
        "triad_gigabytes_per_second": 3 * _BANDWIDTH_BYTES / seconds_of(lambda: torch.add(b, c, alpha=3, out=a)) / 1e9,
    }


def _file_rates(path: Path) -> dict[str, float]:
    data = os.urandom(4 << 20)
    began = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(_FILE_BYTES // len(data)):
            file.write(data)
        written = time.perf_counter() - began
        os.fsync(file.fileno())
        synced = time.perf_counter() - began
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(bytearray(len(data))):
            pass
    read = time.perf_counter() - began
    path.unlink()
    return {
        "file_write_megabytes_per_second": _FILE_BYTES / written / 1e6,
        "file_write_synced_megabytes_per_second": _FILE_BYTES / synced / 1e6,
        "file_read_megabytes_per_second": _FILE_BYTES / read / 1e6,
    }


def projection_shapes(config: Any, n_layers: int) -> list[tuple[int, int, int]]:
    """(inputs, outputs, how often) of a Llama-like model's weight products up to the output of the MLP in layer `n_layers` - 1."""
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or width // heads
    keys = config.num_key_value_heads * head
    return [
        (width, heads * head, n_layers),
        (width, keys, 2 * n_layers),
        (heads * head, width, n_layers),
        (width, inner, 2 * n_layers),
        (inner, width, n_layers),
    ]


def projections_seconds(shapes: list[tuple[int, int, int]], n_tokens: int, dtype: torch.dtype) -> float:
    """The bare products of one forward pass, one after another."""
    total = 0.0
    for d_in, d_out, times in shapes:
        x, weight = torch.randn(n_tokens, d_in).to(dtype), torch.randn(d_out, d_in).to(dtype)
        total += times * seconds_of(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight))
    return total


def training_share(job: Job, new_step: Callable[[str, Tensor], Callable[[Tensor], Any]]) -> dict[str, Any]:
    """`architecture, rows` -> ms of a step and of the encoder product, its share, and what takes the most time.

    Rows are bfloat16, as a store gives them; topk also on float32 ones. Also with steps of four and eight batches: what a step costs
    whatever its size, the pass over all weights, weighs less then.
    """
    given, _ = batches_of(job)
    rows = given.bfloat16()
    weights = torch.randn(rows.shape[1], job["n_latents"]).bfloat16()
    shares = {}
    for n in (times * job["batch_tokens"] for times in (1, 4, 8)):
        out = torch.empty(n, job["n_latents"], dtype=torch.bfloat16)
        product = seconds_of(lambda x=rows[:n], out=out: torch.mm(x, weights, out=out))
        for case in ("topk", "batchtopk", "relu", "topk, float32"):
            architecture, wide = case.partition(", ")[::2]
            batches = [batch for batch in (given if wide else rows).split(n) if len(batch) == n]
            step = new_step(architecture, batches[0])
            turn = iter(range(10**9))
            seconds = seconds_of(
                lambda step=step, turn=turn, batches=batches: step(batches[next(turn) % len(batches)]), at_least=5
            )
            shares[f"{case}, {n} rows"] = {
                "ms_per_step": 1000 * seconds,
                "encoder_product_ms": 1000 * product,
                "share": product / seconds,
                "largest": largest_operations(lambda step=step, batches=batches: step(batches[0])),
            }
    return shares


def largest_operations(call: Callable[[], Any], n: int = 5) -> list[str]:
    """`name 12 %` of the operations with the most time of their own; our compiled kernels are told by name or as one."""
    plain = cpu._call

    def told(name: str, *arguments: Any) -> None:
        with torch.profiler.record_function(name):
            plain(name, *arguments)

    cpu._call = told
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            began = time.perf_counter()
            call()
            wall = 1e6 * (time.perf_counter() - began)
    finally:
        cpu._call = plain
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    times["compiled blocks and Python"] = max(0.0, wall - sum(times.values()))
    largest = sorted(times.items(), key=lambda item: -item[1])[:n]
    return [f"{name} {100 * spent / wall:.0f} %" for name, spent in largest]


def seconds_of(call: Callable[[], Any], *, at_least: int = 3) -> float:
    """Median time of a call, after one that does not count."""
    call()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < at_least or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
