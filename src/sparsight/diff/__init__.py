"""What fine-tuning changed: where, how much of it a few latents carry, and what simpler measures say of it."""

from sparsight.diff.attribution import attribute_latents
from sparsight.diff.closure import ClosureRow, DifferenceCode, closure_curve, measure_closure, rank_latents
from sparsight.diff.dense import (
    DenseDifference,
    TokenDifference,
    difference_lens,
    fit_difference,
    top_token_differences,
)
from sparsight.diff.where import LayerChange, layer_closure, measure_layers

__all__ = [
    "ClosureRow",
    "DenseDifference",
    "DifferenceCode",
    "LayerChange",
    "TokenDifference",
    "attribute_latents",
    "closure_curve",
    "difference_lens",
    "fit_difference",
    "layer_closure",
    "measure_closure",
    "measure_layers",
    "rank_latents",
    "top_token_differences",
]
