"""Which form of the training step an SAE gets.

    dense      closed form, in one CUDA graph (graphed, dense, kernels/gpu)    relu, topk, batchtopk in bfloat16 on CUDA
    fused      closed form, by C kernels (fused, kernels/cpu)                  the same on a CPU, and their crosscoders
    autograd   the definition (autograd, losses)                               everything else

A CUDA device without Triton trains by autograd, and a warning says so once. On a CPU `dense` can be asked for: it is
how its wiring is tested without a GPU, by plain torch instead of kernels, and slow.
"""

import logging
from collections.abc import Mapping
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from sparsight.errors import SAEError
from sparsight.sae.autograd import AutogradStep
from sparsight.sae.config import SAEConfig
from sparsight.sae.dense import DenseStep
from sparsight.sae.fused import FusedStep, fuses
from sparsight.sae.graphed import GraphedStep
from sparsight.sae.kernels import eager
from sparsight.sae.kernels.workspace import Workspace
from sparsight.sae.step import Moments, TrainingStep

__all__ = ["FORMS", "chosen_form", "dense_on_cuda", "new_step"]

FORMS = ("autograd", "fused", "dense")
_log = logging.getLogger(__name__)


def dense_on_cuda(cfg: SAEConfig) -> bool:
    """Whether this SAE trains in the dense form on a CUDA device with Triton."""
    return DenseStep.supports(cfg) and cfg.precision == "bfloat16"


def chosen_form(cfg: SAEConfig, device: torch.device, wanted: str = "auto") -> str:
    """One of FORMS; `wanted` is one of them or auto. Raises SAEError when this SAE cannot have it here."""
    on_cuda = device.type == "cuda"
    if wanted == "auto":
        if on_cuda and dense_on_cuda(cfg) and _gpu_kernels() is not None:
            return "dense"
        return "fused" if fuses(cfg, device) else "autograd"
    possible = {"autograd": True, "fused": fuses(cfg, device)}
    possible["dense"] = DenseStep.supports(cfg) and (not on_cuda or _gpu_kernels() is not None)
    if not possible.get(wanted):
        here = ", ".join(form for form in FORMS if possible[form])
        raise SAEError(f"SAE {cfg.id} has no {wanted!r} step on {device}. Expected auto or one of {here}.")
    return wanted


def new_step(
    form: str,
    cfg: SAEConfig,
    weights: Mapping[str, Tensor],
    moments: Moments,
    measured: Mapping[str, Tensor],
    *,
    total_steps: int,
    space: Workspace,
) -> TrainingStep:
    """The step of that form. For all but autograd W_enc and its moments are views of matrices with a row per latent."""
    state = cfg, weights, moments, measured
    if form == "autograd":
        return AutogradStep(*state, total_steps=total_steps)
    if form == "fused":
        return FusedStep(*state, total_steps=total_steps, space=space)
    on_cuda = weights["W_dec"].is_cuda
    dense = DenseStep(*state, total_steps=total_steps, ops=_gpu_kernels() if on_cuda else eager)
    return GraphedStep(dense, pool=space.graph_pool() if on_cuda else None)


@cache
def _gpu_kernels() -> ModuleType | None:
    """The Triton kernels; None, said aloud once, where Triton cannot be imported."""
    try:
        from sparsight.sae.kernels import gpu
    except ImportError as error:
        _log.warning("SAEs train by autograd, without the GPU's kernels (%s). Install sparsight[gpu].", error)
        return None
    return gpu
