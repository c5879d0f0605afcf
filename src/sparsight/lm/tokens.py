"""Documents into tokens: pieces of at most `context_tokens`, in the source's order, from any point on.

Tokenising runs ahead in one background thread, since a fast tokenizer releases the interpreter lock; everything that
decides what is kept (duplicates, length) happens where pieces are drawn, so a saved cursor and its `seen` map are
always of the same moment. The price is that a duplicate is tokenised before it is dropped.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from sparsight.errors import TextError
from sparsight.lm.config import TextConfig
from sparsight.lm.documents import Document, is_heldout, iter_documents

__all__ = ["Piece", "TextCounts", "TextCursor", "iter_pieces", "text_encoder"]

_AHEAD_CHARACTERS = 1 << 18  # tokenised in one call: long enough to use all cores, short enough to start at once
_AHEAD_DOCUMENTS = 256
_QUEUE_CALLS = 4


@dataclass(frozen=True, order=True)
class TextCursor:
    """The next piece to produce: an exact resume point."""

    row: int = 0
    """Number of the document in the source."""

    piece: int = 0
    """Number of the piece in the document."""


@dataclass(frozen=True)
class Piece:
    """A run of one document's tokens that fits one row."""

    document_id: int
    """63 bits of the sha256 of the document's text."""

    row: int
    """Number of the document in the source."""

    piece: int
    """Number of the piece in the document."""

    start: int
    """Token offset in the document."""

    token_ids: np.ndarray
    """int32."""

    heldout: bool
    """Whether the document is held out from training."""

    @property
    def after(self) -> TextCursor:
        """Where to resume once this piece is done."""
        return TextCursor(self.row, self.piece + 1)


@dataclass
class TextCounts:
    """What was drawn and what was left out, counted as pieces are drawn."""

    documents: int = 0
    """Documents that gave pieces."""

    heldout_documents: int = 0
    """Of these, held out."""

    duplicates: int = 0
    """Documents dropped because the same text came earlier."""

    too_short: int = 0
    """Documents dropped for having fewer tokens than `min_document_tokens`."""

    pieces: int = 0
    """Pieces drawn."""

    tokens: int = 0
    """Tokens in them."""


def iter_pieces(
    config: TextConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    start: TextCursor = TextCursor(),
    seen: dict[int, int] | None = None,
    part: tuple[int, int] = (0, 1),
    counts: TextCounts | None = None,
) -> Generator[Piece, None, None]:
    """The pieces of the text from `start` on, in the source's order.

    A document is a duplicate, and dropped, iff `seen` holds its id with an earlier row; `seen` and `counts` are
    updated as pieces are drawn, so that saving them beside a cursor makes an exact resume. `part` = (rank, world)
    keeps the documents whose hash falls to this rank; the parts are disjoint and together the whole. Documents are
    tokenised ahead in one thread, which ends when the iterator is closed. Raises TextError, also for what goes wrong
    in the thread.
    """
    rank, world = part
    if not 0 <= rank < world:
        raise TextError(f"part is ({rank}, {world}). Expected a rank from 0 to below the number of ranks.")
    seen = {} if seen is None else seen
    counts = TextCounts() if counts is None else counts
    encode = text_encoder(config, tokenizer)
    # The id's low half decides what is held out; this takes the high half, so that ranks hold out alike.
    documents = (
        document for document in iter_documents(config, start_row=start.row) if (document.id >> 32) % world == rank
    )
    return _draw(config, _encoded_ahead(documents, encode), start, seen, counts)


def _draw(
    config: TextConfig,
    encoded: Generator[tuple[Document, np.ndarray]],
    start: TextCursor,
    seen: dict[int, int],
    counts: TextCounts,
) -> Generator[Piece, None, None]:
    with closing(encoded):
        for document, token_ids in encoded:
            first = start.piece if document.row == start.row else 0
            if seen.setdefault(document.id, document.row) < document.row:
                counts.duplicates += 1
                continue
            if len(token_ids) < config.min_document_tokens:
                counts.too_short += first == 0
                continue
            heldout = is_heldout(document.id, config.heldout_fraction)
            if first == 0:
                counts.documents += 1
                counts.heldout_documents += heldout
            for piece, offset in enumerate(range(0, len(token_ids), config.context_tokens)):
                if piece >= first:
                    tokens = token_ids[offset : offset + config.context_tokens]
                    counts.pieces += 1
                    counts.tokens += len(tokens)
                    yield Piece(document.id, document.row, piece, offset, tokens, heldout)


def text_encoder(config: TextConfig, tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[np.ndarray]]:
    """Texts -> token ids, by the config's policies for the chat template and the beginning-of-sequence token."""
    if config.chat_template and not tokenizer.chat_template:
        raise TextError(
            "text.chat_template is on, but the tokenizer has none. Use an instruction-tuned model, or turn it off."
        )
    bos = tokenizer.bos_token_id
    if config.bos == "always" and bos is None:
        raise TextError("text.bos is always, but the tokenizer has no beginning-of-sequence token. Use auto or never.")
    # A chat template writes its own special tokens.
    special = config.bos == "auto" and not config.chat_template

    def encode(texts: list[str]) -> list[np.ndarray]:
        # scraped JSON holds lone surrogates, which are no text: each becomes a question mark
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        if config.chat_template:
            texts = [_as_user_message(tokenizer, text) for text in texts]
        rows = tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
        if config.bos == "always":
            rows = [row if row[:1] == [bos] else [bos, *row] for row in rows]
        return [np.asarray(row, dtype=np.int32) for row in rows]

    return encode


def _as_user_message(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return str(tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False))


def _encoded_ahead(
    documents: Iterator[Document], encode: Callable[[list[str]], list[np.ndarray]]
) -> Generator[tuple[Document, np.ndarray]]:
    """(document, token ids) in order, encoded by a thread that runs at most a few calls ahead."""
    results: queue.Queue[list[tuple[Document, np.ndarray]] | Exception | None] = queue.Queue(maxsize=_QUEUE_CALLS)
    closed = threading.Event()

    def put(item: list[tuple[Document, np.ndarray]] | Exception | None) -> None:
        while not closed.is_set():
            try:
                return results.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for group in _groups(documents):
                if closed.is_set():
                    return
                put(list(zip(group, encode([document.text for document in group]), strict=True)))
            put(None)
        except Exception as error:  # whatever it is, the consumer must see it
            put(error)

    thread = threading.Thread(target=work, name="sparsight-tokens", daemon=True)
    thread.start()
    try:
        while (item := results.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield from item
    finally:
        closed.set()
        thread.join()


def _groups(documents: Iterator[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if characters >= _AHEAD_CHARACTERS or len(group) >= _AHEAD_DOCUMENTS:
            yield group
            group, characters = [], 0
    if group:
        yield group
