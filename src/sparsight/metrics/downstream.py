"""What a reconstruction costs the language model: cross-entropy and KL divergence per token, and the share recovered.

    CE        = -log p(next token), nats, in float32 whatever the model's dtype
    KL        = sum_v p_clean(v) (log p_clean(v) - log p(v)), nats: from the clean model to the one with the splice
    recovered = (CE_ablated - CE_sae) / (CE_ablated - CE_clean): 1 as good as clean, 0 as bad as ablating

The recovered share depends on the ablation (zero, or the mean activation of the train split): the two differ widely,
so it is never shown without the raw CE values. Where ablating does not raise CE the share has no meaning.

Trade-off: rows are handled in chunks, so 150,000-token vocabularies need a few hundred MB and not tens of GB.
Source of the recovered share: Cunningham et al. 2023, arXiv:2309.08600; its dependence on the ablation: SAEBench.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.errors import MetricError

__all__ = ["recovered_share", "token_cross_entropy", "token_kl"]

# Rows of logits turned to float32 at a time: 128 rows of a 152k vocabulary are 78 MB.
ROWS_AT_ONCE = 128


def token_cross_entropy(logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-log p(target) per row, nats, float32."""
    losses = []
    for chunk, target in zip(logits.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True):
        rows = chunk.float()
        losses.append(rows.logsumexp(-1) - rows.gather(-1, target.long()[:, None])[:, 0])
    return torch.cat(losses)


def token_kl(clean: Float[Tensor, "n vocab"], logits: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    """KL(clean || logits) per row, nats, float32; rounding below zero is cut off at zero."""
    divergences = []
    for before, after in zip(clean.split(ROWS_AT_ONCE), logits.split(ROWS_AT_ONCE), strict=True):
        log_p, log_q = before.float().log_softmax(-1), after.float().log_softmax(-1)
        divergences.append((log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0))
    return torch.cat(divergences)


def recovered_share(*, ce_clean: float, ce_sae: float, ce_ablated: float) -> float:
    """(CE_ablated - CE_sae) / (CE_ablated - CE_clean).

    Raises MetricError when ablating does not raise the cross-entropy: then there is nothing to recover.
    """
    lost = ce_ablated - ce_clean
    if not lost > 0:
        raise MetricError(
            f"Ablation moves CE from {ce_clean:.4f} to {ce_ablated:.4f}; a recovered share needs it to rise."
        )
    return (ce_ablated - ce_sae) / lost
