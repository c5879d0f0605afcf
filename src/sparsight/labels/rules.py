"""Rules: labels that need no language model, found by counting, and tested like any other.

A rule says on which tokens a latent is active, by one of these views of a token and the one before it:

    token   on ` the`, ` a`                     the exact token
    word    on `the`, `a` in any case           without the space before it and case
    after   after `of`, `in`                    the word before it; `⟨start⟩` is the beginning of a piece of text
    pair    on `the` after `of`                 both
    kind    on numbers, on line breaks          its kind of characters

For each view the keys are ranked by precision, the share of their tokens on which the latent is active, and as many are taken as give
the best F1 over all tokens of the explaining half: that threshold form is optimal for F1 (Lipton et al. 2014, arXiv:1402.1892). Of each
key the document that has most of it does not count, or else rare keys are learnt by heart. The view with the best F1 becomes the
label, with at most eight keys, most frequent first; where that F1 is below 0.1 the label begins with `unclear`.

Trade-off: latents that follow meaning over more than two tokens have no such rule; their best one scores near chance, and says so.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from sparsight.errors import NotesError
from sparsight.features import readable_tokens
from sparsight.labels.passages import Evidence, spans

__all__ = ["Rule", "RuleBook"]

MAX_KEYS, MAX_TEXT = 8, 300
LEAST_DOCUMENTS = 2
# A key that brings less than this of what a rule covers makes the label longer and hardly better.
LEAST_PART = 0.03
# Below, a rule found on one half of the demo's documents has a mean balanced accuracy of 0.53 on the other (docs/log.md).
CLEAR_F1 = 0.1
UNCLEAR = "unclear; at times "
BEGINNING = "⟨start⟩"
TOKEN_KINDS = (
    "numbers",
    "line breaks",
    "punctuation",
    "capitalised words",
    "words in capitals",
    "whole words in lower case",
    "parts inside words",
    "other scripts and signs",
)


@dataclass(frozen=True)
class Rule:
    """On which tokens; `keys` are tokens, words, (before, on) pairs or kinds, as the view asks."""

    view: str
    keys: tuple[Any, ...]
    unclear: bool = False
    """Whether it says little: its F1 on the text that it was found in is below 0.1."""

    def text(self) -> str:
        """The rule as a label."""
        return (UNCLEAR if self.unclear else "") + self._said()

    def _said(self) -> str:
        if self.view == "pair":
            return ", ".join(f"on {_quoted(word)} after {_quoted(before)}" for before, word in self.keys)
        if self.view == "kind":
            return "on " + ", ".join(self.keys)
        listed = ", ".join(_quoted(key) for key in self.keys)
        return {"token": f"on {listed}", "word": f"on {listed} in any case", "after": f"after {listed}"}[self.view]

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """The rule that a label says; any other label is read as: on the words that it has in backticks.

        Raises NotesError when there are none, since nothing can then be tested without a language model.
        """
        unclear, text = text.startswith(UNCLEAR), text.removeprefix(UNCLEAR)
        quoted = r"`(?:[^`]|``)+`"
        listed = rf"{quoted}(?:, {quoted})*"
        keys = [found[1:-1].replace("``", "`") for found in re.findall(quoted, text)]
        kinds = text.removeprefix("on ").split(", ")
        if set(kinds) <= set(TOKEN_KINDS):
            return cls("kind", tuple(kinds), unclear)
        if not keys:
            raise NotesError(
                f'The label {text!r} names no tokens. Without an endpoint only labels such as "on ` the`, ` a`" or '
                '"after `of`" can be tested: tokens in backticks.'
            )
        if re.fullmatch(rf"on {quoted} after {quoted}(?:, on {quoted} after {quoted})*", text):
            return cls("pair", tuple(zip(keys[1::2], keys[::2], strict=True)), unclear)
        for view, form in (("token", f"on {listed}"), ("after", f"after {listed}")):
            if re.fullmatch(form, text):
                return cls(view, tuple(keys), unclear)
        return cls("word", tuple(dict.fromkeys(_folded(key) for key in keys)), unclear)


class RuleBook:
    """Every token of an index in every view, and the rules of its latents."""

    def __init__(self, evidence: Evidence, tokenizer: Any):
        self.evidence = evidence
        ids, place = np.unique(np.asarray(evidence.index.piece_tokens), return_inverse=True)
        self.tokens = np.array(readable_tokens(tokenizer, ids), object)
        """Readable token of each of the index's distinct token ids."""
        self.place = place
        """Of each token of the index, where in `tokens` it is."""
        self._views = {view: _View(*keyed) for view, keyed in self._keys().items()}
        inside = evidence.halves["explain"]
        self._totals = {
            view: np.bincount(keys.of[inside], minlength=len(keys.names)) for view, keys in self._views.items()
        }

    def readable(self, start: int, end: int) -> list[str]:
        """The index's tokens start:end as a person can read them."""
        return self.tokens[self.place[start:end]].tolist()

    def find(self, latent: int) -> Rule | None:
        """The rule of the explaining half; None where no key is active in two documents of it."""
        tokens, _ = self.evidence.activations(latent, "explain")
        best, found = 0.0, None
        for view, keys in self._views.items():
            f1, chosen = self._best_keys(view, tokens)
            names = list(dict.fromkeys(keys.names[key] for key in chosen))
            while names and len(Rule(view, tuple(names), unclear=True).text()) > MAX_TEXT:
                names.pop()  # code has tokens of a hundred signs
            if names and f1 > best:
                best, found = f1, Rule(view, tuple(names), unclear=f1 < CLEAR_F1)
        return found

    def matches(self, rule: Rule, tokens: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """On which of these tokens of the index the rule says that the latent is active."""
        view = self._views[rule.view]
        wanted = np.zeros(len(view.names), bool)
        wanted[[key for name in rule.keys for key in view.numbers.get(name, ())]] = True
        return wanted[view.of[tokens]]

    def says(self, rule: Rule, starts: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Of passages: whether the rule finds anything in each."""
        which, tokens = spans(starts, ends)
        return np.bincount(which, weights=self.matches(rule, tokens), minlength=len(starts)) > 0

    def _best_keys(self, view: str, tokens: Int[np.ndarray, " n"]) -> tuple[float, list[int]]:
        """(F1 over the explaining half, each key without the document that has most of it; keys, most frequent first)."""
        documents, places = np.unique(self.evidence.document_of[tokens], return_inverse=True)
        pairs, counts = np.unique(self._views[view].of[tokens] * len(documents) + places, return_counts=True)
        found, first, n_documents = np.unique(pairs // max(1, len(documents)), return_index=True, return_counts=True)
        kept = n_documents >= LEAST_DOCUMENTS
        if not kept.any():
            return 0.0, []
        counts = (np.add.reduceat(counts, first) - np.maximum.reduceat(counts, first))[kept]
        found, totals = found[kept], self._totals[view][found[kept]]
        order = np.lexsort((-counts, -counts / totals))
        n_best = int(np.argmax(2 * np.cumsum(counts[order]) / (np.cumsum(totals[order]) + len(tokens)))) + 1
        chosen = order[:n_best]
        chosen = chosen[np.argsort(-counts[chosen], kind="stable")][:MAX_KEYS]
        chosen = chosen[counts[chosen] >= LEAST_PART * counts[chosen].sum()]
        f1 = 2 * counts[chosen].sum() / (totals[chosen].sum() + len(tokens))
        return float(f1), found[chosen].tolist()

    def _keys(self) -> dict[str, tuple[np.ndarray, list[Any]]]:
        """(key of each token, name of each key) by view."""
        words, word_of = np.unique(np.array([_folded(token) for token in self.tokens], object), return_inverse=True)
        names = [*words.tolist(), BEGINNING]
        word = word_of[self.place]
        before = np.concatenate([[len(words)], word[:-1]])
        before[np.asarray(self.evidence.index.piece_offsets)[:-1]] = len(words)
        pairs, pair = np.unique(before * len(names) + word, return_inverse=True)
        kind = np.array([TOKEN_KINDS.index(_kind(token)) for token in self.tokens])[self.place]
        return {
            "token": (self.place, self.tokens.tolist()),
            "word": (word, names),
            "after": (before, names),
            "pair": (pair, [(names[key // len(names)], names[key % len(names)]) for key in pairs.tolist()]),
            "kind": (kind, list(TOKEN_KINDS)),
        }


class _View:
    """One view: `of` is the key of each token, `names` what each key is called, `numbers` the keys of a name."""

    def __init__(self, of: Int[np.ndarray, " tokens"], names: list[Any]):
        self.of, self.names = of, names
        self.numbers: dict[Any, list[int]] = {}
        for number, name in enumerate(names):
            self.numbers.setdefault(name, []).append(number)


def _folded(token: str) -> str:
    """Without the spaces about it and case; a token of spaces alone stays."""
    return token.strip().lower() or token


def _quoted(key: str) -> str:
    return "`" + key.replace("`", "``") + "`"


def _kind(token: str) -> str:
    bare = token.strip()
    if any(mark in token for mark in "⏎␍"):
        return "line breaks"
    if any(character.isdigit() for character in bare):
        return "numbers"
    if not any(character.isalpha() for character in bare):
        return "punctuation" if bare.isascii() else "other scripts and signs"
    if not bare.isascii():
        return "other scripts and signs"
    if len(bare) > 1 and bare.isupper():
        return "words in capitals"
    if bare[0].isupper():
        return "capitalised words"
    return "whole words in lower case" if token.startswith(" ") else "parts inside words"
