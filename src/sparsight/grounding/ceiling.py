"""The most that any linear reading of the activations tells recombined from grounded: the ceiling over a latent's score.

    AUC of a logistic regression on the raw activations, trained on the other entities, within strata of the fold, averaged over folds
    p = (1 + draws of labels with at least this AUC) / (1 + draws)

Folds, strata and draws are those of `scores`. A p above alpha says: no linear signal at this layer, whatever the dictionary.
Trade-off: each draw fits anew, so draws are few, and p no smaller than 1 / (draws + 1).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sparsight.grounding.scores import ScoreConfig, Spans, entity_folds, permuted_labels, stratified_auc
from sparsight.metrics import ProbingConfig, one_thread, require_sklearn, train_probe

__all__ = ["LinearCeiling", "linear_ceiling"]


@dataclass(frozen=True, kw_only=True)
class LinearCeiling:
    """What a linear probe reaches."""

    auc: float
    p: float
    null_auc: Float[np.ndarray, " draws"]
    """Of each draw."""


def linear_ceiling(
    x: Float[np.ndarray, "n d"],
    spans: Spans,
    config: ScoreConfig,
    *,
    n_draws: int = 39,
    probing: ProbingConfig = ProbingConfig(inverse_penalties=(0.001, 0.1)),
) -> LinearCeiling:
    """The probe's AUC on held-out entities and its null. `x`: activations at the spans.

    Raises MetricError without scikit-learn, or when a class has fewer rows than `probing` has folds.
    """
    require_sklearn()
    folds = list(entity_folds(spans, config))[: config.n_folds]  # one split: each costs a fit of every draw

    def auc(labels: np.ndarray) -> float:
        found = []
        for fold in folds:
            probe = train_probe(x[~fold], labels[~fold].astype(np.int64), None, probing)
            logits = probe.logits(x[fold])
            found.append(float(stratified_auc(logits[:, None], labels[fold], spans.strata[fold])[0]))
        return float(np.nanmean(found))

    with one_thread():
        reached = auc(spans.recombined)
        null = np.array([auc(labels) for labels in permuted_labels(spans, config, n_draws)])
    return LinearCeiling(auc=reached, p=float((1 + (null >= reached - 1e-12).sum()) / (1 + n_draws)), null_auc=null)
