"""SAEConfig: everything that decides one sparse autoencoder and how it is trained, apart from the data.

Units. With normalize="rms" the SAE sees activations of unit variance per dimension, so the mean squared error is close
to the fraction of variance unexplained, and coefficients and learning rates mean the same on every model:

    loss = mean over tokens and dimensions of (target - x_hat)^2  +  coefficient * penalty  +  auxiliary terms

Defaults are for a modern SAE. The founding one (ReLU, mean-|z| penalty, nn.Linear initialisation, raw activations) is
spelt out by `sparsight.sae.founding_config`.
"""

import difflib
import math
import re
from dataclasses import dataclass

from sparsight.errors import SAEError

__all__ = ["ARCHITECTURES", "SAEConfig"]

ARCHITECTURES = ("relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
_INFERENCE = {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}
_CHOICES = {
    "architecture": ARCHITECTURES,
    "l1_penalty": ("raw", "decoder-norm"),
    "normalize": ("rms", "none"),
    "init": ("tied", "linear"),
    "b_dec_init": ("mean", "geometric_median", "zero"),
    "precision": ("bfloat16", "float32"),
}
_POSITIVE = (
    "n_latents",
    "models",
    "k",
    "bandwidth",
    "initial_threshold",
    "decoder_init_norm",
    "lr",
    "adam_eps",
)
_WHOLE = ("n_latents", "models", "k", "k_aux", "dead_after_tokens", "warmup_steps", "seed")
_NON_NEGATIVE = (
    "l1_coefficient",
    "l0_coefficient",
    "auxk_coefficient",
    "k_aux",
    "dead_after_tokens",
    "warmup_steps",
    "max_gradient_norm",
    "seed",
)
_SHARES = ("sparsity_warmup_fraction", "decay_fraction")


@dataclass(frozen=True, kw_only=True)
class SAEConfig:
    """One sparse autoencoder (or, with a `target_hook_point`, one transcoder)."""

    id: str
    """Name of its folder under saes/: letters, digits, `.`, `_`, `-`."""

    architecture: str = "topk"
    """relu | topk (Gao 2024, arXiv:2406.04093) | batchtopk (Bussmann 2024, 2412.06410) | jumprelu (Rajamanoharan 2024,
    2407.14435) | gated (Rajamanoharan 2024, 2404.16014) | matryoshka (Bussmann 2025, 2503.17547; on batchtopk)."""

    n_latents: int
    """Latents in the dictionary."""

    hook_point: str = ""
    """Where the input is read; empty: the recipe's first hook point."""

    target_hook_point: str = ""
    """Where the target is read, for a transcoder; empty: an autoencoder, whose target is its input."""

    models: int = 1
    """More than 1: a crosscoder of so many models, whose activations are read side by side; batchtopk, or relu with the decoder-norm
    penalty. See `crosscoder`."""

    start_from: str = ""
    """Folder of a finished SAE of the same shape, from whose weights training starts; empty: from drawn weights. The untrained baseline is drawn
    all the same."""

    k: int = 32
    """topk: active latents per token; batchtopk and matryoshka: active latents per token on average over a batch."""

    prefix_widths: tuple[int, ...] = ()
    """matryoshka: nested dictionary sizes, in latents, increasing, the last n_latents; empty: n/16, n/8, ... n."""

    l1_coefficient: float = 0.005
    """relu and gated: weight of the L1 penalty, whose scale is that of `l1_penalty`."""

    l1_penalty: str = "raw"
    """raw: mean of |z| over all elements (tokens x latents), as founded; a free decoder can cheat it by growing its
    norms. decoder-norm: sum over latents of z_j * |W_dec_j|, mean over tokens, divided by d_out. With it the loss is
    that of Anthropic's April 2024 update divided by d_out, so their coefficients (about 5) carry over."""

    l0_coefficient: float = 1e-3
    """jumprelu: weight of L0 (active latents per token). With normalize="rms" on the same scale as Gemma Scope's."""

    bandwidth: float = 1.0
    """jumprelu: width of the straight-through kernel, in standard deviations of the input per dimension. The paper's
    0.001 of the input's norm is 0.05 here at d_in = 2304 and was for billions of tokens; in 600 steps on a planted
    dictionary that recovers nothing, 1.0 a mean cosine of 0.98."""

    initial_threshold: float = 1.0
    """jumprelu: threshold before training, in the same unit, which is also that of pre-activations at the start."""

    sparsity_warmup_fraction: float = 0.05
    """relu, jumprelu, gated: share of the steps in which the penalty's weight rises from 0 (Anthropic April 2024)."""

    auxk_coefficient: float = 1 / 32
    """topk, batchtopk, matryoshka: weight of the AuxK loss that revives dead latents (Gao 2024); 0 switches it off."""

    k_aux: int = 0
    """Dead latents used per token by AuxK; 0: min(512, d_in // 2), half the input's width being Gao's choice."""

    dead_after_tokens: int = 0
    """A latent is dead when it has not fired for this many tokens; 0: 500,000, or a twelfth of the run where that is less. Gao: 10M tokens, which
    there were 76 steps."""

    normalize: str = "rms"
    """rms: divide by sqrt(mean |x - mean|^2 / d) of the first batch, folded into the finished SAE | none."""

    init: str = "tied"
    """tied: random decoder directions, W_enc = W_dec^T, zero biases (Gao 2024). For a transcoder, whose two sides live
    in different spaces, encoder and decoder directions are independent. linear: torch's nn.Linear default, uniform
    within 1/sqrt(fan_in) for both weights and for b_enc (the founding choice)."""

    decoder_init_norm: float = 0.1
    """relu, init="tied": norm of each decoder row before training (Anthropic April 2024). The others keep unit rows."""

    b_dec_init: str = "mean"
    """mean | geometric_median (of the first batch's targets; Bricken 2023) | zero."""

    freeze_decoder: bool = False
    """Leave the decoder's rows as they were drawn and train the rest: a control, whose dictionary the data never shaped."""

    lr: float = 3e-4
    """Adam's peak learning rate. Gao's law 2e-4 * sqrt(2^14 / n_latents) gives 2e-4 to 4e-4 for 16k to 4k latents."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0; at most a fifth of all steps, since in a short run a
    fixed warm-up would never reach the rate."""

    decay_fraction: float = 0.2
    """Last share of the steps, over which the learning rate falls linearly to 0 (Anthropic April 2024)."""

    adam_betas: tuple[float, ...] = ()
    """Adam's decay rates of the gradient's mean and square; empty: (0.5, 0.999) where `k` sets the sparsity, and (0.9,
    0.999) where a penalty does. Short of memory, the mean follows early training faster; a penalty's gradient is small and
    steady beside the error's noise, and with a shorter mean the noise keeps latents active. See docs/decisions.md."""

    adam_eps: float = 6.25e-10
    """Adam's floor under the gradient's size (Gao 2024): a mean over all elements makes rare gradients small."""

    max_gradient_norm: float = 0.0
    """A longer gradient, of all weights together, is shortened to this before Adam. Its unit is that of a loss summed over
    dimensions, d_out times ours, as in Anthropic's April 2024 update; 0: their 1 for relu, no limit for the others. Adam's
    squares remember the long gradients of the first steps for a thousand steps; see docs/decisions.md."""

    precision: str = "bfloat16"
    """Compute type of the matrix products: bfloat16 | float32. Weights, Adam, sums and losses are float32 always."""

    seed: int = 0
    """Seed of the initial weights."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.id):
            raise SAEError(f"SAE id {self.id!r} cannot name a folder: use letters, digits, `.`, `_` and `-`.")
        for name, choices in _CHOICES.items():
            self._check_choice(name, choices)
        for name in _WHOLE:
            self._check(name, type(getattr(self, name)) is int, "must be a whole number")
        for name in _POSITIVE:
            self._check(name, getattr(self, name) > 0, "must be positive")
        for name in _NON_NEGATIVE:
            self._check(name, getattr(self, name) >= 0, "must not be negative")
        for name in _SHARES:
            self._check(name, 0 <= getattr(self, name) <= 1, "must be a share between 0 and 1")
        self._check("adam_betas", len(self.adam_betas) in (0, 2), "must be two numbers")
        self._check("adam_betas", all(0 <= beta < 1 for beta in self.adam_betas), "must lie in [0, 1)")
        if self.selects_k:
            self._check("k", self.k <= self.n_latents, f"exceeds n_latents = {self.n_latents}")
        self._check_models()
        self._check_prefixes()

    @property
    def inference(self) -> str:
        """The activation function of the finished SAE: relu | topk | jumprelu | gated."""
        return _INFERENCE.get(self.architecture, self.architecture)

    @property
    def is_transcoder(self) -> bool:
        """Whether the target is read at another hook point than the input."""
        return bool(self.target_hook_point)

    @property
    def selects_k(self) -> bool:
        """Whether sparsity is set by `k` (and dead latents are revived by AuxK) instead of by a penalty."""
        return self.architecture in ("topk", "batchtopk", "matryoshka")

    @property
    def unit_norm_decoder(self) -> bool:
        """Whether decoder rows are kept at norm 1: all but relu, whose penalty bounds them or fails to."""
        return self.architecture != "relu"

    @property
    def prefixes(self) -> tuple[int, ...]:
        """The nested dictionary sizes that the loss sums over: one, n_latents, unless matryoshka."""
        if self.architecture != "matryoshka":
            return (self.n_latents,)
        if self.prefix_widths:
            return self.prefix_widths
        return tuple(sorted({max(1, self.n_latents >> shift) for shift in range(5)}))

    @property
    def betas(self) -> tuple[float, float]:
        """`adam_betas`, or what stands for it when empty."""
        if not self.adam_betas:
            return (0.5 if self.selects_k else 0.9), 0.999
        beta1, beta2 = self.adam_betas
        return beta1, beta2

    @property
    def gradient_limit(self) -> float:
        """`max_gradient_norm`, or what stands for it when 0."""
        return self.max_gradient_norm or (1.0 if self.architecture == "relu" else math.inf)

    def aux_latents(self, d_in: int) -> int:
        """Dead latents used per token by AuxK for inputs of width d_in."""
        return min(self.k_aux or max(1, min(512, d_in // 2)), self.n_latents)

    def dead_after(self, total_tokens: int) -> int:
        """Tokens of silence after which a latent is dead, in a run over so many tokens.

        Called dead only when a quarter of the run is over, latents are revived too late: at 64x width and 2M tokens 2.6 % of TopK's were active on no
        training row, with a twelfth of the run 0.08 %.
        """
        return self.dead_after_tokens or min(500_000, max(1, round(total_tokens / 12)))

    def _check(self, name: str, good: bool, complaint: str) -> None:
        if not good:
            raise SAEError(f"SAE {self.id}: {name} = {getattr(self, name)} {complaint}.")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value in choices:
            return
        near = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SAEError(f"SAE {self.id}: {name} = {value!r} is unknown; choose from {', '.join(choices)}.{hint}")

    def _check_models(self) -> None:
        if self.models == 1:
            return
        weighs = self.architecture == "batchtopk" or (self.architecture == "relu" and self.l1_penalty == "decoder-norm")
        self._check("models", weighs, f"has no meaning for {self.architecture} with l1_penalty = {self.l1_penalty}")
        self._check("models", not self.is_transcoder, "cannot be combined with a target_hook_point")

    def _check_prefixes(self) -> None:
        widths = self.prefix_widths
        if not widths:
            return
        self._check("prefix_widths", self.architecture == "matryoshka", f"has no meaning for {self.architecture}")
        increasing = all(a < b for a, b in zip((0, *widths), widths, strict=False))
        self._check("prefix_widths", increasing, "must be positive and increasing")
        self._check("prefix_widths", widths[-1] == self.n_latents, f"must end with n_latents = {self.n_latents}")
