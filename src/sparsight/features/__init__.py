"""Features: latents with their evidence for people."""

from sparsight.features.config import IndexConfig
from sparsight.features.contexts import Band, Context, quantile_contexts, random_contexts, top_contexts
from sparsight.features.index import FeatureIndex, Partner, TokenWeights
from sparsight.features.logits import logit_weights
from sparsight.features.tokens import printable, readable_tokens
from sparsight.features.writer import FeatureIndexWriter

__all__ = [
    "Band",
    "Context",
    "FeatureIndex",
    "FeatureIndexWriter",
    "IndexConfig",
    "Partner",
    "TokenWeights",
    "logit_weights",
    "printable",
    "quantile_contexts",
    "random_contexts",
    "readable_tokens",
    "top_contexts",
]
