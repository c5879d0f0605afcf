"""plan: a recipe -> tokens, FLOPs, disk, memory and time, before anything is spent; what cannot fit is refused.

FLOPs and bytes are arithmetic (recipe/cost.py, recipe/comparison_cost.py, lm/geometry.py), and seconds follow by efficiencies (recipe/pace.py) from
peaks that are measured on this machine in about a second, or a data sheet's (artifact/devices.py). Of a comparison the plan also says what it can
find (diff/power.py).

All of it is an estimate, good to a factor of two in time, on a machine that does nothing else, and a fifth in memory. Trade-off: a run's own progress
bar soon knows better.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sparsight.artifact.devices import Device, busy, measured, named_device, this_device
from sparsight.diff import LabelConfig, PowerTable, power_table
from sparsight.errors import PlanError
from sparsight.lm import is_adapter
from sparsight.lm.geometry import ModelGeometry, read_geometry
from sparsight.recipe import Comparison, Recipe
from sparsight.recipe.fit import Fit, cost_of, gigabytes, hold_against
from sparsight.recipe.pace import stage_seconds

__all__ = ["Plan", "check_fits", "make_plan"]


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
        return (
            {stage: stage_seconds(work, device) for stage, work in self.fit.cost.work.items()} if device.flops else {}
        )

    @property
    def without_controls(self) -> "Plan":
        """The same study with `controls = []`."""
        assert isinstance(self.fit.recipe, Recipe)
        recipe = replace(self.fit.recipe, controls=())
        cost = cost_of(recipe, self.fit.geometry, self.fit.device.kind)
        return Plan(fit=replace(self.fit, recipe=recipe, cost=cost))

    def check(self) -> None:
        """Raises PlanError, in one line, with what is short and which changes of the recipe would fit."""
        fit = self.fit
        if fit.shortages:
            raise PlanError(f"{fit.recipe.name} does not fit: {fit.what_is_short()}. {fit.what_would_fit()}")

    def render(self) -> str:
        """The plan as text for people."""
        return "\n".join(_lines(self))


def make_plan(recipe: Recipe | Comparison, *, device: str | Device | None = None, run_path: Path | None = None) -> Plan:
    """The plan for this machine, whose matrix rate is measured, or for a named device.

    Raises PlanError for an unknown name, ModelError or HookPointError when the recipe's model or hook points are not
    there.
    """
    path = run_path or Path("runs") / recipe.name
    geometry = _geometry(recipe)
    if device is not None:
        named = named_device(device) if isinstance(device, str) else device
        return Plan(fit=hold_against(recipe, geometry, named, path, here=False))
    dtypes = {recipe.model.dtype, "float32", *(sae.precision for sae in recipe.trained)}
    here = measured(this_device(recipe.model.device), dtypes, sides=(geometry.d_model, geometry.widest))
    return Plan(fit=hold_against(recipe, geometry, here, path, here=True))


def check_fits(recipe: Recipe | Comparison, run_path: Path) -> Plan:
    """The plan for this machine without times, which need a measurement. Raises PlanError when it does not fit."""
    geometry = _geometry(recipe)
    plan = Plan(fit=hold_against(recipe, geometry, this_device(recipe.model.device), run_path, here=True))
    plan.check()
    return plan


def _geometry(recipe: Recipe | Comparison) -> ModelGeometry:
    return read_geometry(recipe.model, recipe.activations.hook_points)


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
    if isinstance(recipe, Comparison):
        yield from _of_comparison(recipe, fit)
    else:
        yield from _of_study(plan, recipe)
    yield from _places("disk", {"run": fit.cost.disk}, None)
    if fit.disk_free is not None:
        there = f"{gigabytes(fit.disk_free)} free"
        yield _line("", f"{gigabytes(fit.disk_bytes)} still to write in {fit.run_path}, {there}{_verdict(fit, 'disk')}")
    yield from _places("memory", fit.cost.device, fit.device.memory_bytes)
    yield from _places("host memory", fit.cost.host, fit.device.host_bytes)
    if fit.disk_free is None:
        yield _line("", "disk and host memory there are not known here: compare them yourself")
    yield from _times(plan)


def _of_study(plan: Plan, recipe: Recipe) -> Iterator[str]:
    for sae in plan.fit.cost.saes[: len(recipe.sae)]:
        others = {"all dense": sae.flops_dense, "sparse but for the encoder": sae.flops_least}
        known = ", ".join(f"{name} {_si(flops)}" for name, flops in others.items() if flops != sae.flops_done)
        yield _line("", f"{_si(sae.flops_done)}FLOP a token and pass for {sae.id}" + (f" ({known})" if known else ""))
    yield _line("controls", _controls(plan, recipe))


def _of_comparison(recipe: Comparison, fit: Fit) -> Iterator[str]:
    """Models, dictionaries, and what these can find."""
    alike: dict[float, list[str]] = {}
    for sae in fit.cost.saes:
        alike.setdefault(sae.flops_done, []).append(sae.id)
    for flops, ids in alike.items():
        of = f"each of {len(ids)}: {ids[0]} ... {ids[-1]}" if len(ids) > 1 else ids[0]
        yield _line("", f"{_si(flops)}FLOP a token and pass for {of}")
    others = {"tuned": recipe.tuned, "null": recipe.null} if recipe.null else {"tuned": recipe.tuned}
    kinds = [f"{role} {'an adapter on it' if is_adapter(name) else 'a whole model'}" for role, name in others.items()]
    yield _line("models", ", ".join(["base", *kinds, *(["null an adapter to be made"] if recipe.make_null else [])]))
    if not recipe.trained:
        yield _line("dictionaries", "none trained: 2 given, which are matched; nothing is called emergent")
        return
    chosen = recipe.dictionaries
    seeds = ", ".join(f"{len(recipe.seeds_of(role))} of {role}" for role in recipe.roles)
    pair = ", ".join(sae.id for sae in recipe.of_pair())
    sizes = f"{chosen.n_latents:,} latents, {chosen.k} active"
    yield _line("dictionaries", f"{len(recipe.trained)} of {sizes}: {seeds}, {pair}, {len(recipe.roles)} warm starts")
    yield from _power(recipe, power_table())


def _power(recipe: Comparison, table: PowerTable) -> Iterator[str]:
    """At which firing rates changes would be found, if they were like planted ones."""
    capture, most = recipe.activations, table.seeds[-1]
    rows = table.rows_trained_on(capture.n_tokens, recipe.train.epochs)
    given, epochs = recipe.dictionaries.seeds, recipe.train.epochs
    counted = f" ({table.passes} of {epochs} passes count)" if epochs > table.passes else ""
    tokens = f"{rows:,} rows trained on{counted} and {capture.heldout_tokens:,} held out"
    yield _line("power", f"recall of planted changes by firing rate (95 % interval), with {tokens}:")
    for seeds in dict.fromkeys([given, max(given, most)]):
        at = {"seeds": seeds, "train_tokens": rows, "heldout_tokens": capture.heldout_tokens}
        found = {rate: recall for rate in table.rates if (recall := table.recall(rate, **at)) is not None}
        where = f"{seeds} seeds{'' if seeds == given else ' instead'}"
        if not found:
            yield _line("", f"{where}: less than was measured; nothing is known, and little to be hoped for")
            continue
        shares = ", ".join(f"{100 * r:g} %: {x.value:.2f} ({x.low:.2f}-{x.high:.2f})" for r, x in found.items())
        yield _line("", f"{where}: {shares}; of the calls {table.false_discovery(**at):.2f} are wrong")
    if recipe.labels != LabelConfig():
        yield _line("", "measured with [labels] as it is by default, which this recipe changes")
    yield _line("", "the most to hope for: planted features are independent and far apart, a language model's are not")


def _controls(plan: Plan, recipe: Recipe) -> str:
    """What the controls add to everything that follows."""
    without = plan.without_controls
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
    width = max(9, *(len(stage) + 1 for stage in stages)) if stages else 9
    for number, (stage, parts) in enumerate(stages.items()):
        total = sum(parts.values())
        detail = ", ".join(f"{part} {gigabytes(amount)}" for part, amount in parts.items() if amount >= 0.01 * total)
        verdict = "  DOES NOT FIT" if limit is not None and total > limit else ""
        yield _line("" if number else title, f"{stage:<{width}}{gigabytes(total):>8}  {detail}{verdict}")


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
