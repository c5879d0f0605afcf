"""The training step by autograd: the objective of `losses`, torch's Adam. Every architecture, precision and device.

This is the definition; `fused` and `dense` compute the same faster for some of it, and are tested against it.

A step: divide by the scale, take the objective's gradient, shorten it to max_gradient_norm, remove the part of the
decoder's gradient along its own rows (it would only be undone), Adam, put the rows back to norm 1 (both not for relu).
Trade-off: nothing is fused, so most of its time goes into passes over memory between the products.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from sparsight.sae.config import SAEConfig
from sparsight.sae.losses import Losses, LossInput, training_losses
from sparsight.sae.step import HostStep, Moments

__all__ = ["AutogradStep"]


class AutogradStep(HostStep):
    """One SAE's step. `weights` are leaves that require gradients."""

    def __init__(
        self,
        cfg: SAEConfig,
        weights: Mapping[str, Tensor],
        moments: Moments,
        measured: Mapping[str, Tensor],
        *,
        total_steps: int,
    ) -> None:
        super().__init__(cfg, weights, moments, measured, total_steps=total_steps)
        self._adam = torch.optim.Adam(weights.values(), lr=cfg.lr, betas=cfg.betas, eps=cfg.adam_eps, fused=True)
        for name, weight in weights.items():
            self._adam.state[weight] = {"step": torch.zeros((), device=self.device), **moments[name]}

    def reload(self, steps_done: int) -> None:
        """See `TrainingStep`."""
        super().reload(steps_done)
        for state in self._adam.state.values():
            state["step"].fill_(float(steps_done))

    def _take(self, x: Tensor, target: Tensor, *, lr: float, sparsity_weight: float) -> Losses:
        normalised = x.to(self.device, torch.float32, non_blocking=True) / self.measured["input_scale"]
        wanted = normalised
        if target is not x:
            wanted = target.to(self.device, torch.float32, non_blocking=True) / self.measured["target_scale"]
        losses = training_losses(self.cfg, self.weights, self._loss_input(normalised, wanted, sparsity_weight))
        self._adam.zero_grad(set_to_none=True)
        losses.loss.backward()
        self._update(lr)
        return losses

    def _loss_input(self, x: Tensor, target: Tensor, sparsity_weight: float) -> LossInput:
        measured = self.measured
        return LossInput(
            x=x,
            target=target,
            centre=measured["input_mean"] if self.cfg.is_transcoder else self.weights["b_dec"],
            dead=measured["tokens_since_fired"] >= self.cfg.dead_after_tokens,
            sparsity_weight=sparsity_weight,
            threshold=measured["threshold"],
            bandwidth=self.cfg.bandwidth * measured["input_deviation"],
        )

    @torch.no_grad()
    def _update(self, lr: float) -> None:
        self._adam.param_groups[0]["lr"] = lr
        W_dec = self.weights["W_dec"]
        keeps_norm = self.cfg.unit_norm_decoder and not self.cfg.freeze_decoder
        if self.cfg.freeze_decoder:
            W_dec.grad = None
        if self.cfg.gradient_limit < math.inf:
            gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
            longest = self.cfg.gradient_limit / W_dec.shape[1]
            torch._foreach_mul_(gradients, (longest / get_total_norm(gradients)).clamp(max=1.0))
        if keeps_norm:
            assert W_dec.grad is not None
            W_dec.grad.addcmul_(W_dec, torch.linalg.vecdot(W_dec.grad, W_dec).unsqueeze(1), value=-1)
        self._adam.step()
        if keeps_norm:
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
