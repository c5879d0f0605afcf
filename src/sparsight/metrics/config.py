"""What an evaluation measures, and on how much text."""

from dataclasses import dataclass

from sparsight.errors import MetricError

__all__ = ["EvaluateConfig"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `evaluate`."""

    heldout_tokens: int = 0
    """Held-out tokens whose reconstruction is measured, in stored order; 0 measures all."""
    downstream_tokens: int = 16_384
    """Held-out tokens on which CE and KL are measured, in whole pieces; each costs three forwards of the whole model and one
    for the SAE and each control. 0 skips them, and the report says so."""
    n_resamples: int = 1000
    """Resampled sets of documents behind each 95 % interval."""
    seed: int = 0
    """Seed of the resampling."""
    pca_fit_tokens: int = 65_536
    """Train tokens on which PCA, the mean activation and the number of components are fitted."""
    batch_tokens: int = 2048
    """Tokens encoded at once; the dense latents need 4 bytes * batch_tokens * n_latents."""
    forward_tokens: int = 1024
    """Token budget of one forward of the language model; two sets of logits of this many rows are held."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                raise MetricError(f"[evaluate] {name} = {value}; expected at least {least}.")


_LEAST = {
    "heldout_tokens": 0,
    "downstream_tokens": 0,
    "n_resamples": 100,
    "seed": 0,
    "pca_fit_tokens": 2,
    "batch_tokens": 1,
    "forward_tokens": 1,
}
