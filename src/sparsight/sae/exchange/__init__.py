"""SAEs in others' formats: each module here reads one into our form and writes it, tensor for tensor.

    saelens               a folder, and our own layout
    sparsify              a folder for each hook point
    dictionary-learning   a folder for each trainer
    qwen-scope            layer{n}.sae.pt
    founding              sae_base_best.pt

`read` and `write` take what an SAE is made of, a configuration and tensors, so that nothing here needs the module that computes with them.
A format says what of ours it cannot hold by an SAEError, and what is wrong with a file by a FormatError of one line.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from torch import Tensor

from sparsight.errors import FormatError
from sparsight.sae.config import SAEConfig
from sparsight.sae.exchange import dictionary_learning, founding, qwen_scope, saelens, sparsify

__all__ = ["FORMATS", "files_of", "read_any", "recognised_format", "saes_among", "write_as"]

FORMATS: dict[str, ModuleType] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary-learning": dictionary_learning,
    "qwen-scope": qwen_scope,
    "founding": founding,
}

_WEIGHTS = {saelens.WEIGHTS, sparsify.WEIGHTS, dictionary_learning.WEIGHTS}


def saes_among(names: Iterable[str]) -> list[str]:
    """Where SAEs lie among a repository's files: folders by the name of their weights ("." is the root), and `.pt` files."""
    paths = [PurePosixPath(name) for name in sorted(names)]
    places = [
        path.parent if path.name in _WEIGHTS else path
        for path in paths
        if path.name in _WEIGHTS or path.suffix == ".pt"
    ]
    return list(dict.fromkeys(str(place) for place in places))


def files_of(place: str, names: Iterable[str]) -> list[str]:
    """Which of a repository's files are needed to read the SAE at a place that `saes_among` gave."""
    paths = [PurePosixPath(name) for name in names]
    inside = [path for path in paths if str(path.parent) == place and (path.name in _WEIGHTS or path.suffix == ".json")]
    return [str(path) for path in [*inside, *(path for path in paths if str(path) == place)]]


def recognised_format(path: Path) -> str:
    """The name of the format of what lies there, by the names of its files; FormatError when none fits."""
    if not path.exists():
        raise FormatError(f"{path} does not exist.")
    for name, module in FORMATS.items():
        if module.recognises(path):
            return name
    inside = ", ".join(sorted(each.name for each in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise FormatError(f"{path} ({inside}) is in no format that can be read: {', '.join(FORMATS)}.")


def read_any(path: Path, format: str = "", *, k: int | None = None) -> tuple[SAEConfig, dict[str, Tensor]]:
    """Configuration and float32 tensors of an SAE in any format; recognised where it is not named.

    `k`: active latents a token, where the file does not say (qwen-scope).
    """
    name = format or recognised_format(path)
    options: dict[str, Any] = {"k": k} if name == "qwen-scope" else {}
    return _module(name).read(path, **options)


def write_as(path: Path, format: str, cfg: SAEConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes an SAE; SAEError when the format has no room for it."""
    _module(format).write(path, cfg, tensors)


def _module(name: str) -> ModuleType:
    if name not in FORMATS:
        raise FormatError(f"{name!r} is no format of SAEs; known are {', '.join(FORMATS)}.")
    return FORMATS[name]
