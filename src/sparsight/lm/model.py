"""A language model to be looked into: read activations, replace them, ask what a direction writes to the vocabulary.

`read` stops the forward pass as soon as every hook point has been seen, and `logits_given` begins it at the one that is given, where the model allows
it: what lies beyond costs nothing.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsight.errors import HookPointError, ModelError
from sparsight.lm.adapter import Adapter, combined_identity, identity_of
from sparsight.lm.batches import TokenBatch
from sparsight.lm.compiled import compile_blocks
from sparsight.lm.config import ModelConfig
from sparsight.lm.fused import fuse
from sparsight.lm.head import has_head, unembed
from sparsight.lm.hookpoint import HookPoint, find_trunk
from sparsight.lm.hooks import hooked
from sparsight.lm.load import load_model
from sparsight.lm.passes import Passes
from sparsight.lm.selfcheck import LEAK_TOLERANCE, SelfCheck, check_ids

__all__ = ["LanguageModel"]


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
        self._passes = Passes(module=module, name=config.id, device=self.device)
        self._checked = SelfCheck(passes=self._passes, ids=check_ids(tokenizer, config.id), dtype=self.dtype)

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
        model.provenance["fused"] = fuse(loaded.module, lambda: model._passes.forward(model._checked.ids))
        model.self_check(hook_points or [])
        if hook_points and config.compile == "layers":
            check, tolerance = partial(model._passes.read, model._checked.ids, hook_points), LEAK_TOLERANCE[model.dtype]
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
            strengths = tuple((each, float(other == name)) for other, each in hooks.items())
            if name != "base":
                adapter, base = adapters[name], identity_of(self.provenance)
                model.config = dataclasses.replace(self.config, id=f"{self.config.id} + {adapter.name}")
                model.provenance = self.provenance | {
                    "id": model.config.id,
                    "sha256": combined_identity(base, {"sha256": adapter.sha256}),
                    "adapter": {"name": adapter.name, "sha256": adapter.sha256, "n_modules": len(hooks[name])},
                }
            model._passes = self._passes.with_adapters(strengths, model.config.id)
            model._checked = dataclasses.replace(self._checked, passes=model._passes)
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
        if hook_point not in self._checked.widths:
            self.self_check([hook_point])
        return self._checked.widths[hook_point]

    def read(self, batch: TokenBatch, hook_points: Sequence[str]) -> dict[str, Float[Tensor, "rows positions d"]]:
        """Activations at the hook points, in the model's dtype on its device. The forward pass stops at the deepest.

        Rows at padding are there too; `batch.mask` tells them apart. Raises HookPointError for an unknown hook point.
        """
        return self._passes.read(batch.input_ids, hook_points)

    def logits(
        self, batch: TokenBatch, *, replace: Mapping[str, Callable[[Tensor], Tensor]] | None = None
    ) -> Float[Tensor, "rows positions vocab"]:
        """Next-token logits, with the activation at each hook point of `replace` replaced by what its function returns.

        A function gets and returns [rows, positions, d], in the model's dtype; what comes before its hook point stays
        as it was. Raises ModelError on a truncated model, or when a function returns another shape.
        """
        self._require_head()
        with torch.inference_mode(), self._passes.replacing(replace):
            return self._passes.forward(batch.input_ids).logits

    @torch.inference_mode()
    def logits_given(
        self, batch: TokenBatch, hook_point: str, value: Float[Tensor, "rows positions d"]
    ) -> Float[Tensor, "rows positions vocab"]:
        """Next-token logits with `value` in the place of the activation at the hook point, in the model's dtype.

        At a block's output or input the blocks before it are left out, where that gives the same. Raises ModelError as `logits` does.
        """
        self._require_head()
        left_out = self._checked.not_needed(hook_point)
        return self._passes.logits_given(batch.input_ids, hook_point, value, left_out=left_out)

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
                    return self._passes.forward(input_ids[None]).logits[:, -1]
            with hooked(self._module, {hook_point: add}):
                return self._passes.forward(input_ids.repeat(len(boosts), 1)).logits[:, -1]
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
            left_out = self._checked.not_needed(hook_point)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = value.clone().requires_grad_()
            logits = self._passes.logits_given(batch.input_ids, hook_point, leaf, left_out=left_out)
            return torch.autograd.grad(loss(logits), leaf)[0]

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
        with torch.inference_mode(), self._passes.replacing(replace):
            output = self._passes.forward(input_ids, n_before=n_before, use_cache=True, past_key_values=cache)
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
        return unembed(self._module, directions)

    def self_check(self, hook_points: Sequence[str]) -> None:
        """Raises ModelError naming the hook point unless each is finite, of the expected shape, and fires once a pass.

        Also unless a second pass gives the same, text further right changes nothing, `unembed` agrees with a head.
        """
        self.provenance["self_check"] = self._checked.check(hook_points)

    def _require_head(self) -> None:
        if not has_head(self._module):
            raise ModelError(
                f"{self.config.id} was loaded without its head, up to layer {self.n_layers - 1}. "
                "Load it with hook_points=None."
            )


def _embedding(module: PreTrainedModel) -> Float[Tensor, "vocab d"]:
    return cast(nn.Embedding, module.get_input_embeddings()).weight


def _stop_ids(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    named = [getattr(getattr(module, name, None), "eos_token_id", None) for name in ("generation_config", "config")]
    listed = [ids if isinstance(ids, list) else [ids] for ids in (*named, tokenizer.eos_token_id)]
    return frozenset(id for ids in listed for id in ids if isinstance(id, int))
