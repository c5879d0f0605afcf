"""Recipes: a study as data, read strictly from TOML."""

from sparsight.recipe.changes import changed_keys, check_same_study
from sparsight.recipe.schema import SCHEMA_VERSION, Recipe, TrainConfig
from sparsight.recipe.toml import dump_recipe, load_recipe, parse_recipe
from sparsight.recipe.trained import TrainedSAEs

__all__ = [
    "SCHEMA_VERSION",
    "Recipe",
    "TrainConfig",
    "TrainedSAEs",
    "changed_keys",
    "check_same_study",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
]
