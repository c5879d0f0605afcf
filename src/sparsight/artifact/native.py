"""Small C sources of ours, compiled on first use by the machine's own compiler, and kept.

The library lands in the cache folder under a hash of source (with the headers beside it), compiler, flags and processor,
so a change of any compiles anew. It is compiled for this processor, since what it gains comes from instructions that a
portable build may not use.
OpenMP comes from the library that torch has loaded: a second one would spin on the same cores.

Without a compiler nothing breaks: callers take their torch form, slower, and `native_library` says so once, aloud.
SPARSIGHT_NATIVE=0 forbids compiled code, for comparison. The trade-off: one to three seconds, once a machine.

Imported by path, not from the room, which the command line needs without torch.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch  # noqa: F401  (loads the OpenMP library that `_openmp` looks for)

from sparsight.artifact.files import atomic_path, cache_folder

__all__ = ["native_library"]

_log = logging.getLogger(__name__)

_FLAGS = (
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-fopenmp",
)
_COMPILE_SECONDS = 120


@functools.cache
def native_library(source: Path) -> ctypes.CDLL | None:
    """The compiled library of a .c file; None, with one warning, where it cannot be had."""
    if os.environ.get("SPARSIGHT_NATIVE") == "0":
        _log.warning("SPARSIGHT_NATIVE=0: %s is not used; its torch form is, several times slower.", source.name)
        return None
    try:
        return _load(source)
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error) or type(error).__name__).strip().splitlines()
        _log.warning(
            "%s could not be compiled (%s); its torch form is used, several times slower. Install gcc.",
            source.name,
            next((line for line in lines if "error" in line), lines[0]),
        )
        return None


def _load(source: Path) -> ctypes.CDLL:
    openmp = _openmp()
    if openmp is None:
        raise OSError("torch's OpenMP library is not libgomp")
    ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
    compiler = _compiler()
    library = cache_folder() / "native" / f"{source.stem}-{_key(source, compiler)}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(library) as temp:
            _compile(compiler, source, temp)
    return ctypes.CDLL(str(library))


def _compile(compiler: str, source: Path, target: Path) -> None:
    # Compiled with OpenMP, linked without: its symbols are those of the library that is loaded already.
    made = target.with_suffix(".o")
    try:
        _run(compiler, *_FLAGS, "-c", "-x", "c", str(source), "-o", str(made))
        _run(compiler, "-shared", str(made), "-o", str(target), "-lm")
    finally:
        made.unlink(missing_ok=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=True)
    return done.stdout


def _compiler() -> str:
    for name in (os.environ.get("CC", ""), "gcc", "cc"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise OSError("no C compiler: neither $CC nor gcc nor cc")


def _key(source: Path, compiler: str) -> str:
    parts = (_text(source), _run(compiler, "--version"), " ".join(_FLAGS), _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _text(source: Path) -> str:
    """The source and, once each, the files beside it that it includes."""
    text = source.read_text(encoding="utf-8")
    included = sorted(set(re.findall(r'^\s*#include "(.+)"', text, re.MULTILINE)))
    return "\0".join([text, *(_text(source.parent / name) for name in included)])


def _processor() -> str:
    """What -march=native looks at: a cache folder may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _openmp() -> str | None:
    """The path of torch's libgomp in this process."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    paths = sorted({line.split(None, 5)[5] for line in lines if "libgomp" in line})
    return next((path for path in paths if f"{os.sep}torch" in path), paths[0] if paths else None)
