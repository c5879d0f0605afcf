"""A sweep: one edit at several strengths; what each does to the promoted tokens, and what it does to the text.

    effect       mean over positions of how far predictions move toward what the latent promotes (effect.py), nats, along the plain
                 continuation: the same text at every strength, so that effects compare
    nll          of what the edited model writes, under the unedited one, nats a token
    repetition   share of its 3-grams that came before in it: a text that repeats itself is likely under any model
    broken       nll above the plain continuation's by more than NLL_MARGIN, or repetition above both REPETITION and the plain one's
    sweet spot   the strength with the largest effect among those whose text holds, if that is above its random control's

A random effect stands beside each: the same edit of a matched latent, measured on the same tokens. All of it is on one prompt,
hence an illustration; `benchmarks/steering.py` measures many features on many documents.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sparsight.errors import SteeringError
from sparsight.features.index import FeatureIndex
from sparsight.features.tokens import printable
from sparsight.lm import LanguageModel, Piece, make_batches
from sparsight.sae import LatentEdit, SparseAutoencoder
from sparsight.steering.arms import SteerConfig, SteerEvent, active_latents, editable, steer
from sparsight.steering.editing import LatentEditor
from sparsight.steering.effect import PredictedTokens
from sparsight.steering.instruction import prompt_ids
from sparsight.steering.matched import matched_edits
from sparsight.steering.strength import EditRequest

__all__ = ["NLL_MARGIN", "REPETITION", "Sweep", "SweepPoint", "continuation", "repetition_of", "sweep", "sweep_points"]

NLL_MARGIN = 1.0
REPETITION = 0.5


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One strength."""

    strength: float
    """As asked for, in the request's unit."""
    effect: float
    """Mean change of the promoted tokens' log-probabilities minus that of the suppressed, nats."""
    random_effect: float
    """The same of the matched random latent's edit, on the same tokens."""
    nll: float
    """Of the steered continuation under the unsteered model, nats a token."""
    repetition: float
    """Share of its 3-grams that came before in it."""
    broken: bool
    """Whether nll or repetition is beyond its limit."""
    text: str
    """The steered continuation, printable."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Every strength, where the edit is best and where the text breaks."""

    points: tuple[SweepPoint, ...]
    """In the order asked for."""
    nll_plain: float
    """Of the plain continuation."""
    repetition_plain: float
    """Of the plain continuation."""
    nll_limit: float
    """A text is broken above it."""
    repetition_limit: float
    """Or above this."""
    sweet_spot: float | None
    """A strength; None when every text is broken or no effect is above its random control's."""
    breaks_at: float | None
    """The smallest strength, by size, whose text is broken; None if all hold."""
    random_latent: int
    """The control's."""
    plain_text: str
    """The plain continuation, printable."""
    n_positions: int
    """Positions that effects are means over."""


def sweep(
    model: LanguageModel,
    sae: SparseAutoencoder,
    prompt: str,
    request: EditRequest,
    strengths: Sequence[float],
    config: SteerConfig = SteerConfig(),
    *,
    hook_point: str,
    target_hook_point: str = "",
    index: FeatureIndex,
) -> Sweep:
    """`request`, whose own strength does not count, at each of the strengths. Raises as `steer` does."""
    options = {"hook_point": hook_point, "target_hook_point": target_hook_point, "index": index}
    points = sweep_points(model, sae, prompt, request, strengths, config, **options)
    while True:
        try:
            next(points)
        except StopIteration as done:
            return done.value


def sweep_points(
    model: LanguageModel,
    sae: SparseAutoencoder,
    prompt: str,
    request: EditRequest,
    strengths: Sequence[float],
    config: SteerConfig = SteerConfig(),
    *,
    hook_point: str,
    target_hook_point: str = "",
    index: FeatureIndex,
) -> Generator[SweepPoint, None, Sweep]:
    """The points one by one as they are measured; the generator returns the whole."""
    if request.mode == "ablate" or not strengths:
        raise SteeringError(
            "A sweep needs strengths, and ablate has none. Use add, clamp or scale with a few strengths."
        )
    hooks: dict[str, Any] = {"hook_point": hook_point, "target_hook_point": target_hook_point}
    edits = [replace(request, strength=float(each)).resolve(index, sae, model) for each in strengths]
    before = prompt_ids(model, prompt, chat=config.chat)
    active = active_latents(model, sae, before, hook_point) if request.mode == "scale" else ()
    controls = [matched_edits(index, sae, [edit], seed=config.seed, active=active)[0] for edit in edits]
    predicted = PredictedTokens(index, [LatentEdit(request.latent, "add", 1.0)])
    alone, points = replace(config, controls=()), []
    plain: list[SteerEvent] = []
    for strength, edit, control in zip(strengths, edits, controls, strict=True):
        events = list(steer(model, sae, prompt, [edit], alone, **hooks))
        plain = plain or [event for event in events if event.arm == "plain"]
        steered = [event for event in events if event.arm == "steered"]
        text = torch.cat([before[0], torch.tensor([event.token_id for event in plain])])
        editor = LatentEditor(sae, [(), (edit,), (control,)], **hooks)
        effects = _effects(model, editor, text, before.shape[1], config.scope, predicted)
        points.append(_point(model, float(strength), effects, steered, _limits(plain)))
        yield points[-1]
    n_positions = len(plain) - (config.scope == "generation")
    return _summary(tuple(points), request, plain, continuation(model, plain), controls[0].latent, n_positions)


def repetition_of(token_ids: Sequence[int]) -> float:
    """Share of a text's 3-grams that came before in it; 0 for fewer than 3 tokens."""
    grams = list(zip(token_ids, token_ids[1:], token_ids[2:], strict=False))
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def continuation(model: LanguageModel, events: Sequence[SteerEvent]) -> str:
    """The text of one arm's events, printable, without special tokens."""
    return printable(str(model.tokenizer.decode([event.token_id for event in events], skip_special_tokens=True)))


def _effects(
    model: LanguageModel, editor: LatentEditor, text: Tensor, n_before: int, scope: str, predicted: PredictedTokens
) -> tuple[float, float]:
    """Of the edit and of its control, where the text's tokens after the prompt are predicted."""
    first = n_before - (scope != "generation")  # the position that predicts the first token an edit can reach
    if first >= len(text) - 1:
        raise SteeringError(
            "The plain continuation is one token, which an edit of generated tokens cannot reach. Use scope both."
        )
    place = torch.arange(len(text))
    where = editable(model, text[None])[0] & {"both": place >= 0, "prompt": place < n_before}.get(
        scope, place >= n_before
    )
    piece = Piece(0, 0, 0, 0, text.int().numpy(), True)
    (batch,) = make_batches(
        [piece] * 3,
        batch_tokens=3 * (len(text) + 8),
        pad_id=0,
        isolation="documents",
        context_tokens=len(text),
        eos_id=0,
    )
    padded = torch.zeros_like(batch.mask)
    padded[:, : len(text)] = where
    logits = model.logits(batch, replace=editor.hooks(padded))[:, first : len(text) - 1]
    effect, control = (float(predicted.effect(row, logits[0]).mean()) for row in logits[1:])
    return effect, control


def _limits(plain: Sequence[SteerEvent]) -> tuple[float, float]:
    """Of nll and of repetition."""
    return _mean_nll(plain) + NLL_MARGIN, max(REPETITION, repetition_of([event.token_id for event in plain]))


def _point(
    model: LanguageModel,
    strength: float,
    effects: tuple[float, float],
    steered: Sequence[SteerEvent],
    limits: tuple[float, float],
) -> SweepPoint:
    nll, repetition = _mean_nll(steered), repetition_of([event.token_id for event in steered])
    return SweepPoint(
        strength=strength,
        effect=effects[0],
        random_effect=effects[1],
        nll=nll,
        repetition=repetition,
        broken=nll > limits[0] or repetition > limits[1],
        text=continuation(model, steered),
    )


def _summary(
    points: tuple[SweepPoint, ...],
    request: EditRequest,
    plain: Sequence[SteerEvent],
    plain_text: str,
    random_latent: int,
    n_positions: int,
) -> Sweep:
    neutral = 1.0 if request.mode == "scale" else 0.0

    def gain(point: SweepPoint, effect: float) -> float:
        return effect if point.strength >= neutral else -effect

    holding = [point for point in points if not point.broken]
    best = max(holding, key=lambda point: gain(point, point.effect), default=None)
    if best is not None and gain(best, best.effect) <= max(0.0, gain(best, best.random_effect)):
        best = None
    broken = [point.strength for point in points if point.broken]
    nll_limit, repetition_limit = _limits(plain)
    return Sweep(
        points=points,
        nll_plain=_mean_nll(plain),
        repetition_plain=repetition_of([event.token_id for event in plain]),
        nll_limit=nll_limit,
        repetition_limit=repetition_limit,
        sweet_spot=None if best is None else best.strength,
        breaks_at=min(broken, key=lambda strength: abs(strength - neutral), default=None),
        random_latent=random_latent,
        plain_text=plain_text,
        n_positions=n_positions,
    )


def _mean_nll(events: Sequence[SteerEvent]) -> float:
    return sum(event.nll for event in events) / len(events)
