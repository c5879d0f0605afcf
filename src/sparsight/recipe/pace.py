"""How long a device takes for a stage's work. A pace is one efficiency for each kind of work, in place of a model of the machine.

    seconds of a stage = sum over what computes of FLOPs / (peak * efficiency)  +  bytes moved / (bandwidth * efficiency)
                         and at least bytes written / disk rate

The efficiencies, and why:

    CUDA            0.4    products of this size reach 0.6-0.8 of the peak; norms, recurrences, selection and hooks take
                           the rest. A naive loop reached 0.16 on an RTX 4090; PaLM trained at 0.46 (arXiv:2204.02311)
    CPU bfloat16
      forward       0.25   SmolLM2-135M cut at layer 15 ran at 0.29 of the matrix rate with AMX on one thread
      hooked        0.12   whole models that are read, patched or written with, adapters on: SmolLM2-135M with a LoRA took twice as long in
                           every step of a comparison, its fused blocks being off and each token's logits in float32
      autograd      0.18   jumprelu, gated and matryoshka steps: 0.13 to 0.24, less where [n, F] is larger. Where products are
                           so fast, all else shows
      fused         0.6    the encoder's product runs at 0.9 to 1.1 of the rate, a dense relu's gradients of weights at 0.5;
                           what a step moves beside is counted in bytes (docs/log.md holds it against measurement)
    CPU float32     0.65   forward 0.66, steps by autograd 0.74 to 0.8
    bandwidth       0.7    of a pass over contiguous memory, such as an optimiser's
    disk            0.5 GB/s, a SATA SSD
"""

from sparsight.artifact.devices import Device
from sparsight.recipe.cost import Work

__all__ = ["stage_seconds"]

_CUDA_EFFICIENCY = 0.4
_CPU_EFFICIENCY = {"forward": 0.25, "hooked": 0.12, "autograd": 0.18, "fused": 0.6}
_CPU_FLOAT32_EFFICIENCY = 0.65
_BANDWIDTH_EFFICIENCY = 0.7
_DISK_BYTES_PER_SECOND = 0.5e9


def stage_seconds(work: Work, device: Device) -> float:
    """Of a device whose rates are known."""
    computing = sum(
        flops / (device.flops[dtype] * _efficiency(device.kind, what, dtype))
        for (what, dtype), flops in work.flops.items()
    )
    moving = work.bytes_moved / (device.bandwidth * _BANDWIDTH_EFFICIENCY)
    return max(computing + moving + work.call_seconds, work.bytes_written / _DISK_BYTES_PER_SECOND)


def _efficiency(kind: str, what: str, dtype: str) -> float:
    if kind == "cuda":
        return _CUDA_EFFICIENCY
    return _CPU_FLOAT32_EFFICIENCY if dtype == "float32" else _CPU_EFFICIENCY[what]
