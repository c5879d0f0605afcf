"""Matched random latents: what an edit is compared with, so that its effect is not that of any direction of this size.

    alike = near in (log density, log p99, log |W_dec|), each divided by its spread over the live latents

One is drawn from the nearest; latents whose direction resembles the edited one's are not random for it and are left out. Its edit is made
as long: value |W_dec[latent]| / |W_dec[random]| for add and clamp, the same factor for scale.
"""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float, Int

from sparsight.errors import SteeringError
from sparsight.features.index import FeatureIndex
from sparsight.sae import LatentEdit, SparseAutoencoder

__all__ = ["matched_edits", "matched_latents", "matching_traits"]

# A random latent is drawn from so many nearest ones, of a small dictionary from a quarter: few enough to be alike, enough to be random.
NEAREST = 20
# Two directions of 576 numbers have a cosine of 0.3 by chance about once in 10^12.
MOST_COSINE = 0.3


def matching_traits(index: FeatureIndex, sae: SparseAutoencoder) -> Float[np.ndarray, "latents 3"]:
    """log density, log p99 and log |W_dec| of each latent, over their spread; NaN for one never active."""
    alive = np.flatnonzero(np.diff(index.latent_offsets))
    quantiles = list(index.config["quantiles"])
    column = quantiles.index(0.99) if 0.99 in quantiles else len(quantiles) - 1
    traits = np.full((index.n_latents, 3), np.nan)
    norms = sae.W_dec.norm(dim=1).cpu().numpy()[alive]
    traits[alive] = np.log(np.stack([index.density[alive], index.quantiles[alive, column], norms], 1).clip(1e-12))
    return traits / traits[alive].std(0).clip(1e-3)


def matched_latents(
    index: FeatureIndex,
    sae: SparseAutoencoder,
    latent: int,
    *,
    n: int = 1,
    seed: int = 0,
    among: Collection[int] | None = None,
    without: Collection[int] = (),
    traits: Float[np.ndarray, "latents 3"] | None = None,
) -> Int[np.ndarray, " n"]:
    """n latents like this one, drawn from the nearest, without repetition; `among` narrows the choice, `without` leaves some out.

    `traits`, of `matching_traits`, saves time where many are asked for. Raises SteeringError when the latent was never active
    or fewer than n are left.
    """
    index.check_latent(latent)
    traits = matching_traits(index, sae) if traits is None else traits
    if np.isnan(traits[latent]).any():
        raise SteeringError(
            f"Latent {latent} was never active on held-out text, so no latent is like it. Leave out the random control."
        )
    rows = sae.W_dec
    cosines = ((rows @ rows[latent]) / (rows.norm(dim=1) * rows[latent].norm()).clamp_min(1e-12)).cpu().numpy()
    allowed = ~np.isnan(traits).any(1) & (np.abs(cosines) <= MOST_COSINE)
    if among is not None:
        allowed &= np.isin(np.arange(len(allowed)), list(among))
    allowed[[latent, *without]] = False
    candidates = np.flatnonzero(allowed)
    if len(candidates) < n:
        raise SteeringError(f"{len(candidates)} latents are left to match latent {latent} with; {n} are needed.")
    distance = np.square(traits[candidates] - traits[latent]).sum(1)
    nearest = candidates[np.argsort(distance, kind="stable")[: max(n, min(NEAREST, len(candidates) // 4))]]
    return np.random.default_rng((seed, latent)).choice(nearest, n, replace=False)


def matched_edits(
    index: FeatureIndex,
    sae: SparseAutoencoder,
    edits: Sequence[LatentEdit],
    *,
    seed: int = 0,
    active: Collection[int] = (),
) -> tuple[LatentEdit, ...]:
    """The same edits of matched latents, as long as their own; each latent is matched once.

    What ablate and scale do depends on a latent's activation: theirs are drawn from the `active` ones, where there are any.
    """
    chosen: dict[int, int] = {}
    edited = {edit.latent for edit in edits}
    found = []
    for edit in edits:
        if edit.latent not in chosen:
            among = set(active) - edited - set(chosen.values()) if edit.mode in ("ablate", "scale") else None
            options = {"seed": seed, "without": edited | set(chosen.values()), "among": among or None}
            chosen[edit.latent] = int(matched_latents(index, sae, edit.latent, **options)[0])
        latent, value = chosen[edit.latent], edit.value
        if edit.mode in ("add", "clamp"):
            value *= float(sae.W_dec[edit.latent].norm() / sae.W_dec[latent].norm())
        found.append(LatentEdit(latent, edit.mode, value))
    return tuple(found)
