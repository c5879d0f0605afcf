"""A feature index as one Parquet table, a row a latent, for any tool that reads Parquet.

    latent int32, n_active int64, density float64 (share of the measured tokens), n_documents int64, maximum float32, mean float32,
    p10 ... p99 float32 (of the active values), histogram list<int64> (equal bins from 0 to the maximum),
    promoted, suppressed list<string> with promoted_weights, suppressed_weights list<float32>   where a language model was given
    contexts list<struct<tokens list<string>, values list<float32>, peak int32, document int64>>  where they are asked for

The file's metadata has the key `sparsight`: what was indexed, on how many tokens. Tokens are readable, not exact: see tokens.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparsight.artifact import atomic_path
from sparsight.features.contexts import top_contexts
from sparsight.features.index import FeatureIndex
from sparsight.features.tokens import readable_tokens

__all__ = ["feature_table", "write_feature_table"]

_CONTEXT = pa.struct(
    {"tokens": pa.list_(pa.string()), "values": pa.list_(pa.float32()), "peak": pa.int32(), "document": pa.int64()}
)


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


def _logit_columns(index: FeatureIndex, tokenizer: Any) -> dict[str, pa.Array]:
    columns = {}
    for name, weights_of in (("promoted", index.promoted), ("suppressed", index.suppressed)):
        pairs = [weights_of(latent) for latent in range(index.n_latents)]
        words = _words(tokenizer, np.concatenate([pair.token_ids for pair in pairs]))
        columns[name] = pa.array([[next(words) for _ in pair.token_ids] for pair in pairs], pa.list_(pa.string()))
        columns[f"{name}_weights"] = pa.array([pair.weights.tolist() for pair in pairs], pa.list_(pa.float32()))
    return columns


def _words(tokenizer: Any, token_ids: np.ndarray) -> Iterator[str]:
    """Readable tokens, each distinct one decoded once."""
    distinct, where = np.unique(token_ids, return_inverse=True)
    names = readable_tokens(tokenizer, distinct)
    return (names[place] for place in where)


def _context(tokenizer: Any, context: Any) -> dict[str, Any]:
    return {
        "tokens": readable_tokens(tokenizer, context.token_ids),
        "values": context.values.tolist(),
        "peak": context.peak,
        "document": context.document_id,
    }
