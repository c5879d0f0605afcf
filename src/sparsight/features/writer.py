"""Writes a FeatureIndex in one pass over rows of any order, with memory bounded by a part of the active pairs.

Active (latent, token, value) triples, 12 bytes each, go to 64 bucket files by range of latents; then each bucket is
read, sorted by latent and token, and appended to the final arrays. So the whole needs the memory of one bucket, all
writes are sequential, and a full disk is an error and not a crash (which it would be in a writable memory map).

Everything is written to `.ID.tmp` beside the index and renamed at the end. Of two builds of one ID at the same time
the second would remove the first's files; the run directory's lock prevents that.
Trade-off: the buckets take 1.5 times the disk of the final arrays until the build ends.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, Int

from sparsight.activations import PieceTable
from sparsight.artifact import write_json
from sparsight.errors import MetricError, RunError
from sparsight.features.config import IndexConfig
from sparsight.features.index import FORMAT, VERSION, FeatureIndex

__all__ = ["FeatureIndexWriter"]

N_BUCKETS = 64
MOST_TOKENS = 2**31 - 1
TRIPLE = np.dtype([("latent", "<u4"), ("value", "<f4"), ("token", "<i4")])


class FeatureIndexWriter:
    """Collects activations, then makes the index. Use `FeatureIndexWriter.create` in a `with` statement."""

    def __init__(self, folder: Path, path: Path, pieces: PieceTable, n_latents: int, config: IndexConfig) -> None:
        self._folder, self._path, self._pieces = folder, path, pieces
        self._config, self._n_latents = config, n_latents
        self._measured = np.zeros(len(pieces.token_ids), bool)
        self._arrays: dict[str, dict[str, Any]] = {}
        self._starts = np.unique(np.arange(N_BUCKETS + 1) * n_latents // N_BUCKETS)
        self._buckets = [(folder / f"bucket-{i}").open("w+b") for i in range(len(self._starts) - 1)]
        self._n_active = 0

    @classmethod
    @contextmanager
    def create(
        cls, path: Path, pieces: PieceTable, n_latents: int, config: IndexConfig
    ) -> Iterator["FeatureIndexWriter"]:
        """A writer whose temp folder is gone at the end, whatever happens. Raises RunError when `path` is taken."""
        if path.exists():
            raise RunError(f"`{path}` exists already and an index never changes. Delete it, or choose another id.")
        if len(pieces.token_ids) > MOST_TOKENS:
            raise RunError(
                f"The pieces hold {len(pieces.token_ids):,} tokens; an index numbers at most {MOST_TOKENS:,}."
            )
        folder = path.parent / f".{path.name}.tmp"
        shutil.rmtree(folder, ignore_errors=True)
        writer = None
        try:
            folder.mkdir(parents=True)
            writer = cls(folder, path, pieces, n_latents, config)
            yield writer
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise RunError(
                f"The disk is full: `{path}` was not written. Free some space and run the same command again."
            ) from None
        finally:
            for bucket in writer._buckets if writer else ():
                bucket.close()
            shutil.rmtree(folder, ignore_errors=True)

    def add(
        self, tokens: Int[np.ndarray, " n"], latents: Int[np.ndarray, "n m"], values: Float[np.ndarray, "n m"]
    ) -> None:
        """Add rows: where each lies in `piece_tokens`, its latents and their values; values of 0 are padding."""
        self._measured[tokens] = True
        row, column = np.nonzero(values)
        triples = np.empty(len(row), TRIPLE)
        triples["latent"], triples["token"] = latents[row, column], tokens[row]
        triples["value"] = self._stored(values[row, column])
        triples = triples[np.argsort(triples["latent"], kind="stable")]
        bounds = np.searchsorted(triples["latent"], self._starts)
        for bucket, start, end in zip(self._buckets, bounds, bounds[1:], strict=False):
            bucket.write(triples[start:end].tobytes())
        self._n_active += len(triples)

    def set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Store further arrays under their names (the logit weights)."""
        for name, array in arrays.items():
            with self._array(name, array.dtype, array.shape) as file:
                file.write(np.ascontiguousarray(array).tobytes())

    def finish(self, about: Mapping[str, Any]) -> FeatureIndex:
        """Sort, count, write and rename; then open. Raises MetricError when no latent was ever active."""
        n_tokens = int(self._measured.sum())
        if not self._n_active:
            raise MetricError(
                f"No latent of the SAE is active on any of {n_tokens} held-out tokens; there is nothing to index."
            )
        pieces = self._pieces
        self.set_arrays(
            {
                "piece_tokens": pieces.token_ids.astype(np.int32),
                "piece_offsets": pieces.offsets.astype(np.int64),
                "piece_documents": pieces.document_ids.astype(np.int64),
                "piece_starts": pieces.starts.astype(np.int32),
                "measured": self._measured,
            }
        )
        self._write_activations()
        for i, bucket in enumerate(self._buckets):
            bucket.close()
            (self._folder / f"bucket-{i}").unlink()
        write_json(
            self._folder / "index.json",
            {
                "format": FORMAT,
                "version": VERSION,
                "n_tokens": n_tokens,
                "about": dict(about),
                "config": asdict(self._config),
                "arrays": self._arrays,
            },
        )
        self._folder.rename(self._path)
        return FeatureIndex.open(self._path)

    def _write_activations(self) -> None:
        """The grouped arrays and, on the way, each latent's statistics."""
        config, shape = self._config, (self._n_active,)
        counts = np.zeros(self._n_latents, np.int64)
        stats = {
            "n_documents": np.zeros(self._n_latents, np.int64),
            "maximum": np.zeros(self._n_latents, np.float32),
            "mean": np.zeros(self._n_latents, np.float32),
            "quantiles": np.zeros((self._n_latents, len(config.quantiles)), np.float32),
            "histogram": np.zeros((self._n_latents, config.histogram_bins), np.int64),
        }
        with (
            self._array("activation_tokens", np.dtype(np.int32), shape) as tokens,
            self._array("activation_values", np.dtype(config.value_dtype), shape) as values,
        ):
            for bucket in self._buckets:
                triples = _read(bucket)
                triples = triples[np.lexsort((triples["token"], triples["latent"]))]
                tokens.write(triples["token"].tobytes())
                values.write(triples["value"].astype(config.value_dtype).tobytes())
                self._summarise(triples, counts, stats)
        self.set_arrays({"latent_offsets": np.concatenate([[0], np.cumsum(counts)]), **stats})

    def _summarise(self, triples: np.ndarray, counts: np.ndarray, stats: dict[str, np.ndarray]) -> None:
        latents, starts = np.unique(triples["latent"], return_index=True)
        documents = self._pieces.document_ids[np.searchsorted(self._pieces.offsets, triples["token"], side="right") - 1]
        for latent, start, end in zip(latents, starts, np.append(starts, len(triples))[1:], strict=True):
            values = triples["value"][start:end]
            counts[latent] = end - start
            stats["n_documents"][latent] = len(np.unique(documents[start:end]))
            stats["maximum"][latent], stats["mean"][latent] = values.max(), values.mean(dtype=np.float64)
            stats["quantiles"][latent] = np.quantile(values, self._config.quantiles)
            # Bins are numbered here and not by np.histogram, whose edges underflow on subnormal values.
            bins = values.astype(np.float64) / float(values.max()) * self._config.histogram_bins
            last = self._config.histogram_bins - 1
            bins = np.minimum(bins.astype(np.int64), last)
            stats["histogram"][latent] = np.bincount(bins, minlength=last + 1)

    def _stored(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The values as they will be read back, so that statistics describe what is stored."""
        if not np.isfinite(values).all():
            raise MetricError(
                "The SAE gave NaN or infinite latents on held-out rows; train it anew with a lower learning rate."
            )
        with np.errstate(over="ignore"):
            stored = values.astype(self._config.value_dtype)
        if not np.isfinite(stored).all():
            raise MetricError(
                f'A latent reaches {values.max():g}, beyond float16. Set value_dtype = "float32" in [index].'
            )
        return stored

    @contextmanager
    def _array(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
        """A .npy file whose data the caller writes; fsynced and listed in index.json."""
        self._arrays[name] = {"dtype": str(dtype), "shape": list(shape)}
        with (self._folder / f"{name}.npy").open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            yield file
            file.flush()
            os.fsync(file.fileno())


def _read(bucket: BinaryIO) -> np.ndarray:
    bucket.flush()
    bucket.seek(0)
    return np.fromfile(bucket, TRIPLE)
