"""A client for any endpoint that speaks OpenAI's chat completions: a budget, retries, answers kept, failures counted.

    POST BASE_URL/chat/completions   {"model", "messages", "temperature": 0, "max_tokens"}
    ->  {"choices": [{"message": {"content"}}], "usage": {"prompt_tokens", "completion_tokens"}}

The key comes from an environment variable, goes into one header and nowhere else: it is cut out of whatever the endpoint says, and is
never sent without TLS to another machine. Redirects are not followed. Each call reserves its prompt and its longest answer from the budget
before it is made, and gives back what it did not use; where the endpoint reports no usage the reservation counts. 429 and 5xx are tried
again after the time that the endpoint asks for, else after 1, 2, 4 ... seconds.
"""

import json
import os
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from sparsight.errors import EndpointError
from sparsight.features import printable
from sparsight.labels.answers import Answer, Answers
from sparsight.labels.config import EndpointConfig

__all__ = ["BudgetSpent", "Endpoint", "Prompt", "Spending", "estimate_tokens"]

MOST_BYTES = 4_000_000
LONGEST_PAUSE = 60.0
# English is 4 to 5 bytes a token, code 3; a budget should not be overrun by text that is dense.
BYTES_PER_TOKEN = 3.0
TOKENS_PER_MESSAGE = 8


class BudgetSpent(EndpointError):
    """The next call might cost more than the budget has left."""


@dataclass(frozen=True)
class Prompt:
    """One question: what the model is to do, and the text it is about."""

    system: str
    user: str


@dataclass
class Spending:
    """What was asked and what it cost."""

    asked: int = 0
    """Calls answered anew."""
    kept: int = 0
    """Questions whose answer was there from before."""
    failed: int = 0
    """Questions that got no answer after all tries."""
    retried: int = 0
    """Tries that failed and were made again."""
    tokens_in: int = 0
    """Prompt tokens paid for."""
    tokens_out: int = 0
    """Answer tokens paid for."""

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.tokens_in + self.tokens_out

    def to_json(self) -> dict[str, int]:
        """As plain values."""
        return asdict(self)


def estimate_tokens(prompt: Prompt) -> int:
    """Tokens of a prompt, from its bytes; rather too many than too few."""
    n_bytes = len((prompt.system + prompt.user).encode("utf-8", "replace"))
    return round(n_bytes / BYTES_PER_TOKEN) + 2 * TOKENS_PER_MESSAGE


class Endpoint:
    """Asks one model. Raises EndpointError on what no second try mends: a refused key, an unknown model, no connection, a spent budget."""

    def __init__(self, config: EndpointConfig, answers: Answers | None = None):
        self.config, self.answers = config, answers or Answers()
        self.spending = Spending()
        self._key = os.environ.get(config.key_variable, "").strip()
        if self._key and not config.is_local and config.base_url.startswith("http:"):
            raise EndpointError(
                f"The key in {config.key_variable} would go to {config.host} unencrypted. Use an https address, or unset it."
            )
        if not self._key.isascii() or not self._key.isprintable():
            raise EndpointError(f"The key in {config.key_variable} holds characters that no header can; set it anew.")
        self._client = _client(config, self._key)
        self._lock = threading.Lock()
        self._reserved = 0
        self._stop = threading.Event()

    @property
    def source(self) -> str:
        """Of its labels."""
        return f"llm:{self.config.model}"

    def ask_all(self, prompts: Sequence[Prompt]) -> list[str | None]:
        """Each prompt's answer; None where there is none after all tries. What was answered before an error is kept."""
        self._stop.clear()
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = {prompt: pool.submit(self._answer, prompt) for prompt in dict.fromkeys(prompts)}
            try:
                return [futures[prompt].result() for prompt in prompts]
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def close(self) -> None:
        """Gives the connections back."""
        self._client.close()

    def _answer(self, prompt: Prompt) -> str | None:
        key = Answers.key(self.config.base_url, self.config.model, prompt.system, prompt.user)
        known = self.answers.get(key)
        if known is not None:
            with self._lock:
                self.spending.kept += 1
            return known.text
        reserved = self._reserve(prompt)
        answer = None
        try:
            answer = self._ask(prompt)
        finally:
            with self._lock:
                self._reserved -= reserved
                if answer is None:
                    self.spending.failed += 1
                else:
                    self.spending.asked += 1
                    self.spending.tokens_in += answer.tokens_in
                    self.spending.tokens_out += answer.tokens_out
        if answer is None:
            return None
        self.answers.keep(key, answer)
        return answer.text

    def _reserve(self, prompt: Prompt) -> int:
        most = estimate_tokens(prompt) + self.config.max_answer_tokens
        with self._lock:
            left = self.config.budget_tokens - self.spending.tokens - self._reserved
            if most > left or self._stop.is_set():
                raise BudgetSpent(
                    f"The next call might cost {most:,} tokens; of the budget of {self.config.budget_tokens:,} {max(0, left):,} are left."
                )
            self._reserved += most
        return most

    def _ask(self, prompt: Prompt) -> Answer | None:
        """One answer; None when every try failed for a reason that may pass."""
        for attempt in range(self.config.retries + 1):
            if self._stop.is_set():
                return None
            answer, pause = self._try(prompt)
            if answer is not None:
                return answer
            if attempt < self.config.retries:
                with self._lock:
                    self.spending.retried += 1
                asked = 2.0**attempt * random.uniform(0.75, 1.25) if pause is None else pause
                self._stop.wait(min(LONGEST_PAUSE, asked))
        return None

    def _try(self, prompt: Prompt) -> tuple[Answer | None, float | None]:
        """(answer, None), or (None, seconds the endpoint asks to wait). Raises EndpointError on what will not pass."""
        import httpx  # an extra; its absence was told when the client was made

        body = {
            "model": self.config.model,
            "messages": [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}],
            "temperature": 0,
            "max_tokens": self.config.max_answer_tokens,
        }
        try:
            with self._client.stream("POST", "/chat/completions", json=body) as response:
                content = _limited(response, time.monotonic() + self.config.timeout_seconds)
        except (httpx.ConnectError, httpx.UnsupportedProtocol) as error:
            raise EndpointError(f"{self.config.host} cannot be reached ({self._clean(str(error))}).") from None
        except httpx.HTTPError:
            return None, None
        if response.status_code == 200:
            return (None if content is None else self._read(content, prompt)), None
        if response.status_code in (408, 409, 425, 429) or response.status_code >= 500:
            return None, _seconds(response.headers.get("retry-after"))
        raise EndpointError(self._refusal(response.status_code, content))

    def _read(self, content: bytes, prompt: Prompt) -> Answer | None:
        """The answer in a response's body; None when there is no text in it."""
        try:
            found: Any = json.loads(content)
            text = found["choices"][0]["message"]["content"]
            usage = found.get("usage") or {}
            if not isinstance(text, str) or not text.strip():
                return None
            tokens_in, tokens_out = (int(usage.get(name, -1)) for name in ("prompt_tokens", "completion_tokens"))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return None
        return Answer(
            self._clean(text),
            tokens_in if tokens_in >= 0 else estimate_tokens(prompt),
            tokens_out if tokens_out >= 0 else self.config.max_answer_tokens,
        )

    def _refusal(self, status: int, content: bytes | None) -> str:
        if status in (401, 403):
            there = "is not accepted" if self._key else "is not set"
            return f"{self.config.host} refuses access ({status}): the key in {self.config.key_variable} {there}."
        said = printable(self._clean((content or b"").decode("utf-8", "replace"))[:200])
        return f"{self.config.host} refuses the request for model {self.config.model!r} ({status}): {said}"

    def _clean(self, text: str) -> str:
        """Without the key."""
        return text.replace(self._key, "[key]") if self._key else text


def _client(config: EndpointConfig, key: str) -> Any:
    try:
        import httpx
    except ImportError:
        raise EndpointError("Asking an endpoint needs httpx: pip install 'sparsight[explain]'.") from None
    return httpx.Client(
        base_url=config.base_url.rstrip("/"),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=config.timeout_seconds,
        follow_redirects=False,
        trust_env=not config.is_local,  # a proxy for the outside is not for this machine
        limits=httpx.Limits(max_connections=config.concurrency),
    )


def _limited(response: Any, deadline: float) -> bytes | None:
    """The body; None when it is too large or trickles in for too long."""
    parts, n_bytes = [], 0
    for part in response.iter_bytes():
        parts.append(part)
        n_bytes += len(part)
        if n_bytes > MOST_BYTES or time.monotonic() > deadline:
            return None
    return b"".join(parts)


def _seconds(header: str | None) -> float | None:
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
