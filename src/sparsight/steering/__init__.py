"""Steering: latents edited inside the model, beside the controls without which that shows nothing."""

from sparsight.steering.arms import ARMS, SCOPES, SteerConfig, SteerEvent, Steering, steer
from sparsight.steering.editing import LatentEditor
from sparsight.steering.effect import PredictedTokens
from sparsight.steering.matched import matched_edits, matched_latents, matching_traits
from sparsight.steering.steered import Arm, Steered, describe_edit, show_summary, show_sweep
from sparsight.steering.strength import NORM_TOKENS, UNITS, EditRequest, mean_norm, parse_edit, strength_of
from sparsight.steering.sweeping import Sweep, SweepPoint, continuation, repetition_of, sweep, sweep_points

__all__ = [
    "ARMS",
    "NORM_TOKENS",
    "SCOPES",
    "UNITS",
    "Arm",
    "EditRequest",
    "LatentEditor",
    "PredictedTokens",
    "SteerConfig",
    "SteerEvent",
    "Steered",
    "Steering",
    "Sweep",
    "SweepPoint",
    "continuation",
    "describe_edit",
    "matched_edits",
    "matched_latents",
    "matching_traits",
    "mean_norm",
    "parse_edit",
    "repetition_of",
    "show_summary",
    "show_sweep",
    "steer",
    "strength_of",
    "sweep",
    "sweep_points",
]
