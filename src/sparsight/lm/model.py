"""A language model to be looked into: read activations, replace them, ask what a direction writes to the vocabulary.

Plain PyTorch hooks on the module that a hook point names; nothing stands between them and Transformers. Hooks live for
one call and are gone after it, also when it raises. `read` stops the forward pass as soon as every hook point has been
seen: what comes after costs nothing. No attention mask is passed: padding is on the right, where a causal model cannot
see it; the self-check at load verifies just that.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsight.errors import HookPointError, ModelError
from sparsight.lm.adapter import Adapter, AdapterHooks, combined_identity, identity_of
from sparsight.lm.batches import TokenBatch
from sparsight.lm.compiled import compile_blocks
from sparsight.lm.config import ModelConfig
from sparsight.lm.fused import fuse
from sparsight.lm.hookpoint import HookPoint, find_trunk
from sparsight.lm.hooks import StopForward, hooked, skipped
from sparsight.lm.load import load_model

__all__ = ["LanguageModel"]

_CHECK_TEXT = "The cat sat on the mat, and then it said: 3 + 4 = 7, while (x > 0) { return; } Why?"
_CHECK_TOKENS = 24
_LEAK_TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 0.02,
    torch.bfloat16: 0.1,
}  # relative; other shapes round otherwise
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
_VOCAB_CHUNK = 16384


class LanguageModel:
    """A decoder-only model in evaluation mode, with its tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    vocab_size: int
    n_layers: int
    """Decoder blocks in memory."""
    pad_id: int
    """What fills rows on the right; the tokenizer's own, else its eos, else 0. No real token ever sees it."""
    eos_id: int
    """What stands between packed documents; 0 when the tokenizer has none."""
    special_ids: frozenset[int]
    """The tokenizer's special tokens."""
    stop_ids: frozenset[int]
    """Tokens that end a generated text, as the model's or the tokenizer's configuration names them."""
    provenance: dict[str, Any]
    """What was loaded, from where, how much of it, and what the self-check found."""

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: ModelConfig,
        provenance: dict[str, Any],
    ):
        self._module = module.eval()
        self._widths: dict[str, int] = {}
        self._can_begin: dict[str, bool] = {}
        self._adapters: tuple[tuple[AdapterHooks, float], ...] = ()
        self.tokenizer = tokenizer
        self.config = config
        self.provenance = provenance
        embedding = _embedding(module)
        self.device, self.dtype, self.vocab_size = embedding.device, embedding.dtype, embedding.shape[0]
        self.n_layers = len(find_trunk(module).blocks)
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.eos_id = next(id for id in ids[1:] if isinstance(id, int))
        self.pad_id = next(id for id in ids if isinstance(id, int))
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.stop_ids = _stop_ids(module, tokenizer)

    @classmethod
    def load(cls, config: ModelConfig, *, hook_points: Sequence[str] | None = None) -> "LanguageModel":
        """Loads what reading `hook_points` takes, or with None the whole text model with its head; then checks it.

        Raises ModelError when the model cannot be had or fails the self-check, HookPointError for an unknown hook
        point.
        """
        points = None if hook_points is None else [HookPoint.parse(name) for name in hook_points]
        if points == []:
            raise HookPointError("No hook point was given. Expected at least one, such as layers.16.mlp.")
        loaded = load_model(config, points)
        model = cls(loaded.module, loaded.tokenizer, config, loaded.provenance)
        model.provenance["fused"] = fuse(loaded.module, lambda: model._forward(model._check_ids()))
        model.self_check(hook_points or [])
        if hook_points and config.compile == "layers":
            tolerance, check = _LEAK_TOLERANCE[model.dtype], partial(model._read, model._check_ids(), hook_points)
            model.provenance["compile"] = compile_blocks(loaded.module, check, largest_difference=tolerance)
        return model

    @classmethod
    def from_module(
        cls, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, hook_points: Sequence[str] = ()
    ) -> "LanguageModel":
        """A model that is already in memory, of any of Transformers' classes; the given hook points are checked."""
        embedding = _embedding(module)
        dtype = str(embedding.dtype).removeprefix("torch.")
        config = ModelConfig(id=type(module).__name__, dtype=dtype, device=str(embedding.device))
        model = cls(module, tokenizer, config, {"id": config.id, "class": config.id, "dtype": dtype})
        model.self_check(hook_points)
        return model

    def with_adapters(self, adapters: Mapping[str, Adapter]) -> dict[str, "LanguageModel"]:
        """One model for each adapter, under its name, and `base` without any: all on these weights, in this memory.

        Each forward pass sets the hooks of every adapter, at strength 0 but for its own, so that the models differ by nothing
        else. Raises ModelError when an adapter was made for another base.
        """
        hooks = {}
        for name, adapter in adapters.items():
            adapter.check_base(self.config.id, self.provenance)
            hooks[name] = adapter.fit(self._module, self.provenance.get("n_layers_total"))
        models = {}
        for name in ("base", *adapters):
            model = models[name] = copy.copy(self)
            model._adapters = tuple((each, float(other == name)) for other, each in hooks.items())
            if name != "base":
                adapter, base = adapters[name], identity_of(self.provenance)
                model.config = dataclasses.replace(self.config, id=f"{self.config.id} + {adapter.name}")
                model.provenance = self.provenance | {
                    "id": model.config.id,
                    "sha256": combined_identity(base, {"sha256": adapter.sha256}),
                    "adapter": {"name": adapter.name, "sha256": adapter.sha256, "n_modules": len(hooks[name])},
                }
        return models

    def shares_weights_with(self, other: "LanguageModel") -> bool:
        """Whether both are the same module in memory."""
        return self._module is other._module

    @torch.inference_mode()
    def weights_cosine(self, other: "LanguageModel") -> float:
        """Cosine of the two models' weight matrices of one name and shape, 1-dimensional ones left out: 1 of a model and itself, near 0 of two
        trained apart, above 0.9 of most fine-tunes, NaN where they share none."""
        theirs = dict(other._module.named_parameters())
        sums = torch.zeros(3, dtype=torch.float64)
        for name, one in self._module.named_parameters():
            two = theirs.get(name)
            if two is not None and one.ndim > 1 and one.shape == two.shape:
                pair = one.float().flatten(), two.to(one.device).float().flatten()
                sums += torch.stack([pair[a] @ pair[b] for a, b in ((0, 1), (0, 0), (1, 1))]).double().cpu()
        return float(sums[0] / (sums[1] * sums[2]).sqrt())

    def width(self, hook_point: str) -> int:
        """Numbers in one activation at the hook point."""
        if hook_point not in self._widths:
            self.self_check([hook_point])
        return self._widths[hook_point]

    def read(self, batch: TokenBatch, hook_points: Sequence[str]) -> dict[str, Float[Tensor, "rows positions d"]]:
        """Activations at the hook points, in the model's dtype on its device. The forward pass stops at the deepest.

        Rows at padding are there too; `batch.mask` tells them apart. Raises HookPointError for an unknown hook point.
        """
        return self._read(batch.input_ids, hook_points)

    def logits(
        self, batch: TokenBatch, *, replace: Mapping[str, Callable[[Tensor], Tensor]] | None = None
    ) -> Float[Tensor, "rows positions vocab"]:
        """Next-token logits, with the activation at each hook point of `replace` replaced by what its function returns.

        A function gets and returns [rows, positions, d], in the model's dtype; what comes before its hook point stays
        as it was. Raises ModelError on a truncated model, or when a function returns another shape.
        """
        self._require_head()
        with (
            torch.inference_mode(),
            hooked(self._module, {name: _replacer(name, edit) for name, edit in (replace or {}).items()}),
        ):
            return self._forward(batch.input_ids).logits

    @torch.inference_mode()
    def logits_given(
        self, batch: TokenBatch, hook_point: str, value: Float[Tensor, "rows positions d"]
    ) -> Float[Tensor, "rows positions vocab"]:
        """Next-token logits with `value` in the place of the activation at the hook point, in the model's dtype.

        At a block's output or input the blocks before it are left out, where that gives the same. Raises ModelError as `logits` does.
        """
        self._require_head()
        return self._logits_given(batch.input_ids, hook_point, value, self._not_needed(hook_point))

    @torch.inference_mode()
    def boosted_logits(
        self, input_ids: Int[Tensor, " positions"], hook_point: str, boosts: Float[Tensor, "n d"]
    ) -> Float[Tensor, "n vocab"]:
        """Next-token logits after one text, for each of n vectors added to its activations at the hook point, in the model's dtype.

        What comes before the hook point's block is computed once for all n, where the model's modules allow it. Raises ModelError as `logits` does.
        """
        self._require_head()
        layer = HookPoint.parse(hook_point).layer
        block = f"layers.{layer}.input"

        def add(value: Tensor) -> Tensor:
            return value + boosts[:, None].to(value)

        def fan(value: Tensor) -> Tensor:
            return value.expand(len(boosts), -1, -1).contiguous()

        # contiguous: a head of one position of several would be multiplied row by row, with a copy of its weights for each
        last = cast(nn.Linear, self._module.get_output_embeddings()).register_forward_pre_hook(
            lambda _, given: (given[0][:, -1:].contiguous(),)
        )
        try:
            if layer is not None:
                edits = ({} if block == hook_point else {block: fan}) | {hook_point: add}
                # a module that keeps to the number of rows it saw at first has them all from the start
                with suppress(RuntimeError), hooked(self._module, edits):
                    return self._forward(input_ids[None]).logits[:, -1]
            with hooked(self._module, {hook_point: add}):
                return self._forward(input_ids.repeat(len(boosts), 1)).logits[:, -1]
        finally:
            last.remove()

    def gradient(
        self,
        batch: TokenBatch,
        hook_point: str,
        value: Float[Tensor, "rows positions d"],
        loss: Callable[[Float[Tensor, "rows positions vocab"]], Float[Tensor, ""]],
    ) -> Float[Tensor, "rows positions d"]:
        """How `loss` of the logits changes with `value` in the place of the activation at the hook point, in the model's dtype.

        Raises ModelError on a truncated model, or when `value` has another shape.
        """
        self._require_head()
        with torch.inference_mode():
            left_out = self._not_needed(hook_point)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = value.clone().requires_grad_()
            return torch.autograd.grad(loss(self._logits_given(batch.input_ids, hook_point, leaf, left_out)), leaf)[0]

    def next_logits(
        self,
        input_ids: Int[Tensor, "rows positions"],
        cache: Any = None,
        *,
        n_before: int = 0,
        replace: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> tuple[Float[Tensor, "rows vocab"], Any]:
        """Logits of the token after each row, float32, and the cache that goes on from there; see `generate.Decoding`.

        `cache` is of the `n_before` tokens before these; None begins. `replace` as in `logits`, for these positions.
        """
        self._require_head()
        with (
            torch.inference_mode(),
            hooked(self._module, {name: _replacer(name, edit) for name, edit in (replace or {}).items()}),
        ):
            output = self._forward(input_ids, n_before=n_before, use_cache=True, past_key_values=cache)
        if getattr(output, "past_key_values", None) is None:
            raise ModelError(f"{type(self._module).__name__} keeps no key-value cache; generation needs one.")
        return output.logits[:, -1].float(), output.past_key_values

    def token_embeddings(self) -> Float[Tensor, "vocab d"]:
        """The input embedding of every token, float32, on the CPU."""
        return _embedding(self._module).detach().float().cpu()

    @torch.inference_mode()
    def unembed(self, directions: Float[Tensor, "n d"]) -> Float[Tensor, "n vocab"]:
        """The logits that residual-stream vectors would give, through the model's own final norm and head, in float32.

        Raises ModelError on a truncated model, or when the vectors are not as wide as the residual stream.
        """
        self._require_head()
        trunk = find_trunk(self._module).module
        norm = next((getattr(trunk, name) for name in _FINAL_NORMS if hasattr(trunk, name)), None)
        if norm is None:
            raise ModelError(
                f"{type(trunk).__name__} has no final norm under {', '.join(_FINAL_NORMS)}; unembed needs one."
            )
        head = cast(nn.Linear, self._module.get_output_embeddings())
        if directions.ndim != 2 or directions.shape[1] != head.weight.shape[1]:
            raise ModelError(f"unembed got shape {tuple(directions.shape)}. Expected [n, {head.weight.shape[1]}].")
        normed = copy.deepcopy(norm).float()(directions.to(self.device, torch.float32))
        # In chunks: a float32 copy of the whole head is gigabytes.
        chunks = [normed @ weight.float().T for weight in head.weight.split(_VOCAB_CHUNK)]
        return self._scaled(torch.cat(chunks, dim=1) + (0.0 if head.bias is None else head.bias.float()))

    def self_check(self, hook_points: Sequence[str]) -> None:
        """Raises ModelError naming the hook point unless each is finite, of the expected shape, and fires once a pass.

        Also unless a second pass gives the same, text further right changes nothing, `unembed` agrees with a head.
        """
        ids = self._check_ids()
        beside = torch.cat([torch.cat([ids, ids], dim=1), torch.cat([ids.flip(1), ids], dim=1)])
        first = {name: self._checked_activation(name, ids) for name in hook_points}
        if hook_points:
            second, wide = self._read(ids, hook_points), self._read(beside, hook_points)
            for name in hook_points:
                _check_equal(name, first[name], second[name], wide[name][:1, : ids.shape[1]])
        self._widths.update({name: value.shape[2] for name, value in first.items()})
        if self._has_head():
            self._check_unembed(ids)
        self.provenance["self_check"] = {"hook_points": sorted(self._widths), "tokens": ids.shape[1], "passed": True}

    def _check_ids(self) -> Int[Tensor, "1 positions"]:
        token_ids = self.tokenizer(_CHECK_TEXT, add_special_tokens=False)["input_ids"][:_CHECK_TOKENS]
        if not token_ids:
            raise ModelError(f"The tokenizer of {self.config.id} gives no tokens for plain text.")
        return torch.tensor([token_ids])

    def _read(self, input_ids: Tensor, hook_points: Sequence[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def reader(name: str) -> Callable[[Tensor], None]:
            def take(value: Tensor) -> None:
                found[name] = value
                if len(found) == len(wanted):
                    raise StopForward

            return take

        wanted = {name: reader(name) for name in hook_points}
        with torch.inference_mode(), hooked(self._module, wanted):
            try:
                self._forward(input_ids)
            except StopForward:
                return {name: found[name] for name in hook_points}
        silent = ", ".join(name for name in hook_points if name not in found)
        raise ModelError(f"{silent} never fires in a forward pass on text. Choose a module that the model calls.")

    def _forward(self, input_ids: Tensor, *, n_before: int = 0, use_cache: bool = False, **more: Any) -> Any:
        longest = getattr(self._module.config.get_text_config(), "max_position_embeddings", None)
        n_tokens = n_before + input_ids.shape[1]
        if longest and n_tokens > longest:
            remedy = "Give a shorter text, or fewer new tokens." if use_cache else "Lower text.context_tokens."
            raise ModelError(f"A row holds {n_tokens} tokens; {self.config.id} takes {longest}. {remedy}")
        with ExitStack() as adapted:
            for hooks, strength in self._adapters:
                adapted.enter_context(hooks.applied(strength))
            return self._module(input_ids=input_ids.to(self.device, non_blocking=True), use_cache=use_cache, **more)

    def _logits_given(self, input_ids: Tensor, hook_point: str, value: Tensor, left_out: Sequence[nn.Module]) -> Tensor:
        with skipped(left_out), hooked(self._module, {hook_point: _replacer(hook_point, lambda _: value)}):
            return self._forward(input_ids).logits

    def _not_needed(self, hook_point: str) -> list[nn.Module]:
        """The blocks whose work is lost when the activation there is given; none, where leaving them out changes logits."""
        blocks = list(find_trunk(self._module).blocks)[: HookPoint.parse(hook_point).first_needed]
        if blocks and hook_point not in self._can_begin:
            ids = self._check_ids()
            value = self._read(ids, [hook_point])[hook_point].flip(1)  # not what the blocks would give
            try:
                short = self._logits_given(ids, hook_point, value, blocks)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                short = None
            whole = self._logits_given(ids, hook_point, value, [])
            self._can_begin[hook_point] = short is not None and torch.equal(short, whole)
        return blocks if self._can_begin.get(hook_point) else []

    def _checked_activation(self, name: str, ids: Tensor) -> Float[Tensor, "rows positions d"]:
        values: list[Tensor] = []
        with torch.inference_mode(), hooked(self._module, {name: values.append}):
            self._forward(ids)
        if len(values) != 1:
            raise ModelError(
                f"{name} fires {len(values)} times in a forward pass. Expected once: choose another module."
            )
        value = values[0]
        hidden = self._module.config.get_text_config().hidden_size
        is_residual = HookPoint.parse(name).layer is not None and not HookPoint.parse(name).module
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[:2] != ids.shape:
            raise ModelError(f"{name} gives {shape}. Expected one vector a token: [1, {ids.shape[1]}, width].")
        if is_residual and value.shape[2] != hidden:
            raise ModelError(f"{name} gives {shape}. Expected the residual stream's width {hidden}.")
        if not value.isfinite().all():
            raise ModelError(f"{name} gives NaN or infinity on plain text in {self.dtype}. Try model.dtype = float32.")
        return value

    def _check_unembed(self, ids: Tensor) -> None:
        trunk = find_trunk(self._module)
        last: list[Tensor] = []
        with torch.inference_mode(), hooked(self._module, {f"layers.{self.n_layers - 1}": last.append}):
            logits = self._forward(ids).logits[0].float()
        if not logits.isfinite().all():
            raise ModelError(f"{self.config.id} gives NaN or infinite logits on plain text in {self.dtype}.")
        difference = _relative(self.unembed(last[0][0]), logits)
        if not difference <= _LEAK_TOLERANCE[self.dtype]:
            raise ModelError(
                f"Final norm and head of {type(trunk.module).__name__} do not give the model's own logits (relative "
                f"difference {difference:.2g}). This architecture scales its logits in a way that is not known here."
            )

    def _has_head(self) -> bool:
        return self._module.get_output_embeddings() is not None

    def _require_head(self) -> None:
        if not self._has_head():
            raise ModelError(
                f"{self.config.id} was loaded without its head, up to layer {self.n_layers - 1}. "
                "Load it with hook_points=None."
            )

    def _scaled(self, logits: Tensor) -> Tensor:
        """What some architectures do after the head: Gemma caps, Cohere multiplies, Granite divides."""
        text_config = self._module.config.get_text_config()
        logits = logits * (getattr(text_config, "logit_scale", None) or 1.0)
        logits = logits / (getattr(text_config, "logits_scaling", None) or 1.0)
        cap = getattr(text_config, "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits


def _embedding(module: PreTrainedModel) -> Float[Tensor, "vocab d"]:
    return cast(nn.Embedding, module.get_input_embeddings()).weight


def _stop_ids(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    named = [getattr(getattr(module, name, None), "eos_token_id", None) for name in ("generation_config", "config")]
    listed = [ids if isinstance(ids, list) else [ids] for ids in (*named, tokenizer.eos_token_id)]
    return frozenset(id for ids in listed for id in ids if isinstance(id, int))


def _replacer(name: str, edit: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def replace(value: Tensor) -> Tensor:
        replaced = edit(value)
        if replaced.shape != value.shape:
            raise ModelError(
                f"The replacement at {name} has shape {tuple(replaced.shape)}. Expected {tuple(value.shape)}."
            )
        return replaced.to(value.dtype)

    return replace


def _check_equal(name: str, first: Tensor, second: Tensor, beside_other_text: Tensor) -> None:
    if not torch.equal(first, second):
        raise ModelError(f"{name} differs between two passes over the same tokens. Expected a deterministic model.")
    difference = _relative(beside_other_text, first)
    if not difference <= _LEAK_TOLERANCE[first.dtype]:
        raise ModelError(
            f"{name} changes by {difference:.2g} (relative) when other text stands to the right or in another row. "
            "Expected a causal model."
        )


def _relative(value: Tensor, reference: Tensor) -> float:
    tiny = torch.finfo(torch.float32).tiny
    return float((value.float() - reference.float()).norm() / reference.float().norm().clamp_min(tiny))
