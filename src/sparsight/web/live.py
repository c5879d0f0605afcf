"""The language model behind the page: loaded at the first live request, asked one at a time.

Answers are generators of plain values, a line of JSON each. The lock is held while one runs; who waits longer than WAIT_SECONDS is told
that the model is busy, and more than MOST_WAITING do not wait at all.
"""

import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sparsight.features import LiveText, read_text_in_parts
from sparsight.lm import LanguageModel
from sparsight.recipe import Recipe, TrainedSAEs
from sparsight.sae import SparseAutoencoder, screened
from sparsight.steering import EditRequest, SteerConfig, steer, sweep_points
from sparsight.web.dictionary import Dictionary, Opened
from sparsight.web.feature import check_latent, latents_json
from sparsight.web.replies import Refusal, number, numbers

__all__ = ["LiveModel", "steer_lines", "sweep_lines", "text_lines"]

WAIT_SECONDS = 60.0
MOST_WAITING = 4
_STRONGEST = 12


class LiveModel:
    """One run's language model and SAEs, in memory once they were asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._lock = recipe, threading.Lock()
        self._waiting = 0
        self._model: LanguageModel | None = None
        self._saes: dict[str, SparseAutoencoder] = {}

    @contextmanager
    def held(self, dictionary: Dictionary) -> Iterator[tuple[LanguageModel, SparseAutoencoder]]:
        """The model and one SAE, for this caller alone. Raises Refusal when others hold it too long."""
        if self._waiting >= MOST_WAITING:
            raise Refusal(503, "The model is busy with other requests.", "Try again in a moment.")
        self._waiting += 1
        try:
            taken = self._lock.acquire(timeout=WAIT_SECONDS)
        finally:
            self._waiting -= 1
        if not taken:
            raise Refusal(503, f"The model was busy for {WAIT_SECONDS:g} seconds.", "Try again in a moment.")
        try:
            yield self._loaded(dictionary)
        finally:
            self._lock.release()

    def _loaded(self, dictionary: Dictionary) -> tuple[LanguageModel, SparseAutoencoder]:
        if not dictionary.is_live:
            raise Refusal(503, f"{dictionary.key} has no weights at {dictionary.run.sae(dictionary.sae.id)}.")
        if self._model is None:
            self._model = LanguageModel.load(self._recipe.model)
        name = dictionary.sae.id
        if name not in self._saes:
            found = TrainedSAEs(self._recipe, dictionary.run)
            self._saes[name] = screened(found.load(found.chosen(name)[0], str(self._model.device)))
        return self._model, self._saes[name]


def text_lines(
    live: LiveModel, dictionary: Dictionary, opened: Opened, text: str, watched: Sequence[int] = ()
) -> Generator[dict[str, Any], None, None]:
    """What fires on each token of a text, and how well each is rebuilt: the strongest, and the watched wherever they are active.

    A line for some of the tokens, with the latents that no line before named; the first soon.
    """
    named: set[int] = set()
    with live.held(dictionary) as (model, sae):
        for found in read_text_in_parts(sae, model, text, **_places(dictionary)):
            tokens = _tokens_json(found, opened, watched)
            new = {latent for token in tokens for latent, _ in token["active"]} - named
            named |= new
            latents = latents_json(opened, sorted(new), named=False)
            yield {"tokens": tokens, "latents": {str(row.pop("latent")): row for row in latents}}
    yield {"done": True}


def _tokens_json(found: LiveText, opened: Opened, watched: Sequence[int]) -> list[dict[str, Any]]:
    tokens = []
    for row, token in enumerate(opened.words(found.token_ids)):
        n = min(_STRONGEST, int(found.l0[row]))
        listed = [i for i in range(int(found.l0[row])) if i < n or int(found.indices[row, i]) in watched]
        tokens.append(
            {
                "token": token,
                "special": bool(found.special[row]),
                "error": number(float(found.error[row])),
                "l0": int(found.l0[row]),
                "active": list(
                    zip(found.indices[row, listed].tolist(), numbers(found.values[row, listed]), strict=True)
                ),
            }
        )
    return tokens


def steer_lines(
    live: LiveModel,
    dictionary: Dictionary,
    opened: Opened,
    prompt: str,
    requests: list[EditRequest],
    config: SteerConfig,
) -> Generator[dict[str, Any], None, None]:
    """One line a token of an arm, then what the controls were."""
    for request in requests:
        check_latent(opened, request.latent)
    with live.held(dictionary) as (model, sae):
        edits = [request.resolve(opened.index, sae, model) for request in requests]
        steering = steer(model, sae, prompt, edits, config, index=opened.index, **_places(dictionary))
        for event in steering:
            yield {
                "arm": event.arm,
                "step": event.step,
                "token": event.text,
                "nll": number(event.nll),
                "kl": number(event.kl),
            }
        yield {
            "done": True,
            "random_latents": [edit.latent for edit in steering.random_edits],
            "prompt_control": steering.prompt_control,
        }


def sweep_lines(
    live: LiveModel,
    dictionary: Dictionary,
    opened: Opened,
    prompt: str,
    request: EditRequest,
    strengths: list[float],
    config: SteerConfig,
) -> Generator[dict[str, Any], None, None]:
    """One line a strength, then where it is best and where the text breaks."""
    check_latent(opened, request.latent)
    with live.held(dictionary) as (model, sae):
        points = sweep_points(model, sae, prompt, request, strengths, config, index=opened.index, **_places(dictionary))
        while True:
            try:
                point = next(points)
            except StopIteration as ended:
                whole = ended.value
                break
            names = ("strength", "effect", "random_effect", "nll", "repetition")
            yield {name: number(getattr(point, name)) for name in names} | {"broken": point.broken, "text": point.text}
        names = ("sweet_spot", "breaks_at", "nll_plain", "repetition_plain", "nll_limit", "repetition_limit")
        ending = {"done": True, "random_latent": whole.random_latent, "plain_text": whole.plain_text}
        yield ending | {name: number(getattr(whole, name)) for name in names}


def _places(dictionary: Dictionary) -> dict[str, str]:
    return {"hook_point": dictionary.sae.hook_point, "target_hook_point": dictionary.sae.target_hook_point}
