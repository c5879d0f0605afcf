"""Others' files of weights, read without trusting them.

Nothing in a file is executed. Names, shapes and types are compared with what is expected before values are turned into float32, so
that no tensor is made that is larger than its file justifies; values must be finite. A pickle (`.pt`) is read by torch with `weights_only=True`
and mapped, not copied; it must be a plain zip archive as torch has written since 1.6, with nothing in it compressed, since a compressed
entry can be a thousand times larger than the file, and the older form says how much is to be allocated before anything can be checked.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sparsight.errors import FormatError

__all__ = [
    "check_finite",
    "fitted",
    "id_of",
    "matrix_shape",
    "read_config",
    "read_pickle",
    "read_safetensors",
    "whole_number",
]

_FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
_MAX_CONFIG_BYTES = 16 << 20
_LARGEST = 2**31


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; FormatError when the file is absent, too large or anything else."""
    try:
        size = path.stat().st_size
        if size > _MAX_CONFIG_BYTES:
            raise FormatError(f"{path} has {size} bytes; the description of an SAE has a few thousand.")
        described = json.loads(path.read_bytes())
    except OSError:
        raise FormatError(f"{path} is missing or cannot be read; it describes the SAE.") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not JSON: {_first_line(error)}") from None
    if not isinstance(described, dict):
        raise FormatError(
            f"{path} does not describe an SAE: a JSON object is expected, not {type(described).__name__}."
        )
    return described


def read_safetensors(path: Path, expected: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in float32; with `expected`, exactly these names and shapes."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            wrong = {name: part.get_dtype() for name, part in slices.items() if part.get_dtype() not in _FLOAT_TYPES}
            if wrong:
                raise FormatError(f"{path} has tensors of type {wrong}, expected one of {', '.join(_FLOAT_TYPES)}.")
            if expected is not None:
                _compare(path, {name: tuple(part.get_shape()) for name, part in slices.items()}, expected)
            tensors = {name: file.get_tensor(name).float() for name in slices}
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a readable safetensors file: {_first_line(error)}") from None
    check_finite(path, tensors)
    return tensors


def read_pickle(path: Path) -> Any:
    """What a `.pt` file holds, tensors as maps of the file; FormatError when it cannot be had without running code."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed or sum(entry.file_size for entry in entries) > size:
            raise FormatError(f"{path} has compressed or overlapping entries; torch writes none.")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FormatError:
        raise
    except FileNotFoundError:
        raise FormatError(f"{path} is missing.") from None
    except zipfile.BadZipFile:
        raise FormatError(
            f"{path} is not a .pt file that can be read without running code: torch.save has written zip archives since 1.6."
        ) from None
    except (
        Exception
    ) as error:  # a hostile file can raise anything out of the unpickler; all of it means "not this format"
        raise FormatError(
            f"{path} is not a .pt file that can be read without running code: {_first_line(error)}"
        ) from None


def fitted(path: Path, given: Mapping[str, object], expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """`given` as float32 copies of exactly the `expected` names and shapes; FormatError otherwise."""
    strange = [name for name, tensor in given.items() if not _is_dense_float(tensor)]
    if strange:
        raise FormatError(f"{path}: {', '.join(map(str, strange))} is not a dense tensor of floating-point numbers.")
    tensors = {name: tensor for name, tensor in given.items() if isinstance(tensor, Tensor)}
    _compare(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, expected)
    size = path.stat().st_size
    large = {name: tuple(t.shape) for name, t in tensors.items() if t.numel() * t.element_size() > size}
    if large:
        raise FormatError(f"{path} claims {large}, more than the file of {size} bytes holds.")
    floats = {name: tensor.float().clone() for name, tensor in tensors.items()}
    check_finite(path, floats)
    return floats


def matrix_shape(path: Path, given: Mapping[str, object], name: str) -> tuple[int, int]:
    """Rows and columns of one of the tensors, both at least 1."""
    matrix = given.get(name)
    if not isinstance(matrix, Tensor) or matrix.dim() != 2 or 0 in matrix.shape:
        what = (
            tuple(matrix.shape)
            if isinstance(matrix, Tensor)
            else "missing"
            if matrix is None
            else type(matrix).__name__
        )
        raise FormatError(
            f"{path}: {name} should be a matrix, and is {what}; the file holds {sorted(map(str, given))}."
        )
    rows, columns = matrix.shape
    return rows, columns


def whole_number(path: Path, values: Mapping[str, object], name: str) -> int:
    """A positive whole number, also as a tensor without dimensions."""
    value = values.get(name)
    if isinstance(value, Tensor) and value.dim() == 0 and value.dtype in (torch.int32, torch.int64):
        value = int(value)
    if type(value) is not int or not 0 < value < _LARGEST:
        raise FormatError(f"{path} has {name} = {_shown(value)}; a positive whole number is expected.")
    return value


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """FormatError where a value is NaN or infinite."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise FormatError(f"{path}: {name} has values that are not finite.")


def id_of(path: Path) -> str:
    """A name for an SAE from where it lies: the last part of the path, without what an id cannot have."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().name).lstrip("._-")
    return name or "sae"


def _is_dense_float(tensor: object) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.is_floating_point()
        and not tensor.is_quantized
    )


def _compare(path: Path, given: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    if given == expected:
        return
    names = sorted(name for name in {*given, *expected} if given.get(name) != expected.get(name))
    has = {name: given.get(name, "missing") for name in names}
    wanted = {name: expected.get(name, "no such tensor") for name in names}
    raise FormatError(
        f"{path} does not hold what it should (its description says otherwise): it has {has}, expected {wanted}."
    )


def _shown(value: object) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first_line(error: BaseException) -> str:
    return _shown(str(error).strip().split("\n", 1)[0] or type(error).__name__)[1:-1]
