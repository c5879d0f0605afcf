"""Steering: a prompt goes on with latents edited, beside the controls without which that shows nothing.

    plain      the model as it is
    steered    the edits, at every position that `scope` names
    random     the same edits of matched random latents (matched.py): what any direction of this size would do
    prompt     no edit; an instruction with the promoted tokens stands before the prompt: what asking would do

Every token of every arm also goes through the unsteered model, after the prompt alone: `nll` says how likely it found the token, `kl`
how far the arm's next-token distribution lies from its own, `effect` how far toward what the edits should do (effect.py). Special tokens
and attention sinks keep their activation, as in training and evaluation. At a temperature the arms share their random draws, so that two
arms differ by what they are, not by luck.

The arms are rows of one batch with one cache, and a second row beside each edited one reads the same tokens unedited; only the prompt
arm, whose prompt is longer, has a batch of its own. Trade-off: nearly twice the rows for `nll` and `kl`, of which a CPU's or GPU's
time per token hardly depends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sparsight.errors import SteeringError
from sparsight.features.index import FeatureIndex
from sparsight.features.live import check_sae_fits
from sparsight.features.tokens import readable_tokens
from sparsight.lm import Decoding, LanguageModel, Piece, Sampler, make_batches
from sparsight.metrics import token_cross_entropy, token_kl
from sparsight.sae import LatentEdit, SparseAutoencoder
from sparsight.steering.editing import LatentEditor
from sparsight.steering.effect import PredictedTokens
from sparsight.steering.instruction import instruct, prompt_ids, steering_instruction
from sparsight.steering.matched import matched_edits

__all__ = ["ARMS", "CONTROLS", "SCOPES", "SteerConfig", "SteerEvent", "Steering", "active_latents", "editable", "steer"]

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
    """Positions edited: both | prompt | generation (the generated tokens' own, so the first of them is not changed)."""
    controls: tuple[str, ...] = CONTROLS
    """Arms beside plain and steered: random, prompt."""
    chat: bool = False
    """Whether the prompt goes into the tokenizer's chat template, as the user's message."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature <= 10 or not 0 <= self.seed < 2**63:
            raise SteeringError(
                f"max_new_tokens = {self.max_new_tokens}, temperature = {self.temperature}, seed = {self.seed}; "
                "expected at least 1 token, a temperature from 0 to 10 and a seed from 0 up."
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
    """Its number in the vocabulary."""
    text: str
    """The token, readable (see tokens.py)."""
    nll: float
    """-log p of the token under the unsteered model, after the prompt and the arm's own tokens; nats."""
    kl: float
    """KL from the unsteered model's next-token distribution at the same place to the arm's; nats, 0 for plain."""
    effect: float | None = None
    """How far the arm's distribution lies there toward what the edits ask for (see effect.py), nats; None without an index."""


class Steering(Iterator[SteerEvent]):
    """A steering under way: iterate for its events, step by step and arm by arm; ask it what the arms are.

    Between two events the model is as it was: nothing has to be closed when the caller stops early.
    """

    arms: tuple[str, ...]
    """In the order of events."""
    edits: tuple[LatentEdit, ...]
    """Of the steered arm."""
    random_edits: tuple[LatentEdit, ...]
    """Of the random arm; empty without one."""
    prompt_control: str
    """The prompt arm's prompt; empty without one."""

    def __init__(
        self,
        model: LanguageModel,
        config: SteerConfig,
        token_ids: Int[Tensor, "1 positions"],
        edits: dict[str, tuple[LatentEdit, ...]],
        instructed: tuple[str, Int[Tensor, "1 positions"]] | None,
        editor: LatentEditor,
        predicted: PredictedTokens | None,
    ) -> None:
        self.edits, self.random_edits = edits["steered"], edits.get("random", ())
        self.arms = ("plain", *edits, *(("prompt",) if instructed else ()))
        self.prompt_control = instructed[0] if instructed else ""
        self._editor, self._predicted = editor, predicted
        self._events = self._run(model, config, token_ids, None if instructed is None else instructed[1])

    def __next__(self) -> SteerEvent:
        return next(self._events)

    @property
    def n_edited(self) -> int:
        """Positions edited so far, over both edited arms."""
        return self._editor.n_edited

    def _run(
        self, model: LanguageModel, config: SteerConfig, token_ids: Tensor, instructed_ids: Tensor | None
    ) -> Iterator[SteerEvent]:
        """Rows: plain, the edited arms, then an unedited one beside each arm but plain."""
        n_own, rows = len(self.arms) - (instructed_ids is not None), _row_arms(self.arms)
        shadows = [0, *range(n_own, len(rows))]
        main, beside, sampler = Decoding(model), Decoding(model), Sampler(config.temperature, config.seed)
        fed, where = token_ids.expand(len(rows), -1), editable(model, token_ids) & (config.scope != "generation")
        running = [True] * len(self.arms)
        for step in range(config.max_new_tokens):
            logits = main.feed(fed, replace=self._editor.hooks(where.expand(len(fed), -1)))
            own = logits[:n_own]
            if instructed_ids is not None:
                own = torch.cat([own, beside.feed(instructed_ids)])
            chosen = sampler.choose(own)
            nll = token_cross_entropy(logits[shadows], chosen.to(logits.device)).tolist()
            kl = token_kl(logits[shadows], own).tolist()
            effect = None if self._predicted is None else self._predicted.effect(own, logits[shadows]).tolist()
            texts = readable_tokens(model.tokenizer, chosen.tolist())
            for i, (arm, token_id) in enumerate(zip(self.arms, chosen.tolist(), strict=True)):
                if running[i]:
                    numbers = {"nll": nll[i], "kl": kl[i], "effect": None if effect is None else effect[i]}
                    yield SteerEvent(arm=arm, step=step, token_id=token_id, text=texts[i], **numbers)
                    running[i] = token_id not in model.stop_ids
            if not any(running):
                return
            fed = chosen[rows][:, None]
            where = editable(model, fed) & (config.scope != "prompt")
            instructed_ids = None if instructed_ids is None else chosen[-1:, None]


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
    """Go on with the prompt in every arm. The controls need `index`; `instruction` takes the place of the prompt arm's own.

    Raises SteeringError for edits or settings that cannot be, SAEError when the SAE does not fit the hook point, TextError
    for a prompt without tokens. Nothing is generated before the first event is asked for.
    """
    if not edits:
        raise SteeringError("No edit was given. Give at least one, such as 12:add:2p99.")
    check_sae_fits(sae, model, hook_point, target_hook_point or hook_point)
    if any(edit.latent >= sae.n_latents for edit in edits):
        named = ", ".join(str(edit.latent) for edit in edits if edit.latent >= sae.n_latents)
        raise SteeringError(f"There is no latent {named}; the SAE has latents 0 to {sae.n_latents - 1}.")
    if config.controls and index is None and not (config.controls == ("prompt",) and instruction):
        raise SteeringError("The controls are made from the SAE's feature index. Give it, or controls=().")
    token_ids = prompt_ids(model, prompt, chat=config.chat)
    arms = {"steered": tuple(edits)}
    if "random" in config.controls and index is not None:
        active = active_latents(model, sae, token_ids, hook_point) if _depends_on_text(edits) else set()
        arms["random"] = matched_edits(index, sae, edits, seed=config.seed, active=active)
    instructed = None
    if "prompt" in config.controls:
        asked = instruct(instruction or steering_instruction(model, index, edits), prompt)
        instructed = (asked, prompt_ids(model, asked, chat=config.chat))
    n_shadows = len(arms) + (instructed is not None)
    rows = [(), *arms.values(), *[()] * n_shadows]
    editor = LatentEditor(sae, rows, hook_point=hook_point, target_hook_point=target_hook_point)
    predicted = None if index is None or not index.has_logits else PredictedTokens(index, edits)
    return Steering(model, config, token_ids, arms, instructed, editor, predicted)


def editable(model: LanguageModel, token_ids: Int[Tensor, "rows positions"]) -> Bool[Tensor, "rows positions"]:
    """Which tokens' activations may be edited: all but special tokens."""
    return ~torch.isin(token_ids, torch.tensor(sorted(model.special_ids), dtype=token_ids.dtype))


def _row_arms(arms: Sequence[str]) -> list[int]:
    """The arm whose tokens each row of the main batch reads."""
    own = [i for i, arm in enumerate(arms) if arm != "prompt"]
    return [*own, *(i for i, arm in enumerate(arms) if arm != "plain")]


def _depends_on_text(edits: Sequence[LatentEdit]) -> bool:
    return any(edit.mode in ("ablate", "scale") for edit in edits)


def active_latents(model: LanguageModel, sae: SparseAutoencoder, token_ids: Tensor, hook_point: str) -> set[int]:
    """Latents active somewhere on the prompt."""
    n = token_ids.shape[1]
    piece = Piece(0, 0, 0, 0, token_ids[0].int().numpy(), True)
    (batch,) = make_batches([piece], batch_tokens=n, pad_id=0, isolation="documents", context_tokens=n, eos_id=0)
    x = model.read(batch, [hook_point])[hook_point][0, :n].to(sae.W_enc.device).float()
    latents = sae.encode_sparse(x[editable(model, token_ids)[0].to(x.device)])
    return set(latents.indices[latents.values > 0].tolist())
