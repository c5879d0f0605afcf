"""The one number a latent has of each kind: what a table sorts and filters by, a map is coloured by, Parquet holds.

A column is there where its array is: promoted tokens need a language model, `seed_*` a second seed, and so on. Values are as the index has them:
NaN where a number is unknown or does not exist (a latent never active has no purity), -1 where a token, latent or cluster is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Shaped

from sparsight.errors import RunError
from sparsight.features.index import FeatureIndex

__all__ = ["COLUMNS", "Column", "column_values", "columns_of"]

Kind = Literal["count", "share", "number", "bits", "token", "latent", "flag", "cluster"]


@dataclass(frozen=True)
class Column:
    """One number a latent."""

    name: str
    title: str
    """A few words for the head of a table."""
    description: str
    """One sentence: what it is, and of what."""
    kind: Kind
    """How to show it: count and latent are integers, share is 0 to 1, bits and number any, token an id of the vocabulary, flag 0 or 1."""


COLUMNS: tuple[Column, ...] = (
    Column("n_active", "active", "Held-out tokens on which it is active.", "count"),
    Column("density", "density", "Share of the held-out tokens on which it is active.", "share"),
    Column("n_documents", "documents", "Held-out documents in which it is active.", "count"),
    Column("maximum", "max", "Its largest activation; 0 if never active.", "number"),
    Column("mean", "mean", "Its mean activation where active; 0 if never active.", "number"),
    Column("p99", "p99", "99 % of its activations are below; 0 if never active.", "number"),
    Column("dead", "dead", "Never active on the held-out tokens.", "flag"),
    Column("token_purity", "purity", "Share of its activations that are on its most frequent token.", "share"),
    Column("token_entropy", "entropy", "Entropy of the token it is active on; low means few tokens.", "bits"),
    Column(
        "token_coherence",
        "coherence",
        "Mean cosine between the embeddings of the different tokens it is active on.",
        "number",
    ),
    Column("top_token", "top token", "The token it is active on most often.", "token"),
    Column("position_bits", "position", "How far its positions in a document are from those of all tokens.", "bits"),
    Column("lift", "lift", "How much more often than usual its likeliest next token follows, as log2.", "bits"),
    Column("output_score", "output", "Whether boosting it raises its promoted tokens; 1 is best.", "number"),
    Column("decoder_cosine", "nearest", "Cosine of its direction with the nearest other's.", "number"),
    Column("seed_cosine", "seed cosine", "Largest cosine of its direction with one of the second seed's.", "number"),
    Column(
        "seed_correlation", "seed r", "Largest correlation of its activation with one of the second seed's.", "number"
    ),
    Column("cluster", "cluster", "Community of latents active together; 0 is the largest, -1 is none.", "cluster"),
)

_FIRST_OF = {"lift": "lift_values", "decoder_cosine": "decoder_cosines"}
_COMPUTED: dict[str, Callable[[FeatureIndex], np.ndarray]] = {
    "n_active": lambda index: np.diff(index.latent_offsets),
    "density": lambda index: index.density,
    "dead": lambda index: np.diff(index.latent_offsets) == 0,
    "p99": lambda index: np.asarray(index.quantiles[:, index.config["quantiles"].index(0.99)]),
}


def columns_of(index: FeatureIndex) -> list[Column]:
    """The columns that this index has, in the order of COLUMNS."""
    return [column for column in COLUMNS if _is_there(index, column.name)]


def column_values(index: FeatureIndex, name: str) -> Shaped[np.ndarray, " latents"]:
    """A column's values, one a latent. Raises RunError when there is no such column, or this index lacks it."""
    if name not in {column.name for column in COLUMNS}:
        known = ", ".join(column.name for column in COLUMNS)
        raise RunError(f"There is no column {name!r}; expected one of {known}.")
    if not _is_there(index, name):
        there = ", ".join(column.name for column in columns_of(index))
        raise RunError(f"`{index.path}` has no column {name!r}, but {there}. Rebuild it with `sparsight index`.")
    if name in _COMPUTED:
        return _COMPUTED[name](index)
    return np.asarray(index.arrays[name] if name in index.arrays else index.arrays[_FIRST_OF[name]][:, 0])


def _is_there(index: FeatureIndex, name: str) -> bool:
    if name == "p99":
        return 0.99 in index.config["quantiles"]
    return name in _COMPUTED or name in index.arrays or _FIRST_OF.get(name) in index.arrays
