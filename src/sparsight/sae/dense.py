"""The training step of relu, topk and batchtopk in closed form, dense, with nothing in it that asks the device.

    pre = (x - centre) W_enc + b_enc;  z = select(pre);  e = z W_dec + b_dec - target;  mse = mean(e^2)
    g = 2 e / (n d_out);  dz = [z > 0] (g W_dec^T + l1);  dW_dec = z^T g + l1 pull;  dW_enc = (x - centre)^T dz
    db_enc = sum(dz);  db_dec = sum(g) - W_enc db_enc, the second part for autoencoders, whose centre is b_dec

Then Adam, with the decoder's rows kept at norm 1 (both as in `autograd`, which is the definition). Five
products of n x F x d; all else is one pass over what it touches (`kernels`). Learning rate, step number and weights of
penalties are looked up in device memory, so the same call can be repeated by a CUDA graph (`graphed`).

AuxK looks at `aux_capacity` columns instead of all: the dead latents from a place that moves on every step, so that
each gets its turn when there are more. Up to the capacity it is exactly AuxK; it costs capacity / F of a full one.

Not yet run on a GPU, for which it is meant; the tests run it on a CPU.
Trade-offs: W_enc lies transposed in memory (a row per latent), and bfloat16 copies of both matrices are kept beside the
float32 ones, 2 bytes more per weight instead of a conversion each step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils import get_total_norm

from sparsight.errors import SAEError
from sparsight.sae.config import SAEConfig
from sparsight.sae.kernels import eager
from sparsight.sae.products import product
from sparsight.sae.schedule import schedule_table
from sparsight.sae.step import CLOSED_FORM, has_closed_form

__all__ = ["DenseStep"]

_TINY = torch.finfo(torch.float32).tiny


@dataclass
class _Pass:
    """What one pass over a batch leaves for the update."""

    z: Float[Tensor, "n F"]
    e: Float[Tensor, "n d_out"]
    sums: Float[Tensor, " F"]
    fired: Float[Tensor, " F"]
    mse: Float[Tensor, ""]
    threshold: Float[Tensor, ""] | None
    gradients: dict[str, Tensor]
    pull: Float[Tensor, " F"] | None = None
    sparsity: Float[Tensor, ""] | None = None
    aux: Float[Tensor, ""] | None = None


class DenseStep:
    """One SAE's step. It changes the tensors it is given in place; they stay the trainer's."""

    def __init__(
        self,
        cfg: SAEConfig,
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Mapping[str, Tensor]],
        measured: Mapping[str, Tensor],
        *,
        total_steps: int,
        ops: Any = eager,
        aux_capacity: int = 0,
    ) -> None:
        """`weights`, Adam's `moments` (exp_avg, exp_avg_sq) by the same names and `measured` are those of `SAETrainer`.

        `W_enc` and its moments must be transposed views of matrices with a row per latent. `ops`: `kernels.eager`, or
        `kernels.gpu` on CUDA. `aux_capacity`: columns that AuxK looks at; 0: an eighth of the latents, at least twice
        k_aux. Raises SAEError for an architecture without a closed form here.
        """
        if not self.supports(cfg):
            known, what = ", ".join(CLOSED_FORM), "a crosscoder" if cfg.models > 1 else cfg.architecture
            raise SAEError(f"SAE {cfg.id}: {what} has no closed-form step; {known} have one.")
        self.cfg, self.ops, self.total_steps = cfg, ops, total_steps
        self.dtype = torch.bfloat16 if cfg.precision == "bfloat16" else torch.float32
        self._weights = {name: _rows_of_latents(name, tensor) for name, tensor in weights.items()}
        self._moments = {
            name: tuple(_rows_of_latents(name, pair[key]) for key in ("exp_avg", "exp_avg_sq"))
            for name, pair in moments.items()
        }
        self._measured = measured
        W_dec = self._weights["W_dec"]
        self.device = W_dec.device
        self.aux_capacity = min(cfg.n_latents, aux_capacity or self.aux_columns(cfg, self._weights["W_enc"].shape[1]))
        self._table = schedule_table(cfg, total_steps).to(self.device)
        self._step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._norms = torch.empty(cfg.n_latents, device=self.device)
        wide = self.dtype == torch.float32
        self._shadows = {} if wide else {name: self._weights[name].to(self.dtype) for name in ("W_enc", "W_dec")}
        self.metric_names = self._metric_names()
        self.metrics = torch.zeros(len(self.metric_names), device=self.device)
        """Of the latest step, in the order of `metric_names`; changed in place."""
        self.reload(0)

    @staticmethod
    def supports(cfg: SAEConfig) -> bool:
        """Whether this step can train `cfg`."""
        return has_closed_form(cfg, "cuda")

    @staticmethod
    def aux_columns(cfg: SAEConfig, d_in: int) -> int:
        """Columns that AuxK looks at where nothing else is asked for."""
        return min(cfg.n_latents, max(2 * cfg.aux_latents(d_in), cfg.n_latents // 8))

    @torch.no_grad()
    def reload(self, steps_done: int) -> None:
        """Take the weights as they are now and go on after `steps_done` steps; needed whenever others change them."""
        self._step.fill_(steps_done)
        for name, shadow in self._shadows.items():
            shadow.copy_(self._weights[name])
        self._norms.copy_(torch.linalg.vector_norm(self._weights["W_dec"], dim=1))

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"]) -> None:
        """One step on raw activations of any float type, without gaps; for an autoencoder `target` is `x`."""
        planned = self._table.index_select(0, self._step)[0]
        centre = self._measured["input_mean"] if self.cfg.is_transcoder else self._weights["b_dec"]
        centred = self.ops.centred(x, self._measured["input_scale"], centre, self.dtype)
        done = self._forward_and_backward(centred, target, planned)
        self._update(done, planned)
        self._count(done, len(x), planned)
        self._measure(done, target, planned)
        self._step.add_(1)

    def _forward_and_backward(self, x: Tensor, target: Tensor, planned: Tensor) -> _Pass:
        W_enc, W_dec = (self._shadows.get(name, self._weights[name]) for name in ("W_enc", "W_dec"))
        pre = torch.addmm(self._weights["b_enc"].to(self.dtype), x, W_enc.T)
        dead = self._dead_columns(pre) if self._has_aux else None
        z, threshold = pre, self._select(pre)
        selected = self.cfg.architecture == "topk" and self.cfg.k < self.cfg.n_latents
        sums, fired = self.ops.activate_(z, threshold, write=not selected)
        e = product(z, W_dec)
        scale = self._measured["target_scale" if self.cfg.is_transcoder else "input_scale"]
        g, squares = self.ops.residual_(e, self._weights["b_dec"], target, scale, self.dtype)
        gradients = {"W_dec": product(z.T, g), "b_dec": e.sum(0) * (2 / e.numel())}
        done = _Pass(z, e, sums, fired, squares / e.numel(), threshold, gradients)
        dz = g @ W_dec.T
        shift = self._penalise(done, planned)
        gradients["b_enc"] = self.ops.mask_gradient_(dz, z, shift)
        if dead is not None:
            self._add_auxk(done, dz, W_dec, *dead)
        gradients["W_enc"] = product(dz.T, x)
        if not self.cfg.is_transcoder:
            gradients["b_dec"] -= self._weights["W_enc"].T @ gradients["b_enc"]
        return done

    def _select(self, pre: Tensor) -> Tensor | None:
        """Applies topk's selection in place, or gives batchtopk's threshold."""
        if self.cfg.architecture == "batchtopk":
            return self.ops.batch_threshold(pre, len(pre) * self.cfg.k)
        if self.cfg.architecture == "topk" and self.cfg.k < self.cfg.n_latents:
            self.ops.select_topk_(pre, self.cfg.k)
        return None

    def _penalise(self, done: _Pass, planned: Tensor) -> Tensor | None:
        """relu's L1: the penalty, the decoder's pull (per row, times the row), and the shift of dz per column."""
        if self.cfg.architecture != "relu":
            return None
        weight = self.cfg.l1_coefficient * planned[3]
        n, d_out = done.e.shape
        if self.cfg.l1_penalty == "raw":
            done.sparsity = done.sums.sum() / done.z.numel()
            return (weight / done.z.numel()).expand(self.cfg.n_latents).contiguous()
        done.sparsity = (done.sums * self._norms).sum() / (n * d_out)
        weight = weight / (n * d_out)
        done.pull = torch.where(self._norms > 0, weight * done.sums / self._norms, 0.0)
        return weight * self._norms

    @property
    def _has_aux(self) -> bool:
        return self.cfg.selects_k and self.cfg.auxk_coefficient > 0

    def _dead_columns(self, pre: Tensor) -> tuple[Int[Tensor, " c"], Bool[Tensor, ""], Float[Tensor, "n c"]]:
        """`aux_capacity` different columns, dead ones first from a moving start; whether any is; their values, 0 if alive.

        Compaction by a running count: sorting or `nonzero` would do the same with more work or by asking the device.
        """
        F = self.cfg.n_latents
        order = (torch.arange(F, device=self.device) + self._step * self.aux_capacity) % F
        dead = (self._measured["tokens_since_fired"] >= self.cfg.dead_after_tokens).index_select(0, order)
        n_before = dead.cumsum(0)
        alive_place = n_before[-1] + torch.arange(F, device=self.device) - n_before
        place = torch.where(dead, n_before - 1, alive_place)
        columns = torch.empty_like(order).scatter_(0, place, order)[: self.aux_capacity]
        is_dead = torch.arange(self.aux_capacity, device=self.device) < n_before[-1]
        return columns, n_before[-1] > 0, pre.index_select(1, columns).masked_fill_(~is_dead, 0.0)

    def _add_auxk(self, done: _Pass, dz: Tensor, W_dec: Tensor, columns: Tensor, any_dead: Tensor, a: Tensor) -> None:
        """AuxK's loss, and its gradients added to the others'; `a` holds the dead latents' pre-activations."""
        k_aux = self.cfg.aux_latents(self._weights["W_enc"].shape[1])
        if k_aux < a.shape[1]:
            self.ops.select_topk_(a, k_aux)
        else:
            a.relu_()
        rows = W_dec.index_select(0, columns)
        miss = product(a, rows).add_(done.e)  # the residual to rebuild is -e
        variance = (done.e - done.e.mean(0)).square_().mean().clamp_min(_TINY)
        done.aux = miss.square().mean() / variance * any_dead
        g = (miss * (self.cfg.auxk_coefficient * 2 / miss.numel() * any_dead / variance)).to(self.dtype)
        da = g @ rows.T
        gradients = done.gradients
        gradients["b_enc"].index_add_(0, columns, self.ops.mask_gradient_(da, a))
        gradients["W_dec"].index_add_(0, columns, product(a.T, g))
        dz.index_copy_(1, columns, dz.index_select(1, columns).add_(da))

    def _update(self, done: _Pass, planned: Tensor) -> None:
        options: dict[str, Any] = {"betas": self.cfg.betas, "eps": self.cfg.adam_eps}
        rates = torch.cat((planned[:2], self._shortening(done)))
        for name in ("b_enc", "b_dec"):
            W, g, (mean, square) = self._weights[name], done.gradients[name] * rates[2], self._moments[name]
            mean.mul_(options["betas"][0]).add_(g, alpha=1 - options["betas"][0])
            square.mul_(options["betas"][1]).addcmul_(g, g, value=1 - options["betas"][1])
            W.sub_(rates[0] * mean / (square.sqrt() * rates[1] + options["eps"]))
        for name in ("W_enc",) if self.cfg.freeze_decoder else ("W_enc", "W_dec"):
            extra: dict[str, Any] = {"shadow": self._shadows.get(name)}
            if name == "W_dec":
                extra |= {"unit_norm": self.cfg.unit_norm_decoder, "pull": done.pull, "norms": self._norms}
            state = (self._weights[name], done.gradients[name], *self._moments[name])
            self.ops.update_rows_(*state, rates, **options, **extra)

    def _shortening(self, done: _Pass) -> Float[Tensor, " 1"]:
        """What all gradients are multiplied by, so that together they are no longer than max_gradient_norm."""
        if self.cfg.gradient_limit == math.inf:
            return torch.ones(1, device=self.device)
        if done.pull is not None:
            done.gradients["W_dec"].addcmul_(done.pull.unsqueeze(1), self._weights["W_dec"])
            done.pull = None
        counted = [g for name, g in done.gradients.items() if name != "W_dec" or not self.cfg.freeze_decoder]
        norm = get_total_norm(counted)
        return (self.cfg.gradient_limit / done.e.shape[1] / norm).clamp(max=1.0).reshape(1)

    def _count(self, done: _Pass, n_tokens: int, planned: Tensor) -> None:
        self._measured["tokens_since_fired"].add_(n_tokens).masked_fill_(done.fired > 0, 0)
        if done.threshold is not None:
            self._measured["threshold"].lerp_(done.threshold, planned[4])

    def _metric_names(self) -> tuple[str, ...]:
        names = ("loss", "mse", "fvu", "l0", "dead_share", "lr", "penalty_raw", "penalty_decoder_norm")
        return names + (("sparsity_loss",) if self.cfg.architecture == "relu" else ("aux_loss",) * self._has_aux)

    def _measure(self, done: _Pass, target: Tensor, planned: Tensor) -> None:
        n, cells = len(target), done.z.numel()
        scale = self._measured["target_scale" if self.cfg.is_transcoder else "input_scale"]
        variance = target.float().var(0, correction=0).sum() * n / scale.square()
        since, loss, extra = self._measured["tokens_since_fired"], done.mse, []
        if done.sparsity is not None:
            loss, extra = loss + self.cfg.l1_coefficient * planned[3] * done.sparsity, [done.sparsity]
        elif done.aux is not None:
            loss, extra = loss + self.cfg.auxk_coefficient * done.aux, [done.aux]
        values = [
            loss,
            done.mse,
            done.mse * target.numel() / variance,
            done.fired.sum() / n,
            (since >= self.cfg.dead_after_tokens).float().mean(),
            planned[2],
            done.sums.sum() / cells,
            (done.sums * self._norms).sum() / cells,
        ]
        self.metrics.copy_(torch.stack(values + extra))


def _rows_of_latents(name: str, tensor: Tensor) -> Tensor:
    """The tensor as the step reads it: W_enc with a row per latent."""
    tensor = tensor.detach()
    if name != "W_enc":
        return tensor
    assert tensor.T.is_contiguous(), "W_enc and its moments must be transposed views of [F, d_in] matrices"
    return tensor.T
