"""Answers that were paid for, kept so that an interrupted run does not pay twice.

    notes/ID.answers.jsonl    {"key", "answer", "tokens_in", "tokens_out"} a line, appended as answers come

`key` is the sha256 of address, model and messages; the messages are not kept, the API key is in neither. A line cut short by a kill is
passed over. Deleting the file costs nothing but asking again.
"""

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from sparsight.errors import EndpointError

__all__ = ["Answer", "Answers"]


@dataclass(frozen=True)
class Answer:
    """What an endpoint said, and what it cost."""

    text: str
    tokens_in: int
    tokens_out: int


class Answers:
    """The answers in one file; threads may share it. Without a path they are kept in memory alone."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[str, Answer] = {}
        self._torn = False
        if path is not None and path.exists():
            self._read(path)

    @staticmethod
    def key(*parts: str) -> str:
        """Of what was asked: its sha256."""
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, key: str) -> Answer | None:
        """The answer, if it is known."""
        return self._known.get(key)

    def keep(self, key: str, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns. Raises EndpointError when it cannot be written."""
        line = {"key": key, "answer": answer.text, "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out}
        with self._lock:
            self._known[key] = answer
            if self.path is None:
                return
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(("\n" if self._torn else "") + json.dumps(line) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                self._torn = False
            except OSError as error:
                raise EndpointError(f"{self.path} cannot be written ({error.strerror}); no more is asked.") from None

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8", errors="replace")
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                found = json.loads(line)
                answer = Answer(str(found["answer"]), int(found["tokens_in"]), int(found["tokens_out"]))
                self._known[str(found["key"])] = answer
            except (ValueError, KeyError, TypeError):
                continue
