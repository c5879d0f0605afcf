"""Asking a language model for labels, and putting labels to the test: many latents' questions go out together.

    explain   sees passages of the explaining half
    detect    which of the scoring half's passages is the latent active in?
    fuzz      are the marked tokens of a passage those it is active on? Half of the active passages keep their marks; in the others as many
              marks are moved to tokens where it is not active, and passages about near latents have theirs on the near latent's token

Passages of one test are shuffled before they are put into calls, so that no call is all yes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsight.labels.config import ExplainConfig
from sparsight.labels.endpoint import Endpoint, Prompt
from sparsight.labels.passages import NEIGHBOUR, Evidence, Passages
from sparsight.labels.prompts import (
    detection_prompt,
    explanation_prompt,
    fuzzing_prompt,
    marked,
    read_label,
    read_verdicts,
)
from sparsight.labels.rules import RuleBook
from sparsight.labels.scoring import Score, balanced_accuracy

__all__ = ["Question", "detection_question", "explanation_prompts", "fuzzing_question", "judge", "labels_from"]


@dataclass(frozen=True)
class Question:
    """One label and the passages it is put to."""

    label: str
    kind: str
    """detect | fuzz."""
    texts: tuple[str, ...]
    truth: tuple[bool, ...]
    documents: tuple[int, ...]
    places: tuple[int, ...] = ()
    """Of each text, which of the passages drawn it is; detection only."""

    def prompts(self, per_call: int) -> list[Prompt]:
        """Its calls, in order."""
        make = detection_prompt if self.kind == "detect" else fuzzing_prompt
        return [make(self.label, self.texts[start : start + per_call]) for start in range(0, len(self.texts), per_call)]

    def score(self, verdicts: Sequence[bool | None]) -> Score:
        """What the verdicts on its texts make."""
        return balanced_accuracy(np.array(self.truth, bool), verdicts, np.array(self.documents, np.int64))


def explanation_prompts(book: RuleBook, latents: Sequence[int], config: ExplainConfig) -> list[Prompt]:
    """What an explainer is shown of each latent, all of the explaining half."""
    prompts = []
    for latent in latents:
        drawn = book.evidence.draw(latent, "explain", n_active=config.shown, n_inactive=config.contrasts)
        strongest = book.evidence.strongest(latent, "explain", config.shown - config.shown // 2)
        shown = list(dict.fromkeys([*strongest.peaks.tolist(), *drawn.peaks[drawn.active].tolist()]))[: config.shown]
        active = [_shown(book, latent, token) for token in shown]
        inactive = [_text(book, drawn, place) for place in np.flatnonzero(~drawn.active)]
        prompts.append(explanation_prompt(active, inactive))
    return prompts


def labels_from(answers: Sequence[str | None]) -> list[str | None]:
    """The labels in an explainer's answers."""
    return [read_label(answer) for answer in answers]


def detection_question(book: RuleBook, label: str, passages: Passages, seed: int) -> Question:
    """Whether the latent is active anywhere in each passage."""
    order = np.random.default_rng((seed, 1, len(passages))).permutation(len(passages))
    truth = passages.active
    return Question(
        label,
        "detect",
        tuple(_text(book, passages, place) for place in order),
        tuple(bool(truth[place]) for place in order),
        tuple(passages.documents[order].tolist()),
        tuple(order.tolist()),
    )


def fuzzing_question(book: RuleBook, latent: int, label: str, passages: Passages, seed: int) -> Question:
    """Whether the marks of each passage are where the latent is active."""
    rng = np.random.default_rng((seed, 2, latent))
    items: list[tuple[str, bool, int]] = []
    for number, place in enumerate(np.flatnonzero(passages.active)):
        marks = _marks(book.evidence, latent, passages, place)
        truth = number % 2 == 0
        if not truth:
            free = np.flatnonzero(~marks)
            if not len(free):
                continue
            moved = rng.choice(free, size=min(len(free), int(marks.sum())), replace=False)
            marks = np.isin(np.arange(len(marks)), moved)
        items.append((_text(book, passages, place, marks), truth, int(passages.documents[place])))
    for place in np.flatnonzero([kind == NEIGHBOUR for kind in passages.kinds]):
        span = np.arange(passages.starts[place], passages.ends[place])
        text = _text(book, passages, place, span == passages.peaks[place])
        items.append((text, False, int(passages.documents[place])))
    items = [items[place] for place in rng.permutation(len(items))]
    texts, truths, documents = zip(*items, strict=True) if items else ((), (), ())
    return Question(label, "fuzz", texts, truths, documents)


def judge(endpoint: Endpoint, questions: Sequence[Question], per_call: int) -> list[list[bool | None]]:
    """Verdicts on every question's texts; all calls go out together."""
    prompts = [question.prompts(per_call) for question in questions]
    answers = iter(endpoint.ask_all([prompt for calls in prompts for prompt in calls]))
    found = []
    for question, calls in zip(questions, prompts, strict=True):
        verdicts: list[bool | None] = []
        for number in range(len(calls)):
            verdicts += read_verdicts(next(answers), min(per_call, len(question.texts) - number * per_call))
        found.append(verdicts)
    return found


def _shown(book: RuleBook, latent: int, token: int) -> tuple[float, str]:
    """(strength of the strongest token, passage with the active tokens marked)."""
    starts, ends = book.evidence.windows(np.array([token]))
    tokens, values = book.evidence.index.activations(latent)
    low, high = np.searchsorted(tokens, (starts[0], ends[0]))
    marks = np.isin(np.arange(starts[0], ends[0]), tokens[low:high])
    return float(values[low:high].max()), marked(book.readable(starts[0], ends[0]), marks.tolist())


def _marks(evidence: Evidence, latent: int, passages: Passages, place: Any) -> np.ndarray:
    tokens, _ = evidence.index.activations(latent)
    return np.isin(np.arange(int(passages.starts[place]), int(passages.ends[place])), tokens)


def _text(book: RuleBook, passages: Passages, place: Any, marks: np.ndarray | None = None) -> str:
    tokens = book.readable(int(passages.starts[place]), int(passages.ends[place]))
    return marked(tokens, [False] * len(tokens) if marks is None else marks.tolist())
