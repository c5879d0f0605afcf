"""Llama-like blocks on the CPU in bfloat16, with fewer and fused steps between their matrix products.

Each module that is recognised gets a forward of its own, on that instance only:

    norm        RMSNorm, by w or 1 + w                    one kernel
    mlp         down(silu(gate(x)) * up(x))               gate and up as one product, silu and * as one kernel
    attention   causal, rotary, grouped keys, no bias     q, k, v as one product; rotary and softmax as one kernel
    layer       x + attention(norm(x)), then x + mlp(norm(x))     the first sum goes with the second norm

Merged weights are laid out once, and the projections' own weights become views of them, so memory stays the same.
Results come from buffers that are used again once nobody holds them: fresh ones of megabytes cost page faults each time.

With AMX tiles, for models up to 2 GB of projections, an MLP and an attention also keep their weights packed for products
of our own (product.py), a second copy: the MLP becomes one kernel, and a layer that nobody watches inside takes its norms
and sums into the products. Results record the copy's size as "packed_bytes".

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
from torch.nn.modules import module as torch_modules

from sparsight.lm.blocks import INSIDE, Fast, recognise
from sparsight.lm.kernels import Kernels, kernel_library
from sparsight.lm.product import Products, can_be_packed

__all__ = ["fuse"]

_TOLERANCE = 0.02  # bfloat16 resolves 0.004; a block's own roundings add up to 0.002-0.006
_KINDS = ("norm", "mlp", "attention", "layer")


def fuse(model: nn.Module, run: Callable[[], Any]) -> dict[str, Any]:
    """Gives the model's modules fast forwards where they apply; `run` makes one forward pass over some text.

    Returns what to record: the number of modules of each kind and the bytes of packed weights, or under "none" why there are none.
    """
    weights = list(model.parameters())
    if not weights or any(w.device.type != "cpu" or w.dtype != torch.bfloat16 for w in weights):
        return {"none": "not bfloat16 on the CPU"}
    if not hasattr(torch._C, "_storage_Use_Count") or not hasattr(torch_modules, "_has_any_global_hook"):
        return {"none": f"torch {torch.__version__} lacks what tells whether a buffer or a hook is in use"}
    library = kernel_library()
    if library is None:
        return {"none": "no compiled kernels"}
    if not library.support():
        return {"none": "the processor has no AVX-512 for bfloat16"}
    kernels = Kernels(library)
    if kernels.has_tiles and can_be_packed(model):
        products = Products.library()
        kernels.products = None if products is None else Products(products, kernels.empty)
    counts: dict[str, Any] = dict.fromkeys(_KINDS, 0)
    with torch.inference_mode(False), torch.no_grad():  # merged weights are ordinary tensors
        calls = _record_calls(model, run)
        for kind in _KINDS:  # layers last: they stand on the others
            for module, call in calls.items():
                fast = None if "forward" in vars(module) else recognise(kind, module, kernels)
                if fast is not None and _agrees(module, fast, *call):
                    module.forward = MethodType(_forward_with(fast), module)
                    counts[kind] += 1
    if not any(counts.values()):
        return {"none": "no module is recognised"}
    return counts | ({"packed_bytes": kernels.products.packed_bytes} if kernels.products is not None else {})


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


def _agrees(module: nn.Module, fast: Fast, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
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


def _forward_with(fast: Fast) -> Fast:
    # Bound to its module, it is bound to the copy in a deep copy.
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = fast(self, *args, **kwargs)
        return type(self).forward(self, *args, **kwargs) if result is None else result

    setattr(forward, INSIDE, getattr(fast, INSIDE, None))
    return forward
