"""The fast forms of a Llama-like block's modules, for fused.py: what each is recognised by, and when it applies.

A form is called as (module, *args, **kwargs) and gives the module's result, or None where it does not apply. An MLP and an
attention whose weights are packed (product.py) have a second form, found as its attribute INSIDE, that a layer calls
instead of the module when nobody watches: (module, x, norm, base, ...) -> base + module(norm(x)).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from sparsight.lm.kernels import Kernels
from sparsight.lm.lowrank import LowRankHook
from sparsight.lm.product import FEWEST_ROWS, Norm, Packed, Products

__all__ = ["INSIDE", "Fast", "recognise"]

Fast = Callable[..., Any]
INSIDE = "inside_a_layer"
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def recognise(kind: str, module: nn.Module, kernels: Kernels) -> Fast | None:
    """The module's fast form as one of that kind (norm, mlp, attention, layer); None if it is not recognised."""
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


def _fast_norm(module: Any, kernels: Kernels) -> Fast | None:
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


def _fast_mlp(module: Any, kernels: Kernels) -> Fast | None:
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    values = torch.linspace(-8, 8, 101).bfloat16()
    if not _are_plain(gate, up, down) or not torch.equal(module.act_fn(values), nn.functional.silu(values)):
        return None
    merged = _merge(gate, up)
    packed = _pack(kernels.products, ((gate, up), (down,)), hidden=down.in_features, alternate=True)

    def within(self: Any, x: Any, norm: Norm | None, base: Tensor | None) -> Tensor | None:
        if packed is None or x.numel() < FEWEST_ROWS * x.shape[-1] or not _applies(x, merged.shape[1]):
            return None
        if _is_watched(*self.children()) or not packed.are_held((self.gate_proj, self.up_proj), (self.down_proj,)):
            return None
        return packed.products.gated(_rows(x), norm, *packed.weights, _rows(base)).view(x.shape)

    def mlp(self: Any, x: Any, *more: Any, **kwargs: Any) -> Tensor | None:
        if more or kwargs or not _applies(x, merged.shape[1]) or _is_watched(*self.children(), adapted=True):
            return None
        result = within(self, x, None, None)
        if result is not None:
            return result
        if not _holds(merged, self.gate_proj, self.up_proj):
            return None
        hidden = kernels.silu_mul(_product(kernels, _rows(x), merged, self.gate_proj, self.up_proj))
        return _product(kernels, hidden, self.down_proj.weight, self.down_proj).view(*x.shape[:-1], -1)

    return _with_inside(mlp, within)


def _fast_attention(module: Any, kernels: Kernels) -> Fast | None:
    projections = (module.q_proj, module.k_proj, module.v_proj)
    width, scale = getattr(module, "head_dim", 0), getattr(module, "scaling", None)
    refused = any(getattr(module, name, None) for name in ("sliding_window", "attn_logit_softcapping", "softcap"))
    if refused or not width or width % 2 or not isinstance(scale, float):
        return None
    if not _are_plain(*projections, module.o_proj):
        return None
    merged = _merge(*projections)
    packed = _pack(kernels.products, (projections, (module.o_proj,)))
    heads = (module.q_proj.out_features // width, module.k_proj.out_features // width)

    def is_usual(self: Any, x: Any, cos: Any, sin: Any, kwargs: dict[str, Any]) -> bool:
        if not _applies(x, merged.shape[1]) or x.ndim != 3 or self.training or not _is_usual(kwargs):
            return False
        if self.config._attn_implementation != "sdpa" or _is_watched(*self.children(), adapted=True):
            return False
        return all(_applies(table, width) and table.shape == (1, x.shape[1], width) for table in (cos, sin))

    def within(
        self: Any, x: Any, norm: Norm | None, base: Tensor, position_embeddings: Any = None, **kwargs: Any
    ) -> Tensor | None:
        tables: Any = position_embeddings or (None, None)
        cos, sin = tables
        if packed is None or x.numel() < FEWEST_ROWS * x.shape[-1] or not is_usual(self, x, cos, sin, kwargs):
            return None
        if _is_watched(*self.children()) or not packed.are_held(
            (self.q_proj, self.k_proj, self.v_proj), (self.o_proj,)
        ):
            return None
        qkv = packed.products.product(_rows(x), norm, packed.weights[0], None)
        mixed = kernels.attention(qkv, cos, sin, (*x.shape[:2], *heads, width), scale)
        return packed.products.product(mixed, None, packed.weights[1], _rows(base)).view(x.shape)

    def attention(self: Any, hidden_states: Any, position_embeddings: Any = None, **kwargs: Any) -> Any:
        tables: Any = position_embeddings or (None, None)
        x, cos, sin = hidden_states, *tables
        if not is_usual(self, x, cos, sin, kwargs) or not _holds(merged, self.q_proj, self.k_proj, self.v_proj):
            return None
        qkv = _product(kernels, _rows(x), merged, self.q_proj, self.k_proj, self.v_proj)
        mixed = kernels.attention(qkv, cos, sin, (*x.shape[:2], *heads, width), scale)
        return _product(kernels, mixed, self.o_proj.weight, self.o_proj).view(*x.shape[:2], -1), None

    return _with_inside(attention, within)


def _fast_layer(module: Any, kernels: Kernels) -> Fast | None:
    if not all("forward" in vars(part) for part in (module.input_layernorm, module.post_attention_layernorm)):
        return None

    def layer(self: Any, hidden_states: Any, **kwargs: Any) -> Tensor | None:
        x, norm = hidden_states, self.post_attention_layernorm
        if not _applies(x, norm.weight.shape[0]):
            return None
        between = _inside(self.self_attn, self.input_layernorm, x, x, **kwargs)
        if between is not None:
            result = _inside(self.mlp, norm, between, between)
            return (
                torch.add(between, self.mlp(norm(between)), out=kernels.empty(*x.shape)) if result is None else result
            )
        mixed = self.self_attn(hidden_states=self.input_layernorm(x), **kwargs)[0]
        if mixed.dtype == x.dtype and mixed.is_contiguous() and not _is_watched(norm):
            x, normed = kernels.add_norm(x, mixed, norm.weight, *norm._fused_norm)
        else:
            x = torch.add(x, mixed, out=kernels.empty(*x.shape))
            normed = norm(x)
        result = _inside(self.mlp, None, normed, x)
        return torch.add(x, self.mlp(normed), out=kernels.empty(*x.shape)) if result is None else result

    return layer


def _inside(part: Any, norm: Any, x: Tensor, base: Tensor, **kwargs: Any) -> Tensor | None:
    """base + part(norm(x)) in one step; None where somebody watches either, or where it does not apply."""
    step = getattr(vars(part).get("forward"), INSIDE, None)
    if step is None or _is_watched(part) or base.shape != x.shape:
        return None
    if norm is None:
        return step(part, x, None, base, **kwargs)
    if _is_watched(norm) or "forward" not in vars(norm) or not _is_weight(norm.weight, x.shape[-1]):
        return None
    return step(part, x, Norm(norm.weight, *norm._fused_norm), base, **kwargs)


def _with_inside(fast: Fast, within: Fast) -> Fast:
    setattr(fast, INSIDE, within)
    return fast


def _applies(x: Any, width: int) -> bool:
    """Whether the kernels can read it: bfloat16 rows of that width on the CPU, and no gradients wanted."""
    readable = isinstance(x, Tensor) and x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous()
    return readable and x.shape[-1:] == (width,) and x.numel() > 0 and not torch.is_grad_enabled()


def _is_weight(weight: Any, width: int) -> bool:
    return weight.dtype == torch.bfloat16 and weight.is_contiguous() and weight.shape == (width,)


def _is_usual(kwargs: dict[str, Any]) -> bool:
    """Whether attention is asked for nothing but every position once: no mask, no cache, nothing unknown."""
    return all(value is None or name in ("position_ids", "use_cache") for name, value in kwargs.items())


def _is_watched(*modules: nn.Module, adapted: bool = False) -> bool:
    """Whether somebody would miss a call of one of them; `adapted`: other than adapters, whose terms `_product` adds."""
    hooks = [
        hook for module in modules for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    watching = [hook for hook in hooks if not (adapted and isinstance(hook, LowRankHook))]
    return bool(watching or torch_modules._has_any_global_hook())


def _product(kernels: Kernels, x: Tensor, weight: Tensor, *linears: nn.Module) -> Tensor:
    """x weight' for the weight of one projection, or of several side by side, with what adapters on them add."""
    out, at = kernels.product(x, weight), 0
    for linear in linears:
        width = linear.get_parameter("weight").shape[0]
        for hook in linear._forward_hooks.values():
            if isinstance(hook, LowRankHook):
                hook.add_to(out[:, at : at + width], x)
        at += width
    return out


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


@dataclass(frozen=True)
class _Pair:
    """The two packed weights of an MLP or of an attention."""

    products: Products
    weights: tuple[Packed, Packed]

    def are_held(self, *linears: tuple[nn.Linear, ...]) -> bool:
        return all(self.products.holds(weight, *parts) for weight, parts in zip(self.weights, linears, strict=True))


def _pack(
    products: Products | None,
    linears: tuple[tuple[nn.Linear, ...], tuple[nn.Linear, ...]],
    hidden: int = 0,
    alternate: bool = False,
) -> _Pair | None:
    if products is None:
        return None
    first = products.pack(*linears[0], hidden=hidden, alternate=alternate)
    second = products.pack(*linears[1])
    return None if first is None or second is None else _Pair(products, (first, second))


def _rows(x: Any) -> Any:
    return None if x is None else x.view(-1, x.shape[-1])
