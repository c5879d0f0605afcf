"""LoRA adapters for tests: random ones in PEFT's layout, and their change as matrices, computed by hand."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

TARGETS = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (16, 32), "mlp.down_proj": (32, 64)}
RANK, ALPHA = 3, 6.0


def write_adapter(
    folder: Path,
    *,
    base: str,
    seed: int = 0,
    size: float = 0.2,
    layers: tuple[int, ...] = (0, 1, 2, 3),
    tensors: dict[str, Tensor] | None = None,
    **config: Any,
) -> dict[str, Tensor]:
    """Writes a random adapter for the tiny Llama; returns path -> B A, without the scale."""
    generator = torch.Generator().manual_seed(seed)
    saved, products = {}, {}
    for layer in layers:
        for name, (d_out, d_in) in TARGETS.items():
            path = f"model.layers.{layer}.{name}"
            A = size * torch.randn(RANK, d_in, generator=generator)
            B = size * torch.randn(d_out, RANK, generator=generator)
            saved[f"base_model.model.{path}.lora_A.weight"] = A
            saved[f"base_model.model.{path}.lora_B.weight"] = B
            products[path] = B @ A
    folder.mkdir(parents=True, exist_ok=True)
    save_file(saved | (tensors or {}), folder / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted({name.rpartition(".")[2] for name in TARGETS}),
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "lora_dropout": 0.0,
    }
    (folder / "adapter_config.json").write_text(json.dumps(described | config))
    return products


def merge_by_hand(model_folder: Path, products: dict[str, Tensor], scale: float, target: Path) -> Path:
    """The base with scale * B A added to its weights, saved as a model of its own."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for path, product in products.items():
            weights[f"{path}.weight"] += scale * product
    model.save_pretrained(target)
    for file in model_folder.glob("tokenizer*"):
        (target / file.name).write_bytes(file.read_bytes())
    return target
