"""How labels are made and tested, and which endpoint is asked."""

import math
from dataclasses import dataclass
from urllib.parse import urlsplit

from sparsight.errors import EndpointError, NotesError

__all__ = ["EndpointConfig", "ExplainConfig"]


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Settings of `explain`."""

    shown: int = 16
    """Active passages that an explainer sees: half of them the strongest, half of every strength."""
    contrasts: int = 6
    """Passages without the latent that an explainer sees beside them, half of them about near latents."""
    active: int = 20
    """Active passages that a label is tested on, from other documents."""
    inactive: int = 20
    """Passages without the latent that a label is tested on, half of them about near latents, from other documents."""
    fuzzing: bool = True
    """Also test which tokens a label is true of; with a language model only."""
    before: int = 20
    """Tokens of a passage before the one it is about."""
    after: int = 10
    """Tokens of a passage after it."""
    passages_per_call: int = 5
    """Passages judged in one call to the endpoint."""
    seed: int = 0
    """Of the halves of documents and the passages drawn."""

    def __post_init__(self) -> None:
        for name in ("shown", "contrasts", "active", "inactive", "before", "after", "seed"):
            if getattr(self, name) < 0:
                raise NotesError(f"explain: {name} = {getattr(self, name)}; expected 0 or more.")
        for name in ("shown", "passages_per_call"):
            if getattr(self, name) < 1:
                raise NotesError(f"explain: {name} = {getattr(self, name)}; expected at least 1.")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """A language model behind an address that speaks OpenAI's chat completions."""

    base_url: str
    """What stands before /chat/completions, such as http://127.0.0.1:8000/v1."""
    model: str
    """The model's name there; labels have the source llm:NAME."""
    key_variable: str = "SPARSIGHT_API_KEY"
    """The environment variable that holds the key; without one no key is sent."""
    budget_tokens: int = 0
    """Most tokens to pay for in one command, prompts and answers together; 0 asks nothing and estimates."""
    price_in: float = 0.0
    """Price of a million prompt tokens, for the estimate; 0 where it is not known."""
    price_out: float = 0.0
    """Price of a million answer tokens."""
    concurrency: int = 4
    """Calls under way at once."""
    timeout_seconds: float = 60.0
    """Longest wait for one answer."""
    retries: int = 4
    """More tries after an answer failed for a reason that may pass."""
    max_answer_tokens: int = 200
    """Longest answer that is asked for; raise it for models that reason before they answer."""

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise EndpointError(f"{self.base_url!r} is no address; expected one such as http://127.0.0.1:8000/v1.")
        if address.username or address.password or address.query:
            raise EndpointError(
                "The endpoint's address holds a password or a query. Give the key by the environment variable "
                f"{self.key_variable} instead; addresses are printed and stored."
            )
        if not self.model or self.model != self.model.strip() or not self.model.isprintable() or len(self.model) > 100:
            raise EndpointError(f"The endpoint's model is {self.model[:100]!r}; expected its name there.")
        for name, least in (("budget_tokens", 0), ("concurrency", 1), ("retries", 0), ("max_answer_tokens", 1)):
            if getattr(self, name) < least:
                raise EndpointError(f"endpoint: {name} = {getattr(self, name)}; expected at least {least}.")
        for name in ("price_in", "price_out", "timeout_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise EndpointError(f"endpoint: {name} = {value}; expected a number of 0 or more.")

    @property
    def host(self) -> str:
        """Where passages are sent."""
        return urlsplit(self.base_url).netloc

    @property
    def is_local(self) -> bool:
        """Whether that is this machine."""
        return urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1")
