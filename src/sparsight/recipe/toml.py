"""Recipes as TOML: strict reading with did-you-mean, `--set section.key=value`, and writing back what was resolved.

An unknown key, a value of another type, or a missing section is an error that names the key and the nearest one there is. `[[sae]]` entries
are addressed by id or number: `sae.topk-8x.k=64`, `sae.0.k=64`.
"""

import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from sparsight.errors import RecipeError
from sparsight.lm import ModelConfig
from sparsight.lm.geometry import read_geometry
from sparsight.recipe.comparison import Comparison
from sparsight.recipe.schema import Recipe

__all__ = ["compare_pair", "dump_recipe", "load_comparison", "load_either", "load_recipe", "parse_recipe"]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, with `section.key=value` overrides. Raises RecipeError in one line."""
    text = _read(path)
    if _is_comparison(text):
        raise RecipeError(
            f"{path} is a comparison's: `sparsight compare` runs it, and what it found is in compare/report.html of its run."
        )
    return parse_recipe(text, overrides, source=str(path))


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """The recipe of a comparison in a TOML file, likewise."""
    return parse_recipe(_read(path), overrides, source=str(path), cls=Comparison)


def load_either(path: str | Path, overrides: Sequence[str] = ()) -> Recipe | Comparison:
    """The recipe in a TOML file, of a comparison or else of a study."""
    text = _read(path)
    return parse_recipe(text, overrides, source=str(path), cls=Comparison if _is_comparison(text) else Recipe)


def _is_comparison(text: str) -> bool:
    """Whether it names a base or a fine-tune."""
    try:
        return bool(tomllib.loads(text).keys() & {"base", "tuned"})
    except tomllib.TOMLDecodeError:
        return False  # parse_recipe says what is wrong


def compare_pair(
    base: str,
    tuned: str,
    *,
    text: Sequence[str] = (),
    fine_tuning_text: Sequence[str] = (),
    null_model: str = "",
    make_null: bool = False,
    saes: Sequence[str] | None = None,
    hook_point: str = "",
    tokens: int = 200_000,
    overrides: Sequence[str] = (),
) -> Comparison:
    """The comparison of two models with everything else as usual. Raises RecipeError as a recipe would, ModelError for a base that is not there."""
    if not hook_point:
        hook_point = f"layers.{len(read_geometry(ModelConfig(id=base)).block_parameters) // 2}"
    ordinary = {"files": list(text)} if text else {"builtin": "probe-text"}
    values: dict[str, Any] = {
        "schema": 1,
        "name": Path(tuned).name,
        "tuned": tuned,
        "null": null_model,
        "make_null": make_null,
        "saes": list(saes or ()),
        "base": {"id": base},
        "text": ordinary | {"context_tokens": 128, "heldout_fraction": 0.2},
        "activations": {
            "hook_points": [hook_point],
            "n_tokens": tokens,
            "heldout_tokens": max(1000, tokens // 5),
            "window_tokens": 32_768,
            "dtype": "float32",
            "allow_short": True,
        },
        "train": {"epochs": 6},
    }
    if fine_tuning_text:
        values["fine_tuning"] = {"files": list(fine_tuning_text), "context_tokens": 128}
    for override in overrides:
        _apply(values, override)
    return _build(Comparison, values, "")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RecipeError(f"Recipe {path} cannot be read ({reason}).") from None


def parse_recipe(text: str, overrides: Sequence[str] = (), *, source: str = "recipe", cls: Any = Recipe) -> Any:
    """The recipe in a TOML text, of a study or, as `cls`, of a comparison. Raises RecipeError in one line."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{source} is not TOML: {error}.") from None
    for override in overrides:
        _apply(values, override)
    return _build(cls, values, "")


def dump_recipe(recipe: Recipe | Comparison) -> str:
    """The recipe as TOML, every key spelled out, so that later changes of defaults leave it as it was."""
    plain, tables, lists = [], [], []
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if value is None:
            continue
        if is_dataclass(value):
            tables.append(f"\n[{field.name}]\n{_dump_table(value)}")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            lists += [f"\n[[{field.name}]]\n{_dump_table(entry)}" for entry in value]
        else:
            plain.append(f"{field.name} = {_dump_value(value)}\n")
    return "".join(plain + tables + lists)


def _dump_table(section: Any) -> str:
    return "".join(f"{field.name} = {_dump_value(getattr(section, field.name))}\n" for field in fields(section))


def _dump_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_dump_value(each) for each in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=True)  # JSON's strings, numbers and booleans are TOML's too


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets one `section.key=value` in the parsed TOML."""
    path, equals, text = override.partition("=")
    *parents, key = path.strip().split(".") if "sae." not in path else _split_sae(path.strip())
    if not equals or not key:
        raise RecipeError(f"--set takes section.key=value, not {override!r}.")
    target: Any = values
    for parent in parents:
        if isinstance(target, list):
            target = _entry(target, parent)
        elif isinstance(target, dict):
            target = target.setdefault(parent, {})
    if not isinstance(target, dict):
        raise RecipeError(
            f"--set {override!r}: {'.'.join(parents)} is not a section; name an SAE by id or number, sae.ID.{key}."
        )
    try:
        target[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        target[key] = text


def _split_sae(path: str) -> list[str]:
    """`sae.ID.key`: ids may hold dots."""
    section, rest = path.split(".", 1)
    return [section, *rest.rsplit(".", 1)]


def _entry(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for number, entry in enumerate(entries):
        if entry.get("id") == name or str(number) == name:
            return entry
    raise RecipeError(
        f"--set: there is no SAE {name!r}; there are {', '.join(str(entry.get('id')) for entry in entries)}."
    )


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a TOML table, strictly."""
    hints, known = typing.get_type_hints(cls), {field.name: field for field in fields(cls)}
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean `{nearest[0]}`?" if nearest else f" There are: {', '.join(known)}."
            raise RecipeError(f"Unknown key `{where}{key}` in the recipe.{hint}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise RecipeError(f"The recipe lacks `{where}{name}`.")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, key: str) -> Any:
    """A TOML value as the type that the field declares."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        hint = next(each for each in arguments if each is not type(None))
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise RecipeError(f"`{key}` must be a section, [{key}], not {value!r}.")
        return _build(typing.cast(type, hint), value, f"{key}.")
    if origin is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"`{key}` must be a list, not {value!r}.")
        return tuple(
            _convert(arguments[0], each, f"{key}.{number}" if isinstance(each, dict) else key)
            for number, each in enumerate(value)
        )
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise RecipeError(f"`{key}` must be {_NOUNS.get(hint, hint)}, not {value!r}.")
    return value


_NOUNS = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}
