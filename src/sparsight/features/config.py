"""What a feature index holds."""

from dataclasses import dataclass

from sparsight.errors import RunError

__all__ = ["IndexConfig"]

VALUE_DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Settings of `index`."""

    heldout_tokens: int = 0
    """Held-out rows to index, in stored order; 0 indexes all."""
    batch_tokens: int = 2048
    """Rows encoded at once."""
    value_dtype: str = "float32"
    """How activations are kept: float32 | float16 (a quarter less disk, 3 digits; beyond 65,504 is an error)."""
    quantiles: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
    """Quantiles of each latent's active values, 0 to 1, ascending."""
    histogram_bins: int = 20
    """Bins of each latent's histogram of active values, equally wide from 0 to its maximum."""
    promoted_tokens: int = 10
    """Tokens kept at each end of the logit weights of each latent."""

    map: bool = True
    """Lay latents out on a plane, where umap-learn is installed (the extra `maps`); 131,072 latents take it minutes."""
    output_latents: int = 8192
    """Latents whose output score is measured, evenly spaced among those active where there are more; 0 for none. Takes the
    language model 8 tokens each."""

    def __post_init__(self) -> None:
        for name, least in (
            ("heldout_tokens", 0),
            ("batch_tokens", 1),
            ("histogram_bins", 1),
            ("promoted_tokens", 1),
            ("output_latents", 0),
        ):
            if getattr(self, name) < least:
                raise RunError(f"[index] {name} = {getattr(self, name)}; expected at least {least}.")
        if self.value_dtype not in VALUE_DTYPES:
            raise RunError(f"[index] value_dtype = {self.value_dtype!r}; expected one of {', '.join(VALUE_DTYPES)}.")
        inside = all(0 <= q <= 1 for q in self.quantiles)
        if not self.quantiles or not inside or list(self.quantiles) != sorted(set(self.quantiles)):
            raise RunError(f"[index] quantiles = {self.quantiles}; expected ascending numbers from 0 to 1.")
