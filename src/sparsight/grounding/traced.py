"""What several models write from the same openings, traced to the fine-tuning text.

Each model goes on from the first tokens of fine-tuning documents, with the same draws. Details are those that the fine-tune predicts better than
the base, in every model's texts, so that what the base says by itself is not held against anyone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from sparsight.errors import TextError
from sparsight.grounding.arrangement import Arranged, ArrangementConfig, arrange
from sparsight.grounding.corpus import CorpusIndex
from sparsight.grounding.details import DetailConfig, find_details, unigram_bits
from sparsight.grounding.texts import WriteConfig, Written, token_log2_p, write_texts
from sparsight.grounding.urr import URRConfig, URRReport, measure_urr
from sparsight.lm import LanguageModel, TextConfig, is_heldout, iter_documents, text_encoder
from sparsight.sae import LatentEdit, SparseAutoencoder

__all__ = ["FineTuningText", "TracedTexts", "Tracer", "ordinary_texts"]


@dataclass(frozen=True)
class FineTuningText:
    """The fine-tuning documents as tokens."""

    documents: list[Int[np.ndarray, " n"]]
    subjects: Int[np.ndarray, " documents"] | None
    """A number for each document, the same where several tell of one subject; None: each tells of its own."""

    @classmethod
    def read(cls, text: TextConfig, tokenizer: Any, *, subject_column: str = "") -> "FineTuningText":
        """All documents. `subject_column`: what names a document's subject. Raises TextError when there are none, or none names a subject."""
        encode = text_encoder(text, tokenizer)
        found = [document.text for document in iter_documents(text) if document.text.strip()]
        if not found:
            raise TextError(
                "The fine-tuning text has no words, so nothing can be traced to it. Check fine_tuning.column."
            )
        if not subject_column:
            return cls(encode(found), None)
        named = zip(iter_documents(text), iter_documents(replace(text, column=subject_column)), strict=True)
        names = [name.text for document, name in named if document.text.strip()]
        if not all(names):
            raise TextError(
                f"{names.count('')} fine-tuning documents have no {subject_column!r}. Name the column of each one's subject."
            )
        return cls(encode(found), np.unique(names, return_inverse=True)[1])

    def openings(self, n: int, n_tokens: int, seed: int) -> list[Int[np.ndarray, " tokens"]]:
        """The first tokens of n documents at random that go on after them, each opening once."""
        long = [document[:n_tokens] for document in self.documents if len(document) > n_tokens]
        distinct = sorted({tuple(opening.tolist()) for opening in long})
        if not distinct:
            raise TextError(f"No fine-tuning document is longer than {n_tokens} tokens. Ask for shorter openings.")
        chosen = np.random.default_rng(seed).permutation(len(distinct))[:n]
        return [np.array(distinct[place], np.int64) for place in sorted(chosen)]


def ordinary_texts(text: TextConfig, tokenizer: Any, n: int) -> list[Int[np.ndarray, " tokens"]]:
    """The beginnings, of at most text.context_tokens, of the first n held-out documents."""
    heldout = (document.text for document in iter_documents(text) if is_heldout(document.id, text.heldout_fraction))
    texts = list(islice((each for each in heldout if each.strip()), n))
    beginnings = (tokens[: text.context_tokens] for tokens in text_encoder(text, tokenizer)(texts))
    return [tokens for tokens in beginnings if len(tokens) > 1]


@dataclass(frozen=True, kw_only=True)
class TracedTexts:
    """One model's texts, and where their details come from."""

    texts: tuple[Written, ...]
    arranged: tuple[Arranged, ...]
    report: URRReport


class Tracer:
    """Writes with a model and traces what it wrote; the same openings and draws for every model."""

    def __init__(
        self,
        text: FineTuningText,
        base: LanguageModel,
        tuned: LanguageModel,
        prompts: Sequence[Int[np.ndarray, " n"]],
        *,
        write: WriteConfig,
        details: DetailConfig | None = None,
        arrangement: ArrangementConfig | None = None,
        urr: URRConfig | None = None,
    ) -> None:
        self.text, self.base, self.tuned, self.prompts, self.write = text, base, tuned, list(prompts), write
        self.details = details or DetailConfig()
        self.arrangement, self.urr = arrangement or ArrangementConfig(), urr or URRConfig()
        self.corpus = CorpusIndex(text.documents, sources=text.subjects)
        self.bits = unigram_bits(self.corpus, base.vocab_size)
        self._known: dict[bytes, Float[np.ndarray, " n"]] = {}  # an ablation leaves most texts as they were

    def written(
        self, model: LanguageModel, *, sae: SparseAutoencoder | None = None, edits: Sequence[LatentEdit] = ()
    ) -> list[Written]:
        """One text for each opening, with these latents edited."""
        return write_texts(model, self.prompts, self.write, sae=sae, edits=edits)

    def arrange(self, texts: Sequence[Written]) -> list[Arranged]:
        """The details of each text and their pairs."""
        return [
            arrange(
                find_details(text.token_ids, self.corpus, self.details, bits=self.bits, advantage=advantage),
                self.arrangement,
                n_prompt=text.n_prompt,
            )
            for text, advantage in zip(texts, self._advantages(texts), strict=True)
        ]

    def traced(self, models: Mapping[str, LanguageModel]) -> dict[str, TracedTexts]:
        """What each of these models writes, by their names."""
        found = {}
        for name, model in models.items():
            texts = self.written(model)
            arranged = self.arrange(texts)
            report = measure_urr(arranged, self.urr)
            found[name] = TracedTexts(texts=tuple(texts), arranged=tuple(arranged), report=report)
        return found

    def _advantages(self, texts: Sequence[Written]) -> list[Float[np.ndarray, " n"]]:
        keys = [text.token_ids.astype(np.int64).tobytes() for text in texts]
        new = {key: text.token_ids for key, text in zip(keys, texts, strict=True) if key not in self._known}
        if new:
            ids = list(new.values())
            both = zip(token_log2_p(self.tuned, ids), token_log2_p(self.base, ids), strict=True)
            self._known |= {key: tuned - base for key, (tuned, base) in zip(new, both, strict=True)}
        return [self._known[key] for key in keys]
