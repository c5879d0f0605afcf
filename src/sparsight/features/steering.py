"""Steering: a prompt goes on with latents edited, beside the controls without which that shows nothing.

    plain      the model as it is
    steered    the edits, at every position that `scope` names
    random     the same edits on matched random latents (strength.py): what any direction of this size would do
    prompt     no edit; an instruction with the promoted tokens stands before the prompt: what asking would do

Every token of every arm also goes through the unsteered model after the prompt alone: `nll` says how likely it found the token, `kl`
how far the arm's next-token distribution lies from its own. Special tokens and attention sinks keep their activation, as in training and
evaluation. At a temperature the arms share their random draws, so that two arms differ by what they are, not by luck.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sparsight.errors import SteeringError
from sparsight.features.index import FeatureIndex
from sparsight.lm import LanguageModel
from sparsight.sae import LatentEdit, SparseAutoencoder

__all__ = ["ARMS", "SCOPES", "SteerConfig", "SteerEvent", "Steering", "steer"]

ARMS = ("plain", "steered", "random", "prompt")
SCOPES = ("both", "prompt", "generation")
CONTROLS = ("random", "prompt")


@dataclass(frozen=True, kw_only=True)
class SteerConfig:
    """Settings of `steer`."""

    max_new_tokens: int = 40
    """Tokens generated per arm, at most; an arm ends at the model's end-of-sequence token."""
    temperature: float = 0.0
    """0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature)."""
    seed: int = 0
    """Of the draws, and of the choice of random latents."""
    scope: str = "both"
    """Positions edited: both | prompt | generation (the generated tokens', hence from the second on)."""
    controls: tuple[str, ...] = CONTROLS
    """Arms beside plain and steered: random, prompt."""
    chat: bool = False
    """Whether the prompt is put into the tokenizer's chat template, as the user's message."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature <= 10:
            raise SteeringError(
                f"max_new_tokens = {self.max_new_tokens}, temperature = {self.temperature}; "
                "expected at least 1 token and a temperature from 0 to 10."
            )
        if self.scope not in SCOPES:
            raise SteeringError(f"scope = {self.scope!r}; expected one of {', '.join(SCOPES)}.")
        if not set(self.controls) <= set(CONTROLS):
            raise SteeringError(f"controls = {self.controls}; expected some of {', '.join(CONTROLS)}.")


@dataclass(frozen=True, kw_only=True)
class SteerEvent:
    """One generated token of one arm."""

    arm: str
    """plain | steered | random | prompt."""
    step: int
    """Counted from 0."""
    token_id: int
    text: str
    """The token, readable (see tokens.py)."""
    nll: float
    """-log p of the token under the unsteered model after the prompt and the arm's own tokens, nats."""
    kl: float
    """KL from the unsteered model's next-token distribution at the same place to the arm's, nats; 0 for plain."""


class Steering(Iterator[SteerEvent]):
    """A steering under way: iterate for its events, step by step and arm by arm. Ask it what the arms are.

    Between two events the model is as it was: nothing has to be closed when the caller stops early.
    """

    edits: tuple[LatentEdit, ...]
    random_edits: tuple[LatentEdit, ...]
    """Of the random arm; empty without one."""
    prompt_control: str
    """The prompt arm's prompt; empty without one."""

    def __next__(self) -> SteerEvent:
        raise NotImplementedError


def steer(
    model: LanguageModel,
    sae: SparseAutoencoder,
    prompt: str,
    edits: Sequence[LatentEdit],
    config: SteerConfig = SteerConfig(),
    *,
    hook_point: str,
    target_hook_point: str = "",
    index: FeatureIndex | None = None,
    instruction: str = "",
) -> Steering:
    """Go on with the prompt in every arm. The controls need `index`; `instruction` replaces the prompt arm's own.

    Raises SteeringError for edits or settings that cannot be, SAEError when the SAE does not fit, TextError for a
    prompt without tokens.
    """
    raise NotImplementedError
