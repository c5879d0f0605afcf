"""The numbers of a feature index: each of every latent at once, from the active pairs sorted by latent."""

from sparsight.features.statistics.coactivation import MOST_PRODUCTS, N_COACTIVE, Coactivation
from sparsight.features.statistics.coherence import centred_embeddings, token_coherence
from sparsight.features.statistics.communities import communities, edges_of
from sparsight.features.statistics.layout import MapProcess, map_facts, trustworthiness, why_no_map
from sparsight.features.statistics.neighbours import N_NEIGHBOURS, chance_nearest, nearest
from sparsight.features.statistics.outputs import OUTPUT_TOKENS, output_scores
from sparsight.features.statistics.places import N_LIFT_TOKENS, place_statistics
from sparsight.features.statistics.text import N_POSITION_BINS, IndexedText
from sparsight.features.statistics.values import Bucket, value_statistics

__all__ = [
    "MOST_PRODUCTS",
    "N_COACTIVE",
    "N_LIFT_TOKENS",
    "N_NEIGHBOURS",
    "N_POSITION_BINS",
    "OUTPUT_TOKENS",
    "Bucket",
    "Coactivation",
    "IndexedText",
    "MapProcess",
    "centred_embeddings",
    "chance_nearest",
    "communities",
    "edges_of",
    "map_facts",
    "nearest",
    "output_scores",
    "place_statistics",
    "token_coherence",
    "trustworthiness",
    "value_statistics",
    "why_no_map",
]
