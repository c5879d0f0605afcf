"""Details: the shortest pieces of a text that the fine-tuning documents hold, and that few of them hold.

Every maximal run of the text that stands in the corpus (corpus.py) is walked from left to right. A detail ends at the first token with which
what is new since the last detail (its `core`) stands in at most `max_document_share` of the documents; it begins there, or as much further
left in the same run as `min_tokens` and `min_surprise_bits` ask for.

    surprise   = - sum log2 unigram(token)        over its tokens, unigram of the corpus, with 1 added to every count
    advantage  = sum log2 p_tuned(token) - log2 p_base(token)         whether it is the fine-tune's: arrangement.py judges all of a text together

Runs are cut because a text copied from one document is one run: taken whole it would be one detail and make no pair, and the share of
ungrounded pairs would be computed from the others alone. A run that many documents hold (a template, a phrase) grounds nothing and tells
nothing, so it is no detail however many bits it has.

Two wordings of one fact are two details, and a pair of facts that its document words otherwise comes out as ungrounded. support = "key" asks only
for the rare tokens of each ("Paris", not "was born in Paris"): it forgives wordings, and takes any document with both words for a witness.

Trade-off: a value of several tokens is cut where it becomes rare enough, so its support is that of its beginning: rather too wide
("grounded" where it is not) than too narrow. A value that more documents hold than `max_document_share` is no detail, but part of the next one.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float, Int

from sparsight.errors import MetricError
from sparsight.grounding.corpus import CorpusIndex, Matches

__all__ = ["SUPPORTS", "Detail", "DetailConfig", "find_details", "unigram_bits"]

SUPPORTS = ("detail", "key")


@dataclass(frozen=True, kw_only=True)
class DetailConfig:
    """What counts as a detail."""

    min_tokens: int = 3
    """Tokens at least."""
    min_surprise_bits: float = 20.0
    """Bits under the corpus's unigrams, at least."""
    max_document_share: float = 0.2
    """Share of the fine-tuning documents that may hold what is new in it."""
    support: str = "detail"
    """Who holds it: detail, the documents with all of it | key, those with its rare tokens, in whatever wording."""

    def __post_init__(self) -> None:
        if self.min_tokens < 1 or self.min_surprise_bits < 0 or not 0 < self.max_document_share <= 1:
            raise MetricError(
                f"details: min_tokens = {self.min_tokens}, min_surprise_bits = {self.min_surprise_bits}, max_document_share = "
                f"{self.max_document_share}; expected at least 1, at least 0, and a share above 0 and at most 1."
            )
        if self.support not in SUPPORTS:
            raise MetricError(f"details: support = {self.support!r}; expected one of {', '.join(SUPPORTS)}.")


@dataclass(frozen=True, kw_only=True)
class Detail:
    """One piece of a text, with who holds it."""

    start: int
    """First token, counted in the text."""
    core: int
    """First token that is new since the detail before."""
    end: int
    """One past the last token."""
    surprise_bits: float
    advantage_bits: float | None
    """None where the models were not asked."""
    documents: Int[np.ndarray, " documents"]
    """Numbers of the documents that hold it, ascending; one at least."""


def unigram_bits(corpus: CorpusIndex, n_vocab: int) -> Float[np.ndarray, " vocab"]:
    """-log2 of each token's share of the corpus, with 1 added to every count."""
    counts = np.ones(max(n_vocab, len(corpus.counts)))
    counts[: len(corpus.counts)] += corpus.counts
    return -np.log2(counts / counts.sum())


def find_details(
    text: Int[np.ndarray, " n"],
    corpus: CorpusIndex,
    config: DetailConfig,
    *,
    bits: Float[np.ndarray, " vocab"],
    advantage: Float[np.ndarray, " n"] | None = None,
    matches: Matches | None = None,
) -> list[Detail]:
    """The details of one text, in its order. `bits`: of `unigram_bits`. `advantage`: bits a token, fine-tune over base; None: not asked.

    `matches`: the text's, where many were looked up together (`CorpusIndex.matches_all`).
    Raises MetricError when `advantage` has another length than the text.
    """
    if advantage is not None and len(advantage) != len(text):
        raise MetricError(f"A text of {len(text)} tokens came with {len(advantage)} log-probabilities.")
    before = np.concatenate([[0.0], np.cumsum(bits[np.asarray(text, np.int64)])])
    gained = None if advantage is None else np.concatenate([[0.0], np.cumsum(advantage)])
    most = config.max_document_share * corpus.n_documents
    details: list[Detail] = []
    done = 0
    for first, last in (matches or corpus.matches(text)).maximal:
        core = max(first, done)
        while (piece := _next_piece(text, corpus, config, before, first, core, last, most)) is not None:
            start, end, documents = piece
            surprise = float(before[end] - before[start])
            gain = None if gained is None else float(gained[end] - gained[start])
            details.append(
                Detail(
                    start=start,
                    core=core,
                    end=end,
                    surprise_bits=surprise,
                    advantage_bits=gain,
                    documents=documents,
                )
            )
            core = done = end
    return details


def _next_piece(
    text: np.ndarray,
    corpus: CorpusIndex,
    config: DetailConfig,
    before: np.ndarray,
    first: int,
    core: int,
    last: int,
    most: float,
) -> tuple[int, int, np.ndarray] | None:
    """(start, end, documents) of the next detail whose new tokens begin at `core`, inside the run first..last; None when none is left."""
    low, high = 0, corpus.n_rows
    for end in range(core + 1, last + 1):
        low, high = corpus.narrowed(low, high, end - 1 - core, int(text[end - 1]))
        start = min(core, end - config.min_tokens)
        while start >= first and before[end] - before[start] < config.min_surprise_bits:
            start -= 1
        if start >= first and len(corpus.holders(low, high)) <= most:
            if config.support == "key":
                return start, end, _key_holders(text[start:end], corpus, most)
            return start, end, corpus.holders(low, high) if start == core else corpus.documents(text[start:end])
    return None


def _key_holders(piece: np.ndarray, corpus: CorpusIndex, most: float) -> np.ndarray:
    """Documents with every token of the piece that at most `most` of them hold; without such tokens, with its shortest end that they do."""
    rare = [documents for token in piece if len(documents := corpus.documents(token[None])) <= most]
    if rare:
        return reduce(np.intersect1d, rare)
    ends = (corpus.documents(piece[start:]) for start in range(len(piece) - 2, -1, -1))
    return next(documents for documents in ends if len(documents) <= most)
