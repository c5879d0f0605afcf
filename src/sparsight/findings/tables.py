"""Tables on disk: Parquet, whole or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sparsight.artifact import atomic_path

__all__ = ["write_table"]


def write_table(path: Path, table: pa.Table) -> None:
    """Writes one table."""
    with atomic_path(path) as temp:
        pq.write_table(table, temp, compression="zstd")
