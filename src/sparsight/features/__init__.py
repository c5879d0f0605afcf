"""Features: latents with their evidence for people."""

from sparsight.features.annotations import FeatureList, Label, Note
from sparsight.features.columns import COLUMNS, Column, column_values, columns_of
from sparsight.features.config import IndexConfig
from sparsight.features.contexts import Band, Context, quantile_contexts, random_contexts, top_contexts
from sparsight.features.editing import LatentEditor
from sparsight.features.effect import PredictedTokens
from sparsight.features.index import Cluster, Coactive, FeatureIndex, Partner, TokenWeights
from sparsight.features.live import LiveText, check_sae_fits, read_text, read_texts
from sparsight.features.logits import logit_weights
from sparsight.features.matched import matched_edits, matched_latents, matching_traits
from sparsight.features.neuronpedia import PASSAGES_PER_LATENT, neuronpedia_batches
from sparsight.features.notes import Notes
from sparsight.features.steered import Arm, Steered, describe_edit, show_summary, show_sweep
from sparsight.features.steering import ARMS, SCOPES, SteerConfig, SteerEvent, Steering, steer
from sparsight.features.strength import NORM_TOKENS, UNITS, EditRequest, mean_norm, parse_edit, strength_of
from sparsight.features.sweeping import Sweep, SweepPoint, continuation, repetition_of, sweep, sweep_points
from sparsight.features.table import feature_table, write_feature_table
from sparsight.features.tokens import printable, readable_tokens
from sparsight.features.writer import FeatureIndexWriter, Grouped

__all__ = [
    "ARMS",
    "COLUMNS",
    "NORM_TOKENS",
    "PASSAGES_PER_LATENT",
    "SCOPES",
    "UNITS",
    "Arm",
    "Band",
    "Cluster",
    "Coactive",
    "Column",
    "Context",
    "EditRequest",
    "FeatureIndex",
    "FeatureIndexWriter",
    "FeatureList",
    "Grouped",
    "IndexConfig",
    "Label",
    "LatentEditor",
    "LiveText",
    "Note",
    "Notes",
    "Partner",
    "PredictedTokens",
    "SteerConfig",
    "SteerEvent",
    "Steered",
    "Steering",
    "Sweep",
    "SweepPoint",
    "TokenWeights",
    "check_sae_fits",
    "column_values",
    "columns_of",
    "continuation",
    "describe_edit",
    "feature_table",
    "logit_weights",
    "matched_edits",
    "matched_latents",
    "matching_traits",
    "mean_norm",
    "neuronpedia_batches",
    "parse_edit",
    "printable",
    "quantile_contexts",
    "random_contexts",
    "read_text",
    "read_texts",
    "readable_tokens",
    "repetition_of",
    "show_summary",
    "show_sweep",
    "steer",
    "strength_of",
    "sweep",
    "sweep_points",
    "top_contexts",
    "write_feature_table",
]
