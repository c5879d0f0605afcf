"""LatentEdit: a latent's activation changed by hand, and what that changes in the activations.

    z' = z + value (add) | value (clamp) | 0 (ablate) | z * value (scale)        value in the SAE's activation units
    y' = y + (z' - z) W_dec         y: what stands on the SAE's output side; x itself, but for a transcoder

Only the change of the reconstruction is added, so what the SAE does not explain of y stays where it was, and an edit that changes no
latent changes nothing at all. Several edits of one latent apply one after the other. z' may be negative: then the direction is
subtracted, which the SAE itself never does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.errors import SteeringError
from sparsight.sae.autoencoder import SparseAutoencoder

__all__ = ["EDIT_MODES", "LatentEdit", "edit_change", "edited"]

EDIT_MODES = ("add", "clamp", "ablate", "scale")


@dataclass(frozen=True)
class LatentEdit:
    """One change of one latent."""

    latent: int
    """Its number."""
    mode: str
    """add | clamp | ablate | scale."""
    value: float = 0.0
    """In the SAE's activation units; for scale a factor; ablate takes none."""

    def __post_init__(self) -> None:
        if self.mode not in EDIT_MODES:
            raise SteeringError(f"Latent {self.latent}: {self.mode!r} is no edit; expected {', '.join(EDIT_MODES)}.")
        if self.latent < 0 or not math.isfinite(self.value):
            raise SteeringError(f"Edit {self}: expected a latent from 0 up and a finite value.")

    def apply(self, z: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The latent's activations after the edit."""
        if self.mode == "add":
            return z + self.value
        return z * self.value if self.mode == "scale" else torch.full_like(z, self.value if self.mode == "clamp" else 0)


def edit_change(
    x: Float[Tensor, "n d_in"], sae: SparseAutoencoder, edits: Sequence[LatentEdit]
) -> Float[Tensor, "n d_out"]:
    """(z' - z) W_dec: what the edits add on the SAE's output side, in float32.

    Raises SteeringError when the SAE has no such latent.
    """
    latents = list(dict.fromkeys(edit.latent for edit in edits))
    if any(latent >= sae.n_latents for latent in latents):
        raise SteeringError(f"There is no latent {max(latents)}; the SAE has latents 0 to {sae.n_latents - 1}.")
    if all(edit.mode == "add" for edit in edits):  # the encoder, by far the dearest part, has no say
        before = torch.zeros(len(x), len(latents), device=sae.W_dec.device)
    else:
        before = sae.encode_latents(x.to(sae.W_enc.device), latents)
    after = before.clone()
    for edit in edits:
        column = latents.index(edit.latent)
        after[:, column] = edit.apply(after[:, column])
    return (after - before) @ sae.W_dec[latents]


def edited(
    x: Float[Tensor, "n d_in"],
    sae: SparseAutoencoder,
    edits: Sequence[LatentEdit],
    y: Float[Tensor, "n d_out"] | None = None,
) -> Float[Tensor, "n d_out"]:
    """x + (z' - z) W_dec in x's dtype; a transcoder, whose edits act on another activation, is given that as `y`.

    Raises SteeringError when a transcoder is given no `y`, or the SAE has no such latent.
    """
    if y is None:
        if sae.cfg.is_transcoder:
            raise SteeringError(f"SAE {sae.cfg.id} is a transcoder: its edits act on its target. Give that as y.")
        y = x
    return (y.float() + edit_change(x, sae, edits).to(y.device)).to(y.dtype)
