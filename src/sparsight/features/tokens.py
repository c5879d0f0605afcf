"""Tokens as a person can read them, and as a terminal can safely print them.

Text from the web may hold escape sequences that repaint a terminal, and marks that reverse the direction of writing.
No control, format, surrogate, private or separator character leaves this module raw: newline is shown as ⏎, tab as ⇥,
others by their code.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

__all__ = ["printable", "readable_tokens"]

SHOWN = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
# Control, format (bidi marks, zero width), surrogate, private, unassigned, line and paragraph separators.
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
SENTENCEPIECE_SPACE = "▁"


def printable(text: str) -> str:
    """The text in one line, with every character that could act on a terminal shown by a sign or its code."""
    return "".join(_shown(character) for character in text)


def readable_tokens(tokenizer: Any, token_ids: Sequence[int] | Int[np.ndarray, " n"]) -> list[str]:
    """Each token alone, printable, with the space it begins with; bytes that are no whole character show as �."""
    ids = [int(token_id) for token_id in token_ids]
    names = tokenizer.convert_ids_to_tokens(ids)
    return [printable(_text(tokenizer, token_id, name)) for token_id, name in zip(ids, names, strict=True)]


def _text(tokenizer: Any, token_id: int, name: str | None) -> str:
    if name is None:
        return f"<{token_id}?>"
    text = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    # SentencePiece tokenizers drop the space of the first token they decode, which here is every token.
    if name.startswith(SENTENCEPIECE_SPACE) and not text.startswith(" "):
        return " " + text
    return text


def _shown(character: str) -> str:
    if character in SHOWN:
        return SHOWN[character]
    if unicodedata.category(character) not in HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"
