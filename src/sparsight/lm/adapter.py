"""LoRA adapters as a fine-tune: read from PEFT's files, applied to the base model's own weights in memory, on or off.

    y = W x + scale * B (A x)         scale = alpha / r, or alpha / sqrt(r) with use_rslora

    adapter_config.json               a JSON object; what changes the formula (DoRA, trained biases, ...) is refused by name
    adapter_model.safetensors         base_model.model.PATH.lora_A.weight [r, d_in], .lora_B.weight [d_out, r]

The low-rank term is added by hooks for the length of one call, and not merged into W: in bfloat16 a merge rounds away most of
a small difference, and one base serves every adapter. A strength of 0 sets the same hooks and adds nothing, so that base and
fine-tune go through the same kernels and differ by the adapter alone. The trade-off: a product for each side of each term
and pass, some 8 % of SmolLM2-135M's time at rank 16, and adapted modules leave the packed weights (product.py).
We read the two files ourselves, since peft renames the modules that hook points name, and cannot load onto a cut model.

Source: LoRA, Hu et al. 2021, arXiv:2106.09685; rsLoRA, Kalajdzievski 2023, arXiv:2312.03732; the file layout is PEFT's.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sparsight.artifact import atomic_path, sha256_file, write_json
from sparsight.errors import HookPointError, ModelError
from sparsight.lm.hookpoint import HookPoint, find_trunk
from sparsight.lm.lowrank import LowRank, LowRankHook

__all__ = ["Adapter", "AdapterHooks", "combined_identity", "identity_of", "is_adapter"]

_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_MAX_CONFIG_BYTES = 1 << 20
_KEY = re.compile(r"(?:base_model\.model\.)?(?P<path>\w+(?:\.\w+)*)\.lora_(?P<side>[AB])\.weight")
_PLAIN_NAME = re.compile(r"\w+(\.\w+)*")
# What these say, when they say anything, is more than a low-rank term.
_REFUSED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
)
_ALTERS_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that change the base's weights as well


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA fine-tune, not yet tied to a model in memory."""

    name: str
    """The folder, as it was given."""
    parts: Mapping[str, LowRank]
    """Module path -> its change, in float32."""
    base_name: str = ""
    """The model it was made for, as its config names it; empty when it does not say."""
    base_identity: Mapping[str, str] = field(default_factory=dict)
    """Hash or commit of that model, where it was trained here."""
    sha256: str = ""
    """Of the weights' file."""

    @classmethod
    def read(cls, folder: str | Path) -> "Adapter":
        """Reads a folder in PEFT's layout. Raises ModelError when it is no LoRA of plain low-rank terms."""
        folder = Path(folder)
        config, file = _read_config(folder), folder / _WEIGHTS
        if not file.is_file():
            kind = f"{_PICKLE} is a pickle, which can run code" if (folder / _PICKLE).is_file() else "there is no other"
            raise ModelError(f"Adapter {folder} holds no {_WEIGHTS} ({kind}). Save it as safetensors.")
        tensors, metadata = _read_tensors(file)
        parts: dict[str, LowRank] = {}
        for path, sides in tensors.items():
            if set(sides) != {"A", "B"} or sides["A"].shape[0] != sides["B"].shape[1]:
                shapes = {side: tuple(tensor.shape) for side, tensor in sides.items()}
                raise ModelError(f"Adapter {folder}: {path} has {shapes}. Expected A [r, d_in] and B [d_out, r].")
            parts[path] = LowRank(sides["A"], sides["B"], _scale(config, path, sides["A"].shape[0]))
        return cls(
            name=str(folder),
            parts=parts,
            base_name=str(config.get("base_model_name_or_path") or ""),
            base_identity=_identity_in(metadata),
            sha256=sha256_file(file),
        )

    def write(self, folder: Path, *, alpha: float) -> None:
        """Writes PEFT's layout, which `read` and peft load; all parts have one rank and this alpha."""
        ranks = {part.A.shape[0] for part in self.parts.values()}
        assert len(ranks) == 1, ranks
        tensors = {}
        for path, part in self.parts.items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = part.A.contiguous()
            tensors[f"base_model.model.{path}.lora_B.weight"] = part.B.contiguous()
        with atomic_path(folder / _WEIGHTS) as temp:
            save_file(tensors, temp, metadata={"format": "pt", "base_identity": json.dumps(dict(self.base_identity))})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.base_name,
            "r": ranks.pop(),
            "lora_alpha": alpha,
            "target_modules": sorted({path.rpartition(".")[2] for path in self.parts}),
            "bias": "none",
            "lora_dropout": 0.0,
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        write_json(folder / _CONFIG, config)

    def check_base(self, model_id: str, provenance: Mapping[str, Any]) -> None:
        """Raises ModelError when the adapter says that it was made for another model than this one.

        By hash or commit where both sides know theirs; else by the last part of the name, upper or lower case.
        """
        known = {key: value for key, value in self.base_identity.items() if provenance.get(key)}
        differs = any(provenance[key] != value for key, value in known.items())
        if not known and self.base_name:
            differs = _last_part(self.base_name) != _last_part(model_id)
        if differs:
            raise ModelError(
                f"Adapter {self.name} was made for {self.base_name or known}, and the base given is {model_id}. Give that base; "
                f"if this is the same model under another name, write the name into {_CONFIG} (base_model_name_or_path)."
            )

    def fit(self, model: nn.Module, n_layers_total: int | None = None) -> "AdapterHooks":
        """Ties the parts to the modules of a model, in its memory. What changes blocks that were cut off is left out.

        Raises ModelError when the model has no such module, or one of another shape, or it lies outside the decoder blocks.
        """
        n_loaded = len(find_trunk(model).blocks)
        n_total = n_layers_total or n_loaded
        points = {path: HookPoint.parse(path) for path in self.parts}
        outside = [path for path, point in points.items() if point.layer is None]
        if outside:  # `unembed` would not know of a changed head
            raise ModelError(
                f"Adapter {self.name} changes {outside[0]}, which is no part of a decoder block. Merge it into its base with "
                "peft (merge_and_unload, save_pretrained) and give that model."
            )
        wanted = {path: point for path, point in points.items() if not n_loaded <= (point.layer or 0) < n_total}
        modules = {path: self._module(model, point, self.parts[path]) for path, point in wanted.items()}
        return AdapterHooks(self, [(module, self.parts[path]) for path, module in modules.items()])

    def _module(self, model: nn.Module, point: HookPoint, part: LowRank) -> nn.Module:
        try:
            module = point.resolve(model)
        except HookPointError as error:
            raise ModelError(f"Adapter {self.name} does not fit this base. {error}") from None
        weight = getattr(module, "weight", None)
        found = tuple(weight.shape) if isinstance(weight, Tensor) else type(module).__name__
        expected = (part.B.shape[0], part.A.shape[1])
        if isinstance(module, Conv1D):  # GPT-2's matrices, [in, out]
            expected = expected[::-1]
        if not isinstance(module, (nn.Linear, Conv1D)) or found != expected:
            raise ModelError(
                f"Adapter {self.name} changes {point.name} as a matrix {expected}; this base has {found} there. "
                "Give the base that it was made for."
            )
        return module


class AdapterHooks:
    """An adapter tied to the modules of one model."""

    def __init__(self, adapter: Adapter, fitted: Sequence[tuple[nn.Module, LowRank]]):
        self.adapter = adapter
        self._fitted = [(module, _moved(part, module)) for module, part in fitted]
        self._hooks: dict[float, list[LowRankHook]] = {}

    def __len__(self) -> int:
        return len(self._fitted)

    @contextmanager
    def applied(self, strength: float = 1.0) -> Iterator[None]:
        """Adds strength * the low-rank terms for the length of the block; hooks set before see the changed activations."""
        if strength not in self._hooks:
            self._hooks[strength] = [LowRankHook(part, strength) for _, part in self._fitted]
        handles = []
        try:
            for (module, _), hook in zip(self._fitted, self._hooks[strength], strict=True):
                # First, so that whoever reads this module reads what the fine-tune gives.
                handles.append(module.register_forward_hook(hook, prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def merge(self) -> None:
        """Adds the changes to the weights for good, rounded to their dtype."""
        for module, part in self._fitted:
            weight, delta = module.get_parameter("weight"), part.delta()
            weight.copy_(weight.float() + (delta.T if isinstance(module, Conv1D) else delta))


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    folder = Path(folder).expanduser()
    return (folder / _CONFIG).is_file() and not (folder / "config.json").is_file()


def identity_of(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What the weights of a model are, for an adapter to know its base again."""
    return {key: provenance[key] for key in ("commit", "sha256", "sampled_sha256") if provenance.get(key)}


def combined_identity(*identities: Mapping[str, str]) -> str:
    """One hash of several models' identities."""
    return hashlib.sha256(json.dumps([dict(sorted(each.items())) for each in identities]).encode()).hexdigest()


def _moved(part: LowRank, module: nn.Module) -> LowRank:
    device = module.get_parameter("weight").device
    return part if part.A.device == device else LowRank(part.A.to(device), part.B.to(device), part.scale)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / _CONFIG
    if not file.is_file():
        raise ModelError(f"{folder} holds no {_CONFIG}. Expected a LoRA adapter as PEFT saves it.")
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("too large")
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{file} cannot be read as a JSON object ({error}). Fetch the adapter again.") from None
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"{file} has peft_type {config.get('peft_type')!r}. Expected LORA: merge others and give a model."
        )
    said = {key: config[key] for key in _REFUSED if config.get(key)}
    if config.get("bias", "none") != "none":
        said["bias"] = config["bias"]
    if str(config.get("init_lora_weights", "")).lower().startswith(_ALTERS_BASE):
        said["init_lora_weights"] = config["init_lora_weights"]
    if said:
        what = ", ".join(f"{key} = {str(value)[:60]}" for key, value in said.items())
        raise ModelError(
            f"Adapter {folder} is more than a low-rank change of matrices ({what}). Merge it into its base with peft "
            "(merge_and_unload, save_pretrained) and give that model."
        )
    return config


def _read_tensors(file: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Module path -> side -> tensor in float32; and the file's metadata."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                match = _KEY.fullmatch(name)
                if match is None:
                    raise ModelError(f"{file} holds {name!r}, which is no lora_A or lora_B. Merge it with peft.")
                tensor = weights.get_tensor(name).float()
                if tensor.ndim != 2 or not bool(torch.isfinite(tensor).all()):
                    raise ModelError(f"{file}: {name} is no matrix of finite numbers. Fetch the adapter again.")
                found.setdefault(match["path"], {})[match["side"]] = tensor
            metadata = weights.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file ({error}). Fetch it again.") from None
    if not found:
        raise ModelError(f"{file} holds no tensors. Fetch the adapter again.")
    return found, metadata


def _scale(config: dict[str, Any], path: str, rank: int) -> float:
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if not _PLAIN_NAME.fullmatch(pattern):
            raise ModelError(f"{_CONFIG} has the alpha_pattern {pattern!r}. Only plain module names are read.")
        if f".{path}".endswith(f".{pattern}"):
            alpha = value
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(f"{_CONFIG} has lora_alpha {alpha!r} for {path}. Expected a number.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _identity_in(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in json.loads(metadata["base_identity"]).items()}
    except (KeyError, ValueError, AttributeError):
        return {}


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()
