"""How long a device takes for a stage's work. A pace is a number or two for each kind of work, in place of a model of the machine.

    seconds of a stage = sum over what computes  +  bytes moved / (bandwidth * 0.7)
                         and at least bytes written / disk rate

    CUDA            FLOPs / (0.4 * peak): products of this size reach 0.6-0.8 of the peak; norms, recurrences, selection and hooks take the rest. A
                    naive loop reached 0.16 on an RTX 4090; PaLM trained at 0.46 (arXiv:2204.02311)
    CPU float32     FLOPs / (0.65 * peak): forward 0.66, steps by autograd 0.74 to 0.8
    CPU bfloat16    FLOPs / peak  +  beside * FLOPs / float32 peak. Matrix units make products eight times as fast as float32's and nothing else: what
                    stands beside them, norms, attention, hooks and casts, runs at the rate of vectors, which float32's stands for. Shares of one peak
                    that were right with AMX (2.8 TFLOP/s of bfloat16, 0.37 of float32) said four times too much without (0.41 and 0.18):

      forward       0.25    between what SmolLM2-135M cut at layer 15 took with AMX (0.32) and without, adapters within the fused blocks (0.15)
      hooked        0.6     whole models that are read, patched or written with, logits in float32; without AMX
      tuned         2.8     a LoRA's steps, its matrices in float32: 0.085 TFLOP/s on both
      autograd      0.6     jumprelu, gated and matryoshka steps; more where [n, F] is larger
      fused         0.09    the encoder's product runs at 0.9 to 1.1 of the rate, a dense relu's gradients of weights at 0.5; what a step moves
                            beside is counted in bytes (docs/log.md holds it against measurement)

    disk            0.5 GB/s, a SATA SSD

Chosen on two processors; docs/log.md holds it against what was measured.
"""

from sparsight.artifact.devices import Device
from sparsight.recipe.cost import Work

__all__ = ["stage_seconds"]

_CUDA_EFFICIENCY = 0.4
_CPU_FLOAT32_EFFICIENCY = 0.65
_BESIDE = {"forward": 0.25, "hooked": 0.6, "tuned": 2.8, "autograd": 0.6, "fused": 0.09}
_BANDWIDTH_EFFICIENCY = 0.7
_DISK_BYTES_PER_SECOND = 0.5e9


def stage_seconds(work: Work, device: Device) -> float:
    """Of a device whose rates are known."""
    computing = sum(_seconds(device, what, dtype, flops) for (what, dtype), flops in work.flops.items())
    moving = work.bytes_moved / (device.bandwidth * _BANDWIDTH_EFFICIENCY)
    return max(computing + moving + work.call_seconds, work.bytes_written / _DISK_BYTES_PER_SECOND)


def _seconds(device: Device, what: str, dtype: str, flops: float) -> float:
    peak = device.flops[dtype]
    if device.kind == "cuda":
        return flops / (peak * _CUDA_EFFICIENCY)
    if dtype == "float32":
        return flops / (peak * _CPU_FLOAT32_EFFICIENCY)
    return flops / peak + _BESIDE[what] * flops / device.flops["float32"]
