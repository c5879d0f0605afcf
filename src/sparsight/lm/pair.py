"""A base model and what was fine-tuned from it, loaded to be compared: may they be, and do they share a memory?

    base      the model before
    tuned     after: a model of its own, or a LoRA adapter on the base
    null      optional: the base after as much training on text like its own, the yardstick for what any training changes

Two models can be compared position by position only if the same text gives them the same tokens, and their activations have
the same meaning: one tokenizer, one vocabulary, one depth, one width at the hook point. Everything else is refused here, in
one line, before anything is spent.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sparsight.errors import ModelError
from sparsight.lm.adapter import Adapter, is_adapter
from sparsight.lm.batches import TokenBatch
from sparsight.lm.config import ModelConfig
from sparsight.lm.model import LanguageModel

__all__ = ["ROLES", "ActivationReader", "PairFacts", "check_pair", "load_models"]

ROLES = ("base", "tuned", "null")
# Of the weights of a model and its fine-tune; two random drafts have 0, a full fine-tune on billions of tokens has more than 0.9.
_LEAST_COSINE = 0.3
# Spellings that tokenizers differ in: spaces, digits, capitals, accents, another script, code.
_PROBES = (
    "The cat sat on the mat.",
    "  two spaces, 1234567890 and 3.14",
    "Naïve façades — “quoted” ÅNGSTRÖM",
    "if (x >= 0) {\n\treturn x_1;\n}",
    "Привет, 世界! 🙂",
)


@runtime_checkable
class ActivationReader(Protocol):
    """What reading activations takes: a LanguageModel, or several that read the same tokens."""

    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    special_ids: frozenset[int]
    provenance: dict[str, Any]

    def width(self, hook_point: str) -> int:
        """Numbers in one activation at the hook point."""
        ...

    def read(self, batch: TokenBatch, hook_points: Sequence[str]) -> dict[str, Float[Tensor, "rows positions d"]]:
        """Activations at the hook points."""
        ...


@dataclass(frozen=True, kw_only=True)
class PairFacts:
    """What was found before a comparison; all of it is recorded."""

    vocab_size: int
    n_layers: int
    """Decoder blocks of the whole models."""
    widths: dict[str, int]
    """Hook point -> width."""
    same_template: bool
    """Whether both tokenizers have the same chat template, or none."""
    shared_memory: bool
    """Whether the fine-tune is an adapter on the base's own weights."""
    weights_cosine: float
    """Of all weight matrices; 1 for an adapter on the base's own."""
    dtype: str
    """Of the activations."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)


def load_models(
    base: ModelConfig, others: Mapping[str, str], *, hook_points: Sequence[str] | None = None
) -> dict[str, LanguageModel]:
    """`base` and the models of `others` (role -> Hub id, folder, .gguf or adapter folder), each cut to the hook points.

    Adapters share the base's weights; other fine-tunes take a memory of their own. Raises ModelError for what cannot be had,
    for an adapter of another base, and for a role that is not tuned or null.
    """
    wrong = set(others) - set(ROLES[1:])
    if wrong:
        raise ModelError(f"{', '.join(sorted(wrong))} is no role of a model. Expected {' or '.join(ROLES[1:])}.")
    read = {role: Adapter.read(Path(name).expanduser()) for role, name in others.items() if is_adapter(name)}
    plain = LanguageModel.load(base, hook_points=hook_points)
    models = plain.with_adapters(read) if read else {"base": plain}
    for role, name in others.items():
        if role not in read:
            config = dataclasses.replace(base, id=name, revision="main")  # the revision given is the base's
            models[role] = LanguageModel.load(config, hook_points=hook_points)
    return {role: models[role] for role in ROLES if role in models}


def check_pair(
    base: LanguageModel, tuned: LanguageModel, hook_points: Sequence[str], *, chat_template: bool = False
) -> PairFacts:
    """Raises ModelError unless the two can be compared position by position at these hook points.

    The chat templates must agree only if text goes through them. Raises HookPointError for an unknown hook point.
    """
    names = f"{base.config.id} and {tuned.config.id}"
    _check_tokenizers(base, tuned, names)
    same_template = base.tokenizer.chat_template == tuned.tokenizer.chat_template
    if chat_template and not same_template:
        raise ModelError(
            f"{names} have different chat templates, so the same message gives them different tokens. "
            "Turn text.chat_template off, or give texts that are already formatted."
        )
    depths = [model.provenance.get("n_layers_total", model.n_layers) for model in (base, tuned)]
    for what, one, other in (
        ("embeddings", base.vocab_size, tuned.vocab_size),
        ("decoder blocks", *depths),
        ("activations in", str(base.dtype), str(tuned.dtype)),
        *((f"numbers at {name}", base.width(name), tuned.width(name)) for name in hook_points),
    ):
        if one != other:
            raise ModelError(
                f"{names} have {one} and {other} {what}. Expected the same: give a model and its own fine-tune."
            )
    shared = base.shares_weights_with(tuned)
    cosine = 1.0 if shared else base.weights_cosine(tuned)
    if cosine < _LEAST_COSINE:
        raise ModelError(
            f"{names} are no model and its fine-tune: their weights have a cosine of {cosine:.2f}, as models that were trained apart do. Expected at "
            f"least {_LEAST_COSINE:g}: give the base that it was made from."
        )
    return PairFacts(
        vocab_size=base.vocab_size,
        n_layers=depths[0],
        widths={name: base.width(name) for name in hook_points},
        same_template=same_template,
        shared_memory=shared,
        weights_cosine=cosine,
        dtype=str(base.dtype).removeprefix("torch."),
    )


def _check_tokenizers(base: LanguageModel, tuned: LanguageModel, names: str) -> None:
    if base.tokenizer is tuned.tokenizer:
        return
    ours, theirs = base.tokenizer.get_vocab(), tuned.tokenizer.get_vocab()
    differing = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
    if differing:
        raise ModelError(
            f"{names} have tokenizers that differ in {len(differing)} tokens, such as {', '.join(map(repr, differing[:3]))}. "
            "Expected the same vocabulary: activations are compared token by token."
        )
    for text in _PROBES:
        one, other = (list(model.tokenizer(text)["input_ids"]) for model in (base, tuned))
        if one != other:
            raise ModelError(
                f"{names} cut {text!r} into different tokens ({one[:6]}... and {other[:6]}...). "
                "Expected the same tokenizer, with the same special tokens around a text."
            )
    if base.special_ids != tuned.special_ids:
        apart = sorted(base.special_ids ^ tuned.special_ids)
        raise ModelError(f"{names} disagree on whether token {apart[0]} is special. Expected the same tokenizer.")
