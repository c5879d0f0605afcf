"""Labels with their tests, latent by latent: by counting, or by a language model behind an endpoint.

Every label is tested on the same kind of passages of the scoring half, and beside its score stands that of a wrong label on the same
passages: the label of another latent, as a random rotation gives it out (of a single latent, another's rule). The gap between the two is
what a label knows; the score alone also rewards passages that are easy.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sparsight.features import FeatureIndex, Label
from sparsight.labels.config import ExplainConfig
from sparsight.labels.endpoint import Endpoint, Prompt
from sparsight.labels.explained import MODEL_FREE, Explained, Falsified
from sparsight.labels.judging import (
    Question,
    detection_question,
    explanation_prompts,
    fuzzing_question,
    judge,
    labels_from,
)
from sparsight.labels.passages import Evidence, Passages
from sparsight.labels.rules import Rule, RuleBook
from sparsight.labels.scoring import LEAST_PASSAGES, Score, balanced_accuracy

__all__ = ["Labeller"]

# Latents whose questions go to the endpoint together; the labels of a batch are each other's control.
BATCH = 8
# Seeds of draws beside the configured one: the first test, and retests of hand-written labels.
FIRST, AGAIN = 0, 1
_DEFAULTS = ExplainConfig()


class Labeller:
    """Labels latents of one index. Making one reads the index's tokens; each label reads its latent's activations."""

    def __init__(self, index: FeatureIndex, tokenizer: Any, config: ExplainConfig = _DEFAULTS):
        self.index, self.config = index, config
        self.evidence = Evidence(index, seed=config.seed, before=config.before, after=config.after)
        self.book = RuleBook(self.evidence, tokenizer)

    def passages(self, latent: int) -> Passages:
        """What a label of this latent is tested on."""
        return self.evidence.draw(
            latent, "score", n_active=self.config.active, n_inactive=self.config.inactive, seed=FIRST
        )

    def model_free(self, latents: Sequence[int]) -> Iterator[Explained]:
        """The rule of each latent, as a label; controls are the rules of others among them."""
        rules = [self.book.find(latent) for latent in latents]
        others = self._others(list(latents), [None if rule is None else rule.text() for rule in rules])
        for latent, rule, other in zip(latents, rules, others, strict=True):
            if rule is None:
                yield Explained(latent=latent, label=None, source=MODEL_FREE, why_not=self._why_no_rule(latent))
                continue
            passages = self.passages(latent)
            control = None if other is None else self._rule_score(Rule.parse(other), passages)
            yield Explained(
                latent=latent,
                label=rule.text(),
                source=MODEL_FREE,
                detection=self._rule_score(rule, passages),
                control=control,
                control_label=other,
                why_not=_why_no_score(passages),
            )

    def by_endpoint(self, latents: Sequence[int], endpoint: Endpoint) -> Iterator[Explained]:
        """The endpoint's label of each latent. Raises EndpointError between latents, never losing one that was yielded."""
        for start in range(0, len(latents), BATCH):
            yield from self._batch(list(latents[start : start + BATCH]), endpoint)

    def prompts_of(self, latents: Sequence[int], label_length: int) -> Iterator[Prompt]:
        """What `by_endpoint` would ask, with labels of a given length: for the estimate."""
        yield from explanation_prompts(self.book, latents, self.config)
        for latent in latents:
            for question in self._questions(latent, "x" * label_length, "x" * label_length, self.passages(latent)):
                yield from question.prompts(self.config.passages_per_call)

    def falsify(self, latent: int, text: str, endpoint: Endpoint | None = None) -> Falsified:
        """Retests a label, such as a hand-written one, on passages of the scoring half about tokens that the first test did not show.

        With fewer than four such passages of either kind any may be drawn, and `fresh` is False. Raises NotesError when the label is no
        label, or names no tokens and there is no endpoint.
        """
        label = Label(latent, text, "person").text
        self.index.check_latent(latent)
        passages, fresh = self._fresh_passages(latent)
        wrong = self._others([latent], [label])[0]
        asked = [detection_question(self.book, each, passages, self.config.seed) for each in (label, wrong) if each]
        if endpoint is None:
            rules = [Rule.parse(question.label) for question in asked]
            verdicts = [self._said(rule, passages, question) for rule, question in zip(rules, asked, strict=True)]
        else:
            verdicts = judge(endpoint, asked, self.config.passages_per_call)
        scores = [question.score(said) for question, said in zip(asked, verdicts, strict=True)]
        against = list(zip(asked[0].texts, asked[0].truth, verdicts[0], strict=True))
        return Falsified(
            latent=latent,
            label=label,
            by="rule" if endpoint is None else endpoint.source,
            score=scores[0],
            control=scores[1] if wrong else None,
            fresh=fresh,
            misses=tuple(text for text, truth, said in against if truth and said is False),
            false_alarms=tuple(text for text, truth, said in against if not truth and said),
        )

    def _batch(self, latents: list[int], endpoint: Endpoint) -> Iterator[Explained]:
        labels = labels_from(endpoint.ask_all(explanation_prompts(self.book, latents, self.config)))
        others = self._others(latents, labels)
        questions: list[Question] = []
        asked: list[list[Question]] = []
        for latent, label, other in zip(latents, labels, others, strict=True):
            asked.append([] if label is None else self._questions(latent, label, other, self.passages(latent)))
            questions += asked[-1]
        verdicts = iter(judge(endpoint, questions, self.config.passages_per_call))
        for latent, label, other, put in zip(latents, labels, others, asked, strict=True):
            scores = {(question.kind, question.label): question.score(next(verdicts)) for question in put}
            if label is None:
                yield Explained(latent=latent, label=None, source=endpoint.source, why_not="the endpoint gave no label")
                continue
            detection = scores.get(("detect", label))
            yield Explained(
                latent=latent,
                label=label,
                source=endpoint.source,
                detection=detection,
                control=scores.get(("detect", other or "")),
                control_label=other,
                fuzzing=scores.get(("fuzz", label)),
                why_not="too few passages" if detection is None or detection.value is None else "",
            )

    def _questions(self, latent: int, label: str, other: str | None, passages: Passages) -> list[Question]:
        """Detection of the label and of another's, and fuzzing; none where there are too few passages to say anything."""
        n_active = int(passages.active.sum())
        if min(n_active, len(passages) - n_active) < LEAST_PASSAGES:
            return []
        asked = [
            detection_question(self.book, each, passages, self.config.seed)
            for each in (label, other)
            if each is not None
        ]
        if self.config.fuzzing:
            asked.append(fuzzing_question(self.book, latent, label, passages, self.config.seed))
        return asked

    def _others(self, latents: list[int], labels: Sequence[str | None]) -> list[str | None]:
        """For each latent another's label that differs from its own, by a random rotation; else a random latent's rule."""
        rng = np.random.default_rng((self.config.seed, 3, *latents))
        order = rng.permutation(len(latents))
        there = [labels[place] for place in order]
        found: list[str | None] = [None] * len(latents)
        for turn, place in enumerate(order):
            behind = there[turn + 1 :] + there[:turn]
            found[place] = next((text for text in behind if text is not None and text != labels[place]), None)
            if found[place] is None:
                found[place] = self._random_rule(latents[place], labels[place], rng)
        return found

    def _random_rule(self, latent: int, label: str | None, rng: np.random.Generator) -> str | None:
        for other in rng.permutation(self.index.n_latents)[:100].tolist():
            rule = self.book.find(other) if other != latent else None
            if rule is not None and rule.text() != label:
                return rule.text()
        return None

    def _fresh_passages(self, latent: int) -> tuple[Passages, bool]:
        passages = self._again(latent, avoid=self.passages(latent))
        if min(int(passages.active.sum()), int((~passages.active).sum())) >= LEAST_PASSAGES:
            return passages, True
        return self._again(latent, avoid=None), False

    def _again(self, latent: int, avoid: Passages | None) -> Passages:
        config = self.config
        return self.evidence.draw(
            latent, "score", n_active=config.active, n_inactive=config.inactive, seed=AGAIN, avoid=avoid
        )

    def _said(self, rule: Rule, passages: Passages, question: Question) -> list[bool | None]:
        said = self.book.says(rule, passages.starts, passages.ends)
        return [bool(said[place]) for place in question.places]

    def _rule_score(self, rule: Rule, passages: Passages) -> Score:
        said = self.book.says(rule, passages.starts, passages.ends).tolist()
        return balanced_accuracy(passages.active, said, passages.documents)

    def _why_no_rule(self, latent: int) -> str:
        n_active = len(self.index.activations(latent)[0])
        return "no token of it in two documents of the explaining half" if n_active else "never active"


def _why_no_score(passages: Passages) -> str:
    n_active = int(passages.active.sum())
    few = min(n_active, len(passages) - n_active) < LEAST_PASSAGES
    return f"{n_active} active and {len(passages) - n_active} inactive passages to test on" if few else ""
