"""What the baselines take from the train split: PCA, mean activation, token frequencies, the SAE's L0 there.

Nothing here sees a held-out row. PCA gets as many components as the SAE has active latents on the same train tokens,
rounded.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.activations import ActivationBatch
from sparsight.metrics.baselines import LinearBaseline, LinearFit
from sparsight.metrics.classes import TokenClasses
from sparsight.metrics.config import EvaluateConfig
from sparsight.metrics.sparsity import l0
from sparsight.sae import SparseAutoencoder

__all__ = ["TrainFit", "fit_on_train"]


@dataclass(frozen=True, kw_only=True)
class TrainFit:
    """What was fitted on the train split; None each where there were fewer than two train rows."""

    pca: LinearBaseline | None
    """None also where it was not asked for."""
    mean: Float[Tensor, " d_out"] | None
    """Mean activation at the target hook point."""
    classes: TokenClasses | None
    n_tokens: int
    """Train rows that PCA and mean were fitted on."""


def fit_on_train(
    sae: SparseAutoencoder,
    batches: Iterable[ActivationBatch],
    *,
    token_ids: Int[np.ndarray, " tokens"],
    config: EvaluateConfig,
    hook_point: str,
    target_hook_point: str,
    with_pca: bool = True,
) -> TrainFit:
    """Fit on the first `config.pca_fit_tokens` rows of `batches`, and count `token_ids`, the train text.

    Where there is no train text (only rows from a stream), the tokens of the rows are counted in its place.
    """
    fit, n_active, seen = LinearFit(), 0.0, []
    for batch in batches:
        x = batch[hook_point].to(sae.W_enc.device).float()
        fit.add(x, None if target_hook_point == hook_point else batch[target_hook_point].to(x.device).float())
        if with_pca:
            n_active += sum(l0(sae.encode(rows)).sum().item() for rows in x.split(config.batch_tokens))
        seen.append(batch.token_ids.cpu().numpy())
        if fit.n_tokens >= config.pca_fit_tokens:
            break
    if fit.n_tokens < 2:
        return TrainFit(pca=None, mean=None, classes=None, n_tokens=fit.n_tokens)
    k = min(max(1, round(n_active / fit.n_tokens)), sae.d_in, sae.d_out)
    return TrainFit(
        pca=fit.baseline(k) if with_pca else None,
        mean=fit.output_mean,
        classes=TokenClasses.from_tokens(token_ids if len(token_ids) else np.concatenate(seen)),
        n_tokens=fit.n_tokens,
    )
