"""What changed between two recipes, and what of it a run that has begun cannot take.

A run directory holds one study. Keys that do not touch results may change, and SAEs may be added: they are trained from the same activations.
Everything else is refused, key by key.
"""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from sparsight.errors import RecipeError
from sparsight.recipe.comparison import Comparison
from sparsight.recipe.schema import Recipe

__all__ = ["changed_keys", "check_same_study"]

_MAY_CHANGE = (
    "activations.allow_short",
    "activations.skip_damaged",
    "train.loggers",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
)


def changed_keys(old: Recipe | Comparison, new: Recipe | Comparison) -> dict[str, tuple[Any, Any]]:
    """`section.key` -> (old value, new value) of all that differs; an SAE that one of them lacks is `sae.ID` -> (None, ...)."""
    before, after = _flatten(old), _flatten(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }


def check_same_study(old: Recipe | Comparison, new: Recipe | Comparison, run_path: Path) -> None:
    """Raises RecipeError naming the first key, and how to keep both, when `new` cannot go on in the run that `old` began."""
    known = tuple(f"sae.{sae.id}." for sae in getattr(old, "sae", ()))
    refused = {
        key: values
        for key, values in changed_keys(old, new).items()
        if key not in _MAY_CHANGE and (key.startswith(known) or not key.startswith("sae."))
    }
    if refused:
        key, (before, after) = next(iter(refused.items()))
        others = f" (and {len(refused) - 1} more: {', '.join(list(refused)[1:5])})" if len(refused) > 1 else ""
        raise RecipeError(
            f"{run_path} was begun with {key} = {before}; the recipe now says {after}{others}. "
            "To keep both, run the new one with --out ANOTHER_DIRECTORY; or set the old value again."
        )


def _flatten(recipe: Recipe | Comparison) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name == "sae":
            flat |= {f"sae.{sae.id}.{each.name}": getattr(sae, each.name) for sae in value for each in fields(sae)}
        elif is_dataclass(value):
            flat |= {f"{field.name}.{each.name}": getattr(value, each.name) for each in fields(value)}
        else:
            flat[field.name] = value
    return flat
