"""What to capture, how much, and where to keep it."""

from dataclasses import dataclass

from sparsight.errors import RecipeError

__all__ = ["STORE_DTYPES", "CaptureConfig"]

STORE_DTYPES = ("bfloat16", "float32", "int8")


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """The `[activations]` section of a recipe."""

    hook_points: tuple[str, ...]
    """Where to read: `layers.16.mlp`, `layers.16`, `layers.16.mlp.input`, or a module path. All are read in one forward."""
    mode: str = "store"
    """`store`: training rows go to disk and serve every later sweep. `stream`: they go to the trainer live; only held-out rows are kept."""
    n_tokens: int = 1_000_000
    """Training rows to capture, after masking."""
    heldout_tokens: int = 100_000
    """Held-out rows to capture, after masking."""
    dtype: str = "bfloat16"
    """On disk: bfloat16 | float32 | int8 (a float32 scale for each row; error at most 1/254 of the row's largest value)."""
    window_tokens: int = 131_072
    """Rows shuffled together: one shard of the store, one half of the live ring. Memory: two windows of every hook point."""
    sink_norm_multiple: float = 10.0
    """Rows with a norm above this multiple of the window's median are masked as attention sinks, and counted. 0: none are."""
    skip_special: bool = True
    """Mask the rows of special tokens (BOS, EOS, chat markers), and count them."""
    allow_short: bool = False
    """Accept a text that ends before `n_tokens`; otherwise it is an error (what was captured is kept)."""
    skip_damaged: bool = False
    """Go on without shards that are missing or altered, said aloud and recorded; otherwise they are an error."""

    def __post_init__(self) -> None:
        if not self.hook_points:
            raise RecipeError("activations.hook_points is empty: name at least one, such as `layers.15.mlp`.")
        if len(set(self.hook_points)) < len(self.hook_points):
            raise RecipeError(f"activations.hook_points names one twice: {', '.join(self.hook_points)}.")
        if self.mode not in ("store", "stream"):
            raise RecipeError(f"activations.mode is {self.mode!r}; it is `store` or `stream`.")
        if self.dtype not in STORE_DTYPES:
            raise RecipeError(f"activations.dtype is {self.dtype!r}; it is one of {', '.join(STORE_DTYPES)}.")
        for name, least in (("n_tokens", 1), ("heldout_tokens", 0), ("window_tokens", 1), ("sink_norm_multiple", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"activations.{name} is {getattr(self, name)}; it must be at least {least}.")

    def wanted(self, split: str, part: tuple[int, int] = (0, 1)) -> int:
        """Rows that part (rank, world) captures of a split; the parts add up to the whole."""
        rank, world = part
        total = self.n_tokens if split == "train" else self.heldout_tokens
        return total // world + (rank < total % world)
