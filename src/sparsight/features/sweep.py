"""A sweep: one edit at several strengths, what it does to the promoted tokens and what it does to the text."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from sparsight.features.index import FeatureIndex
from sparsight.features.steering import SteerConfig
from sparsight.features.strength import EditRequest
from sparsight.lm import LanguageModel
from sparsight.sae import SparseAutoencoder

__all__ = ["Sweep", "SweepPoint", "sweep", "sweep_points"]


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One strength."""

    strength: float
    """As asked for, in the request's unit."""
    effect: float
    """Mean change of the promoted tokens' log-probabilities, nats, along the plain continuation."""
    random_effect: float
    """The same by the same edit of a matched random latent."""
    nll: float
    """Of the steered continuation under the unsteered model, nats a token."""
    repetition: float
    """Share of the steered continuation's 3-grams that came before in it."""
    text: str
    """The steered continuation, printable."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every strength, and where it is best and where the text breaks."""

    points: tuple[SweepPoint, ...]
    nll_plain: float
    repetition_plain: float
    nll_limit: float
    """A text is broken above it."""
    repetition_limit: float
    """Or above this."""
    sweet_spot: float | None
    """The strength of largest effect among those whose text holds; None if there is none."""
    breaks_at: float | None
    """The smallest strength whose text is broken; None if all hold."""
    random_latent: int


def sweep_points(
    model: LanguageModel,
    sae: SparseAutoencoder,
    prompt: str,
    request: EditRequest,
    strengths: Sequence[float],
    config: SteerConfig = SteerConfig(),
    *,
    hook_point: str,
    target_hook_point: str = "",
    index: FeatureIndex,
) -> Generator[SweepPoint, None, Sweep]:
    """The points one by one as they are measured; the generator returns the whole."""
    raise NotImplementedError


def sweep(
    model: LanguageModel,
    sae: SparseAutoencoder,
    prompt: str,
    request: EditRequest,
    strengths: Sequence[float],
    config: SteerConfig = SteerConfig(),
    *,
    hook_point: str,
    target_hook_point: str = "",
    index: FeatureIndex,
) -> Sweep:
    """`request` (its own strength does not count) at each of the strengths."""
    raise NotImplementedError
