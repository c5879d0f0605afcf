"""Which latent of one dictionary is which of another: by direction, and by when they fire.

    cosine_i         max over j of cos(W_dec[i], W_dec'[j]), and which j
    correlation_i    max over j of the Pearson correlation of z_i and z'_j on the same tokens, and which j
    cosine_there_i   cos(W_dec[i], W_dec'[j]) at the latter j: low where a feature fires as ever and points elsewhere
    strength_i       ln of rms(z_i) |W_dec[i]| over rms(z'_j) |W_dec'[j]| at the latter j: how much more it adds to the activations
    mutual           pairs in which each is the other's nearest direction (MNN)
    PW-MCC           mean cosine over the one-to-one matching with the largest total          Song 2025, arXiv:2505.20254

Latents that never fired on these tokens take no part, on either side: they keep the directions that they were drawn in, and get NaN. Cosines are
signed, since latents are positive. Two models are matched like two seeds, if their activations were read on the same tokens in the same order.

Trade-off: every dictionary's active latents are held in memory, 12 bytes each (77 MB for 200,000 tokens with 32 active), and a pair's F x G table
while that pair is looked at; so each token is encoded once, however many dictionaries are compared.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sparsight.errors import MetricError
from sparsight.metrics import CrossMoments
from sparsight.metrics.recovery import match_features
from sparsight.sae import SparseAutoencoder, SparseLatents

__all__ = ["Dictionary", "Partners", "matched", "mutual_pairs", "pw_mcc"]

# where latents are dense, so many tokens of 4,608 latents are 150 MB
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class Dictionary:
    """One SAE's directions, and what its latents did on the tokens that all are compared on."""

    directions: Float[Tensor, "F d"]
    """Decoder rows as they are, of any norm."""
    latents: SparseLatents
    """On all of these tokens, in their order."""
    firings: Int[np.ndarray, " F"]
    """Tokens on which each latent was active."""

    @classmethod
    @torch.no_grad()
    def of(cls, sae: SparseAutoencoder, batches: Iterable[Float[Tensor, "n d"]]) -> "Dictionary":
        """`batches`: activations of the model that the SAE belongs to. Raises MetricError when there is none."""
        parts = [sae.encode_sparse(x) for x in batches]
        if not parts:
            raise MetricError(
                f"SAE {sae.cfg.id} was given no activations to be compared on; one batch at least is expected."
            )
        width = max(part.values.shape[1] for part in parts)
        padded = [[functional.pad(each, (0, width - each.shape[1])) for each in part] for part in parts]
        indices, values = (torch.cat(each).cpu() for each in zip(*padded, strict=True))
        firings = torch.bincount(indices[values > 0], minlength=sae.n_latents)
        return cls(directions=sae.W_dec.detach().cpu(), latents=SparseLatents(indices, values), firings=firings.numpy())

    @property
    def alive(self) -> Bool[np.ndarray, " F"]:
        """Which latents fired on these tokens."""
        return self.firings > 0

    @property
    def n_tokens(self) -> int:
        """Tokens compared on."""
        return len(self.latents.values)

    @property
    def rate(self) -> Float[np.ndarray, " F"]:
        """Share of these tokens on which each latent was active."""
        return self.firings / max(self.n_tokens, 1)


@dataclass(frozen=True, kw_only=True)
class Partners:
    """Each latent's best partners in another dictionary; NaN and -1 for one that never fired here."""

    cosine: Float[np.ndarray, " F"]
    cosine_latent: Int[np.ndarray, " F"]
    correlation: Float[np.ndarray, " F"]
    correlation_latent: Int[np.ndarray, " F"]
    cosine_there: Float[np.ndarray, " F"]
    strength: Float[np.ndarray, " F"]


def matched(ours: Dictionary, theirs: Dictionary) -> tuple[Partners, Partners]:
    """The partners of ours among theirs, and of theirs among ours. Raises MetricError for unequal tokens, or where none fired."""
    if ours.n_tokens != theirs.n_tokens or ours.directions.shape[1] != theirs.directions.shape[1]:
        raise MetricError(
            f"Dictionaries on {ours.n_tokens:,} and {theirs.n_tokens:,} tokens of widths {ours.directions.shape[1]} and "
            f"{theirs.directions.shape[1]} cannot be matched; the same tokens at hook points of one width are expected."
        )
    if not ours.alive.any() or not theirs.alive.any():
        raise MetricError(f"A dictionary without a latent that fired on {ours.n_tokens:,} tokens has nothing to match.")
    moments = CrossMoments(len(ours.firings), len(theirs.firings))
    parts = ([part.split(_ROWS_AT_ONCE) for part in each.latents] for each in (ours, theirs))
    for ours_part, theirs_part in zip(*(zip(*part, strict=True) for part in parts), strict=True):
        moments.add(SparseLatents(*ours_part), SparseLatents(*theirs_part))
    alive = [torch.from_numpy(np.flatnonzero(each.alive)) for each in (ours, theirs)]
    cosines = _cosines(ours.directions[alive[0]], theirs.directions[alive[1]])
    correlations = moments.correlations()[alive[0]][:, alive[1]].float()
    strengths = [_log_strength(each, index) for each, index in zip((ours, theirs), alive, strict=True)]
    there = _partners(cosines, correlations, *strengths)
    back = _partners(cosines.T, correlations.T, *strengths[::-1])
    return _spread(there, len(ours.firings), *alive), _spread(back, len(theirs.firings), *alive[::-1])


def mutual_pairs(there: Partners, back: Partners) -> Int[np.ndarray, "pairs 2"]:
    """Pairs (ours, theirs) in which each is the other's nearest direction; both as `matched` gave them."""
    ours = np.flatnonzero(there.cosine_latent >= 0)
    theirs = there.cosine_latent[ours]
    mutual = back.cosine_latent[theirs] == ours
    return np.stack([ours[mutual], theirs[mutual]], axis=1)


def pw_mcc(ours: Dictionary, theirs: Dictionary) -> float:
    """Mean cosine over the one-to-one matching of latents alive with the largest total."""
    rows = [each.directions[torch.from_numpy(each.alive)] for each in (ours, theirs)]
    matching = match_features(rows[1], rows[0])
    return float(matching.cosine[matching.latent >= 0].mean())


def _cosines(ours: Tensor, theirs: Tensor) -> Float[Tensor, "F G"]:
    return functional.normalize(ours, dim=1) @ functional.normalize(theirs, dim=1).T


def _log_strength(dictionary: Dictionary, alive: Tensor) -> Float[Tensor, " a"]:
    """ln of the root mean square of what each adds to the activations, of those alive."""
    squares = torch.zeros(len(dictionary.firings), dtype=torch.float64)
    indices, values = dictionary.latents
    squares.index_add_(0, indices.flatten(), values.flatten().double().square())
    norms = torch.linalg.vector_norm(dictionary.directions[alive].double(), dim=1)
    return 0.5 * (squares[alive] / dictionary.n_tokens).log() + norms.log()


def _partners(cosines: Tensor, correlations: Tensor, ours: Tensor, theirs: Tensor) -> Partners:
    by_cosine, by_correlation = cosines.max(dim=1), correlations.max(dim=1)
    found = {
        "cosine": by_cosine.values,
        "cosine_latent": by_cosine.indices,
        "correlation": by_correlation.values,
        "correlation_latent": by_correlation.indices,
        "cosine_there": cosines.gather(1, by_correlation.indices[:, None])[:, 0],
        "strength": (ours - theirs[by_correlation.indices]).float(),
    }
    return Partners(**{name: value.numpy() for name, value in found.items()})


def _spread(found: Partners, n_latents: int, ours: Tensor, theirs: Tensor) -> Partners:
    """From those alive to all, on either side."""
    whole = {}
    for field in fields(found):
        values = getattr(found, field.name)
        is_latent = field.name.endswith("_latent")
        whole[field.name] = np.full(n_latents, -1 if is_latent else np.nan, np.int64 if is_latent else np.float32)
        whole[field.name][ours.numpy()] = theirs.numpy()[values] if is_latent else values
    return Partners(**whole)
