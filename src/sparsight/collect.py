"""collect: LanguageModel + text -> ActivationStore.

Windows of text go through the cut model and become shards, train and held-out apart. A killed collection goes on after the last shard that
counted and ends with the same bytes; a shard whose file was deleted is made anew. Several processes may each write a part.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sparsight.activations import ActivationStore, CaptureConfig, StoreWriter, capture_windows
from sparsight.activations.batch import SPLITS
from sparsight.artifact import locked
from sparsight.errors import StoreError, TextError
from sparsight.lm import ActivationReader, ModelConfig, TextConfig, TextCounts, text_fingerprint

__all__ = ["asked_for", "collect_activations"]

_log = logging.getLogger(__name__)


def collect_activations(
    model: ActivationReader,
    text: TextConfig,
    capture: CaptureConfig,
    path: str | Path,
    *,
    seed: int = 0,
    part: tuple[int, int] = (0, 1),
    splits: Sequence[str] = SPLITS,
) -> ActivationStore:
    """Captures the rows that `capture` asks for into the store at `path`, and returns the store.

    What is there already stays. `part` is (rank, world) when several processes share the work: the documents are dealt out by their hash.
    Raises TextError when the text ends before the rows asked for (what was captured is kept), StoreError when the store at `path` was
    collected from something else, ActivationError on NaN or infinity.
    """
    writer = StoreWriter(Path(path), describe_collection(model, text, capture, seed), capture.dtype, part)
    with locked(writer.folder):
        _make_missing_anew(writer, model, text, capture, seed, part)
        progress = writer.progress()
        wanted = {split: capture.wanted(split, part) for split in splits}
        starts = [progress.next[split] for split in splits if progress.n_rows[split] < wanted[split]]
        counts = writer.text_counts(min(starts)) if starts else TextCounts()
        windows = capture_windows(
            model, text, capture, seed=seed, progress=progress, splits=splits, part=part, counts=counts
        )
        with tqdm(total=sum(wanted.values()), initial=sum(progress.n_rows[s] for s in splits), **_BAR) as bar:
            for window in windows:
                entry = writer.add(window, counts)
                bar.update(entry.n_rows)
        _check_enough(progress.n_rows, wanted, counts, capture.allow_short)
        writer.finish()
    return ActivationStore.open(path, skip_damaged=capture.skip_damaged)


_BAR: dict[str, Any] = {"unit": " tokens", "unit_scale": True, "desc": "collect", "disable": None, "smoothing": 0.1}


def describe_collection(model: ActivationReader, text: TextConfig, capture: CaptureConfig, seed: int) -> dict[str, Any]:
    """What makes two collections the same, for `store.json`."""
    return asked_for(model.config, text, capture, seed) | {
        "hook_points": {name: model.width(name) for name in capture.hook_points},
        "model": model.provenance,
        "text": text_fingerprint(text),
    }


def asked_for(model: ModelConfig, text: TextConfig, capture: CaptureConfig, seed: int) -> dict[str, Any]:
    """The part of a collection's description that the recipe alone decides."""
    return {
        "dtype": capture.dtype,
        "seed": seed,
        "window_tokens": capture.window_tokens,
        "sink_norm_multiple": capture.sink_norm_multiple,
        "skip_special": capture.skip_special,
        "model_config": {name: getattr(model, name) for name in ("id", "revision", "dtype")},
        "text_config": _plain(dataclasses.asdict(text)),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: lists for tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _make_missing_anew(
    writer: StoreWriter,
    model: ActivationReader,
    text: TextConfig,
    capture: CaptureConfig,
    seed: int,
    part: tuple[int, int],
) -> None:
    for entry in writer.missing():
        progress = writer.progress(before=entry)
        counts = TextCounts(**entry.text_counts)
        window = next(
            capture_windows(model, text, capture, seed=seed, progress=progress, splits=(entry.split,), part=part), None
        )
        if window is None:
            raise TextError(
                f"Shard {entry.file} is missing and the text no longer reaches it. Collect into another run directory."
            )
        if (window.end.row, window.end.piece) != entry.next:
            raise StoreError(
                f"Shard {entry.file} is missing and cannot be made anew: fewer or more tokens are asked for than when it was "
                "collected. Ask for as many as then, or collect into another run directory."
            )
        again = writer.add(window, counts)
        same = (
            "the same bytes" if again.sha256 == entry.sha256 else "OTHER bytes than before (another machine or version)"
        )
        _log.warning("Shard %s was missing and was made anew: %s.", entry.file, same)


def _check_enough(n_rows: dict[str, int], wanted: dict[str, int], counts: TextCounts, allow_short: bool) -> None:
    for split, asked in wanted.items():
        if n_rows[split] >= asked:
            continue
        message = (
            f"The text ended after {n_rows[split]:,} of the {asked:,} {split} tokens asked for "
            f"({counts.documents:,} documents, {counts.duplicates:,} duplicates and {counts.too_short:,} too short left out). "
            f"What was captured is kept."
        )
        if not allow_short or n_rows[split] == 0:
            raise TextError(message + " Add text, ask for fewer, or set activations.allow_short = true.")
        _log.warning(message)
