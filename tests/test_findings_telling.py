"""Spans of details by hand; and latents that tell recombined details, planted, told apart from what tells nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparsight.errors import MetricError
from sparsight.findings import telling
from sparsight.findings.summaries import telling_tables
from sparsight.findings.words import telling_lines
from sparsight.grounding import Arranged, CausalConfig, Detail, Written, detail_spans
from sparsight.sae import SAEConfig, SparseAutoencoder

D = 8
IN, AT = 40, 41
"""Tokens before a detail."""


def detail(core: int, documents: list[int]) -> Detail:
    return Detail(
        start=core, core=core, end=core + 1, surprise_bits=30.0, advantage_bits=5.0, documents=np.array(documents)
    )


def arranged(recombined: bool) -> Arranged:
    """A name in the prompt, a value after IN and one after AT."""
    details = (detail(1, [0]), detail(3, [5] if recombined else [0]), detail(5, [6] if recombined else [0]))
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    return Arranged(details=details, n_prompt=2, pairs=pairs, grounded=np.full(3, int(not recombined)))


def written(number: int, n_prompt: int = 2) -> Written:
    ids = np.array([1, 100 + number, IN, 200 + number, AT, 300 + number])
    return Written(token_ids=ids, n_prompt=n_prompt, ended=True)


def test_spans_are_what_was_written_read_before_it_and_compared_with_their_like():
    labels = [True, False, True, False, True, False, True, False, True]
    texts = [written(number) for number in range(9)]
    only = Written(
        token_ids=np.array([1, 108, 77, 208, 78, 308]), n_prompt=2, ended=True
    )  # nothing else stands after 77
    texts[8] = only
    bits = [np.arange(6.0) for _ in texts]
    spans, places = detail_spans(texts, [arranged(label) for label in labels], bits)
    assert places == [(text, token) for text in range(8) for token in (2, 4)]
    assert spans.recombined.tolist() == [label for label in labels[:8] for _ in range(2)]
    assert spans.entities.tolist() == [text for text in range(8) for _ in range(2)]
    assert spans.log_probability.tolist() == [3.0, 5.0] * 8
    assert len({(stratum, token) for stratum, (_, token) in zip(spans.strata, places, strict=True)}) == 2


def test_too_few_texts_are_said_to_be():
    with pytest.raises(MetricError, match="at least 4"):
        detail_spans([written(0), written(1)], [arranged(True), arranged(False)], [np.zeros(6)] * 2)
    with pytest.raises(MetricError, match="No text has a detail"):
        detail_spans([written(0, n_prompt=6)], [arranged(True)], [np.zeros(6)])


def found(monkeypatch, *, planted: bool) -> dict:
    """60 texts, half recombined; where planted, activations before a recombined detail hold direction 0."""
    rng = np.random.default_rng(0)
    labels = [number % 2 == 0 for number in range(60)]
    texts = [written(number) for number in range(60)]
    x = [np.abs(rng.normal(size=(6, D))).astype(np.float32) for _ in texts]
    base = [np.abs(rng.normal(size=(6, D))).astype(np.float32) for _ in texts]
    for row, label in zip(x, labels, strict=True):
        row[:, 0] += 5.0 * (label and planted)
    monkeypatch.setattr(telling, "read_activations", lambda model, _ids, _point: {"tuned": x, "base": base}[model])
    monkeypatch.setattr(telling, "token_log2_p", lambda _model, ids: [np.zeros(len(each)) for each in ids])
    monkeypatch.setattr(telling, "mean_nll", lambda *_args, edits, **_more: 2.0 + 0.1 * len(edits))
    weights = {"W_enc": torch.eye(D), "W_dec": torch.eye(D), "b_dec": torch.zeros(D), "b_enc": torch.zeros(D)}
    sae = SparseAutoencoder(SAEConfig(id="eye", architecture="relu", n_latents=D), weights)

    def rewritten(_model, *, sae, edits):
        ablated = any(edit.latent == 0 and edit.mode == "ablate" for edit in edits)
        return [arranged(label and not ablated) for label in labels]

    tracer = SimpleNamespace(arrange=lambda texts: texts, written=rewritten)
    each = telling.TellingLatents(
        tracer=tracer,
        texts=texts,
        arranged=[arranged(label) for label in labels],
        models={"tuned": "tuned", "base": "base"},
        saes={"tuned": [sae, sae], "base": [sae, sae]},
        hook_point="layers.1",
    )
    return each.findings([np.arange(4)], CausalConfig(n_controls=19))


def test_a_planted_latent_tells_and_taking_it_out_changes_what_is_written(monkeypatch):
    report = found(monkeypatch, planted=True)
    assert [seed["found"] for seed in report["seeds"]] == [[0], [0]]
    assert report["seeds"][0]["again"] == [1]
    assert report["ceiling"]["auc"] > 0.95
    assert (report["ablation"]["seed"], report["ablation"]["latents"]) == (0, [0])
    rate = report["ablation"]["changes"]["urr"]
    assert (rate["plain"], rate["ablated"], rate["largest_control"]) == (0.5, 0.0, 0.0)
    assert rate["p"] == 0.05
    assert [len(rows) for _, rows in telling_tables(report)] == [2, len(report["ablation"]["changes"])]
    assert "2 latents of 2 SAEs" in " ".join(telling_lines(report))


def test_where_nothing_tells_nothing_is_taken_out(monkeypatch):
    report = found(monkeypatch, planted=False)
    assert [seed["found"] for seed in report["seeds"]] == [[], []]
    assert report["ablation"] is None
    assert "None tells them better than the best by luck" in telling_lines(report)[-1]
    assert len(telling_tables(report)) == 1
