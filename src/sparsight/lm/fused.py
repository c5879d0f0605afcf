"""Llama-like blocks on the CPU in bfloat16, with fewer and fused steps between their matrix products.

Each module that is recognised gets a forward of its own, on that instance only:

    norm        RMSNorm, by w or 1 + w                    one kernel
    mlp         down(silu(gate(x)) * up(x))               gate and up as one product, silu and * as one kernel
    attention   causal, rotary, grouped keys, no bias     q, k, v as one product; rotary and softmax as one kernel
    layer       x + attention(norm(x)), then x + mlp(norm(x))     the first sum goes with the second norm

Merged weights are laid out once, and the projections' own weights become views of them, so memory stays the same.
Results come from buffers that are used again once nobody holds them: fresh ones of megabytes cost page faults each time.

A module is recognised by its parts, and kept only if it gives what its own forward gives (relative difference up to
0.02) on the self-check's text and on noise. Its own forward is called whenever the fast one does not apply: with
gradients, another dtype, a mask, a cache, or a hook on a module that the fast form does not call. The trade-off: results
differ from Transformers' by bfloat16 rounding.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from sparsight.lm.kernels import Kernels, kernel_library

__all__ = ["fuse"]

_TOLERANCE = 0.02  # bfloat16 resolves 0.004; a block's own roundings add up to 0.002-0.006
_KINDS = ("norm", "mlp", "attention", "layer")
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_Fast = Callable[..., Any]  # (module, *args, **kwargs) -> the module's result, or None where it does not apply


def fuse(model: nn.Module, run: Callable[[], Any]) -> dict[str, Any]:
    """Gives the model's modules fast forwards where they apply; `run` makes one forward pass over some text.

    Returns what to record: the number of modules of each kind, or under "none" why there are none.
    """
    weights = list(model.parameters())
    if not weights or any(w.device.type != "cpu" or w.dtype != torch.bfloat16 for w in weights):
        return {"none": "not bfloat16 on the CPU"}
    library = kernel_library()
    if library is None:
        return {"none": "no compiled kernels"}
    if not library.support():
        return {"none": "the processor has no AVX-512 for bfloat16"}
    kernels = Kernels(library)
    counts: dict[str, Any] = dict.fromkeys(_KINDS, 0)
    with torch.inference_mode(False), torch.no_grad():  # merged weights are ordinary tensors
        calls = _record_calls(model, run)
        for kind in _KINDS:  # layers last: they stand on the others
            for module, call in calls.items():
                fast = None if "forward" in vars(module) else _recognise(kind, module, kernels)
                if fast is not None and _agrees(module, fast, *call):
                    module.forward = MethodType(_forward_with(fast), module)
                    counts[kind] += 1
    return counts if any(counts.values()) else {"none": "no module is recognised"}


def _record_calls(model: nn.Module, run: Callable[[], Any]) -> dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Each module's arguments in one pass; those called more than once, which a buffer could confuse, are left out."""
    calls: dict[nn.Module, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, []).append((args, kwargs))

    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in model.modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {module: made[0] for module, made in calls.items() if len(made) == 1}


def _agrees(module: nn.Module, fast: _Fast, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the fast form gives what the module's own forward gives, for its own input and for noise of that size."""
    given: Any = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(given, Tensor) or given.dtype != torch.bfloat16:
        return False
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(given.shape, generator=generator) + 0.5  # a mean, which a LayerNorm would take away
    for x in (given, (noise * given.float().std()).bfloat16()):
        changed = ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})
        try:
            own = _first(type(module).forward(module, *changed[0], **changed[1]))
            fused = _first(fast(module, *changed[0], **changed[1]))
        except (AttributeError, IndexError, RuntimeError, TypeError):
            return False
        if not isinstance(fused, Tensor) or fused.shape != own.shape:
            return False
        if not (fused.float() - own.float()).norm() <= _TOLERANCE * own.float().norm():
            return False
    return True


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result


def _forward_with(fast: _Fast) -> _Fast:
    # Bound to its module, it is bound to the copy in a deep copy.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = fast(self, *args, **kwargs)
        return type(self).forward(self, *args, **kwargs) if result is None else result

    return forward


def _recognise(kind: str, module: nn.Module, kernels: Kernels) -> _Fast | None:
    parts = dict(module.named_children())
    if kind == "norm":
        return _fast_norm(module, kernels) if not parts else None
    if next(module.parameters(recurse=False), None) is not None:
        return None
    if kind == "mlp":
        return _fast_mlp(module, kernels) if set(parts) == _MLP_PARTS else None
    if kind == "attention":
        return _fast_attention(module, kernels) if set(parts) == _PROJECTIONS else None
    return _fast_layer(module, kernels) if set(parts) == _LAYER_PARTS else None


def _fast_norm(module: Any, kernels: Kernels) -> _Fast | None:
    weights, eps = dict(module.named_parameters()), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if set(weights) != {"weight"} or weights["weight"].ndim != 1 or not isinstance(eps, float):
        return None
    # By w or by 1 + w: told apart by what a constant input gives.
    ones = torch.ones(1, module.weight.shape[0], dtype=torch.bfloat16)
    try:
        own = type(module).forward(module, ones).float()
    except (TypeError, RuntimeError):
        return None
    offset = min(0.0, 1.0, key=lambda offset: float((own - offset - module.weight.float()).norm()))
    module._fused_norm = (offset, eps)  # for the layer

    def norm(self: Any, x: Any, *more: Any, **kwargs: Any) -> Tensor | None:
        if more or kwargs or not _applies(x, self.weight.shape[0]):
            return None
        return kernels.norm(x, self.weight, offset, eps)

    return norm


def _fast_mlp(module: Any, kernels: Kernels) -> _Fast | None:
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    values = torch.linspace(-8, 8, 101).bfloat16()
    if not _are_plain(gate, up, down) or not torch.equal(module.act_fn(values), nn.functional.silu(values)):
        return None
    merged = _merge(gate, up)

    def mlp(self: Any, x: Any, *more: Any, **kwargs: Any) -> Tensor | None:
        if more or kwargs or not _applies(x, merged.shape[1]) or _is_watched(*self.children()):
            return None
        if not _holds(merged, self.gate_proj, self.up_proj):
            return None
        hidden = kernels.silu_mul(kernels.product(x.view(-1, x.shape[-1]), merged))
        return kernels.product(hidden, self.down_proj.weight).view(*x.shape[:-1], -1)

    return mlp


def _fast_attention(module: Any, kernels: Kernels) -> _Fast | None:
    projections = (module.q_proj, module.k_proj, module.v_proj)
    width, scale = getattr(module, "head_dim", 0), getattr(module, "scaling", None)
    refused = any(getattr(module, name, None) for name in ("sliding_window", "attn_logit_softcapping", "softcap"))
    if not kernels.has_attention or refused or not width or width % 2 or not isinstance(scale, float):
        return None
    if not _are_plain(*projections, module.o_proj):
        return None
    merged = _merge(*projections)
    heads = (module.q_proj.out_features // width, module.k_proj.out_features // width)

    def attention(self: Any, hidden_states: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        tables: Any = position_embeddings or (None, None)
        x, cos, sin = hidden_states, *tables
        if not _applies(x, merged.shape[1]) or x.ndim != 3 or self.training or not _is_usual(kwargs):
            return None
        if self.config._attn_implementation != "sdpa" or _is_watched(*self.children()):
            return None
        if not _holds(merged, self.q_proj, self.k_proj, self.v_proj):
            return None
        if not all(_applies(table, width) and table.shape == (1, x.shape[1], width) for table in (cos, sin)):
            return None
        qkv = kernels.product(x.view(-1, x.shape[2]), merged)
        mixed = kernels.attention(qkv, cos, sin, (*x.shape[:2], *heads, width), scale)
        return kernels.product(mixed, self.o_proj.weight).view(*x.shape[:2], -1), None

    return attention


def _fast_layer(module: Any, kernels: Kernels) -> _Fast | None:
    if not all("forward" in vars(part) for part in (module.input_layernorm, module.post_attention_layernorm)):
        return None

    def layer(self: Any, hidden_states: Any, **kwargs: Any) -> Tensor | None:
        x, norm = hidden_states, self.post_attention_layernorm
        if not _applies(x, norm.weight.shape[0]):
            return None
        mixed = self.self_attn(hidden_states=self.input_layernorm(x), **kwargs)[0]
        if mixed.dtype == x.dtype and mixed.is_contiguous() and not _is_watched(norm):
            x, normed = kernels.add_norm(x, mixed, norm.weight, *norm._fused_norm)
        else:
            x = torch.add(x, mixed, out=kernels.empty(*x.shape))
            normed = norm(x)
        return torch.add(x, self.mlp(normed), out=kernels.empty(*x.shape))

    return layer


def _applies(x: Any, width: int) -> bool:
    """Whether the kernels can read it: bfloat16 rows of that width on the CPU, and no gradients wanted."""
    readable = isinstance(x, Tensor) and x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous()
    return readable and x.shape[-1:] == (width,) and x.numel() > 0 and not torch.is_grad_enabled()


def _is_usual(kwargs: dict[str, Any]) -> bool:
    """Whether attention is asked for nothing but every position once: no mask, no cache, nothing unknown."""
    return all(value is None or name in ("position_ids", "use_cache") for name, value in kwargs.items())


def _is_watched(*modules: nn.Module) -> bool:
    """Whether somebody would miss a call of one of them."""
    hooks: Any = [hook for module in modules for hook in (*module._forward_hooks, *module._forward_pre_hooks)]
    return bool(hooks or _has_any_global_hook())


def _are_plain(*linears: nn.Module) -> bool:
    return all(
        type(linear) is nn.Linear and linear.bias is None and "forward" not in vars(linear) for linear in linears
    )


def _merge(*linears: nn.Linear) -> Tensor:
    """Their weights as one, of which their own become views."""
    merged = torch.cat([linear.weight.data for linear in linears])
    for linear, part in zip(linears, merged.split([linear.out_features for linear in linears]), strict=True):
        linear.weight.data = part
    return merged


def _holds(merged: Tensor, *linears: nn.Module) -> bool:
    """Whether their weights still are parts of the merged one; a hook or an adapter may have come between."""
    at = merged.data_ptr()
    for linear in linears:
        if type(linear) is not nn.Linear or linear.weight.data_ptr() != at:
            return False
        at += linear.weight.numel() * merged.element_size()
    return True
