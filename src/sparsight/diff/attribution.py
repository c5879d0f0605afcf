"""Which latents bring about what the fine-tune predicts differently: integrated gradients along the difference.

    score_j = - sum over tokens of z_j d_j . g / tokens      g: gradient of KL(p_tuned | p) with respect to the activation,
                                                                averaged over h_base + a (h_tuned - h_base) for a in (0, 1)

The scores of all latents, with that of the bias and of what the dictionary leaves out, add up to the nats a token by which the true
difference lowers the divergence, exact but for the number of steps on the way. Energy ranks by how much is written; this ranks by
what it does. The price is a backward pass through the fine-tune's upper layers a step; a latent whose effect needs another's is
given a part of it. Source: integrated gradients, Sundararajan et al. 2017, arXiv:1703.01365.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.diff.closure import DifferenceCode, LatentRanking
from sparsight.diff.where import run_both
from sparsight.errors import MetricError
from sparsight.lm import LanguageModel
from sparsight.metrics import SpliceText, token_kl

__all__ = ["attribute_latents"]


def attribute_latents(
    base: LanguageModel,
    tuned: LanguageModel,
    text: SpliceText,
    code: DifferenceCode,
    *,
    hook_point: str,
    forward_tokens: int,
    n_steps: int = 4,
) -> LatentRanking:
    """Ranks by what latents do to the predictions at all real tokens of the text, which is to be of the train split.

    Tokens that the store left out keep the base's activation, as in a closure. Raises MetricError when there is no text.
    """
    scores = torch.zeros(code.sae.n_latents, dtype=torch.float64)
    active = torch.zeros_like(scores)
    n_tokens = n_kept = 0
    for batch, kept in text.batches(forward_tokens):
        h_base = base.read(batch, [hook_point])[hook_point]
        p_tuned, found = run_both(tuned, batch, [hook_point])
        h_tuned = found[hook_point]
        where, scored = kept.to(h_base.device), batch.mask.to(h_base.device)
        target = torch.where(where[..., None], h_tuned, h_base)
        loss = _divergence(p_tuned, scored)
        gradient = torch.zeros_like(h_base, dtype=torch.float32)
        for step in range(n_steps):
            value = torch.lerp(h_base.float(), target.float(), (step + 0.5) / n_steps).to(h_base.dtype)
            gradient += tuned.gradient(batch, hook_point, value, loss).float() / n_steps
        z = code.values(h_base[where].float(), h_tuned[where].float())
        towards = gradient[where].to(z.device) @ code.directions.T
        scores -= (z * towards).double().sum(0).cpu()
        active += (z != 0).sum(0).cpu()
        n_tokens, n_kept = n_tokens + int(scored.sum()), n_kept + len(z)
    if n_kept == 0:
        raise MetricError("There are no tokens to attribute predictions on. Collect more text.")
    return LatentRanking(score=(scores / n_tokens).numpy(), rate=(active / n_kept).numpy(), n_tokens=n_tokens)


def _divergence(p_tuned: Tensor, scored: Tensor) -> Callable[[Tensor], Float[Tensor, ""]]:
    def loss(logits: Tensor) -> Float[Tensor, ""]:
        # Copied here, outside inference mode, since a gradient is to pass beside it.
        return token_kl(p_tuned[scored].clone(), logits[scored]).sum()

    return loss
