"""Activations: rows read from a model, kept on disk or served live, or made up with a known answer."""

from sparsight.activations.batch import ActivationBatch, PieceTable
from sparsight.activations.capture import Progress, Window, capture_windows
from sparsight.activations.catalog import check_description, missing_shards, unfinished_parts
from sparsight.activations.config import CaptureConfig
from sparsight.activations.last_token import last_token_activations
from sparsight.activations.paired import PairedModels, paired_hook_points
from sparsight.activations.store import ActivationStore, StoreSource
from sparsight.activations.stream import ActivationStream
from sparsight.activations.writer import StoreWriter

__all__ = [
    "ActivationBatch",
    "ActivationStore",
    "ActivationStream",
    "CaptureConfig",
    "PairedModels",
    "PieceTable",
    "Progress",
    "StoreSource",
    "StoreWriter",
    "Window",
    "capture_windows",
    "check_description",
    "last_token_activations",
    "missing_shards",
    "paired_hook_points",
    "unfinished_parts",
]
