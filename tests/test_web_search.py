"""Search over all latents, against looking at each; and labels that others write, read behind the answers."""

import time

import numpy as np
import pytest

from sparsight.features import FeatureIndex, Label, Notes, top_contexts
from sparsight.web import annotations, search
from sparsight.web.annotations import Annotations
from sparsight.web.search import TextIndex, strongest_passages, terms_of
from web_run import DEAD, N_LATENTS, write_index


@pytest.mark.parametrize("few", [0, 10_000])
def test_a_scan_finds_what_looking_at_each_line_finds(monkeypatch, few):
    monkeypatch.setattr(search, "_FEW", few)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abÄ💡 \n"), rng.integers(0, 9))) for _ in range(500)]
    index = TextIndex(texts)
    for row, text in ((0, "ab"), (7, ""), (499, "STRASSE")):
        index.replace(row, text)
        texts[row] = text
    among = rng.random(500) < 0.5
    for term in ("a", "ab", "b a", "ä", "💡", "zz", "straße", " ", ""):
        expected = np.array([term.casefold() in text.casefold().replace("\n", " ") for text in texts])
        assert np.array_equal(index.matching(term), expected), term
        assert np.array_equal(index.matching(term, among), expected & among), term


def test_a_query_is_words_or_what_stands_in_quotes():
    assert terms_of("  the Cat ") == ["the", "Cat"]
    assert terms_of('" the cat"') == [" the cat"]
    assert terms_of('""') == ['""']
    assert terms_of("") == []


@pytest.mark.parametrize("pairs_at_once", [1, 40, 2**22])
def test_the_strongest_passage_is_that_of_the_strongest_activation(tmp_path, monkeypatch, pairs_at_once):
    monkeypatch.setattr(search, "_PAIRS_AT_ONCE", pairs_at_once)
    index: FeatureIndex = write_index(tmp_path / "index", np.array([340, 341]))
    found = strongest_passages(index, lambda ids: [f"<{token}>" if token >= 0 else "" for token in ids.tolist()])
    for latent in range(N_LATENTS):
        (context,) = top_contexts(index, latent, 1, before=10, after=4) or [None]
        assert found[latent] == ("" if context is None else "".join(f"<{token}>" for token in context.token_ids))
    assert found[DEAD] == ""


def test_many_labels_of_others_are_read_behind_the_answers(tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    theirs = Notes.open(tmp_path / "notes" / "x.sqlite", 10)
    theirs.set_label(Label(1, "old", "person", score=0.5))
    ours = Annotations(Notes.open(theirs.path, 10), 10)
    assert ours.labels[1].text == "old"
    monkeypatch.setattr(annotations, "_QUICK_SECONDS", -1.0)
    before = ours.version
    theirs.set_label(Label(2, "new", "person", score=0.75))
    deadline, seen = time.monotonic() + 10, set()
    while time.monotonic() < deadline:
        version = ours.version
        if 2 in ours.labels:
            break
        seen.add(version)
        time.sleep(0.01)
    assert ours.labels[2].text == "new"
    assert ours.version not in seen | {before}  # what was worked out from the old labels is not used again
    assert ours.scores()[[1, 2]].tolist() == [0.5, 0.75]
    assert np.flatnonzero(ours.matching("new", np.ones(10, bool))).tolist() == [2]
    with ours.change(1) as notes:
        notes.set_label(Label(1, "zz", "person"))
    assert ours.alphabetical(descending=False).tolist() == [2, 1, 0, *range(3, 10)]
    assert ours.alphabetical(descending=True).tolist() == [1, 2, 0, *range(3, 10)]
    assert np.isnan(ours.scores()[1])
    with ours.change(2) as notes:
        notes.delete_label(2, "person")
    assert not ours.matching("new", np.ones(10, bool)).any()
