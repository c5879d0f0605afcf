"""Several texts as one, with as many tokens of each: what a base model and its fine-tune are compared on.

Text like the base's alone shows little of what the fine-tuning taught; the fine-tuning text alone hides what else it changed.
So both are read, in equal shares of tokens, mixed document by document. The mixture is a .jsonl file (`text`, `source`),
an ordinary text for everything after: fingerprinted, split by document, resumable. The price is a copy of what was read.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsight.artifact import atomic_path, read_json, write_json
from sparsight.errors import TextError
from sparsight.lm.config import TextConfig
from sparsight.lm.documents import Document, iter_documents
from sparsight.lm.tokens import text_encoder

__all__ = ["Mixture", "MixtureShare", "mix_texts"]

_AT_ONCE = 64  # documents tokenised in one call
_BALANCED = 0.1  # shares within a tenth of each other are called equal


@dataclass(frozen=True, kw_only=True)
class MixtureShare:
    """What one source gave."""

    source: str
    documents: int
    tokens: int
    empty: int
    """Documents without a word, left out."""
    shared: int
    """Documents that an earlier source had given, left out."""
    ended: bool
    """Whether the source ran out before its share was full."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixed text and what is in it."""

    path: str
    shares: tuple[MixtureShare, ...]

    @property
    def balanced(self) -> bool:
        """Whether the largest share of tokens is at most a tenth more than the smallest."""
        tokens = [share.tokens for share in self.shares]
        return max(tokens) <= (1 + _BALANCED) * min(tokens)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"path": self.path, "balanced": self.balanced, "shares": [asdict(share) for share in self.shares]}


def mix_texts(
    sources: Mapping[str, TextConfig], tokenizer: PreTrainedTokenizerBase, path: Path, *, tokens_each: int
) -> Mixture:
    """Writes a text with `tokens_each` tokens (or all there are) of every source, evenly mixed from the first document to the last.

    A document that several sources hold counts for the first of them. A file that is there already, made of the same, is kept.
    Raises TextError for a source without text, and where one is a part of another.
    """
    facts = path.with_suffix(".mixture.json")
    asked = {"tokens_each": tokens_each, "sources": {name: _plain(config) for name, config in sources.items()}}
    if path.exists() and facts.exists() and (found := read_json(facts))["asked"] == asked:
        return Mixture(path=str(path), shares=tuple(MixtureShare(**share) for share in found["shares"]))
    drawn: list[_Drawn] = []
    for name, config in sources.items():
        drawn.append(_Drawn(name, config, tokenizer, drawn, tokens_each))
    with atomic_path(path) as temp, temp.open("w", encoding="utf-8") as file:
        for source, text in _interleaved(drawn):
            file.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
    mixture = Mixture(path=str(path), shares=tuple(each.share() for each in drawn))
    write_json(facts, {"asked": asked} | mixture.to_json())
    return mixture


class _Drawn:
    """The documents of one source, up to its share. All are drawn before any is written: the real share sets the pace."""

    def __init__(
        self,
        name: str,
        config: TextConfig,
        tokenizer: PreTrainedTokenizerBase,
        earlier: "Sequence[_Drawn]",
        most_tokens: int,
    ):
        self.name, self.ids, self.texts, self.sizes = name, set[int](), list[str](), list[int]()
        self.empty = self.tokens = 0
        self._shared: set[int] = set()
        encode, documents = text_encoder(config, tokenizer), iter_documents(config)
        others = set[int]().union(*(each.ids for each in earlier))
        while self.tokens < most_tokens and (some := self._next(documents, others)):
            for document, ids in zip(some, encode([each.text for each in some]), strict=True):
                if self.tokens < most_tokens:
                    self.ids.add(document.id)
                    self.texts.append(document.text)
                    self.sizes.append(len(ids))
                    self.tokens += len(ids)
        self.shared, self.ended = len(self._shared), self.tokens < most_tokens
        self._check(earlier)

    def _check(self, earlier: "Sequence[_Drawn]") -> None:
        for other in earlier:
            if other.ids <= self._shared or (not self.texts and self._shared):
                part, whole = (other, self) if other.ids <= self._shared else (self, other)
                raise TextError(
                    f"All {len(part.ids) or self.shared:,} documents of {part.name} stand in {whole.name} as well, so the two cannot "
                    "be told apart. Give two different texts."
                )
        if not self.texts:
            raise TextError(f"{self.name} has no text: all its {self.empty:,} documents are empty. Check text.column.")

    def share(self) -> MixtureShare:
        names = ("tokens", "empty", "shared", "ended")
        values = {name: getattr(self, name) for name in names}
        return MixtureShare(source=self.name, documents=len(self.texts), **values)

    def _next(self, documents: Iterator[Document], others: set[int]) -> list[Document]:
        """Some more documents, each once, without those of other sources; [] at the end."""
        some: dict[int, Document] = {}
        for document in documents:
            if not document.text.strip():
                self.empty += 1
            elif document.id in others:
                self._shared.add(document.id)
            elif document.id not in self.ids:
                some[document.id] = document
            if len(some) == _AT_ONCE:
                break
        return list(some.values())


def _interleaved(drawn: list[_Drawn]) -> Iterator[tuple[str, str]]:
    """Each document stands where the middle of its tokens stands in its own source, from 0 to 1."""
    places = []
    for number, source in enumerate(drawn):
        before = 0
        for text, size in zip(source.texts, source.sizes, strict=True):
            places.append(((before + size / 2) / source.tokens, number, source.name, text))
            before += size
    for _, _, name, text in sorted(places, key=lambda place: place[:2]):
        yield name, text


def _plain(config: TextConfig) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
