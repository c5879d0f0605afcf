"""A GGUF file made into a Transformers folder, once.

Transformers dequantises a GGUF itself, but takes seconds for 135M parameters and cannot read some of it lazily. So the
float32 result is saved in the cache under the file's sha256, from where loading takes the usual fraction of a second.
The cost is disk: four bytes a parameter, whatever the GGUF's own width.
"""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsight.artifact import cache_folder, sha256_file
from sparsight.errors import ModelError

__all__ = ["convert_gguf", "converted_folder"]

_NEEDED = ("gguf", "accelerate")


def converted_folder(sha256: str) -> Path:
    """Where the conversion of the GGUF with this hash is, or will be."""
    return cache_folder() / f"gguf-{sha256[:16]}"


def convert_gguf(path: Path) -> Path:
    """The folder converted from a GGUF file, made on first use; several processes may ask at once.

    Raises ModelError when Transformers cannot read the file, or the packages it needs for that are not installed.
    """
    target = converted_folder(sha256_file(path))
    if target.is_dir():
        return target
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(f"Reading {path.name} needs {' and '.join(missing)}. Run: pip install {' '.join(missing)}")
    temp = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _convert(path, temp)
        _publish(temp, target)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return target


def _convert(path: Path, folder: Path) -> None:
    try:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"{path} cannot be read as GGUF ({error}). Give the model as a folder of safetensors."
        ) from None
    # The dequantised weights are plain; a folder that claimed to be quantised could not be saved or loaded.
    for owner, attribute in ((model, "hf_quantizer"), (model, "is_quantized"), (model.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _publish(temp: Path, target: Path) -> None:
    """Renames the whole folder into place; a process that came first has the same content, so its folder stands."""
    temp.chmod(0o755)
    try:
        os.rename(temp, target)
    except OSError:
        if not target.is_dir():
            raise
