"""How strong an edit is, in units a person can choose without knowing the SAE's scale; and which other latents are like one.

Np99     N times the 99th percentile of the latent's active values on held-out text
Nnorm    what changes the activations by N times their mean length at that place: N mean|y| / |W_dec[latent]|
N        the SAE's own activation units; for scale, a factor
"""

import re
from dataclasses import dataclass

from sparsight.features.index import FeatureIndex
from sparsight.lm import LanguageModel
from sparsight.sae import LatentEdit, SparseAutoencoder

__all__ = ["UNITS", "EditRequest", "mean_norm", "parse_edit", "strength_of"]

UNITS = ("p99", "norm", "raw")
_REQUEST = re.compile(r"(\d+):(add|clamp|scale|ablate)(?::([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)(p99|norm|raw)?)?")


@dataclass(frozen=True)
class EditRequest:
    """An edit as a person asks for it."""

    latent: int
    mode: str
    """add | clamp | ablate | scale."""
    strength: float = 0.0
    """In `unit`."""
    unit: str = "raw"
    """p99 | norm | raw; scale and ablate take raw."""

    def resolve(
        self, index: FeatureIndex | None, sae: SparseAutoencoder, model: LanguageModel | None = None
    ) -> LatentEdit:
        """The edit in the SAE's units. `model` is asked for the layer's norm where the index does not hold it."""
        raise NotImplementedError


def parse_edit(text: str) -> EditRequest:
    """LATENT:MODE[:STRENGTH[UNIT]], such as 12:add:2p99, 7:ablate, 30:clamp:0.5norm, 12:scale:0."""
    raise NotImplementedError


def strength_of(
    index: FeatureIndex,
    latent: int,
    *,
    p99: float | None = None,
    norm_share: float | None = None,
    sae: SparseAutoencoder | None = None,
    model: LanguageModel | None = None,
) -> float:
    """A strength in the SAE's units: multiples of the latent's p99, or a share of the layer's mean norm (then `sae` is needed,
    and `model` where the index does not hold the norm).

    Raises SteeringError when the latent was never active, or not exactly one of the two is given.
    """
    raise NotImplementedError


def mean_norm(index: FeatureIndex, model: LanguageModel | None = None) -> float:
    """Mean length of the activations that edits act on (the target hook point's), over held-out tokens."""
    raise NotImplementedError
