"""What a record was measured with: the code, the day, the processor."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["in_words", "measured_on"]

_CPU = Path("/proc/cpuinfo")


def measured_on() -> dict[str, Any]:
    """Commit ("-dirty" where more than records differ from it), date, processor, whether it has AMX, cores, torch's version."""
    about = _CPU.read_text() if _CPU.exists() else ""
    processor = re.search(r"model name\s*: (.*)", about)
    differing = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/records")
    return {
        "commit": _git("rev-parse", "--short", "HEAD") + ("-dirty" if differing else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor[1] if processor else platform.machine(),
        "amx": "amx_bf16" in about,
        "cores": os.cpu_count(),
        "torch": version("torch"),
    }


def in_words(record: Mapping[str, Any]) -> str:
    """As a record's page says it."""
    amx = "with" if record["amx"] else "without"
    return (
        f"commit {record['commit']}, {record['date']}; {record['processor']}, {amx} AMX, {record['cores']} cores; "
        f"torch {record['torch']}"
    )


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=root).stdout.strip()
