"""Economies: changes that make a recipe cheaper in memory or disk, as the `section.key=value` that --set takes.

They come in families, a family a list from mild to harsh, and what alters the study least comes first: dtypes and
buffer sizes leave the results as they are or nearly so, fewer controls leave less to hold them against, fewer tokens and
smaller dictionaries make it another study.
"""

import json
from collections.abc import Iterator

from sparsight.recipe.comparison import LEAST_SEEDS, Comparison
from sparsight.recipe.schema import Recipe

__all__ = ["Change", "economies"]

Change = tuple[str, ...]
"""Overrides that belong together."""

_LEAST_WINDOW = 8192
_LEAST_EVALUATED = 128
_LEAST_HELDOUT = 10_000
_LEAST_STEP = 512
_LEAST_LATENTS = 1024


def economies(recipe: Recipe | Comparison, *, fitting_tokens: int = 0) -> Iterator[list[Change]]:
    """Families of changes. `fitting_tokens`: training tokens whose store would fit the disk, when that is short."""
    return (_of_comparison if isinstance(recipe, Comparison) else _of_study)(recipe, fitting_tokens)  # type: ignore[arg-type]


def _of_comparison(recipe: Comparison, fitting_tokens: int) -> Iterator[list[Change]]:
    capture, chosen = recipe.activations, recipe.dictionaries
    yield _halvings("activations.window_tokens", capture.window_tokens, _LEAST_WINDOW)
    yield _halvings("text.batch_tokens", recipe.text.batch_tokens, recipe.text.context_tokens)
    yield _halvings("closure.forward_tokens", recipe.closure.forward_tokens, _LEAST_EVALUATED)
    if recipe.base.dtype == "float32":
        yield [('base.dtype="bfloat16"',)]
    if chosen.crosscoders:
        yield [("dictionaries.crosscoders=false",)]
    if capture.dtype == "float32":
        yield [('activations.dtype="bfloat16"',)]
    if fitting_tokens:
        yield [(f"activations.n_tokens={fitting_tokens}",)]
    yield _halvings("activations.heldout_tokens", capture.heldout_tokens, _LEAST_HELDOUT)
    yield _halvings("train.batch_tokens", recipe.train.batch_tokens, _LEAST_STEP)
    fewer = range(chosen.seeds - 1, LEAST_SEEDS - 1, -1)
    yield [(f"dictionaries.seeds={n}",) for n in fewer]
    yield _halvings("dictionaries.n_latents", chosen.n_latents, _LEAST_LATENTS)


def _of_study(recipe: Recipe, fitting_tokens: int) -> Iterator[list[Change]]:
    capture, evaluate = recipe.activations, recipe.evaluate
    if recipe.model.dtype == "float32":
        yield [('model.dtype="bfloat16"',)]
    if in_float32 := [sae.id for sae in recipe.sae if sae.precision == "float32"]:
        yield [tuple(f'sae.{sae_id}.precision="bfloat16"' for sae_id in in_float32)]
    yield _halvings("activations.window_tokens", capture.window_tokens, _LEAST_WINDOW)
    yield _halvings("text.batch_tokens", recipe.text.batch_tokens, recipe.text.context_tokens)
    yield _halvings("evaluate.forward_tokens", evaluate.forward_tokens, _LEAST_EVALUATED)
    yield _halvings("evaluate.batch_tokens", evaluate.batch_tokens, _LEAST_EVALUATED)
    smaller = {"float32": ("bfloat16", "int8"), "bfloat16": ("int8",)}.get(capture.dtype, ())
    yield [(f'activations.dtype="{dtype}"',) for dtype in smaller]
    if capture.mode == "store":
        yield [('activations.mode="stream"', *(["train.epochs=1"] if recipe.train.epochs > 1 else []))]
        if fitting_tokens:
            yield [(f"activations.n_tokens={fitting_tokens}",)]
    yield _halvings("activations.heldout_tokens", capture.heldout_tokens, _LEAST_HELDOUT)
    if dropped := [name for name in ("frozen-decoder", "seed") if name in recipe.controls]:
        kept = [[each for each in recipe.controls if each not in dropped[: n + 1]] for n in range(len(dropped))]
        yield [(f"controls={json.dumps(names)}",) for names in kept]
    yield _halvings("train.batch_tokens", recipe.train.batch_tokens, _LEAST_STEP)
    for sae in sorted(recipe.sae, key=lambda each: -each.n_latents):
        yield _halvings(f"sae.{sae.id}.n_latents", sae.n_latents, _LEAST_LATENTS)


def _halvings(key: str, value: int, least: int) -> list[Change]:
    return [(f"{key}={value >> shift}",) for shift in range(1, value.bit_length()) if value >> shift >= least]
