"""plan: a recipe -> tokens, FLOPs, disk, memory and time, before anything is spent; what cannot fit is refused.

    seconds of a stage = sum over what computes of FLOPs / (peak * efficiency)  +  bytes moved / (bandwidth * efficiency)
                         and at least bytes written / disk rate

FLOPs and bytes are arithmetic (recipe/cost.py, lm/geometry.py); peaks are measured on this machine in about a second,
or a data sheet's (artifact/devices.py). The efficiencies, and why:

    CUDA            0.4    products of this size reach 0.6-0.8 of the peak; norms, recurrences, selection and hooks take
                           the rest. A naive loop reached 0.16 on an RTX 4090; PaLM trained at 0.46 (arXiv:2204.02311)
    CPU bfloat16
      forward       0.25   SmolLM2-135M cut at layer 15 ran at 0.29 of the matrix rate with AMX on one thread
      autograd      0.18   jumprelu, gated and matryoshka steps: 0.13 to 0.24, less where [n, F] is larger. Where products are
                           so fast, all else shows
      fused         0.6    the encoder's product runs at 0.9 to 1.1 of the rate, a dense relu's gradients of weights at 0.5;
                           what a step moves beside is counted in bytes (docs/log.md holds it against measurement)
    CPU float32     0.65   forward 0.66, steps by autograd 0.74 to 0.8
    bandwidth       0.7    of a pass over contiguous memory, such as an optimiser's
    disk            0.5 GB/s, a SATA SSD

All of it is an estimate, good to a factor of two in time, on a machine that does nothing else, and a fifth in memory.
Trade-off: one number for each kind of
work in place of a model of the machine; a run's own progress bar soon knows better.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sparsight.artifact.devices import Device, busy, measured, named_device, this_device
from sparsight.errors import PlanError
from sparsight.lm.geometry import read_geometry
from sparsight.recipe import Recipe
from sparsight.recipe.cost import Work, recipe_cost
from sparsight.recipe.fit import Fit, gigabytes, hold_against

__all__ = ["Plan", "check_fits", "make_plan"]

_CUDA_EFFICIENCY = 0.4
_CPU_EFFICIENCY = {"forward": 0.25, "autograd": 0.18, "fused": 0.6}
_CPU_FLOAT32_EFFICIENCY = 0.65
_BANDWIDTH_EFFICIENCY = 0.7
_DISK_BYTES_PER_SECOND = 0.5e9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe costs, and whether it fits. Everything in it is an estimate."""

    fit: Fit
    """Recipe, model geometry, device, cost in FLOPs and bytes, and what is there."""

    @property
    def collection_flops(self) -> float:
        """Forward passes of the cut model over the training tokens, padding apart."""
        return self.fit.cost.forward_flops * self.fit.recipe.activations.n_tokens

    @property
    def roof_seconds(self) -> float:
        """What `collection_flops` take at the device's peak: no implementation can be faster."""
        return self.collection_flops / self.fit.device.flops[self.fit.recipe.model.dtype]

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds; empty when the device has no rates."""
        device = self.fit.device
        return {stage: _seconds(work, device) for stage, work in self.fit.cost.work.items()} if device.flops else {}

    @property
    def without_controls(self) -> "Plan":
        """The same study with `controls = []`."""
        recipe = replace(self.fit.recipe, controls=())
        cost = recipe_cost(recipe, self.fit.geometry, self.fit.device.kind)
        return Plan(fit=replace(self.fit, recipe=recipe, cost=cost))

    def check(self) -> None:
        """Raises PlanError, in one line, with what is short and which changes of the recipe would fit."""
        fit = self.fit
        if fit.shortages:
            raise PlanError(f"{fit.recipe.name} does not fit: {fit.what_is_short()}. {fit.what_would_fit()}")

    def render(self) -> str:
        """The plan as text for people."""
        return "\n".join(_lines(self))


def make_plan(recipe: Recipe, *, device: str | Device | None = None, run_path: Path | None = None) -> Plan:
    """The plan for this machine, whose matrix rate is measured, or for a named device.

    Raises PlanError for an unknown name, ModelError or HookPointError when the recipe's model or hook points are not
    there.
    """
    path = run_path or Path("runs") / recipe.name
    geometry = read_geometry(recipe.model, recipe.activations.hook_points)
    if device is not None:
        named = named_device(device) if isinstance(device, str) else device
        return Plan(fit=hold_against(recipe, geometry, named, path, here=False))
    dtypes = {recipe.model.dtype, "float32", *(sae.precision for sae in recipe.sae)}
    here = measured(this_device(recipe.model.device), dtypes, sides=(geometry.d_model, geometry.widest))
    return Plan(fit=hold_against(recipe, geometry, here, path, here=True))


def check_fits(recipe: Recipe, run_path: Path) -> Plan:
    """The plan for this machine without times, which need a measurement. Raises PlanError when it does not fit."""
    geometry = read_geometry(recipe.model, recipe.activations.hook_points)
    plan = Plan(fit=hold_against(recipe, geometry, this_device(recipe.model.device), run_path, here=True))
    plan.check()
    return plan


def _seconds(work: Work, device: Device) -> float:
    computing = sum(
        flops / (device.flops[dtype] * _efficiency(device.kind, what, dtype))
        for (what, dtype), flops in work.flops.items()
    )
    moving = work.bytes_moved / (device.bandwidth * _BANDWIDTH_EFFICIENCY)
    return max(computing + moving, work.bytes_written / _DISK_BYTES_PER_SECOND)


def _efficiency(kind: str, what: str, dtype: str) -> float:
    if kind == "cuda":
        return _CUDA_EFFICIENCY
    return _CPU_FLOAT32_EFFICIENCY if dtype == "float32" else _CPU_EFFICIENCY[what]


def _lines(plan: Plan) -> Iterator[str]:
    fit = plan.fit
    recipe, capture, train, model = fit.recipe, fit.recipe.activations, fit.recipe.train, fit.geometry
    yield _line("Plan", f"{recipe.name}. Estimates: good to a factor of two in time and a fifth in memory")
    yield _line("device", _describe(fit.device))
    read = f"{_si(model.parameters_read)} of {_si(model.parameters)} parameters"
    layers = f"{model.n_layers_read} of {model.n_layers} layers"
    yield _line("model", f"{recipe.model.id}: {layers}, {read} read; sizes from {model.source}")
    n_steps = capture.n_tokens * train.epochs // train.batch_tokens
    yield _line("tokens", f"{capture.n_tokens:,} to train on, {capture.heldout_tokens:,} held out")
    passes = "1 pass" if train.epochs == 1 else f"{train.epochs} passes"
    yield _line("", f"{passes}, {n_steps:,} steps of {train.batch_tokens:,}")
    forward, collection = _si(fit.cost.forward_flops), _si(plan.collection_flops)
    yield _line("FLOPs", f"{forward}FLOP a token forward, {collection}FLOP for the training tokens")
    for sae in fit.cost.saes[: len(recipe.sae)]:
        others = {"all dense": sae.flops_dense, "sparse but for the encoder": sae.flops_least}
        known = ", ".join(f"{name} {_si(flops)}" for name, flops in others.items() if flops != sae.flops_done)
        yield _line("", f"{_si(sae.flops_done)}FLOP a token and pass for {sae.id}" + (f" ({known})" if known else ""))
    yield _line("controls", _controls(plan))
    yield from _places("disk", {"run": fit.cost.disk}, None)
    if fit.disk_free is not None:
        there = f"{gigabytes(fit.disk_free)} free"
        yield _line("", f"{gigabytes(fit.disk_bytes)} still to write in {fit.run_path}, {there}{_verdict(fit, 'disk')}")
    yield from _places("memory", fit.cost.device, fit.device.memory_bytes)
    yield from _places("host memory", fit.cost.host, fit.device.host_bytes)
    if fit.disk_free is None:
        yield _line("", "disk and host memory there are not known here: compare them yourself")
    yield from _times(plan)


def _controls(plan: Plan) -> str:
    """What the controls add to everything that follows."""
    recipe, without = plan.fit.recipe, plan.without_controls
    if not recipe.controls:
        return (
            "none: no number of this study will stand beside a second seed, a frozen decoder, an untrained SAE or PCA"
        )
    disk = sum(plan.fit.cost.disk.values()) - sum(without.fit.cost.disk.values())
    memory = plan.fit.cost.peak("device")[1] - without.fit.cost.peak("device")[1]
    time = f", {_duration(sum(plan.seconds.values()) - sum(without.seconds.values()))}" if plan.seconds else ""
    n_trained = len(recipe.trained) - len(recipe.sae)
    return (
        f"{', '.join(recipe.controls)}: {n_trained} more {'SAE' if n_trained == 1 else 'SAEs'} trained; included below: "
        f"{gigabytes(disk)} of disk, {gigabytes(memory)} at the peak of memory{time}"
    )


def _times(plan: Plan) -> Iterator[str]:
    if seconds := plan.seconds:
        stages = ", ".join(f"{stage} {_duration(each)}" for stage, each in seconds.items())
        yield _line("time", f"{stages}; together {_duration(sum(seconds.values()))}")
        if plan.fit.disk_free is not None and (load := busy()) > 1:
            yield _line("", f"this machine is busy (load {load:.1f} a processor): until that ends, longer by as much")
        live = " (in train: the model is read live)" if plan.fit.recipe.activations.mode == "stream" else ""
        yield _line("", f"the forward passes alone, at the device's peak: {_duration(plan.roof_seconds)}{live}")


def _describe(device: Device) -> str:
    rates = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {dtype}" for dtype, rate in sorted(device.flops.items()))
    how = "nominal" if device.host_bytes is None else "measured now" if rates else "rates not measured"
    return f"{device.name}, {gigabytes(device.memory_bytes)}; {how} {rates}".rstrip()


def _places(title: str, stages: dict[str, dict[str, float]], limit: float | None) -> Iterator[str]:
    for number, (stage, parts) in enumerate(stages.items()):
        total = sum(parts.values())
        detail = ", ".join(f"{part} {gigabytes(amount)}" for part, amount in parts.items() if amount >= 0.01 * total)
        verdict = "  DOES NOT FIT" if limit is not None and total > limit else ""
        yield _line("" if number else title, f"{stage:<9}{gigabytes(total):>8}  {detail}{verdict}")


def _verdict(fit: Fit, place: str) -> str:
    return "  DOES NOT FIT" if place in fit.shortages else ""


def _line(title: str, text: str) -> str:
    return f"{title:<13}{text}"


def _si(number: float) -> str:
    """Three digits, a space and a prefix, ready for a unit: `7.41 G`, `371 P`."""
    for prefix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= unit:
            return f"{number / unit:.3g} {prefix}"
    return f"{number:.3g} "


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
