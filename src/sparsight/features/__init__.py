"""Features: latents with their evidence for people."""

from sparsight.features.annotations import FeatureList, Label, Note
from sparsight.features.columns import COLUMNS, Column, column_values, columns_of
from sparsight.features.config import IndexConfig
from sparsight.features.contexts import Band, Context, quantile_contexts, random_contexts, top_contexts
from sparsight.features.index import Cluster, Coactive, FeatureIndex, Partner, TokenWeights
from sparsight.features.live import LiveText, check_sae_fits, read_text, read_text_in_parts, read_texts
from sparsight.features.logits import logit_weights
from sparsight.features.neuronpedia import PASSAGES_PER_LATENT, neuronpedia_batches
from sparsight.features.notes import Notes
from sparsight.features.shown import show_latent, show_overview, show_text
from sparsight.features.table import feature_table, write_feature_table
from sparsight.features.tokens import printable, readable_tokens
from sparsight.features.writer import FeatureIndexWriter, Grouped

__all__ = [
    "COLUMNS",
    "PASSAGES_PER_LATENT",
    "Band",
    "Cluster",
    "Coactive",
    "Column",
    "Context",
    "FeatureIndex",
    "FeatureIndexWriter",
    "FeatureList",
    "Grouped",
    "IndexConfig",
    "Label",
    "LiveText",
    "Note",
    "Notes",
    "Partner",
    "TokenWeights",
    "check_sae_fits",
    "column_values",
    "columns_of",
    "feature_table",
    "logit_weights",
    "neuronpedia_batches",
    "printable",
    "quantile_contexts",
    "random_contexts",
    "read_text",
    "read_text_in_parts",
    "read_texts",
    "readable_tokens",
    "show_latent",
    "show_overview",
    "show_text",
    "top_contexts",
    "write_feature_table",
]
