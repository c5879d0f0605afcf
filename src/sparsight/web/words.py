"""Words: a tokenizer's readable tokens, each decoded once: decoding takes 20 microseconds, and a page shows thousands."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sparsight.features import readable_tokens

__all__ = ["Words"]


class Words:
    """Readable tokens of one tokenizer, each decoded once."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load, self._lock = load, threading.Lock()
        self._tokenizer: Any = None
        self._known: dict[int, str] = {}

    def __call__(self, token_ids: Iterable[int] | np.ndarray) -> list[str]:
        """The tokens in order; "" for -1."""
        ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else list(token_ids)
        unknown = {token_id for token_id in ids if token_id not in self._known}
        if unknown:
            self._decode(sorted(unknown))
        return [self._known[token_id] for token_id in ids]

    def _decode(self, token_ids: list[int]) -> None:
        with self._lock:  # a fast tokenizer refuses two threads at once
            if self._tokenizer is None:
                self._tokenizer = self.load()
            real = [token_id for token_id in token_ids if token_id >= 0]
            found = dict(zip(real, readable_tokens(self._tokenizer, real), strict=True))
            self._known |= found | {token_id: "" for token_id in token_ids if token_id < 0}
