"""The live stream serves the very batches that the store would, resumes exactly, and allocates once."""

from pathlib import Path

import pytest
import torch

from sparsight.activations import ActivationStream, capture
from sparsight.collect import collect_activations
from sparsight.errors import TextError
from sparsight.lm import LanguageModel
from test_activations_store import HOOK, capture_config, text_config


def test_stream_and_store_give_the_same_batches(tmp_path: Path, reader: LanguageModel, text_path: str) -> None:
    text, config = text_config(text_path), capture_config()
    store = collect_activations(reader, text, config, tmp_path, seed=3)
    stored = list(store.batches("train", 128))
    live = list(ActivationStream(reader, text, config, seed=3).batches(128))
    assert len(stored) == len(live) == 39
    for a, b in zip(stored, live, strict=True):
        assert torch.equal(a[HOOK], b[HOOK])
        assert torch.equal(a.piece_ids, b.piece_ids)
        assert torch.equal(a.document_ids, b.document_ids)


@pytest.mark.parametrize("stop_at", [0, 3, 8, 20, 38])
def test_a_resumed_stream_equals_an_uninterrupted_one(reader: LanguageModel, text_path: str, stop_at: int) -> None:
    text, config = text_config(text_path), capture_config()
    whole = list(ActivationStream(reader, text, config, seed=3).batches(128))
    first = ActivationStream(reader, text, config, seed=3)
    batches = first.batches(128)
    for _ in range(stop_at):
        next(batches)
    state = first.state_dict()
    batches.close()
    rest = list(ActivationStream(reader, text, config, seed=3, state=state).batches(128, start_batch=stop_at))
    assert len(rest) == len(whole) - stop_at
    assert all(torch.equal(a[HOOK], b[HOOK]) for a, b in zip(rest, whole[stop_at:], strict=True))


def test_the_ring_is_allocated_once(reader: LanguageModel, text_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counting(capture.WindowBuffer):
        def __init__(self, *arguments: object, **options: object):
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            made.append(self.n_rows)

    monkeypatch.setattr(capture, "WindowBuffer", Counting)
    n = sum(
        len(batch)
        for batch in ActivationStream(reader, text_config(text_path), capture_config(n_tokens=9000), seed=0).batches(
            100
        )
    )
    assert n == 9000
    assert made == [1064, 1064]  # window_tokens and one piece more, twice, for nine windows


def test_a_text_that_ends_early_is_an_error(reader: LanguageModel, text_path: str) -> None:
    config = capture_config(n_tokens=10_000_000)
    with pytest.raises(TextError, match="of the 10,000,000 training tokens asked for"):
        list(ActivationStream(reader, text_config(text_path), config, seed=0).batches(128))
