"""Labels found by counting, the passages they are tested on, and their scores, where the answers are known."""

from pathlib import Path

import numpy as np
import pytest

from planted_index import FIRST_FILLER, N_TOPICS, TOPIC_WORDS, Tokenizer, document_id, planted_index, write_index
from sparsight.errors import NotesError, RunError
from sparsight.explain import choose_latents, explain_index
from sparsight.features import FeatureIndex, Label, Notes
from sparsight.labels import (
    Evidence,
    ExplainConfig,
    Explained,
    ExplainReport,
    Labeller,
    Rule,
    RuleBook,
    auc,
    balanced_accuracy,
)
from sparsight.labels.passages import is_explaining


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> FeatureIndex:
    return planted_index(tmp_path_factory.mktemp("planted") / "index")


@pytest.fixture(scope="module")
def labeller(index: FeatureIndex) -> Labeller:
    return Labeller(index, Tokenizer())


@pytest.fixture(scope="module")
def explained(labeller: Labeller) -> list[Explained]:
    return list(labeller.model_free(range(30)))


def test_planted_rules_are_found_as_they_were_planted(labeller: Labeller) -> None:
    for topic in range(N_TOPICS):
        words = TOPIC_WORDS[4 * topic : 4 * topic + 4]
        wide, narrow = labeller.book.find(topic), labeller.book.find(N_TOPICS + topic)
        assert wide is not None
        assert (wide.view, set(wide.keys)) == ("token", {f" {word}" for word in words})
        assert narrow is not None
        assert (narrow.view, set(narrow.keys)) == ("token", {f" {word}" for word in words[:2]})
    for number in range(4):
        assert labeller.book.find(24 + number) == Rule("after", (f"go{number}",))
    assert labeller.book.find(28) is None


def test_what_one_document_alone_shows_is_not_learnt_by_heart(tmp_path: Path) -> None:
    """One document is full of a word on which the latent is active; of another word each has a little."""
    tokens = np.full((60, 50), FIRST_FILLER)
    tokens[:, 7] = 1
    explaining = np.flatnonzero(is_explaining(np.array([document_id(number) for number in range(60)]), seed=0))
    tokens[explaining[0], 10:40] = 2
    tokens[explaining[1], 9:11] = FIRST_FILLER + 1, 2
    index = write_index(tmp_path / "index", tokens, np.isin(tokens, (1, 2))[None])
    assert RuleBook(Evidence(index), Tokenizer()).find(0) == Rule("token", (" t0b",))


def test_a_rule_of_very_long_tokens_is_still_a_label(index: FeatureIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "convert_ids_to_tokens", lambda _, ids: [f" {number:=>120}" for number in ids])
    book = RuleBook(Evidence(index), Tokenizer())
    rule = book.find(3)
    assert rule is not None
    assert len(rule.keys) == 2
    assert Label(3, rule.text(), "model-free")


def test_a_latents_control_never_has_its_own_label(labeller: Labeller) -> None:
    for labels in (["a", "a", "b"], ["a", "a", "a"], ["a", None, None]):
        others = labeller._others([0, 1, 2], labels)
        assert all(other is not None and other != own for other, own in zip(others, labels, strict=True))


def test_true_rules_score_above_others_and_a_random_latent_at_chance(explained: list[Explained]) -> None:
    planted = explained[:28]
    true = np.array([each.detection.value for each in planted])
    wrong = np.array([each.control.value for each in planted])
    assert true.min() > 0.7
    assert true.mean() > 0.9
    assert abs(wrong.mean() - 0.5) < 0.1
    assert auc(true, wrong) > 0.95
    assert explained[28].why_not == "never active"


def test_negatives_about_near_latents_are_harder_than_random_ones(labeller: Labeller) -> None:
    """That a narrow latent is about its whole topic is wrong, and only passages of the topic's other words show it."""
    said: dict[str, list[float]] = {"neighbour": [], "random": []}
    for topic in range(N_TOPICS):
        too_wide = Rule("token", tuple(f" {word}" for word in TOPIC_WORDS[4 * topic : 4 * topic + 4]))
        passages = labeller.passages(N_TOPICS + topic)
        assert labeller.evidence.near(N_TOPICS + topic)[0] == topic
        yes = labeller.book.says(too_wide, passages.starts, passages.ends)
        for kind, shares in said.items():
            shares.append(yes[np.array(passages.kinds) == kind].mean())
    assert np.mean(said["neighbour"]) > np.mean(said["random"]) + 0.15


def test_no_document_is_in_both_halves_and_passages_stay_in_theirs(labeller: Labeller) -> None:
    evidence = labeller.evidence
    documents = {half: set(evidence.document_of[inside].tolist()) for half, inside in evidence.halves.items()}
    assert not documents["explain"] & documents["score"]
    assert min(map(len, documents.values())) > 50
    for latent in range(30):
        for half in documents:
            drawn = evidence.draw(latent, half, n_active=20, n_inactive=20)
            assert set(drawn.documents.tolist()) <= documents[half]
        assert set(evidence.strongest(latent, "explain", 9).documents.tolist()) <= documents["explain"]


def test_passages_are_what_they_are_called(labeller: Labeller, index: FeatureIndex) -> None:
    for latent in (3, 15, 25, 29):
        passages = labeller.passages(latent)
        tokens, _ = index.activations(latent)
        inside = [
            bool(((tokens >= a) & (tokens < b)).any()) for a, b in zip(passages.starts, passages.ends, strict=True)
        ]
        assert inside == passages.active.tolist()
        assert np.isin(passages.peaks[passages.active], tokens).all()
        for kind in ("active", "neighbour", "random"):
            documents = passages.documents[np.array(passages.kinds) == kind]
            assert len(set(documents.tolist())) == len(documents)
        near = set(
            np.concatenate([index.activations(int(each))[0] for each in labeller.evidence.near(latent)]).tolist()
        )
        assert set(passages.peaks[np.array(passages.kinds) == "neighbour"].tolist()) <= near
    assert labeller.passages(3).kinds == ("active",) * 20 + ("neighbour",) * 10 + ("random",) * 10


def test_every_strength_has_its_part_of_the_active_passages(labeller: Labeller, index: FeatureIndex) -> None:
    _, every = labeller.evidence.activations(5, "score")
    passages = labeller.passages(5)
    tokens, values = index.activations(5)
    drawn = values[np.searchsorted(tokens, passages.peaks[passages.active])]
    quarters = np.histogram(drawn, [0, *np.quantile(every, (0.25, 0.5, 0.75)), np.inf])[0]
    assert quarters.min() >= 4


def test_the_halves_and_the_passages_follow_the_seed(index: FeatureIndex, labeller: Labeller) -> None:
    again, other = Evidence(index, seed=0), Evidence(index, seed=1)
    assert (again.halves["score"] == labeller.evidence.halves["score"]).all()
    assert (other.halves["score"] != labeller.evidence.halves["score"]).any()
    drawn = [e.draw(3, "score", n_active=9, n_inactive=9).peaks.tolist() for e in (again, labeller.evidence)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "rule",
    [
        Rule("token", (" the", "`", ", "), False),
        Rule("word", ("the", "a``b"), True),
        Rule("after", ("⟨start⟩",)),
        Rule("pair", (("of", "the"), ("`", "a"), ("in, ", " after "))),
        Rule("kind", ("numbers", "line breaks"), True),
    ],
)
def test_a_rule_is_read_from_its_own_label(rule: Rule) -> None:
    assert Rule.parse(rule.text()) == rule


def test_a_hand_written_label_is_read_by_its_backticks() -> None:
    assert Rule.parse("the word ` The` or `a`, mostly in titles") == Rule("word", ("the", "a"))
    with pytest.raises(NotesError, match="names no tokens"):
        Rule.parse("anything about ships")


def test_balanced_accuracy_by_hand() -> None:
    truth = np.array([True] * 4 + [False] * 5)
    judged = [True, True, True, False, False, False, True, False, None]
    score = balanced_accuracy(truth, judged, np.arange(9))
    assert (score.value, score.sensitivity, score.specificity) == (0.75, 0.75, 0.75)
    assert (score.n_active, score.n_inactive, score.n_unanswered) == (4, 4, 1)
    assert 0.3 < score.low < 0.75 < score.high <= 1.0
    always = balanced_accuracy(truth, [True] * 9, np.arange(9))
    assert always.value == 0.5
    assert balanced_accuracy(truth[:7], judged[:7], np.arange(7)).value is None


def test_the_interval_resamples_documents_and_not_passages() -> None:
    rng = np.random.default_rng(0)
    truth, right = np.tile([True, False], 100), np.repeat(rng.random(20) < 0.7, 10)
    judged = [bool(each) for each in np.where(right, truth, ~truth)]
    narrow = balanced_accuracy(truth, judged, np.arange(200))
    wide = balanced_accuracy(truth, judged, np.repeat(np.arange(20), 10))
    assert narrow.value == wide.value
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_auc_by_hand() -> None:
    assert auc(np.array([0.9, 0.5]), np.array([0.5, 0.1])) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert auc(np.array([]), np.array([0.5])) is None


def test_a_true_label_stands_a_retest_and_a_wrong_one_falls(labeller: Labeller) -> None:
    true = labeller.falsify(2, "words such as `t2a`, `t2b`, `t2c`, `t2d`")
    wrong = labeller.falsify(2, "words such as `t3a`, `t3b`")
    assert (true.fresh, true.by) == (True, "rule")
    assert true.score.value > 0.9
    assert true.control.value < 0.65
    assert wrong.score.value < 0.65
    assert len(wrong.misses) > 5
    assert all("t2" in passage for passage in wrong.misses[:3])
    first, (again, _) = labeller.passages(2), labeller._fresh_passages(2)
    assert not any(((first.starts <= peak) & (peak < first.ends)).any() for peak in again.peaks)
    too_wide = labeller.falsify(12, "`t0a`, `t0b`, `t0c`, `t0d`")
    assert all("t0c" in passage or "t0d" in passage for passage in too_wide.false_alarms)
    assert "chance 0.5" in too_wide.text()
    with pytest.raises(NotesError, match="names no tokens"):
        labeller.falsify(2, "about ships")
    with pytest.raises(RunError, match="no latent 30"):
        labeller.falsify(30, "`t2a`")


def test_labels_of_all_latents_are_kept_with_score_control_and_n(index: FeatureIndex, tmp_path: Path) -> None:
    notes = Notes.open(tmp_path / "notes" / "sae.sqlite", index.n_latents)
    notes.set_labels([])
    report = explain_index(index, Tokenizer(), notes, latents=choose_latents(index, notes))
    assert isinstance(report, ExplainReport)
    best = notes.best_labels()
    assert sorted(best) == sorted(set(range(30)) - {28})
    assert best[3].source == "model-free"
    assert best[3].low <= best[3].score <= best[3].high
    assert best[3].score > 0.9 > best[3].control
    assert best[3].n == 40
    again = ExplainReport.open(ExplainReport.path(notes.path, "model-free"))
    assert again.text() == report.text()
    assert "AUC" in report.text()
    explain_index(index, Tokenizer(), notes, latents=[3], config=ExplainConfig(seed=5))
    assert list(ExplainReport.open(ExplainReport.path(notes.path, "model-free")).rows) == [3]


def test_which_latents_are_explained(index: FeatureIndex, tmp_path: Path) -> None:
    notes = Notes.open(tmp_path / "notes" / "sae.sqlite", index.n_latents)
    notes.set_list("mine", [7, 3])
    assert choose_latents(index, notes, named="mine") == [7, 3]
    assert choose_latents(index, notes, latents=(4, 4, 2)) == [4, 2]
    assert len(choose_latents(index, notes, sample=5)) == 5
    assert 28 not in choose_latents(index, notes)
    with pytest.raises(NotesError, match="exclude each other"):
        choose_latents(index, notes, named="mine", sample=3)
    with pytest.raises(RunError, match="no latent 99"):
        choose_latents(index, notes, latents=(99,))
