"""The effect of edits: how far predictions move toward what the edited latents' directions write.

    effect = mean over promoted tokens of log p_edited - log p_unedited, minus the same mean over suppressed tokens; nats

of each edited latent, with the sign turned where its edit weakens it, and averaged over edits: positive is as asked. The suppressed are
subtracted because any disturbance flattens the distribution and so raises rare tokens, which most promoted ones are (docs/log.md); the
difference is one of logits, and flattening cancels.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from sparsight.features.index import FeatureIndex
from sparsight.sae import LatentEdit

__all__ = ["PredictedTokens", "weakens"]


class PredictedTokens:
    """Tokens that edits should move, by the index's promoted and suppressed ones. Raises RunError where it has none."""

    def __init__(self, index: FeatureIndex, edits: Sequence[LatentEdit]) -> None:
        self._tokens = [
            (
                -1.0 if weakens(edit) else 1.0,
                index.promoted(edit.latent).token_ids.tolist(),
                index.suppressed(edit.latent).token_ids.tolist(),
            )
            for edit in edits
        ]

    def effect(
        self, edited: Float[Tensor, "*shape vocab"], unedited: Float[Tensor, "*shape vocab"]
    ) -> Float[Tensor, "*shape"]:
        """From the logits of both."""
        change = edited.float() - unedited.float()
        parts = [sign * (change[..., up].mean(-1) - change[..., down].mean(-1)) for sign, up, down in self._tokens]
        return sum(parts[1:], parts[0]) / len(parts)


def weakens(edit: LatentEdit) -> bool:
    """Whether the edit makes less of the latent's direction, wherever it acts."""
    if edit.mode == "scale":
        return edit.value < 1
    return (
        edit.mode == "ablate" or (edit.mode == "add" and edit.value < 0) or (edit.mode == "clamp" and edit.value <= 0)
    )
