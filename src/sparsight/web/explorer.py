"""Explorer: the runs that are served, each SAE of a study a dictionary, and the language models that answer live; and comparisons.

Runs are named by their folder; two of one name get numbers. A run whose SAEs have no feature index yet is served as soon as it has one.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.artifact import RunDir, environment
from sparsight.errors import RunError
from sparsight.lm import resolve_checkpoint
from sparsight.recipe import Comparison, Recipe, load_either
from sparsight.web.compared import Compared
from sparsight.web.dictionary import Dictionary
from sparsight.web.live import LiveModel
from sparsight.web.replies import Refusal, finite
from sparsight.web.table import TableQuery, matching, rows
from sparsight.web.words import Words

__all__ = ["Explorer"]

# what the index says its numbers were measured on, and their controls
_ABOUT = (
    "why_no_logits",
    "why_no_map",
    "mean_norm",
    "chance_cosine",
    "seed_chance_cosine",
    "coactive",
    "clusters",
    "map",
    "output_score",
)


class Explorer:
    """Every dictionary and every comparison that is served."""

    def __init__(self, paths: Iterable[str | Path]) -> None:
        """Opens nothing but the recipes. Raises RunError when a path is no run, RecipeError when its recipe cannot be read."""
        self.dictionaries: dict[tuple[str, str], Dictionary] = {}
        self.models: dict[str, LiveModel] = {}
        self.comparisons: dict[str, Compared] = {}
        self._version = environment()["sparsight"]
        for path in paths:
            run = RunDir.open(path)
            name, recipe = self._free_name(run.path.resolve().name), load_either(run.recipe)
            if isinstance(recipe, Comparison):
                self.comparisons[name] = Compared(run, name, recipe)
                continue
            words = Words(_tokenizer_of(recipe))
            self.models[name] = LiveModel(recipe)
            for sae in recipe.sae:
                self.dictionaries[name, sae.id] = Dictionary(run, name, recipe, sae, words)
        if not self.dictionaries and not self.comparisons:
            raise RunError("There is no run to serve. Name at least one: sparsight serve runs/NAME.")

    def dictionary(self, run: str, sae: str) -> Dictionary:
        """By the two parts of its key. Raises Refusal when there is none."""
        found = self.dictionaries.get((run, sae))
        if found is None:
            known = ", ".join(each.key for each in self.dictionaries.values())
            raise Refusal(404, f"There is no dictionary {f'{run}/{sae}'[:100]!r}.", f"There are {known}.")
        return found

    def comparison(self, run: str) -> Compared:
        """By its run's name. Raises Refusal when there is none."""
        if run not in self.comparisons:
            known = ", ".join(self.comparisons) or "none"
            raise Refusal(404, f"There is no comparison {run[:100]!r}.", f"There are {known}.")
        return self.comparisons[run]

    def session(self) -> dict[str, Any]:
        """What there is to look at, and what cannot be looked at now."""
        served, compared, unavailable = [], [], []
        for dictionary in self.dictionaries.values():
            try:
                served.append(_described(dictionary))
            except Refusal as refusal:
                unavailable.append({"key": dictionary.key, "error": refusal.error, "remedy": refusal.remedy})
        for comparison in self.comparisons.values():
            try:
                compared.append(comparison.described())
            except Refusal as refusal:
                unavailable.append({"key": comparison.name, "error": refusal.error, "remedy": refusal.remedy})
        return {
            "version": self._version,
            "dictionaries": served,
            "comparisons": compared,
            "unavailable": unavailable,
        }

    def prepare(self) -> None:
        """Work out what the page opens with, the first dictionary's table, so that who follows the URL waits for nothing."""
        with suppress(Refusal, StopIteration):
            opened = next(iter(self.dictionaries.values())).open()
            rows(opened, matching(opened, TableQuery())[:1])

    def warm_up(self) -> None:
        """Work out ahead what the first search and the first page would wait for."""
        for dictionary in self.dictionaries.values():
            try:
                opened = dictionary.open()
                opened.annotations.scores()
                for name in opened.columns:
                    opened.order(name, descending=True)
                len(opened.cluster_words)
                opened.said(" ", np.zeros(opened.index.n_latents, bool))
            except Refusal:
                continue

    def _free_name(self, name: str) -> str:
        taken = {run for run, _ in self.dictionaries} | set(self.comparisons)
        number, free = 1, name
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        return free


def _tokenizer_of(recipe: Recipe) -> Callable[[], Any]:
    return lambda: resolve_checkpoint(recipe.model).tokenizer()


def _described(dictionary: Dictionary) -> dict[str, Any]:
    opened = dictionary.open()
    index = opened.index
    return {
        "key": dictionary.key,
        "run": dictionary.run_name,
        "sae": dictionary.sae.id,
        "model": dictionary.recipe.model.id,
        "hook_point": index.about["hook_point"],
        "target_hook_point": index.about["target_hook_point"],
        "n_latents": index.n_latents,
        "n_tokens": index.n_tokens,
        "n_documents": opened.n_documents,
        "architecture": index.about["architecture"],
        "live": dictionary.is_live,
        "has_map": "map" in index.arrays,
        "has_logits": index.has_logits,
        "about": finite({name: index.about[name] for name in _ABOUT if name in index.about}),
        "columns": [
            {"name": column.name, "title": column.title, "description": column.description, "kind": column.kind}
            for column in opened.columns.values()
        ],
    }
