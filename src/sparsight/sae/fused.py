"""The training step of relu, topk and batchtopk, and of their crosscoders, on a CPU, in closed form: no autograd, one pass over each weight.

    pre = bf16((x - centre) W_enc + b_enc)      z = select(pre)           e = z W_dec + b_dec - target
    d_x_hat = 2 e / (n d)                       d_z = [z > 0] (d_x_hat W_dec^T + penalty)
    d_W_dec = z^T d_x_hat + pull                d_W_enc = (x - centre)^T d_z
    d_b_enc = sum(d_z)                          d_b_dec = sum(d_x_hat) - W_enc d_b_enc, the latter for an autoencoder

The objective is `losses.py`'s, whose autograd form is the reference; `kernels/cpu.py` has the parts. Products read
bfloat16 copies of the weights, written by the update that made them; weights, moments and sums are float32. W_enc lives
transposed, so that a latent's weights are one row on both sides.

Sparse or dense. topk and batchtopk are sparse always. relu is sparse once fewer than 1/20 of its latents are active, and
dense before; see docs/log.md for the measurement behind that share. The rule looks at the batch alone, so a
resumed run takes the same way.
Trade-off: gradients are rounded to bfloat16 once, as the autograd form's products round them.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sparsight.sae.activation import keep_topk
from sparsight.sae.config import SAEConfig
from sparsight.sae.crosscoder import latent_weights, model_decoders
from sparsight.sae.kernels import cpu
from sparsight.sae.kernels.workspace import Workspace
from sparsight.sae.losses import Losses
from sparsight.sae.step import HostStep, Moments, has_closed_form

__all__ = ["FusedStep", "fuses"]

_SPARSE_SHARE = 1 / 20


def fuses(cfg: SAEConfig, device: torch.device) -> bool:
    """Whether this SAE's step has the closed form here: its architecture, bfloat16 products, a CPU with the kernels."""
    known = has_closed_form(cfg, "cpu") and cfg.precision == "bfloat16"
    return known and device.type == "cpu" and cpu.available()


class _Slopes(NamedTuple):
    """What either way, sparse or dense, gives to the update; sums are over the batch."""

    W_enc: Float[Tensor, "F d_in"]
    W_dec: Float[Tensor, "F d_out"]
    b_enc: Float[Tensor, " F"]
    latent_sums: Float[Tensor, " F"]
    n_active: Float[Tensor, ""]
    decoded: cpu.Decoded


class FusedStep(HostStep):
    """One SAE's step. `W_enc` and its moments are transposed views of matrices with a row per latent."""

    def __init__(
        self,
        cfg: SAEConfig,
        weights: Mapping[str, Tensor],
        moments: Moments,
        measured: Mapping[str, Tensor],
        *,
        total_steps: int,
        space: Workspace,
    ) -> None:
        """See `HostStep`; `space` is scratch, which SAEs that step in turn may share."""
        super().__init__(cfg, weights, moments, measured, total_steps=total_steps)
        self._space, self._W_enc = space, weights["W_enc"].detach().T
        assert self._W_enc.is_contiguous(), "W_enc must be a transposed view of an [F, d_in] matrix"
        self.reload(0)

    def reload(self, steps_done: int) -> None:
        """See `TrainingStep`; renews the bfloat16 copies."""
        super().reload(steps_done)
        b_enc, W_dec = self.weights["b_enc"].detach(), self.weights["W_dec"].detach()
        self._copies = {"W_enc": cpu.encoder_copy(self._W_enc, b_enc), "W_dec": W_dec.bfloat16()}

    @torch.no_grad()
    def _take(self, x: Tensor, target: Tensor, *, lr: float, sparsity_weight: float) -> Losses:
        measured = self.measured
        weights, space = {name: weight.detach() for name, weight in self.weights.items()}, self._space
        centre = measured["input_mean"] if self.cfg.is_transcoder else weights["b_dec"]
        given = cpu.Rows.of(x, float(measured["input_scale"]))
        wanted = given if target is x else cpu.Rows.of(target, float(measured["target_scale"]))
        centred = cpu.centre(given, centre, space)
        pre = space.take("pre", len(x), self.cfg.n_latents, dtype=torch.bfloat16)
        torch.mm(centred, self._copies["W_enc"].T, out=pre)
        dead = measured["tokens_since_fired"] >= self.cfg.dead_after_tokens
        revive = self.cfg.selects_k and self.cfg.auxk_coefficient > 0 and bool(dead.any())
        active, threshold = self._select(pre, float(measured["threshold"]))
        l1 = self._l1_units(len(x))
        weight = self.cfg.l1_coefficient * sparsity_weight
        penalty = None if l1 is None else l1 * weight
        slopes = (
            self._dense(pre.relu_(), centred, wanted, penalty)
            if active is None
            else self._sparse(active, centred, wanted, penalty)
        )
        aux = self._revive(pre, centred, slopes, dead) if revive else None
        losses = self._losses(slopes, target.numel(), l1, weight, aux, threshold)
        self._update(slopes, self._pull(slopes, weight / target.numel()), lr)
        return losses

    def _select(self, pre: Tensor, running: float) -> tuple[cpu.Active | None, float | None]:
        if self.cfg.architecture == "topk":
            return cpu.select_topk(pre, self.cfg.k, self._space), None
        if self.cfg.architecture == "batchtopk":
            weights = latent_weights(self.cfg, self.weights["W_dec"].detach())
            if weights is not None:  # a crosscoder's: in the choice alone
                pre = torch.mul(pre, weights, out=self._space.take("weighed", *pre.shape, dtype=torch.bfloat16))
            bound = cpu.batch_bound(pre, len(pre) * self.cfg.k, 0.9 * running)
            active = cpu.select_at_least(pre, bound, self._space)
            if weights is not None:
                assert active is not None  # there is no limit
                active = active._replace(values=(active.values / weights[active.latents]).bfloat16())
            return active, bound
        limit = int(_SPARSE_SHARE * pre.numel())
        return cpu.select_at_least(pre, cpu.SMALLEST, self._space, limit), None

    def _l1_units(self, n: int) -> Tensor | None:
        """What the penalty is for each latent's sum over the batch: 1 / (n F), or |W_dec_j| / (n d_out), of a crosscoder w_j / (n d_out)."""
        if self.cfg.architecture != "relu":
            return None
        W_dec = self.weights["W_dec"].detach()
        if self.cfg.l1_penalty == "raw":
            return torch.full((len(W_dec),), 1 / (n * len(W_dec)))
        weights = latent_weights(self.cfg, W_dec)
        return (torch.linalg.vector_norm(W_dec, dim=1) if weights is None else weights) / (n * W_dec.shape[1])

    def _pull(self, slopes: _Slopes, weight: float) -> Tensor | None:
        """Gradient of the decoder-norm penalty for each row's norm. A crosscoder's is for each model's block of a row, and added here."""
        if self.cfg.architecture != "relu" or self.cfg.l1_penalty != "decoder-norm":
            return None
        pull = slopes.latent_sums * weight
        if self.cfg.models == 1:
            return pull
        blocks = model_decoders(self.weights["W_dec"].detach(), self.cfg.models)
        lengths = torch.linalg.vector_norm(blocks, dim=2).clamp_min(torch.finfo(torch.float32).tiny)
        model_decoders(slopes.W_dec, self.cfg.models).addcmul_(blocks, (pull / lengths).unsqueeze(2))
        return None

    def _sparse(self, active: cpu.Active, centred: Tensor, wanted: cpu.Rows, penalty: Tensor | None) -> _Slopes:
        b_dec = self.weights["b_dec"].detach()
        decoded = cpu.decode(active, self._copies["W_dec"], b_dec, wanted, self._space, penalty=penalty)
        assert decoded.d_values is not None
        columns = cpu.transpose(active, self.cfg.n_latents, self._space)
        d_values, d_bias = cpu.sort_entries(columns, decoded.d_values, "gradients", self._space)
        values, sums = cpu.sort_entries(columns, active.values, "values", self._space)
        return _Slopes(
            W_enc=cpu.gradient_rows(columns, d_values, centred, self._gradient("W_enc")),
            W_dec=cpu.gradient_rows(columns, values, decoded.d_x_hat, self._gradient("W_dec")),
            b_enc=d_bias,
            latent_sums=sums,
            n_active=torch.count_nonzero(active.values).float(),
            decoded=decoded,
        )

    def _dense(self, z: Tensor, centred: Tensor, wanted: cpu.Rows, penalty: Tensor | None) -> _Slopes:
        assert penalty is not None
        W_dec, b_dec, space = self._copies["W_dec"], self.weights["b_dec"].detach(), self._space
        x_hat = torch.mm(z, W_dec, out=space.take("x_hat", len(z), W_dec.shape[1], dtype=torch.bfloat16))
        decoded = cpu.residual(x_hat, b_dec, wanted, space)
        d_z = torch.mm(decoded.d_x_hat, W_dec.T, out=space.take("d_z", *z.shape, dtype=torch.bfloat16))
        sums, slopes, counts = cpu.mask_columns(z, d_z, penalty)
        d_W_enc = torch.mm(d_z.T, centred[:, : self._W_enc.shape[1]], out=self._gradient("W_enc"))
        d_W_dec = torch.mm(z.T, decoded.d_x_hat, out=self._gradient("W_dec"))
        return _Slopes(d_W_enc, d_W_dec, slopes, sums, counts.sum(), decoded)

    def _gradient(self, name: str) -> Tensor:
        rows = self._W_enc if name == "W_enc" else self.weights[name]
        return self._space.take(f"d_{name}", *rows.shape, dtype=torch.bfloat16)

    def _revive(self, pre: Tensor, centred: Tensor, slopes: _Slopes, dead: Bool[Tensor, " F"]) -> Tensor:
        """AuxK on the dead latents alone; adds to their gradients and returns the loss.

        The residual that they rebuild is -e, of which d_x_hat = 2 e / (n d) is at hand, and so are its sums.
        """
        d_x_hat = slopes.decoded.d_x_hat
        n, d = d_x_hat.shape
        columns = dead.nonzero().squeeze(1)
        rows = self._copies["W_dec"].index_select(0, columns)
        z = keep_topk(pre.index_select(1, columns), self.cfg.aux_latents(self._W_enc.shape[1]))
        slope = torch.addmm(d_x_hat, z, rows, alpha=2 / (n * d))  # 2 (rebuilt - residual) / (n d)
        means = slopes.decoded.d_bias.double() * (d / 2)
        variance = float(slopes.decoded.squares.sum() / (n * d) - means.square().mean())
        variance = max(variance, torch.finfo(torch.float32).tiny)
        weight = self.cfg.auxk_coefficient / variance
        d_pre = (slope @ rows.T).mul_(z > 0)
        slopes.W_enc[columns] += weight * (d_pre.T @ centred[:, : self._W_enc.shape[1]])
        slopes.W_dec[columns] += weight * (z.T @ slope)
        slopes.b_enc[columns] += weight * d_pre.sum(0, dtype=torch.float32)
        return torch.linalg.vector_norm(slope, dtype=torch.float32).square() * (n * d / 4 / variance)

    def _update(self, slopes: _Slopes, pull: Tensor | None, lr: float) -> None:
        W_dec, b_enc, b_dec = (self.weights[name].detach() for name in ("W_dec", "b_enc", "b_dec"))
        through_centre = None if self.cfg.is_transcoder else slopes.b_enc
        factor, W_enc_b = self._shortening(slopes, pull, through_centre)
        adam = cpu.AdamStep(
            lr=lr,
            betas=self.cfg.betas,
            eps=self.cfg.adam_eps,
            steps_done=self.steps_done,
            factor=factor,
        )
        coefficients = through_centre if W_enc_b is None else None  # the limit has summed them already
        found = cpu.update_rows(
            slopes.W_enc, self._W_enc, self._both("W_enc"), self._copies["W_enc"], adam, coefficients=coefficients
        )
        W_enc_b = found if W_enc_b is None else W_enc_b
        if not self.cfg.freeze_decoder:
            cpu.update_rows(
                slopes.W_dec,
                W_dec,
                self._both("W_dec"),
                self._copies["W_dec"],
                adam,
                unit_norm=self.cfg.unit_norm_decoder,
                pull=pull,
            )
        cpu.update_vector(slopes.b_enc, b_enc, self._both("b_enc"), adam)
        cpu.copy_bias(self._copies["W_enc"], b_enc, self._W_enc.shape[1])
        cpu.update_vector(_d_b_dec(slopes, W_enc_b), b_dec, self._both("b_dec"), adam)

    def _shortening(
        self, slopes: _Slopes, pull: Tensor | None, through_centre: Tensor | None
    ) -> tuple[float, Tensor | None]:
        """What all gradients are multiplied by, so that together they are no longer than the limit; and W_enc d_b_enc, if summed for it."""
        if self.cfg.gradient_limit == math.inf:
            return 1.0, None
        W_dec = self.weights["W_dec"].detach()
        squares, W_enc_b = cpu.gradient_squares(slopes.W_enc, self._W_enc, coefficients=through_centre)
        if not self.cfg.freeze_decoder:
            squares += cpu.gradient_squares(slopes.W_dec, W_dec, pull=pull)[0]
        for bias in (slopes.b_enc, _d_b_dec(slopes, W_enc_b)):
            squares += float(np.square(bias.numpy(), dtype=np.float64).sum())  # torch's sum would depend on the threads
        length = W_dec.shape[1] * squares**0.5
        return (min(1.0, self.cfg.gradient_limit / length) if length else 1.0), W_enc_b

    def _losses(
        self,
        slopes: _Slopes,
        n_elements: int,
        l1: Tensor | None,
        weight: float,
        aux: Tensor | None,
        bound: float | None,
    ) -> Losses:
        mse = (slopes.decoded.squares.sum() / n_elements).float()
        sparsity = None if l1 is None else (slopes.latent_sums * l1).sum()
        if self.cfg.selects_k and self.cfg.auxk_coefficient > 0 and aux is None:
            aux = torch.zeros(())
        loss = mse
        if sparsity is not None:
            loss = loss + weight * sparsity
        if aux is not None:
            loss = loss + self.cfg.auxk_coefficient * aux
        return Losses(
            loss=loss,
            mse=mse,
            latent_sums=slopes.latent_sums,
            l0=slopes.n_active / len(slopes.decoded.squares),
            sparsity=sparsity,
            aux=aux,
            threshold=None if bound is None else torch.tensor(bound),
        )

    def _both(self, name: str) -> tuple[Tensor, Tensor]:
        pair = self.moments[name]
        return tuple(pair[key].T if name == "W_enc" else pair[key] for key in ("exp_avg", "exp_avg_sq"))  # pyright: ignore[reportReturnType]


def _d_b_dec(slopes: _Slopes, W_enc_b: Tensor | None) -> Tensor:
    return slopes.decoded.d_bias if W_enc_b is None else slopes.decoded.d_bias - W_enc_b
