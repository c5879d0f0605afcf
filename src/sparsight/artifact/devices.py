"""Devices that a job is planned for: this machine's, measured, or a named one from its maker's data sheet.

The table gives dense rates (no structured sparsity) with float32 accumulation, at boost clock, and memory in the
maker's GB, taken as 10^9 bytes: the true GiB are 7 % more, which a CUDA context and a fragmented allocator take.
float32 is the plain rate, without TF32, as torch computes unless told otherwise. Sources, all NVIDIA's:

    rtx-4090, l4           Ada GPU Architecture whitepaper 2.01, appendix A; L4 data sheet (given with sparsity: halved)
    rtx-3090               Ampere GA102 GPU Architecture whitepaper 2.0, table 3
    a100-40gb, a100-80gb   A100 data sheet (80 GB: SXM)
    h100                   H100 data sheet, SXM (given with sparsity: halved)
    t4                     Turing GPU Architecture whitepaper; without bfloat16 units, so bfloat16 runs as float32

`cpu` is no data sheet: 8 AVX2 cores at 3 GHz (32 FLOPs a cycle each), 16 GB of two-channel DDR4-3200 (51.2 GB/s);
without AMX or AVX512-BF16, bfloat16 is no faster than float32.

Imported by path, not from the room, which the command line needs without torch.
"""

import difflib
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from sparsight.errors import PlanError

__all__ = ["DEVICES", "Device", "busy", "measured", "named_device", "this_device"]

_MEASURE_SECONDS = 0.3
_MEASURE_ROWS = {"cpu": 1024, "cuda": 8192}
_WIDEST_MEASURED = {"cpu": 1024, "cuda": 8192}  # one product then takes under 0.2 s
_GIB_AS_GB = 1e9 / 2**30
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Device:
    """What computes, and what it has."""

    name: str
    """As the plan prints it."""
    kind: str
    """cuda | cpu."""
    memory_bytes: float
    """What a job may use; a CPU's is the machine's."""
    bandwidth: float
    """Bytes per second to and from that memory."""
    flops: dict[str, float] = field(default_factory=dict)
    """dtype -> peak FLOPs per second of matrix products; empty before it is measured."""
    host_bytes: float | None = None
    """Memory of the machine around it; None when not known, as for a named device."""


def _gpu(name: str, memory_gb: float, gb_per_second: float, *teraflops: float) -> Device:
    """`teraflops` in bfloat16, float16 and float32."""
    rates = zip(("bfloat16", "float16", "float32"), teraflops, strict=True)
    flops = {dtype: rate * 1e12 for dtype, rate in rates}
    return Device(name=name, kind="cuda", memory_bytes=memory_gb * 1e9, bandwidth=gb_per_second * 1e9, flops=flops)


_CPU = 0.768e12
DEVICES = {
    device.name: device
    for device in (
        _gpu("rtx-4090", 24, 1008, 165.2, 165.2, 82.6),
        _gpu("rtx-3090", 24, 936, 71.0, 71.0, 35.6),
        _gpu("a100-40gb", 40, 1555, 312.0, 312.0, 19.5),
        _gpu("a100-80gb", 80, 2039, 312.0, 312.0, 19.5),
        _gpu("h100", 80, 3350, 989.4, 989.4, 66.9),
        _gpu("l4", 24, 300, 121.0, 121.0, 30.3),
        _gpu("t4", 16, 320, 8.1, 65.0, 8.1),
        Device(
            name="cpu",
            kind="cpu",
            memory_bytes=16e9,
            bandwidth=51.2e9,
            flops={"bfloat16": _CPU, "float16": _CPU, "float32": _CPU},
        ),
    )
}


def named_device(name: str) -> Device:
    """A device of the table. Raises PlanError with the nearest names."""
    device = DEVICES.get(name.lower())
    if device is None:
        near = difflib.get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        known = ", ".join(DEVICES)
        raise PlanError(f"No data on device {name!r}.{hint} Known: {known}. Without a name, this machine is measured.")
    return device


def this_device(wanted: str = "auto") -> Device:
    """This machine's device for `model.device`, not measured yet: the CPU where there is no such GPU."""
    host = _host_bytes()
    number = wanted.partition(":")[2]
    number = int(number) if number.isdigit() else 0
    if (wanted == "auto" or wanted.startswith("cuda")) and number < torch.cuda.device_count():
        found = torch.cuda.get_device_properties(number)
        usable, bandwidth = found.total_memory * _GIB_AS_GB, _known_bandwidth(found.name)
        return Device(name=found.name, kind="cuda", memory_bytes=usable, bandwidth=bandwidth, host_bytes=host)
    name = f"this machine's CPU ({torch.get_num_threads()} threads)"
    return Device(name=name, kind="cpu", memory_bytes=host, bandwidth=DEVICES["cpu"].bandwidth, host_bytes=host)


def measured(device: Device, dtypes: Iterable[str], *, sides: tuple[int, int]) -> Device:
    """This machine's device with the rate of matrix products that it reaches at each dtype; takes 0.3 s for each.

    `sides`: of the job's matrices, since narrow ones may run slower.
    """
    rates = {dtype: _rate(device.kind, getattr(torch, dtype), sides) for dtype in sorted(set(dtypes))}
    return replace(device, flops=rates)


def busy() -> float:
    """Processes that wanted to run for each processor, over the last minute; above 1 a new job gets a share."""
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def _rate(kind: str, dtype: torch.dtype, sides: tuple[int, int]) -> float:
    d_in, d_out = (min(side, _WIDEST_MEASURED[kind]) for side in sides)
    a = torch.randn(_MEASURE_ROWS[kind], d_in, device=kind).to(dtype)
    b = torch.randn(d_in, d_out, device=kind).to(dtype)
    seconds = _seconds_on_gpu(a, b) if kind == "cuda" else _seconds_on_cpu(a, b)
    return 2 * a.numel() * d_out / seconds


def _seconds_on_gpu(a: Tensor, b: Tensor) -> float:
    def once() -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        return time.perf_counter() - started

    return _median(once)


def _seconds_on_cpu(a: Tensor, b: Tensor) -> float:
    """Processor time of one thread, shared among all: wall time would measure what else the machine does just now."""

    def once() -> float:
        started = time.thread_time()
        torch.mm(a, b)
        return time.thread_time() - started

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _median(once) / n_threads
    finally:
        torch.set_num_threads(n_threads)


def _median(once: Callable[[], float]) -> float:
    once()  # the first product loads libraries
    seconds, end = [], time.perf_counter() + _MEASURE_SECONDS
    while not seconds or time.perf_counter() < end:
        seconds.append(once())
    return statistics.median(seconds)


def _known_bandwidth(name: str) -> float:
    """Of the table's device with this name, else of the slowest GPU there: memory traffic is a small part of a step."""
    plain = name.lower().replace(" ", "-")
    known = [device.bandwidth for key, device in DEVICES.items() if key.split("-")[-1] in plain.split("-")]
    return known[0] if known else min(device.bandwidth for device in DEVICES.values() if device.kind == "cuda")


def _host_bytes() -> float:
    """The machine's memory, or what a container's limit leaves of it."""
    total = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, float(text))
    return total
