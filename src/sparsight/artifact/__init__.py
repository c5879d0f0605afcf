"""What is on disk: atomic files, the run directory with its lock, the manifest."""

from sparsight.artifact.files import (
    append_jsonl,
    atomic_path,
    atomic_place,
    cache_folder,
    read_json,
    read_jsonl,
    remove_leftovers,
    sha256_file,
    write_atomic,
    write_json,
)
from sparsight.artifact.loggers import MetricLoggers
from sparsight.artifact.manifest import Manifest, environment
from sparsight.artifact.memory import give_back_memory
from sparsight.artifact.rundir import Interrupted, RunDir, StopFlag, locked, stop_signals

__all__ = [
    "Interrupted",
    "Manifest",
    "MetricLoggers",
    "RunDir",
    "StopFlag",
    "append_jsonl",
    "atomic_path",
    "atomic_place",
    "cache_folder",
    "environment",
    "give_back_memory",
    "locked",
    "read_json",
    "read_jsonl",
    "remove_leftovers",
    "sha256_file",
    "stop_signals",
    "write_atomic",
    "write_json",
]
