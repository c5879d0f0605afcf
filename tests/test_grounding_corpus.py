"""The suffix array against a search by hand; details and arrangements on texts small enough to work out."""

import itertools
import sys

import numpy as np
import pytest

from sparsight.errors import MetricError, TextError
from sparsight.grounding import (
    ArrangementConfig,
    CorpusIndex,
    DetailConfig,
    Outcome,
    arrange,
    detail_labels,
    find_details,
    unigram_bits,
)


def holds(document: np.ndarray, run: np.ndarray) -> bool:
    n = len(run)
    return any((document[i : i + n] == run).all() for i in range(len(document) - n + 1))


def random_texts(n: int, n_vocab: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, n_vocab, rng.integers(1, 30)) for _ in range(n)]


@pytest.mark.parametrize("n_vocab", [2, 5, 70_000])
def test_matches_are_those_of_a_search_by_hand(n_vocab: int) -> None:
    documents = random_texts(12, n_vocab, 0)
    corpus = CorpusIndex(documents)
    for text in [*random_texts(6, n_vocab, 1), documents[3], np.concatenate(documents[:2])]:
        matches = corpus.matches(text)
        for start, length in enumerate(matches.lengths):
            run = text[start : start + length]
            expected = [i for i, document in enumerate(documents) if holds(document, run)]
            assert corpus.documents(run).tolist() == expected
            if length:
                assert expected
                assert corpus.holders(int(matches.low[start]), int(matches.high[start])).tolist() == expected
            if start + length < len(text):
                longer = text[start : start + length + 1]
                assert not any(holds(document, longer) for document in documents)


def test_texts_looked_up_together_are_looked_up_apart() -> None:
    corpus = CorpusIndex(random_texts(12, 3, 0))
    texts = [*random_texts(5, 3, 4), np.array([], np.int64), *random_texts(5, 4, 5)]
    for text, together in zip(texts, corpus.matches_all(texts), strict=True):
        alone = corpus.matches(text)
        for name in ("lengths", "low", "high"):
            assert getattr(alone, name).tolist() == getattr(together, name).tolist()
    assert corpus.matches_all([]) == []


def test_maximal_runs_are_contained_in_no_other() -> None:
    documents = random_texts(12, 3, 0)
    corpus = CorpusIndex(documents)
    for text in random_texts(10, 3, 2):
        lengths = corpus.matches(text).lengths
        runs = {(i, i + int(n)) for i, n in enumerate(lengths) if n}
        kept = {a for a in runs if not any(b != a and b[0] <= a[0] and a[1] <= b[1] for b in runs)}
        assert set(corpus.matches(text).maximal) == kept


def test_no_run_crosses_documents() -> None:
    corpus = CorpusIndex([np.array([1, 2]), np.array([3, 4])])
    assert corpus.matches(np.array([1, 2, 3, 4])).lengths.tolist() == [2, 1, 2, 1]
    assert corpus.documents(np.array([2, 3])).tolist() == []


def test_what_the_corpus_lacks_matches_nothing() -> None:
    corpus = CorpusIndex([np.array([1, 2, 1])])
    assert corpus.matches(np.array([9, 1, 9])).lengths.tolist() == [0, 1, 0]
    assert corpus.matches(np.array([9])).maximal == []
    assert corpus.documents(np.array([], np.int64)).tolist() == [0]


def test_documents_of_one_source_count_as_one() -> None:
    corpus = CorpusIndex([np.array([1, 2]), np.array([3]), np.array([2, 3])], sources=np.array([4, 7, 4]))
    assert corpus.n_documents == 2
    assert corpus.documents(np.array([2])).tolist() == [4]
    assert corpus.documents(np.array([3])).tolist() == [4, 7]
    assert corpus.documents(np.array([1, 2, 2])).tolist() == []  # sources are joined, texts are not
    with pytest.raises(TextError, match="one each"):
        CorpusIndex([np.array([1])], sources=np.array([0, 1]))


def test_an_empty_corpus_and_impossible_tokens_are_refused() -> None:
    with pytest.raises(TextError, match="no tokens"):
        CorpusIndex([np.array([], np.int64)])
    with pytest.raises(TextError, match="-1"):
        CorpusIndex([np.array([-1, 2])])


def test_without_pydivsufsort_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    with pytest.raises(MetricError, match="pip install pydivsufsort"):
        CorpusIndex([np.array([1])])


# Ten people: "<name> was born in <town> . works as a <job> ." Tokens: 0-9 names, 10.. template, 20-24 towns, 30-34 jobs.
WAS, BORN, IN, DOT, WORKS, AS, A = range(10, 17)
TOWNS, JOBS = (20, 21, 22, 23, 24), (30, 31, 32, 33, 34)


def biography(name: int, town: int, job: int) -> np.ndarray:
    return np.array([name, WAS, BORN, IN, TOWNS[town], DOT, WORKS, AS, A, JOBS[job], DOT])


PEOPLE = [(name, name % 5, (name + name // 5) % 5) for name in range(10)]
CORPUS = CorpusIndex([biography(*person) for person in PEOPLE])
BITS = unigram_bits(CORPUS, 40)
CONFIG = DetailConfig(min_tokens=2, min_surprise_bits=6, max_document_share=0.2)


def test_unigram_bits_count_every_token_once_more() -> None:
    assert len(BITS) == 40
    assert BITS[DOT] == pytest.approx(-np.log2(21 / 150))
    assert BITS[39] == pytest.approx(-np.log2(1 / 150))
    assert np.exp2(-BITS).sum() == pytest.approx(1.0)


def test_a_copied_text_is_cut_into_one_detail_a_fact() -> None:
    details = find_details(biography(*PEOPLE[3]), CORPUS, CONFIG, bits=BITS)
    assert [detail.end - 1 for detail in details] == [1, 4, 9]  # a name needs a second token
    assert [detail.documents.tolist() for detail in details] == [[3], [3, 8], [3, 7]]
    arranged = arrange(details, ArrangementConfig())
    assert arranged.n_pairs == 3
    assert arranged.n_ungrounded == 0
    assert arranged.outcome == Outcome.GROUNDED


def test_a_recombined_text_has_the_pairs_that_nobody_has() -> None:
    # person 3's name, with the town of people 0 and 5, with the job of people 3 and 7
    arranged = arrange(find_details(biography(3, 0, 3), CORPUS, CONFIG, bits=BITS), ArrangementConfig(), n_prompt=1)
    assert [detail.documents.tolist() for detail in arranged.details] == [[3], [0, 5], [3, 7]]
    assert arranged.grounded.tolist() == [0, 1, 0]  # name with town, name with job, town with job
    assert arranged.outcome == Outcome.RECOMBINED
    assert detail_labels(arranged)[1] == 1


def test_what_two_runs_share_is_one_detail() -> None:
    # name and town of person 3 in one run, town and job of person 8 in another: the town is in both
    details = find_details(biography(3, 3, 4), CORPUS, CONFIG, bits=BITS)
    assert [detail.end - 1 for detail in details] == [1, 4, 9]
    assert all(after.core >= before.end for before, after in itertools.pairwise(details))


def test_what_everybody_says_is_no_detail() -> None:
    template = np.array([WAS, BORN, IN])
    assert find_details(template, CORPUS, CONFIG, bits=BITS) == []
    everything = DetailConfig(min_tokens=2, min_surprise_bits=6, max_document_share=1.0)
    assert [len(detail.documents) for detail in find_details(template, CORPUS, everything, bits=BITS)] == [10, 10]


def test_another_wording_is_another_detail_unless_only_its_rare_tokens_count() -> None:
    # document 10 says of person 50 in other words: "job 34 , it is , town 24 was home"
    other = np.array([50, 34, 60, 61, 60, 24, 62, 63])
    corpus = CorpusIndex([*(biography(*person) for person in PEOPLE if person[1:] != (4, 4)), other])
    text = biography(9, 4, 4)[1:]  # town 24 and job 34 as the others word them; only `other` has both
    bits = unigram_bits(corpus, 70)
    strict, forgiving = (
        arrange(
            find_details(
                text,
                corpus,
                DetailConfig(min_tokens=2, min_surprise_bits=6, max_document_share=0.3, support=support),
                bits=bits,
            ),
            ArrangementConfig(),
        )
        for support in ("detail", "key")
    )
    assert len(strict.details) == len(forgiving.details) == 2
    assert (strict.n_pairs, strict.n_ungrounded) == (1, 1)
    assert (forgiving.n_pairs, forgiving.n_ungrounded) == (1, 0)
    last = len(corpus.documents(text[:0])) - 1
    assert [last in detail.documents for detail in forgiving.details] == [True, True]
    with pytest.raises(MetricError, match="support = 'half'"):
        DetailConfig(support="half")


def test_details_need_bits_and_tokens() -> None:
    copied = biography(*PEOPLE[3])
    assert find_details(copied, CORPUS, DetailConfig(min_surprise_bits=1000), bits=BITS) == []
    assert find_details(copied, CORPUS, DetailConfig(min_tokens=12, min_surprise_bits=1), bits=BITS) == []
    for detail in find_details(copied, CORPUS, CONFIG, bits=BITS):
        assert detail.surprise_bits == pytest.approx(BITS[copied[detail.start : detail.end]].sum())
        assert detail.surprise_bits >= 6


def test_details_that_the_base_predicts_as_well_do_not_count() -> None:
    copied = biography(*PEOPLE[3])
    advantage = np.zeros(len(copied))
    advantage[4], advantage[9] = 3.0, -2.0  # the town speaks for the fine-tune, the job a little less against it
    details = find_details(copied, CORPUS, CONFIG, bits=BITS, advantage=advantage)
    assert [detail.advantage_bits for detail in details] == [0.0, 3.0, -2.0]
    assert arrange(details, ArrangementConfig()).n_pairs == 3
    assert arrange(details, ArrangementConfig(min_advantage_bits=1.0)).outcome == Outcome.NONE
    assert arrange(details, ArrangementConfig(min_advantage_bits=1.0)).n_pairs == 0
    with pytest.raises(MetricError, match="3 log-prob"):
        find_details(copied, CORPUS, CONFIG, bits=BITS, advantage=np.zeros(3))


def test_pairs_keep_to_the_window_and_to_their_subject() -> None:
    details = find_details(biography(*PEOPLE[3]), CORPUS, CONFIG, bits=BITS)
    assert [detail.end for detail in details] == [2, 5, 10]
    assert arrange(details, ArrangementConfig(window_tokens=8)).n_pairs == 3
    assert arrange(details, ArrangementConfig(window_tokens=7)).pairs.tolist() == [[0, 1], [1, 2]]
    assert arrange(details, ArrangementConfig(window_tokens=3)).pairs.tolist() == [[0, 1]]
    one_subject_each = [detail.core for detail in details]
    assert arrange(details, ArrangementConfig(), section_starts=one_subject_each).n_pairs == 0
    assert arrange(details, ArrangementConfig(window_tokens=1), section_starts=[0]).n_pairs == 3


def test_the_prompts_own_pairs_do_not_count() -> None:
    details = find_details(biography(3, 0, 3), CORPUS, CONFIG, bits=BITS)
    assert arrange(details, ArrangementConfig(), n_prompt=5).pairs.tolist() == [[0, 2], [1, 2]]
    only_prompt = arrange(details[:2], ArrangementConfig(), n_prompt=11)
    assert only_prompt.n_pairs == 0
    assert only_prompt.outcome == Outcome.NONE


def test_one_detail_out_of_place_does_not_condemn_the_others() -> None:
    details = find_details(biography(*PEOPLE[3]), CORPUS, CONFIG, bits=BITS)
    wrong = find_details(biography(4, 4, 4), CORPUS, CONFIG, bits=BITS)[1]
    labels = detail_labels(arrange([*details, wrong], ArrangementConfig()))
    assert np.isnan(labels[:3]).all()  # one of three pairs is spoilt
    assert labels[3] == 1
    assert np.isnan(detail_labels(arrange(details[:1], ArrangementConfig()))[0])


@pytest.mark.parametrize(
    "options",
    [{"min_tokens": 0}, {"min_surprise_bits": -1.0}, {"max_document_share": 0.0}, {"max_document_share": 1.5}],
)
def test_impossible_settings_are_refused(options: dict) -> None:
    with pytest.raises(MetricError, match="details:"):
        DetailConfig(**options)
    with pytest.raises(MetricError, match="arrangement:"):
        ArrangementConfig(window_tokens=0)
