"""Giving freed memory back to the system.

Buffers that differ in size from batch to batch fragment the C library's heap: on SmolLM2, peak memory of a collection grew by a fifth from 40 to
400 thousand tokens. One trim after each forward keeps it flat at no cost in time (docs/log.md).
"""

import ctypes
from typing import Any

__all__ = ["give_back_memory"]

_MALLOC_TRIM: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """Returns freed memory to the system, where the C library can (glibc); elsewhere does nothing."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)
