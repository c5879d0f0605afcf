"""A feature index as one Parquet table, a row a latent, for any tool that reads Parquet.

    latent int32, n_active int64, density float64 (share of the measured tokens), n_documents int64, maximum float32, mean float32,
    p10 ... p99 float32 (of the active values), histogram list<int64> (equal bins from 0 to the maximum),
    every column of columns.py that the index has, under its name (top_token a string, its id top_token_id); controls chance_*
    decoder_neighbours, encoder_neighbours list<int32> with decoder_cosines, encoder_cosines list<float32>
    coactive_latents list<int32> with coactive_pmi, coactive_jaccard; position_bins list<int64>; map_x, map_y float32
    lift_tokens list<string> with lift_values list<float32>, lift_counts list<int32>: what follows it
    promoted, suppressed list<string> with promoted_weights, suppressed_weights list<float32>   where a language model was given
    contexts list<struct<tokens list<string>, values list<float32>, peak int32, document int64>>  where they are asked for

Lists are as long as there was something to put in; NaN and -1 are as in the index, and top_token null for -1. The file's metadata has the key
`sparsight`: what was indexed, on how many tokens. Tokens are readable, not exact: see tokens.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparsight.artifact import atomic_path
from sparsight.features.columns import column_values, columns_of
from sparsight.features.contexts import top_contexts
from sparsight.features.index import FeatureIndex
from sparsight.features.tokens import readable_tokens

__all__ = ["feature_table", "write_feature_table"]

_CONTEXT = pa.struct(
    {"tokens": pa.list_(pa.string()), "values": pa.list_(pa.float32()), "peak": pa.int32(), "document": pa.int64()}
)

# Lists of the index: what each latent names, and numbers beside it.
_LISTS = {
    "decoder_neighbours": ("decoder_cosines",),
    "encoder_neighbours": ("encoder_cosines",),
    "coactive_latents": ("coactive_pmi", "coactive_jaccard"),
    "lift_tokens": ("lift_values", "lift_counts"),
}


def feature_table(index: FeatureIndex, tokenizer: Any, *, n_contexts: int = 0) -> pa.Table:
    """The table; with `n_contexts`, that many of each latent's strongest passages, one a document."""
    columns: dict[str, pa.Array] = {
        "latent": pa.array(np.arange(index.n_latents, dtype=np.int32)),
        "n_active": pa.array(np.diff(index.latent_offsets)),
        "density": pa.array(index.density),
        "n_documents": pa.array(np.asarray(index.n_documents)),
        "maximum": pa.array(np.asarray(index.maximum)),
        "mean": pa.array(np.asarray(index.mean)),
    }
    for column, quantile in enumerate(index.config["quantiles"]):
        columns[f"p{quantile * 100:g}"] = pa.array(np.ascontiguousarray(index.quantiles[:, column]))
    columns["histogram"] = pa.array(index.histogram.tolist(), pa.list_(pa.int64()))
    columns |= _evidence_columns(index, tokenizer, {*columns})
    if index.has_logits:
        columns |= _logit_columns(index, tokenizer)
    if n_contexts:
        rows = [
            [_context(tokenizer, context) for context in top_contexts(index, latent, n_contexts)]
            for latent in range(index.n_latents)
        ]
        columns["contexts"] = pa.array(rows, pa.list_(_CONTEXT))
    about = {key: value for key, value in index.about.items() if key != "model"} | {"n_tokens": index.n_tokens}
    return pa.table(columns).replace_schema_metadata({"sparsight": json.dumps(about)})


def write_feature_table(path: Path, index: FeatureIndex, tokenizer: Any, *, n_contexts: int = 0) -> None:
    """Writes the table as Parquet, whole or not at all."""
    table = feature_table(index, tokenizer, n_contexts=n_contexts)
    with atomic_path(path) as temp:
        pq.write_table(table, temp, compression="zstd")


def _evidence_columns(index: FeatureIndex, tokenizer: Any, there: set[str]) -> dict[str, pa.Array]:
    """What the arrays beyond the active values hold."""
    names = [column.name for column in columns_of(index) if column.name not in there]
    columns = {name: pa.array(column_values(index, name)) for name in names}
    if "top_token" in columns:
        ids = columns["top_token_id"] = columns["top_token"]
        columns["top_token"] = pa.array(_words(tokenizer, ids.to_numpy()), pa.string(), mask=ids.to_numpy() < 0)
    for name in sorted(index.arrays):
        if name.startswith("chance_"):
            columns[name] = pa.array(np.asarray(index.arrays[name]))
    for keys, values in _LISTS.items():
        if keys not in index.arrays:
            continue
        kept = np.asarray(index.arrays[keys]) >= 0
        for name in (keys, *values):
            columns[name] = _ragged(np.asarray(index.arrays[name]), kept)
    if "lift_tokens" in columns:
        ids = columns["lift_tokens"]
        columns["lift_tokens"] = pa.ListArray.from_arrays(
            ids.offsets, pa.array(_words(tokenizer, ids.values.to_numpy()), pa.string())
        )
    if "position_bins" in index.arrays:
        columns["position_bins"] = pa.array(index.arrays["position_bins"].tolist(), pa.list_(pa.int64()))
    if "map" in index.arrays:
        columns |= {
            f"map_{axis}": pa.array(np.ascontiguousarray(index.arrays["map"][:, i])) for i, axis in enumerate("xy")
        }
    return columns


def _ragged(values: np.ndarray, kept: np.ndarray) -> pa.Array:
    """Rows without their padding."""
    offsets = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[kept]))


def _logit_columns(index: FeatureIndex, tokenizer: Any) -> dict[str, pa.Array]:
    columns = {}
    for name, weights_of in (("promoted", index.promoted), ("suppressed", index.suppressed)):
        pairs = [weights_of(latent) for latent in range(index.n_latents)]
        words = iter(_words(tokenizer, np.concatenate([pair.token_ids for pair in pairs])))
        columns[name] = pa.array([[next(words) for _ in pair.token_ids] for pair in pairs], pa.list_(pa.string()))
        columns[f"{name}_weights"] = pa.array([pair.weights.tolist() for pair in pairs], pa.list_(pa.float32()))
    return columns


def _words(tokenizer: Any, token_ids: np.ndarray) -> list[str]:
    """Readable tokens, each distinct one decoded once; empty for -1."""
    distinct, where = np.unique(token_ids, return_inverse=True)
    names = ["" if token_id < 0 else readable_tokens(tokenizer, [token_id])[0] for token_id in distinct]
    return [names[place] for place in where]


def _context(tokenizer: Any, context: Any) -> dict[str, Any]:
    return {
        "tokens": readable_tokens(tokenizer, context.token_ids),
        "values": context.values.tolist(),
        "peak": context.peak,
        "document": context.document_id,
    }
