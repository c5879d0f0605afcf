"""What steering gave, put together: each arm's text with its numbers, as a person or another program reads them.

nll, kl        means over the arm's tokens, nats (see arms.py)
repetition     share of the arm's 3-grams that came before in it
promoted       generated tokens that are among those which the edited latents promote
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparsight.features.index import FeatureIndex
from sparsight.features.tokens import printable, readable_tokens
from sparsight.lm import LanguageModel
from sparsight.metrics import document_bootstrap
from sparsight.sae import LatentEdit, SparseAutoencoder
from sparsight.steering.arms import SteerEvent, Steering
from sparsight.steering.strength import EditRequest, mean_norm
from sparsight.steering.sweeping import Sweep, continuation, repetition_of

__all__ = ["Arm", "Steered", "describe_edit", "show_summary", "show_sweep"]

_WIDTH = 150
_MEANING = (
    "effect: how far predictions lie toward the tokens that the edited latents promote and away from those they suppress, as the edits ask.\n"
    "nll: how unlikely the unsteered model finds the text; kl: how far the arm's predictions lie from its own. All three in nats a token.\n"
    "repeats: share of 3-grams seen before. promoted: generated tokens among those that the edited latents promote.\n"
    "random: the same edit of latents alike in density, p99 and norm. prompt: no edit, asked for in words."
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm's continuation of one prompt."""

    text: str
    """Printable, without special tokens."""
    events: tuple[SteerEvent, ...]
    """Token by token."""
    repetition: float
    """Share of its 3-grams that came before in it."""
    promoted: int | None
    """How many of its tokens the edited latents promote; None where promoted tokens are not known."""

    @property
    def nll(self) -> float:
        """Mean over tokens, nats."""
        return sum(event.nll for event in self.events) / len(self.events)

    @property
    def kl(self) -> float:
        """Mean over tokens, nats."""
        return sum(event.kl for event in self.events) / len(self.events)

    @property
    def effect(self) -> float | None:
        """Mean over tokens, nats; None where promoted tokens are not known."""
        found = [event.effect for event in self.events if event.effect is not None]
        return sum(found) / len(found) if found else None


@dataclass(frozen=True, kw_only=True)
class Steered:
    """One prompt and what came of it."""

    prompt: str
    """As it was given."""
    edits: tuple[LatentEdit, ...]
    """Of the steered arm."""
    random_edits: tuple[LatentEdit, ...]
    """Of the random arm; empty without one."""
    prompt_control: str
    """What the prompt arm read; empty without one."""
    arms: dict[str, Arm]
    """By name, in the order plain, steered, random, prompt."""

    @classmethod
    def of(cls, steering: Steering, prompt: str, model: LanguageModel, index: FeatureIndex | None) -> "Steered":
        """Runs a steering to its end."""
        events: dict[str, list[SteerEvent]] = {arm: [] for arm in steering.arms}
        for event in steering:
            events[event.arm].append(event)
        promoted = None
        if index is not None and index.has_logits:
            promoted = {int(token) for edit in steering.edits for token in index.promoted(edit.latent).token_ids}
        return cls(
            prompt=prompt,
            edits=steering.edits,
            random_edits=steering.random_edits,
            prompt_control=steering.prompt_control,
            arms={name: _arm(model, found, promoted) for name, found in events.items()},
        )

    def text(self, described: Sequence[str] = ()) -> str:
        """The arms beside each other, for a terminal; `described` says what was edited, a line each."""
        lines = [f"Prompt: {printable(self.prompt)}", *(f"  {line}" for line in described)]
        if self.random_edits:
            named = ", ".join(f"latent {edit.latent}: {_size(edit)}" for edit in self.random_edits)
            lines.append(f"  random: {named}")
        if self.prompt_control:
            lines.append(f"  prompt: {printable(self.prompt_control)}")
        lines += ["", "arm       tokens  effect    nll     kl  repeats  promoted  continuation"]
        for name, arm in self.arms.items():
            hits = "-" if arm.promoted is None else str(arm.promoted)
            effect = "-" if arm.effect is None else f"{arm.effect:+.2f}"
            numbers = f"{len(arm.events):>6}  {effect:>6}  {arm.nll:>5.2f}  {arm.kl:>5.2f}  {arm.repetition:>7.2f}  {hits:>8}  "
            lines += _hanging(f"{name:<8}  {numbers}", arm.text)
        return "\n".join(lines) + "\n"

    def records(self) -> Iterator[dict[str, Any]]:
        """A record for each token, then one with what the arms were."""
        for arm in self.arms.values():
            for event in arm.events:
                yield {"prompt": self.prompt, **asdict(event)}
        yield {
            "prompt": self.prompt,
            "done": True,
            "edits": [asdict(edit) for edit in self.edits],
            "random_edits": [asdict(edit) for edit in self.random_edits],
            "prompt_control": self.prompt_control,
            "text": {name: arm.text for name, arm in self.arms.items()},
        }


def describe_edit(edit: LatentEdit, sae: SparseAutoencoder, model: LanguageModel, index: FeatureIndex) -> str:
    """An edit, how large it is beside what it changes, and what the latent promotes."""
    size = _size(edit)
    if edit.mode in ("add", "clamp"):
        share = abs(edit.value) * float(sae.W_dec[edit.latent].norm()) / mean_norm(index, model)
        size += f" ({share:.2f} of the layer's mean norm)"
    if index.has_logits:
        tokens = readable_tokens(model.tokenizer, index.promoted(edit.latent).token_ids[:6])
        size += "; promotes " + " ".join(f"'{token}'" for token in tokens)
    return f"latent {edit.latent}: {size}"


def show_summary(all_steered: Sequence[Steered]) -> str:
    """Means over prompts with 95 % intervals, where there are at least two; then what the columns mean."""
    lines = []
    if len(all_steered) > 1:
        lines.append(f"A token, over {len(all_steered)} prompts, 95 % by resampling prompts:")
        for name in all_steered[0].arms:
            arms = [steered.arms[name] for steered in all_steered]
            n = np.array([len(arm.events) for arm in arms], float)
            sums = {
                "effect": np.array([arm.effect or 0.0 for arm in arms]) * n,
                "nll": [arm.nll for arm in arms] * n,
                "kl": [arm.kl for arm in arms] * n,
                "promoted": np.array([arm.promoted or 0 for arm in arms], float),
            }
            intervals = {column: document_bootstrap(values, n) for column, values in sums.items()}
            shown = [
                f"{column} {value:.2f} [{low:.2f}, {high:.2f}]" for column, (value, low, high) in intervals.items()
            ]
            lines.append(f"  {name:<8} {int(n.sum()):>6} tokens  " + "  ".join(shown))
        lines.append("")
    return "\n".join([*lines, _MEANING]) + "\n"


def show_sweep(found: Sweep, prompt: str, request: EditRequest) -> str:
    """A table of strengths, with the sweet spot and where the text breaks."""
    unit = "" if request.unit == "raw" else request.unit
    plain = f"{'plain':<9} {'':>7} {'':>7} {found.nll_plain:>6.2f}  {found.repetition_plain:>7.2f}  "
    lines = [
        f"Prompt: {printable(prompt)}",
        f"  latent {request.latent}, {request.mode}; random: latent {found.random_latent}",
        "",
        "strength   effect  random    nll  repeats  continuation",
        *_hanging(plain, found.plain_text),
    ]
    for point in found.points:
        numbers = f"{point.effect:>+7.2f} {point.random_effect:>+7.2f} {point.nll:>6.2f}  {point.repetition:>7.2f}  "
        mark = "(sweet spot) " if point.strength == found.sweet_spot else "(broken) " if point.broken else ""
        lines += _hanging(f"{f'{point.strength:g}{unit}':<9} {numbers}", mark + point.text)
    best = "none" if found.sweet_spot is None else f"{found.sweet_spot:g}{unit}"
    breaks = "none of these" if found.breaks_at is None else f"{found.breaks_at:g}{unit}"
    lines += [
        "",
        f"Sweet spot: {best}. The text breaks at: {breaks} (nll above {found.nll_limit:.2f} or repeats above {found.repetition_limit:.2f}).",
        "effect: mean change of the promoted tokens' log-probability minus that of the suppressed, by the edit; random: by that of a latent",
        f"alike; nats, over {found.n_positions} positions of the plain text. One prompt: an illustration, not a measurement.",
    ]
    return "\n".join(lines) + "\n"


def _arm(model: LanguageModel, events: Sequence[SteerEvent], promoted: set[int] | None) -> Arm:
    ids = [event.token_id for event in events]
    return Arm(
        text=continuation(model, events),
        events=tuple(events),
        repetition=repetition_of(ids),
        promoted=None if promoted is None else sum(token in promoted for token in ids),
    )


def _size(edit: LatentEdit) -> str:
    return edit.mode if edit.mode == "ablate" else f"{edit.mode} {edit.value:.3g}"


def _hanging(start: str, text: str) -> list[str]:
    """Text in a last column, wrapped under itself."""
    wrapped = textwrap.wrap(text.strip(), max(40, _WIDTH - len(start))) or ["(nothing)"]
    return [start + wrapped[0], *(" " * len(start) + line for line in wrapped[1:])]
