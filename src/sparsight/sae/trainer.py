"""SAETrainer: one SAE being trained, a step at a time, wherever the batches come from.

It holds the weights, Adam's moments and what was measured, starts them from the first batch, saves and restores them.
The step itself has three forms, of which `forms` picks one; `autograd` says what a step is, `schedule` what changes.

Nothing in `step` waits for the device: metrics are tensors, counters that the host needs are counted by the host.
The state is a flat dict of tensors; loading it and going on equals never having stopped, bit for bit on CPU.

Transcoders subtract the input's mean over the first batch, a constant, where an autoencoder subtracts its b_dec.
Trade-off: scale, mean and the unit of jumprelu's threshold come from one batch, so that training can start with it.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsight.errors import ActivationError, FormatError, SAEError
from sparsight.sae.autoencoder import SparseAutoencoder
from sparsight.sae.config import SAEConfig
from sparsight.sae.folding import fold
from sparsight.sae.forms import chosen_form, new_step
from sparsight.sae.initial import fitted_scale, geometric_median, initial_weights
from sparsight.sae.kernels.workspace import Workspace

__all__ = ["SAETrainer"]

# enough to set the untrained baseline's threshold: 256 rows x thousands of latents are a million values
_SAMPLE_ROWS = 256


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
        form: str = "auto",
    ) -> None:
        """`total_steps` fixes the schedule; `batch_tokens` is the size of a step, in rows.

        Trainers that step in turn may share their scratch `space`. `form` of the step: auto, autograd, fused or dense.
        """
        if not cfg.is_transcoder and d_in != d_out:
            raise SAEError(f"SAE {cfg.id} has no target_hook_point, so d_out = {d_out} must equal d_in = {d_in}.")
        if total_steps < 1:
            raise SAEError(f"SAE {cfg.id}: total_steps = {total_steps}; at least one step is needed.")
        self.cfg, self.d_in, self.d_out = cfg, d_in, d_out
        self.total_steps, self.batch_tokens = total_steps, batch_tokens
        self.device = torch.device(device)
        self.form = chosen_form(cfg, self.device, form)
        self._initialized = False
        weights = {name: weight.to(self.device) for name, weight in initial_weights(cfg, d_in, d_out).items()}
        if self.form != "autograd":
            weights["W_enc"] = weights["W_enc"].T.contiguous().T  # in memory, a latent's weights are one row
        self.weights = {name: nn.Parameter(weight) for name, weight in weights.items()}
        self._moments = {
            name: {key: torch.zeros_like(weight) for key in ("exp_avg", "exp_avg_sq")}
            for name, weight in weights.items()
        }
        self._measured = {
            "input_scale": torch.ones((), device=self.device),
            "target_scale": torch.ones((), device=self.device),
            "input_mean": torch.zeros(d_in, device=self.device),
            "encoder_scale": torch.ones((), device=self.device),
            "input_deviation": torch.ones((), device=self.device),
            "threshold": torch.zeros((), device=self.device),
            "tokens_since_fired": torch.zeros(cfg.n_latents, dtype=torch.int64, device=self.device),
        }
        stepped = replace(cfg, dead_after_tokens=cfg.dead_after(total_steps * batch_tokens))
        state = stepped, self.weights, self._moments, self._measured
        self._step = new_step(self.form, *state, total_steps=total_steps, space=space or Workspace())
        self._versions = self._written()

    @property
    def steps_done(self) -> int:
        """Steps taken."""
        return self._step.steps_done

    @torch.no_grad()
    def initialize(self, x: Float[Tensor, "n d_in"], target: Float[Tensor, "n d_out"] | None = None) -> None:
        """Measure scale and centre on the first batch, set b_dec and the encoder's scale; deterministic. Raises ActivationError."""
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
        scale = fitted_scale(self.cfg, self.weights, x, target)
        measured["encoder_scale"].copy_(scale)
        self.weights["W_enc"].mul_(scale)
        if "log_threshold" in self.weights:
            self.weights["log_threshold"].copy_((self.cfg.initial_threshold * measured["input_deviation"]).log())
        self._initialized = True

    @torch.no_grad()
    def start_from(self, sae: SparseAutoencoder) -> None:
        """Take the weights of a finished SAE, after `initialize` and before the first step. Raises SAEError when it is of another shape.

        Scales are those of the first batch here; what `finished` gives before the first step is that SAE, but for batchtopk's threshold, which the
        first steps measure anew.
        """
        assert self._initialized, "initialize() comes first"
        assert self.steps_done == 0, "training has begun"
        mine = self.cfg.architecture, self.cfg.models, self.d_in, self.d_out, self.cfg.n_latents
        theirs = sae.cfg.architecture, sae.cfg.models, sae.d_in, sae.d_out, sae.n_latents
        if mine != theirs or self.cfg.is_transcoder:
            raise SAEError(
                f"SAE {self.cfg.id} ({', '.join(map(str, mine))}) cannot start from {sae.cfg.id} ({', '.join(map(str, theirs))}): the same "
                "architecture, models, widths and number of latents are expected, and no transcoder."
            )
        given, scale = sae.state_dict(), self._measured["input_scale"]
        for name, weight in self.weights.items():
            if name == "log_threshold":
                weight.copy_((given["threshold"].to(scale.device) / scale).log())
            else:
                unit = scale if name in ("b_enc", "b_dec", "b_gate", "b_mag") else torch.ones_like(scale)
                weight.copy_(given[name].to(unit.device) / unit)

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
        The dense form takes batches of one shape and type, `total_steps` of them at most; SAEError otherwise.
        """
        assert self._initialized, "initialize() or load_state_dict() comes first"
        self._checked(x, target)
        if self._written() != self._versions:  # the start was measured, or a user had a hand in it
            self._step.reload(self.steps_done)
        metrics = self._step.step(x, target, with_metrics=with_metrics)
        self._versions = self._written()
        return metrics

    def finished(self) -> SparseAutoencoder:
        """The SAE as it is now, on raw activations, with scale and centre folded into biases and thresholds."""
        threshold = self._measured["threshold"].expand(self.cfg.n_latents)
        return SparseAutoencoder(self.cfg, fold(self.cfg, self.weights, self._measured, threshold))

    def initial_state(self, x: Float[Tensor, "n d_in"]) -> dict[str, Tensor]:
        """Before the first step: what `untrained_sae` needs beside the seed, with up to 256 rows of the first batch."""
        assert self.steps_done == 0, "the initial state is gone after the first step"
        names = ("input_scale", "target_scale", "input_mean", "encoder_scale")
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
        for name, weight in self.weights.items():
            weight.copy_(state[f"weights.{name}"])
            for key in ("exp_avg", "exp_avg_sq"):
                self._moments[name][key].copy_(state[f"adam.{name}.{key}"])
        for name, tensor in self._measured.items():
            tensor.copy_(state[f"measured.{name}"])
        self._step.reload(int(state["steps_done"]))
        self._versions = self._written()
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

    def _written(self) -> list[int]:
        """torch counts the writes to a tensor; kernels' writes are not among them."""
        return [weight._version for weight in self.weights.values()]
