"""The manifest: what made this run, so that its numbers can be made again.

`manifest.json` is one object, a key a part:

    sparsight, python, torch, transformers, datasets, huggingface_hub, safetensors, numpy    versions
    platform, processor, n_processors    the machine
    model, text        provenance as lm/ reports it: revision or file hash, tensors loaded, device, the text's hash or commit
    activations        split -> rows kept, and tokens left out by reason; those of a live pass are in the SAEs' cfg.json
    damaged            shards that were left out, and why (activations.skip_damaged)
    steps              name -> {seconds, finished}; a step that was resumed has the seconds of all its attempts added up
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sparsight.artifact.files import read_json, write_json

__all__ = ["Manifest", "environment"]


class Manifest:
    """manifest.json, read at the start and written after every change."""

    def __init__(self, path: Path):
        self.path = path
        self.values: dict[str, Any] = {"steps": {}} | (read_json(path) if path.exists() else {})

    def record(self, **values: Any) -> None:
        """Sets keys and writes the file."""
        self.values.update(values)
        write_json(self.path, self.values)

    def step_finished(self, name: str, seconds: float) -> None:
        """Adds an attempt's seconds to a step and marks it finished now."""
        step = self.values["steps"].setdefault(name, {"seconds": 0.0})
        step["seconds"] = round(step["seconds"] + seconds, 2)
        step["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(self.path, self.values)

    def step_stopped(self, name: str, seconds: float) -> None:
        """Adds the seconds of an attempt that did not finish."""
        step = self.values["steps"].setdefault(name, {"seconds": 0.0})
        step["seconds"] = round(step["seconds"] + seconds, 2)
        write_json(self.path, self.values)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times a step, whichever way it ends."""
        started = time.monotonic()
        try:
            yield
        except BaseException:
            self.step_stopped(name, time.monotonic() - started)
            raise
        self.step_finished(name, time.monotonic() - started)


def environment() -> dict[str, Any]:
    """Versions and hardware, from the standard library alone."""
    packages = ("sparsight", "torch", "transformers", "datasets", "huggingface_hub", "safetensors", "numpy")
    return {
        **{name: _version(name) for name in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "n_processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
