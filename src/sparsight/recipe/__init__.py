"""Recipes: a study as data, read strictly from TOML."""

from sparsight.recipe.changes import changed_keys, check_same_study
from sparsight.recipe.comparison import ClosureConfig, Comparison, DictionaryConfig, WritingConfig
from sparsight.recipe.schema import SCHEMA_VERSION, Recipe, TrainConfig
from sparsight.recipe.sources import baseline_batches, training_metadata, training_source
from sparsight.recipe.toml import compare_pair, dump_recipe, load_comparison, load_either, load_recipe, parse_recipe
from sparsight.recipe.trained import TrainedSAEs

__all__ = [
    "SCHEMA_VERSION",
    "ClosureConfig",
    "Comparison",
    "DictionaryConfig",
    "Recipe",
    "TrainConfig",
    "TrainedSAEs",
    "WritingConfig",
    "baseline_batches",
    "changed_keys",
    "check_same_study",
    "compare_pair",
    "dump_recipe",
    "load_comparison",
    "load_either",
    "load_recipe",
    "parse_recipe",
    "training_metadata",
    "training_source",
]
