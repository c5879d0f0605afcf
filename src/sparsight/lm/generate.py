"""Text token by token: rows that go on with a key-value cache, and the choice of each next token.

Hooks live for one forward pass, so they fire at the prompt and at every token after it, and between two tokens the model is as it was:
a caller may stop anywhere, raise, or have several texts under way on one model. What is shared is only what a caller shares.

Rows of one `Decoding` have equal lengths, which needs no padding and no mask; texts of different lengths take one each.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sparsight.errors import ModelError
from sparsight.lm.model import LanguageModel

__all__ = ["Decoding", "Sampler"]


class Decoding:
    """Rows of text that the model has read so far; memory grows with their keys and values."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._cache: Any = None
        self._shape = (0, 0)

    def feed(
        self,
        token_ids: Int[Tensor, "rows positions"],
        *,
        replace: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    ) -> Float[Tensor, "rows vocab"]:
        """The rows go on by these tokens; returns the logits, in float32, of what comes next.

        `replace` as in `LanguageModel.logits`, for these positions: [rows, positions, d]. Raises ModelError when the text
        is longer than the model takes, or the number of rows changes.
        """
        rows, n_before = self._shape
        if n_before and len(token_ids) != rows:
            raise ModelError(
                f"{rows} rows are under way, {len(token_ids)} were given. Begin another Decoding for them."
            )
        logits, self._cache = self._model.next_logits(token_ids, self._cache, n_before=n_before, replace=replace)
        self._shape = (len(token_ids), n_before + token_ids.shape[1])
        return logits


class Sampler:
    """Chooses next tokens: the most likely at temperature 0, else drawn from softmax(logits / temperature).

    Drawn by adding Gumbel noise and taking the largest, with the same noise for every row of a step: two rows with nearly the
    same logits nearly always get the same token. Noise comes from the CPU's generator, so that devices agree.
    Source: Gumbel-max, Maddison et al. 2014; shared noise as common random numbers.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature = temperature
        self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits: Float[Tensor, "rows vocab"]) -> Int[Tensor, " rows"]:
        """A token for each row, on the CPU; one call a step."""
        scores = logits.float().cpu()
        if self._temperature > 0:
            uniform = torch.rand(scores.shape[1], generator=self._generator, dtype=torch.float64)
            noise = -(-uniform.clamp_min(1e-300).log()).log()
            scores = scores.double() / self._temperature + noise
        return scores.argmax(1)
