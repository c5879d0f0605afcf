"""SAETrainer: one SAE being trained, a step at a time, wherever the batches come from.

A step: divide by the scale, take the objective's gradient, remove the part of the decoder's gradient along its own rows
(it would only be undone), Adam, put the rows back to norm 1 (both not for relu), count how long each latent is silent.
The learning rate rises linearly over warmup_steps, stays, and falls linearly to 0 over the last decay_fraction.

Nothing in `step` waits for the device: metrics are tensors, counters that the host needs are counted by the host.
The state is a flat dict of tensors; loading it and going on equals never having stopped, bit for bit on CPU.

Transcoders subtract the input's mean over the first batch, a constant, where an autoencoder subtracts its b_dec.
Trade-off: scale, mean and the unit of jumprelu's threshold come from one batch, so that training can start with it.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.errors import ActivationError, FormatError, SAEError
from sparsight.sae.autoencoder import SparseAutoencoder
from sparsight.sae.config import SAEConfig
from sparsight.sae.folding import fold
from sparsight.sae.fused import FusedStep, fuses
from sparsight.sae.initial import geometric_median, initial_weights
from sparsight.sae.kernels.cpu import AdamStep
from sparsight.sae.kernels.workspace import Workspace
from sparsight.sae.losses import Losses, LossInput, training_losses

__all__ = ["SAETrainer"]

# enough to set the untrained baseline's threshold: 256 rows x thousands of latents are a million values
_SAMPLE_ROWS = 256

# weight of the newest smallest-kept value in batchtopk's running threshold, once 20 steps have been averaged: an order
# statistic of n*k values is hardly noisy, and a longer memory lags in short runs (0.01 left 2.9 of 4 latents active)
_THRESHOLD_MOMENTUM = 0.05


class SAETrainer:
    """Trains one SAE. Call `initialize` with the first batch (or `load_state_dict`), then `step` for every batch."""

    def __init__(
        self,
        cfg: SAEConfig,
        d_in: int,
        d_out: int,
        *,
        total_steps: int,
        batch_tokens: int,
        device: torch.device | str = "cpu",
        space: Workspace | None = None,
    ) -> None:
        """`total_steps` fixes the schedule; `batch_tokens` counts tokens since a latent fired.

        Trainers that step in turn may share their scratch `space`.
        """
        if not cfg.is_transcoder and d_in != d_out:
            raise SAEError(f"SAE {cfg.id} has no target_hook_point, so d_out = {d_out} must equal d_in = {d_in}.")
        if total_steps < 1:
            raise SAEError(f"SAE {cfg.id}: total_steps = {total_steps}; at least one step is needed.")
        self.cfg, self.d_in, self.d_out = cfg, d_in, d_out
        self.total_steps, self.batch_tokens = total_steps, batch_tokens
        self.device = torch.device(device)
        self.steps_done = 0
        self._initialized = False
        weights = initial_weights(cfg, d_in, d_out)
        self.weights = {name: nn.Parameter(tensor.to(self.device)) for name, tensor in weights.items()}
        self._fused = FusedStep(cfg, self.weights, space) if fuses(cfg, self.device) else None
        if self._fused is None:
            self._adam, self._moments = _adam(cfg, self.weights, self.device)
        else:
            self._moments = self._fused.moments
        self._measured = {
            "input_scale": torch.ones((), device=self.device),
            "target_scale": torch.ones((), device=self.device),
            "input_mean": torch.zeros(d_in, device=self.device),
            "input_deviation": torch.ones((), device=self.device),
            "threshold": torch.zeros((), device=self.device),
            "tokens_since_fired": torch.zeros(cfg.n_latents, dtype=torch.int64, device=self.device),
        }

    @torch.no_grad()
    def initialize(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None) -> None:
        """Measure scale and centre on the first batch, and set b_dec; deterministic. Raises ActivationError."""
        target = self._checked(x, target)
        x, target = self._on_device(x), self._on_device(target)
        measured = self._measured
        measured["input_scale"].copy_(self._scale(x))
        measured["target_scale"].copy_(self._scale(target))
        x, target = x / measured["input_scale"], target / measured["target_scale"]
        mean = x.mean(0)
        measured["input_deviation"].copy_((x - mean).square().mean().sqrt())
        measured["input_mean"].copy_(mean)
        if self.cfg.b_dec_init == "mean":
            self.weights["b_dec"].copy_(target.mean(0))
        elif self.cfg.b_dec_init == "geometric_median":
            self.weights["b_dec"].copy_(geometric_median(target))
        if "log_threshold" in self.weights:
            self.weights["log_threshold"].copy_((self.cfg.initial_threshold * measured["input_deviation"]).log())
        self._initialized = True

    def step(
        self,
        x: Float[Tensor, "n d_in"],
        target: Float[Tensor, "n d_out"] | None = None,
        *,
        with_metrics: bool = True,
    ) -> dict[str, Tensor]:
        """One optimiser step on raw activations. Metrics are detached scalars on the device; {} without them.

        loss, mse (normalised units), fvu (of this batch), l0, dead_share, lr, penalty_raw and penalty_decoder_norm
        (means over tokens x latents), and where the architecture has them sparsity_loss, aux_loss.
        """
        assert self._initialized, "initialize() or load_state_dict() comes first"
        target = self._checked(x, target)
        lr = self.cfg.lr * self._lr_factor()
        losses = self._autograd_step(x, target, lr) if self._fused is None else self._fused_step(x, target, lr)
        self._count(losses, len(x))
        self.steps_done += 1
        return self._metrics(losses, target, lr) if with_metrics else {}

    def finished(self) -> SparseAutoencoder:
        """The SAE as it is now, on raw activations, with scale and centre folded into biases and thresholds."""
        return self._folded(self.weights, self._measured["threshold"].expand(self.cfg.n_latents))

    def initial_state(self, x: Float[Tensor, "n d_in"]) -> dict[str, Tensor]:
        """Before the first step: what `untrained_sae` needs beside the seed, with up to 256 rows of the first batch."""
        assert self.steps_done == 0, "the initial state is gone after the first step"
        names = ("input_scale", "target_scale", "input_mean")
        state = {name: self._measured[name] for name in names} | {
            "b_dec": self.weights["b_dec"],
            "sample": x[:_SAMPLE_ROWS].float(),
        }
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything a later `load_state_dict` needs, as a flat dict of tensors (copies)."""
        state = {f"weights.{name}": weight for name, weight in self.weights.items()}
        for name in self.weights:
            state |= {f"adam.{name}.{key}": self._moments[name][key] for key in ("exp_avg", "exp_avg_sq")}
        state |= {f"measured.{name}": tensor for name, tensor in self._measured.items()}
        state["steps_done"] = torch.tensor(self.steps_done)
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave; FormatError when names or shapes differ."""
        mine = {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if mine != theirs:
            wrong = sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
            raise FormatError(
                f"The checkpoint does not fit SAE {self.cfg.id}: {', '.join(wrong)} are missing or differ in shape."
            )
        self.steps_done = int(state["steps_done"])
        for name, weight in self.weights.items():
            weight.copy_(state[f"weights.{name}"])
            for key in ("exp_avg", "exp_avg_sq"):
                self._moments[name][key].copy_(state[f"adam.{name}.{key}"])
            if self._fused is None:
                self._adam.state[weight]["step"].fill_(float(self.steps_done))
        for name, tensor in self._measured.items():
            tensor.copy_(state[f"measured.{name}"])
        self._initialized = True

    def _checked(self, x: Tensor, target: Tensor | None) -> Tensor:
        """The target, or the input when that is it."""
        if (target is None) == self.cfg.is_transcoder:
            needed = "needs a target" if target is None else "is an autoencoder and takes no target"
            raise SAEError(f"SAE {self.cfg.id} {needed}: target_hook_point is {self.cfg.target_hook_point!r}.")
        target = x if target is None else target
        if (x.shape[1], target.shape[1]) != (self.d_in, self.d_out):
            widths = f"{x.shape[1]} -> {target.shape[1]}"
            raise ActivationError(f"SAE {self.cfg.id} expects widths {self.d_in} -> {self.d_out}, got {widths}.")
        return target

    def _on_device(self, x: Tensor) -> Tensor:
        return x.to(self.device, torch.float32, non_blocking=True)

    def _scale(self, x: Tensor) -> Tensor:
        scale = (x - x.mean(0)).square().mean().sqrt()
        if not (torch.isfinite(scale) and scale > 0):
            raise ActivationError(
                f"SAE {self.cfg.id}: the first batch of {len(x)} tokens has standard deviation {scale.item()}; "
                "finite activations that differ between tokens are expected."
            )
        return scale if self.cfg.normalize == "rms" else torch.ones_like(scale)

    def _fused_step(self, x: Tensor, target: Tensor, lr: float) -> Losses:
        assert self._fused is not None
        adam = AdamStep(lr=lr, betas=self.cfg.adam_betas, eps=self.cfg.adam_eps, steps_done=self.steps_done)
        weight = self._sparsity_weight()
        return self._fused(x, target, measured=self._measured, sparsity_weight=weight, adam=adam)

    def _autograd_step(self, x: Tensor, target: Tensor, lr: float) -> Losses:
        normalised = self._on_device(x) / self._measured["input_scale"]
        wanted = normalised if target is x else self._on_device(target) / self._measured["target_scale"]
        losses = training_losses(self.cfg, self.weights, self._loss_input(normalised, wanted))
        self._adam.zero_grad(set_to_none=True)
        losses.loss.backward()
        self._update(lr)
        return losses

    def _loss_input(self, x: Tensor, target: Tensor) -> LossInput:
        measured = self._measured
        return LossInput(
            x=x,
            target=target,
            centre=measured["input_mean"] if self.cfg.is_transcoder else self.weights["b_dec"],
            dead=measured["tokens_since_fired"] >= self.cfg.dead_after_tokens,
            sparsity_weight=self._sparsity_weight(),
            threshold=measured["threshold"],
            bandwidth=self.cfg.bandwidth * measured["input_deviation"],
        )

    @torch.no_grad()
    def _update(self, lr: float) -> None:
        self._adam.param_groups[0]["lr"] = lr
        W_dec = self.weights["W_dec"]
        if self.cfg.unit_norm_decoder:
            assert W_dec.grad is not None
            W_dec.grad.addcmul_(W_dec, torch.linalg.vecdot(W_dec.grad, W_dec).unsqueeze(1), value=-1)
        self._adam.step()
        if self.cfg.unit_norm_decoder:
            W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))

    def _sparsity_weight(self) -> float:
        warmup = self.cfg.sparsity_warmup_fraction * self.total_steps
        return min(1.0, self.steps_done / warmup) if warmup else 1.0

    def _lr_factor(self) -> float:
        rising = (self.steps_done + 1) / self.cfg.warmup_steps if self.cfg.warmup_steps else 1.0
        decay_steps = self.cfg.decay_fraction * self.total_steps
        falling = (self.total_steps - self.steps_done) / decay_steps if decay_steps else 1.0
        return max(0.0, min(1.0, rising, falling))

    def _count(self, losses: Losses, n_tokens: int) -> None:
        since = self._measured["tokens_since_fired"]
        since.add_(n_tokens).masked_fill_(losses.latent_sums > 0, 0)
        if losses.threshold is not None:
            momentum = max(_THRESHOLD_MOMENTUM, 1 / (self.steps_done + 1))
            self._measured["threshold"].lerp_(losses.threshold, momentum)

    @torch.no_grad()
    def _metrics(self, losses: Losses, target: Tensor, lr: float) -> dict[str, Tensor]:
        norms = torch.linalg.vector_norm(self.weights["W_dec"], dim=1)
        elements = len(target) * self.cfg.n_latents
        wanted = self._on_device(target) / self._measured["target_scale"]
        variance = (wanted - wanted.mean(0)).square().sum()
        metrics = {
            "loss": losses.loss,
            "mse": losses.mse,
            "fvu": losses.mse * target.numel() / variance,
            "l0": losses.l0,
            "dead_share": (self._measured["tokens_since_fired"] >= self.cfg.dead_after_tokens).float().mean(),
            "lr": torch.full((), lr, device=self.device),
            "penalty_raw": losses.latent_sums.sum() / elements,
            "penalty_decoder_norm": (losses.latent_sums * norms).sum() / elements,
            "sparsity_loss": losses.sparsity,
            "aux_loss": losses.aux,
        }
        return {name: value.detach() for name, value in metrics.items() if value is not None}

    def _folded(self, weights: Mapping[str, Tensor], threshold: Tensor) -> SparseAutoencoder:
        return SparseAutoencoder(self.cfg, fold(self.cfg, weights, self._measured, threshold))


def _adam(
    cfg: SAEConfig, weights: Mapping[str, nn.Parameter], device: torch.device
) -> tuple[torch.optim.Adam, dict[str, dict[str, Tensor]]]:
    """The optimiser with its state made already, and that state by name."""
    adam = torch.optim.Adam(weights.values(), lr=cfg.lr, betas=cfg.adam_betas, eps=cfg.adam_eps, fused=True)
    for weight in weights.values():
        step = torch.zeros((), device=device)
        adam.state[weight] = {"step": step, "exp_avg": weight.detach() * 0, "exp_avg_sq": weight.detach() * 0}
    return adam, {name: adam.state[weight] for name, weight in weights.items()}
