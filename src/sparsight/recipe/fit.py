"""Fit: the cost of a study or a comparison held against what a device, its host and a disk have; and what to change where it does not fit.

Changes are tried, not guessed: each candidate recipe is costed anew, so what the message names does fit by the same
arithmetic. First single changes that suffice alone, else changes taken together in the order of `economies`, else the
shortest fall that remains and the devices that would do.

A run that was stopped has part of its files already: they count against what it still has to write.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sparsight.artifact.devices import DEVICES, Device
from sparsight.errors import SparsightError
from sparsight.lm.geometry import ModelGeometry
from sparsight.recipe.comparison import Comparison
from sparsight.recipe.comparison_cost import comparison_cost
from sparsight.recipe.cost import Cost, recipe_cost
from sparsight.recipe.economies import Change, economies
from sparsight.recipe.schema import Recipe
from sparsight.recipe.toml import dump_recipe, parse_recipe

__all__ = ["Fit", "cost_of", "gigabytes", "hold_against"]

# part of the run directory -> what of the cost's disk lands in it
_RUN_FOLDERS = {"activations": ("activations",), "saes": ("saes", "checkpoints"), "features": ("features",)}
_MOST_ALTERNATIVES = 4
_LARGEST_PARTS = 3


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a recipe needs and what there is. Needs are estimates."""

    recipe: Recipe | Comparison
    geometry: ModelGeometry
    device: Device
    cost: Cost
    run_path: Path
    """The run directory."""
    disk_free: float | None
    """Bytes free where it is or will be; None for a named device, which stands in another machine."""
    on_disk: dict[str, float]
    """Part of the run directory -> bytes there already."""

    @property
    def disk_bytes(self) -> float:
        """Bytes that the run still has to write."""
        parts = {name: sum(self.cost.disk.get(part, 0.0) for part in covered) for name, covered in _RUN_FOLDERS.items()}
        return sum(max(0.0, needed - self.on_disk.get(name, 0.0)) for name, needed in parts.items())

    @property
    def device_bytes(self) -> float:
        """Device memory of the stage that needs most."""
        return self.cost.peak("device")[1]

    @property
    def shortages(self) -> dict[str, tuple[float, float]]:
        """disk, device, host -> (bytes needed, bytes there), of what does not suffice."""
        needs = {
            "disk": (self.disk_bytes, self.disk_free),
            "device": (self.device_bytes, self.device.memory_bytes),
            "host": (self.cost.peak("host")[1], self.device.host_bytes),
        }
        return {name: (need, there) for name, (need, there) in needs.items() if there is not None and need > there}

    @property
    def excess(self) -> float:
        """Bytes missing on disk and, stage by stage, in memory; 0 when it fits."""
        limits = {"device": self.device.memory_bytes, "host": self.device.host_bytes}
        missing = 0.0 if self.disk_free is None else max(0.0, self.disk_bytes - self.disk_free)
        for place, limit in limits.items():
            for parts in getattr(self.cost, place).values():
                missing += 0.0 if limit is None else max(0.0, sum(parts.values()) - limit)
        return missing

    def what_is_short(self) -> str:
        """`evaluate needs 22.1 GB of memory (whole model 17.9 GB, ...), rtx-3060 has 12.0 GB; ...`."""
        texts = []
        for name, (need, there) in self.shortages.items():
            if name == "disk":
                texts.append(f"{self.run_path} needs {gigabytes(need)} of disk, {gigabytes(there)} are free")
                continue
            stage = self.cost.peak(name)[0]
            parts = getattr(self.cost, name)[stage]
            largest = sorted(parts, key=lambda part: -parts[part])[:_LARGEST_PARTS]
            memory = "memory" if name == "device" else "host memory"
            detail = ", ".join(f"{part} {gigabytes(parts[part])}" for part in largest)
            has = f"{self.device.name} has {gigabytes(there)}"
            texts.append(f"{stage} needs {gigabytes(need)} of {memory} ({detail}), {has}")
        return "; ".join(texts)

    def what_would_fit(self) -> str:
        """Changes of the recipe, as `key = value`, that make it fit, or how near they bring it."""
        if alternatives := list(self._alternatives()):
            return f"Any one of these would fit: {'; '.join(alternatives[:_MOST_ALTERNATIVES])}."
        taken, best = self._together()
        changes = ", ".join(_shown(change) for change in taken)
        if not best.shortages:
            return f"Together these would fit: {changes}."
        larger = [each.name for each in DEVICES.values() if each.memory_bytes >= best.device_bytes]
        where = f" A device with more memory would do: {', '.join(larger)}." if "device" in best.shortages else ""
        advice = f"Even with {changes}: " if taken else "No change of the recipe suffices: "
        return f"{advice}{best.what_is_short()}.{where} Otherwise take a smaller model, or fewer SAEs."

    def _alternatives(self) -> Iterator[str]:
        """The mildest change of each family that suffices alone."""
        for family in economies(self.recipe, fitting_tokens=self._tokens_that_fit()):
            for change in family:
                changed = self._with(change)
                if changed and not changed.shortages:
                    yield _shown(change)
                    break

    def _together(self) -> tuple[list[Change], "Fit"]:
        """Changes that each bring it nearer, taken in turn until it fits; then without those that were needless."""
        taken, best = [], self
        for family in economies(self.recipe, fitting_tokens=self._tokens_that_fit()):
            tried = [(change, self._with(*taken, change)) for change in family]
            nearer = [(change, fit) for change, fit in tried if fit and fit.excess < best.excess]
            if nearer:
                change, best = min(nearer, key=lambda pair: pair[1].excess)  # the mildest, where several suffice
                taken = [*taken, change]
            if not best.shortages:
                break
        for change in taken:
            rest = [each for each in taken if each != change]
            without = self._with(*rest)
            if not best.shortages and without and not without.shortages:
                taken, best = rest, without
        return taken, best

    def _with(self, *changes: Change) -> "Fit | None":
        """The fit of the changed recipe; None when there is no such recipe."""
        try:
            overrides = [override for change in changes for override in change]
            recipe = parse_recipe(dump_recipe(self.recipe), overrides, cls=type(self.recipe))
        except SparsightError:
            return None
        return replace(self, recipe=recipe, cost=cost_of(recipe, self.geometry, self.device.kind))

    def _tokens_that_fit(self) -> int:
        """Training tokens whose store fits the disk, rounded down to two digits; 0 when the disk is not short."""
        if "disk" not in self.shortages:
            return 0
        need, there = self.shortages["disk"]
        capture = self.recipe.activations
        each = self.cost.disk["activations"] / (capture.n_tokens + capture.heldout_tokens)
        fitting = max(0, int(capture.n_tokens - (need - there) / each))
        unit = 10 ** max(0, len(str(fitting)) - 2)
        return fitting // unit * unit


def cost_of(recipe: Recipe | Comparison, geometry: ModelGeometry, kind: str) -> Cost:
    """The cost of a study or a comparison on a `kind` of device, cuda or cpu."""
    return (comparison_cost if isinstance(recipe, Comparison) else recipe_cost)(recipe, geometry, kind)  # type: ignore[arg-type]


def hold_against(
    recipe: Recipe | Comparison, geometry: ModelGeometry, device: Device, run_path: Path, *, here: bool
) -> Fit:
    """The fit of a recipe; `here`: on this machine, so that its disk counts."""
    return Fit(
        recipe=recipe,
        geometry=geometry,
        device=device,
        cost=cost_of(recipe, geometry, device.kind),
        run_path=run_path,
        disk_free=_free_bytes(run_path) if here else None,
        on_disk={name: _folder_bytes(run_path / name) for name in _RUN_FOLDERS},
    )


def gigabytes(n_bytes: float) -> str:
    """`22.1 GB`, or `170 MB`."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"


def _free_bytes(path: Path) -> float:
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return float(shutil.disk_usage(existing).free)


def _folder_bytes(folder: Path) -> float:
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def _shown(change: Change) -> str:
    return " and ".join(each.replace("=", " = ", 1) for each in change)
