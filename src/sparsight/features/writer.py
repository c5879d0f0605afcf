"""Writes a FeatureIndex in one pass over rows of any order, with memory bounded by a part of the active pairs.

Active (latent, token, value) triples, 12 bytes each, go to 64 bucket files by range of latents; then each bucket is
read, sorted by latent and token, counted and appended to the final arrays. So the whole needs the memory of one bucket and of the text's columns,
all writes are sequential, and a full disk is an error and not a crash (which it would be in a writable memory map).

Everything is written to `.ID.tmp` beside the index and renamed at the end. Of two builds of one ID at the same time
the second would remove the first's files; the run directory's lock prevents that.
Trade-off: the buckets take 1.5 times the disk of the final arrays until the build ends.
"""

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.activations import PieceTable
from sparsight.errors import MetricError, RunError
from sparsight.features.config import IndexConfig
from sparsight.features.index import FeatureIndex
from sparsight.features.statistics import Bucket, IndexedText, place_statistics, value_statistics
from sparsight.features.storage import ArrayFolder

__all__ = ["FeatureIndexWriter", "Grouped"]

N_BUCKETS = 64
MOST_TOKENS = 2**31 - 1
TRIPLE = np.dtype([("latent", "<u4"), ("value", "<f4"), ("token", "<i4")])


@dataclass(frozen=True)
class Grouped:
    """All activations, grouped by latent: what is known once the pass is over."""

    latent_offsets: Int[np.ndarray, " latents_plus_1"]
    maximum: Float[np.ndarray, " latents"]
    token_ranks: Int[np.ndarray, " active"]
    """Of each activation's token, how many measured tokens come before it."""
    text: IndexedText

    @property
    def alive(self) -> Bool[np.ndarray, " latents"]:
        """Which latents were active."""
        return np.diff(self.latent_offsets) > 0


class FeatureIndexWriter:
    """Collects activations (`add`), groups them by latent (`group`), takes what else there is (`set_arrays`), and makes the index
    (`finish`). Use `FeatureIndexWriter.create` in a `with` statement."""

    def __init__(self, folder: Path, path: Path, pieces: PieceTable, n_latents: int, config: IndexConfig) -> None:
        self._arrays, self._path, self._pieces = ArrayFolder(folder), path, pieces
        self._config, self._n_latents = config, n_latents
        self._measured = np.zeros(len(pieces.token_ids), bool)
        self._starts = np.unique(np.arange(N_BUCKETS + 1) * n_latents // N_BUCKETS)
        self._bucket_of = np.repeat(np.arange(len(self._starts) - 1, dtype=np.uint8), np.diff(self._starts))
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

    @property
    def scratch(self) -> Path:
        """A folder that the caller may make, and is to remove before `finish`; where what is large may lie."""
        return self._arrays.path / "scratch"

    def add(
        self, tokens: Int[np.ndarray, " n"], latents: Int[np.ndarray, "n m"], values: Float[np.ndarray, "n m"]
    ) -> None:
        """Add rows: where each lies in `piece_tokens`, its latents and their values; values of 0 are padding."""
        self._measured[tokens] = True
        row, column = np.nonzero(values)
        triples = np.empty(len(row), TRIPLE)
        triples["latent"], triples["token"] = latents[row, column], tokens[row]
        triples["value"] = self._stored(values[row, column])
        bucket_of = self._bucket_of[triples["latent"]]
        triples = triples[np.argsort(bucket_of, kind="stable")]
        bounds = np.concatenate([[0], np.cumsum(np.bincount(bucket_of, minlength=len(self._buckets)))])
        for bucket, start, end in zip(self._buckets, bounds, bounds[1:], strict=False):
            bucket.write(triples[start:end].tobytes())
        self._n_active += len(triples)

    def set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Store further arrays under their names."""
        self._arrays.write(arrays)

    def group(self) -> Grouped:
        """Sort and count what was added, after the last of it. Raises MetricError when no latent was ever active."""
        if not self._n_active:
            raise MetricError(
                f"No latent of the SAE is active on any of {int(self._measured.sum())} held-out tokens; there is nothing to index."
            )
        pieces, text = self._pieces, IndexedText(self._pieces, self._measured)
        self.set_arrays(
            {
                "piece_tokens": pieces.token_ids.astype(np.int32),
                "piece_offsets": pieces.offsets.astype(np.int64),
                "piece_documents": pieces.document_ids.astype(np.int64),
                "piece_starts": pieces.starts.astype(np.int32),
                "measured": self._measured,
            }
        )
        statistics = self._write_activations(text)
        offsets = np.concatenate([[0], np.cumsum(statistics.pop("n_active"))])
        self.set_arrays({"latent_offsets": offsets, **statistics})
        ranks = text.ranks(self._arrays.map("activation_tokens"))
        return Grouped(latent_offsets=offsets, maximum=statistics["maximum"], token_ranks=ranks, text=text)

    def finish(self, about: Mapping[str, Any]) -> FeatureIndex:
        """Describe, rename and open, once everything is there."""
        self._arrays.describe(int(self._measured.sum()), about, self._config)
        self._arrays.path.rename(self._path)
        return FeatureIndex.open(self._path)

    def _write_activations(self, text: IndexedText) -> dict[str, np.ndarray]:
        """The grouped arrays; returns each latent's statistics, and under n_active how many are its own."""
        config, shape, parts = self._config, (self._n_active,), []
        with (
            self._arrays.open("activation_tokens", np.dtype(np.int32), shape) as tokens,
            self._arrays.open("activation_values", np.dtype(config.value_dtype), shape) as values,
        ):
            for i, file in enumerate(self._buckets):
                bucket = _read(file, int(self._starts[i]), int(self._starts[i + 1]))
                file.close()
                Path(file.name).unlink()
                tokens.write(bucket.places.tobytes())
                values.write(bucket.values.astype(config.value_dtype).tobytes())
                part = {"n_active": np.bincount(bucket.latents, minlength=bucket.n_latents)}
                part |= value_statistics(bucket, text.documents, config.quantiles, config.histogram_bins)
                parts.append(part | place_statistics(bucket, text))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

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


def _read(file: BinaryIO, first: int, end: int) -> Bucket:
    """The triples of latents first to end - 1, by latent and then by token."""
    file.flush()
    file.seek(0)
    triples = np.fromfile(file, TRIPLE)
    latents = triples["latent"].astype(np.int64) - first
    order = np.argsort(latents << 32 | triples["token"])
    return Bucket(end - first, latents[order], triples["token"][order], triples["value"][order])
