"""An OpenAI-compatible endpoint on 127.0.0.1 that judges honestly: all it knows is the text it is sent.

It explains by counting which words are marked, or after which word, and judges by looking for those words. So a score that a test sees
measures what the pipeline showed it, and nothing that it was told.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MARK = re.compile(r"⟦ ?([^⟧]*)⟧")


class Endpoint:
    """What was asked, and what goes wrong on purpose: `before` may return (status, headers, body) instead of an answer."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.before: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], str] | None] = lambda number, body: None
        self.url = ""
        self.lock = threading.Lock()

    @property
    def explaining(self) -> list[str]:
        """Texts of the requests for a label."""
        return [user for user in map(text_of, self.requests) if user.startswith("Active:")]

    @property
    def judging(self) -> list[str]:
        """Texts of the requests for verdicts."""
        return [user for user in map(text_of, self.requests) if user.startswith("Description:")]


def text_of(body: dict[str, Any]) -> str:
    """What the user's message says."""
    return body["messages"][1]["content"]


def answer(text: str) -> str:
    """An honest reader's answer."""
    return explain(text) if text.startswith("Active:") else judge(text)


def explain(text: str) -> str:
    """The words that are mostly marked; else the word before the marks."""
    active, _, inactive = text.partition("Not active:")
    passages = [line.partition("| ")[2] for line in active.splitlines()[1:] if "|" in line]
    marked: Counter[str] = Counter()
    before: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for line in [*passages, *inactive.splitlines()]:
        words = [(MARK.fullmatch(word), word) for word in re.findall(r"⟦[^⟧]*⟧|[^ ⟦⟧]+", line)]
        for place, (found, word) in enumerate(words):
            name = found[1] if found else word
            seen[name] += 1
            if found:
                marked[name] += 1
                before[(words[place - 1][0] or [0, words[place - 1][1]])[1] if place else ""] += 1
    triggers = [word for word, n in before.items() if n > 0.6 * marked.total()]
    if triggers:
        return f"LABEL: words after: {triggers[0]}"
    words = [word for word, n in marked.most_common(6) if n > 1 and n / seen[word] > 0.5]
    return f"LABEL: the words: {', '.join(words)}"


def judge(text: str) -> str:
    """yes where a fitting word stands in the passage; with marks, where most of the marked words fit."""
    label, *lines = text.removeprefix("Description: ").splitlines()
    kind, _, rest = label.partition(": ")
    wanted = {word.strip() for word in rest.split(",")}
    verdicts = []
    for line in lines:
        number, _, passage = line.partition(": ")
        if number.isdigit():
            words = re.findall(r"⟦[^⟧]*⟧|[^ ⟦⟧]+", passage)
            bare = [MARK.sub(r"\1", word) for word in words]
            looked = ["", *bare] if kind == "words after" else bare
            fits = [looked[place] in wanted for place in range(len(words))]
            marks = [fit for fit, word in zip(fits, words, strict=True) if word.startswith("⟦")]
            yes = sum(marks) * 2 > len(marks) if marks else any(fits)
            verdicts.append(f"{number}: {'yes' if yes else 'no'}")
    return "\n".join(verdicts)


@contextmanager
def serving() -> Iterator[Endpoint]:
    """The endpoint while it answers, at `url`."""
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                endpoint.requests.append(body)
                endpoint.authorizations.add(self.headers.get("Authorization"))
                number = len(endpoint.requests)
            wrong = endpoint.before(number, body)
            if wrong is None:
                said = answer(text_of(body))
                usage = {"prompt_tokens": len(text_of(body)) // 4, "completion_tokens": len(said) // 4}
                wrong = 200, {}, json.dumps({"choices": [{"message": {"content": said}}], "usage": usage})
            status, headers, content = wrong
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content.encode())))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
