"""A small LoRA fine-tune: some steps of Adam on a text, into an adapter folder that PEFT reads too.

It is here for the null fine-tune, which a comparison is judged against: as many steps, at the same rate, on text like the base's
own. What a user compares may come from anywhere. Weights are frozen in the dtype they are loaded in; A and B are float32.

    loss = mean over the batch's tokens of -log p(next token in the same piece)
    A uniform in +-1/sqrt(d_in), B zero; Adam (0.9, 0.999), linear warm-up, then constant, then linear to zero in the last fifth

    FOLDER/adapter_config.json, adapter_model.safetensors     the adapter, once it is finished
    FOLDER/finetune.json                                      what was asked for, losses, held-out loss before and after
    FOLDER/training.jsonl                                     step, loss, tokens
    FOLDER/checkpoint.safetensors                             A, B and Adam's moments, while it is not

A run that was killed goes on from its last checkpoint and ends with the same bytes on a CPU. Source: LoRA, arXiv:2106.09685.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from sparsight.artifact import (
    StopFlag,
    append_jsonl,
    atomic_path,
    give_back_memory,
    locked,
    read_json,
    read_jsonl,
    write_json,
)
from sparsight.errors import ModelError, TextError
from sparsight.lm.adapter import Adapter, AdapterHooks, identity_of, is_adapter
from sparsight.lm.batches import TokenBatch, make_batches
from sparsight.lm.config import ModelConfig, TextConfig
from sparsight.lm.documents import text_fingerprint
from sparsight.lm.hookpoint import find_trunk
from sparsight.lm.load import load_model
from sparsight.lm.lowrank import LowRank
from sparsight.lm.tokens import Piece, iter_pieces

__all__ = ["FinetuneConfig", "how_trained", "train_adapter"]

_CHECKPOINT = "checkpoint.safetensors"
_LOG_EVERY_STEPS = 5
_DECAY = 0.2  # share of the steps in which the rate falls to zero


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a LoRA is trained."""

    rank: int = 16
    """Of each matrix's change."""
    alpha: float = 32.0
    """The change is alpha / rank * B A."""
    targets: tuple[str, ...] = ()
    """Last names of the matrices to change, such as q_proj; empty: every matrix of every decoder block."""
    steps: int = 200
    """Updates."""
    batch_tokens: int = 1024
    """Tokens in one update, padding apart."""
    lr: float = 5e-4
    """Highest learning rate."""
    warmup_steps: int = 10
    """Steps in which the rate rises to it."""
    heldout_tokens: int = 4096
    """Held-out tokens on which the loss is measured before and after."""
    seed: int = 0
    """Of A's first values and of the order of the text."""
    checkpoint_every_steps: int = 10
    """A kill loses at most the work of so many steps."""

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "batch_tokens", "heldout_tokens", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise ModelError(f"finetune.{name} is {getattr(self, name)}. Expected at least 1.")
        if not self.lr > 0 or not self.alpha > 0:
            raise ModelError(f"finetune.lr is {self.lr} and alpha {self.alpha}. Expected both above 0.")


def how_trained(folder: Path | str) -> FinetuneConfig | None:
    """How `train_adapter` was asked to train what lies in `folder`; None where something else trained it.

    Raises RunError for a file that is not JSON, ModelError for settings that are none.
    """
    facts = Path(folder) / "finetune.json"
    said = read_json(facts) if facts.is_file() else None
    if not isinstance(said, dict) or "asked" not in said:
        return None
    try:
        asked = said["asked"]["finetune"]
        return FinetuneConfig(**{**asked, "targets": tuple(asked["targets"])})
    except (KeyError, TypeError) as error:
        raise ModelError(f"{facts} does not say how {folder} was trained ({error}). Restore or remove it.") from None


def train_adapter(
    model: ModelConfig, text: TextConfig, config: FinetuneConfig, folder: Path, *, stop: StopFlag | None = None
) -> dict[str, Any]:
    """Trains an adapter into `folder`, or goes on, or does nothing when it is there; returns what `finetune.json` says.

    Raises ModelError when `folder` holds another fine-tune, TextError when the text has no train documents of 2 tokens.
    """
    facts = Path(folder) / "finetune.json"
    asked = _plain({"model": model.id, "text": dataclasses.asdict(text), "finetune": dataclasses.asdict(config)})
    del asked["finetune"]["checkpoint_every_steps"]  # changes no weight
    with locked(Path(folder)):
        _check_same(folder, facts, asked)
        if is_adapter(folder):
            return read_json(facts)
        write_json(facts, {"asked": asked})
        adapter, measured = _train(model, text, config, Path(folder), stop)
        record = {"asked": asked, "text": text_fingerprint(text)} | measured
        write_json(facts, record)  # before the adapter, which says that all is done
        adapter.write(Path(folder), alpha=config.alpha)
        (Path(folder) / _CHECKPOINT).unlink(missing_ok=True)
    return record


def _train(
    model: ModelConfig, text: TextConfig, config: FinetuneConfig, folder: Path, stop: StopFlag | None
) -> tuple[Adapter, dict[str, Any]]:
    """The trained adapter, and what was measured."""
    loaded = load_model(model, None)
    training = _Training(loaded.module, config, folder)
    train, heldout = _pieces(text, loaded.tokenizer, config)
    before = training.heldout_loss(heldout, strength=0.0)
    started = time.monotonic()
    with stop.save_first() if stop is not None else nullcontext():
        training.run(train, stop)
    seconds = time.monotonic() - started
    after = training.heldout_loss(heldout, strength=1.0)
    identity = identity_of(loaded.provenance)
    adapter = Adapter(name=str(folder), parts=training.parts(), base_name=model.id, base_identity=identity)
    return adapter, {
        "model": loaded.provenance,
        "loss_first": training.losses[0],
        "loss_last": float(np.mean(training.losses[-_LOG_EVERY_STEPS:])),
        "heldout_loss_before": before,
        "heldout_loss_after": after,
        "heldout_tokens": sum(len(piece.token_ids) for piece in heldout),
        "train_tokens": sum(len(piece.token_ids) for piece in train),
        "seconds_of_last_run": round(seconds, 1),
    }


class _Training:
    """The low-rank matrices, their optimiser, and the frozen model around them."""

    def __init__(self, module: nn.Module, config: FinetuneConfig, folder: Path):
        self.module, self.config, self.folder = module, config, Path(folder)
        self.checkpoint, self.log = self.folder / _CHECKPOINT, self.folder / "training.jsonl"
        self.paths = _target_paths(module, config.targets)
        generator = torch.Generator().manual_seed(config.seed)
        modules = dict(module.named_modules())
        self.A, self.B, hooked = [], [], []
        for path in self.paths:
            d_out, d_in = _widths(modules[path])
            A = (torch.rand(config.rank, d_in, generator=generator) * 2 - 1) / d_in**0.5
            part = LowRank(A.requires_grad_(), torch.zeros(d_out, config.rank, requires_grad=True), self._scale)
            self.A.append(part.A)
            self.B.append(part.B)
            hooked.append((modules[path], part))
        self.hooks = AdapterHooks(Adapter(name=str(folder), parts={}), hooked)
        self.adam = torch.optim.Adam([*self.A, *self.B], lr=config.lr, foreach=True)
        self.step, self.losses = 0, list[float]()
        if self.checkpoint.exists():
            self._resume()

    @property
    def _scale(self) -> float:
        return self.config.alpha / self.config.rank

    def parts(self) -> dict[str, LowRank]:
        """What was learned."""
        return {
            path: LowRank(A.detach(), B.detach(), self._scale)
            for path, A, B in zip(self.paths, self.A, self.B, strict=True)
        }

    def run(self, pieces: Sequence[Piece], stop: StopFlag | None) -> None:
        """Takes the steps that are left."""
        for number, group in enumerate(_groups(pieces, self.config)):
            if number < self.step:
                continue
            loss = self._update(group)
            self.step += 1
            self.losses.append(loss)
            if not np.isfinite(loss):
                raise ModelError(f"The loss is {loss} at step {self.step}. Lower finetune.lr, now {self.config.lr}.")
            if self.step % _LOG_EVERY_STEPS == 0 or self.step == self.config.steps:
                append_jsonl(
                    self.log, {"step": self.step, "loss": loss, "tokens": self.step * self.config.batch_tokens}
                )
            if stop or self.step % self.config.checkpoint_every_steps == 0:
                self._save()
            if stop:
                stop.leave()

    def heldout_loss(self, pieces: Sequence[Piece], *, strength: float) -> float | None:
        """Nats a token; None without held-out text."""
        total = n_tokens = 0.0
        for batch in _batches(pieces):
            with torch.no_grad(), self.hooks.applied(strength):
                loss, n = self._loss_sum(batch)
            total, n_tokens = total + float(loss), n_tokens + n
        return total / n_tokens if n_tokens else None

    def _update(self, pieces: Sequence[Piece]) -> float:
        """One step on these pieces, in batches of like lengths; returns the loss a token."""
        n_tokens = sum(len(piece.token_ids) - 1 for piece in pieces)
        total = 0.0
        for batch in _batches(pieces):
            with self.hooks.applied():
                loss = self._loss_sum(batch)[0] / n_tokens
            loss.backward()
            total += float(loss.detach())
        for group in self.adam.param_groups:
            group["lr"] = self.config.lr * self._rate(self.step)
        self.adam.step()
        self.adam.zero_grad()
        give_back_memory()
        return total

    def _rate(self, step: int) -> float:
        rising = (step + 1) / max(1, self.config.warmup_steps)
        falling = (self.config.steps - step) / (_DECAY * self.config.steps)
        return min(1.0, rising, falling)

    def _loss_sum(self, batch: TokenBatch) -> tuple[Float[Tensor, ""], int]:
        device = next(self.module.parameters()).device
        ids, mask = batch.input_ids.to(device), batch.mask.to(device)
        logits = self.module(input_ids=ids, use_cache=False).logits
        scored = mask[:, 1:] & mask[:, :-1]
        return functional.cross_entropy(logits[:, :-1][scored].float(), ids[:, 1:][scored], reduction="sum"), int(
            scored.sum()
        )

    def _save(self) -> None:
        tensors = {}
        for number, tensor in enumerate((*self.A, *self.B)):
            tensors[f"{number}.value"] = tensor.detach()
            for name in ("exp_avg", "exp_avg_sq"):
                tensors[f"{number}.{name}"] = self.adam.state[tensor][name]
        with atomic_path(self.checkpoint) as temp:
            save_file(tensors, temp, metadata={"step": str(self.step), "losses": json.dumps(self.losses)})

    @torch.no_grad()
    def _resume(self) -> None:
        with safe_open(self.checkpoint, framework="pt") as file:
            metadata = file.metadata()
            self.step, self.losses = int(metadata["step"]), json.loads(metadata["losses"])
            for number, tensor in enumerate((*self.A, *self.B)):
                tensor.copy_(file.get_tensor(f"{number}.value"))
                state = {name: file.get_tensor(f"{number}.{name}") for name in ("exp_avg", "exp_avg_sq")}
                self.adam.state[tensor] = {"step": torch.tensor(float(self.step)), **state}
        kept = [record for record in read_jsonl(self.log) if record["step"] <= self.step]
        self.log.write_text("".join(json.dumps(record) + "\n" for record in kept))


def _check_same(folder: Path, facts: Path, asked: dict[str, Any]) -> None:
    if not facts.exists():
        if is_adapter(folder):
            raise ModelError(f"{folder} holds an adapter that was not trained here. Choose another folder.")
        return
    found = read_json(facts)["asked"]
    for key, value in asked.items():
        if found.get(key) != value:
            raise ModelError(
                f"{folder} holds a fine-tune with {key} = {found.get(key)}; this one asks for {value}. Choose another folder."
            )


def _target_paths(module: nn.Module, targets: tuple[str, ...]) -> list[str]:
    trunk = find_trunk(module)
    inside = f"{trunk.path}.{trunk.block_list}.".removeprefix(".")
    matrices = [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, Conv1D))]
    blocks = [name for name in matrices if name.startswith(inside)]
    paths = [name for name in blocks if not targets or name.rpartition(".")[2] in targets]
    known = sorted({name.rpartition(".")[2] for name in blocks})
    if not paths or set(targets) - set(known):
        raise ModelError(
            f"finetune.targets is {', '.join(targets)}; the matrices in the blocks are {', '.join(known)}."
        )
    return paths


def _widths(module: nn.Module) -> tuple[int, int]:
    """d_out, d_in."""
    first, second = module.get_parameter("weight").shape
    return (second, first) if isinstance(module, Conv1D) else (first, second)


def _pieces(text: TextConfig, tokenizer: Any, config: FinetuneConfig) -> tuple[list[Piece], list[Piece]]:
    """Train pieces up to what all steps see once, and held-out ones; those of one token have nothing to predict."""
    train: list[Piece] = []
    heldout: list[Piece] = []
    wanted = {False: config.steps * config.batch_tokens, True: config.heldout_tokens}
    for piece in iter_pieces(text, tokenizer):
        into = heldout if piece.heldout else train
        if wanted[piece.heldout] > 0 and len(piece.token_ids) > 1:
            into.append(piece)
            wanted[piece.heldout] -= len(piece.token_ids)
        if wanted[False] <= 0 and (wanted[True] <= 0 or text.heldout_fraction == 0):
            break
    if not train:
        raise TextError(
            "The text has no train documents of two tokens or more. Give more of it, or lower text.heldout_fraction."
        )
    return train, heldout


def _groups(pieces: Sequence[Piece], config: FinetuneConfig) -> Any:
    """The pieces of each step, epoch after epoch, each in an order of its own."""
    step, group, size = 0, list[Piece](), 0
    for epoch in range(config.steps * config.batch_tokens + 1):
        for number in np.random.default_rng((config.seed, epoch)).permutation(len(pieces)):
            group.append(pieces[number])
            size += len(pieces[number].token_ids)
            if size >= config.batch_tokens:
                yield group
                step, group, size = step + 1, [], 0
                if step == config.steps:
                    return


def _batches(pieces: Sequence[Piece]) -> list[TokenBatch]:
    """Rows of like lengths; 512 tokens at a time, whose logits over 49,152 tokens are 100 MB in float32."""
    if not pieces:
        return []
    longest = max(len(piece.token_ids) for piece in pieces)
    return make_batches(
        pieces, batch_tokens=max(512, longest), pad_id=0, isolation="documents", context_tokens=longest, eos_id=0
    )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))
