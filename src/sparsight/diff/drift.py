"""How far the latents of a warm start moved, beyond what they move on more of the same text.

A warm start is the base's SAE trained on, on another model's activations (`SAEConfig.start_from`). Its latent i is still the base's latent i, so
nothing has to be matched:

    drift_i = 1 - cos(W_dec[i] of the base's SAE, W_dec[i] of the warm start)

Every further step moves every latent, whatever the activations are. The null is the drift of the base's SAE trained on, as many steps and at
the same rate, on the activations of a null fine-tune: p is the rank of drift_i among the null's latents that fire about as often, q is Benjamini and
Hochberg's. On a toy model the mean drift was 0.070 for a fine-tune and 0.029 for its null, where 0 was expected.

Trade-off: a warm start sees features that turn and cannot say that one is new: a latent that was free may have taken it, or none.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sparsight.diff.emergence import GapTest, benjamini_hochberg, rank_p
from sparsight.errors import MetricError

__all__ = ["DriftTest", "decoder_drift", "drift_test"]


@dataclass(frozen=True, kw_only=True)
class DriftTest:
    """The drift of each latent, and what it is beside that of a null fine-tune."""

    drift: Float[np.ndarray, " F"]
    null_drift: Float[np.ndarray, " F"]
    test: GapTest
    mean: float
    """Over the latents tested."""
    null_mean: float
    """Over the null's latents that it was ranked among."""


def decoder_drift(base: Float[Tensor, "F d"], warm: Float[Tensor, "F d"]) -> Float[np.ndarray, " F"]:
    """1 - cos of each decoder row with where it started, 0 to 2. Raises MetricError for unequal shapes."""
    if base.shape != warm.shape:
        raise MetricError(f"Decoders {tuple(base.shape)} and {tuple(warm.shape)} are not of an SAE and its warm start.")
    return 1 - functional.cosine_similarity(base.double(), warm.double(), dim=1).cpu().numpy()


@torch.no_grad()
def drift_test(
    base: Float[Tensor, "F d"],
    warm: Float[Tensor, "F d"],
    null: Float[Tensor, "F d"],
    firings: Int[np.ndarray, " F"],
    null_firings: Int[np.ndarray, " F"],
    *,
    least_firings: int = 20,
    n_strata: int = 4,
) -> DriftTest:
    """Decoders of the base's SAE, of its warm start on the fine-tune and of that on the null fine-tune; and on how many of the
    tokens compared on each latent of the latter two was active.

    Raises MetricError for unequal shapes, or where no latent of the null fired often enough.
    """
    drift, null_drift = decoder_drift(base, warm), decoder_drift(base, null)
    can, among = firings >= least_firings, null_firings >= least_firings
    if not among.any():
        raise MetricError(
            f"No latent of the null's warm start fired on {least_firings} tokens; the most did on {null_firings.max()}. Compare on more tokens."
        )
    p = np.full(len(drift), np.nan)
    p[can] = rank_p(drift[can], firings[can], null_drift[among], null_firings[among], n_strata=n_strata)
    n_null = int(among.sum())
    test = GapTest(
        p=p,
        q=benjamini_hochberg(p),
        n_tested=int(can.sum()),
        n_null=n_null,
        least_p=1 / (n_null // n_strata + 1),
    )
    mean = float(drift[can].mean()) if can.any() else float("nan")
    return DriftTest(
        drift=drift, null_drift=null_drift, test=test, mean=mean, null_mean=float(null_drift[among].mean())
    )
