"""Sparse probes: planted truth, noise, what never sees a test label, and means over sets by hand."""

import builtins
import dataclasses
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sparsight.errors import MetricError, RunError
from sparsight.metrics import (
    ProbeScore,
    ProbingConfig,
    ProbingReport,
    SetScores,
    SkippedSet,
    association,
    require_sklearn,
    stratified_split,
    train_probe,
)

CONFIG = ProbingConfig(n_resamples=2000)


def planted(n: int = 200, width: int = 50, unit: int = 37) -> tuple[np.ndarray, np.ndarray]:
    """Sparse latents of which one fires exactly where the label is 1; the loudest fires at random."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    x = np.where(rng.random((n, width)) < 0.2, rng.random((n, width)), 0.0).astype(np.float32)
    x[:, 3] *= 1000
    x[:, unit] = labels * rng.uniform(0.01, 0.02, n)
    return x, labels


def test_a_label_that_is_one_latent_is_found_at_k_1_however_quiet_the_latent() -> None:
    x, labels = planted()
    train, test = stratified_split(labels, test_fraction=0.3, seed=0)
    probe = train_probe(x[train], labels[train], 1, CONFIG)
    assert probe.units.tolist() == [37]
    assert probe.score(x[test], labels[test]) == ProbeScore(auc=1.0, balanced_accuracy=1.0)
    assert train_probe(x[train], labels[train], 5, CONFIG).units[0] == 37


def test_association_is_the_correlation_with_the_label_up_to_a_common_factor() -> None:
    x, labels = planted()
    labels = (np.arange(len(labels)) % 5 == 0).astype(np.int64)
    correlation = [abs(np.corrcoef(column, labels)[0, 1]) for column in x.T]
    share = labels.mean()
    np.testing.assert_allclose(association(x, labels) * np.sqrt(share * (1 - share)), correlation, rtol=1e-5)


def test_a_latent_that_never_varies_is_associated_with_nothing() -> None:
    x, labels = planted()
    x[:, 5], x[:, 6] = 0.0, 0.1
    assert association(x, labels)[[5, 6]].tolist() == [0.0, 0.0]


def test_noise_is_at_one_half() -> None:
    rng = np.random.default_rng(1)
    aucs = []
    for _ in range(30):
        x, labels = rng.standard_normal((200, 300)).astype(np.float32), np.arange(200) % 2
        train, test = stratified_split(labels, test_fraction=0.3, seed=0)
        aucs.append(train_probe(x[train], labels[train], 5, CONFIG).score(x[test], labels[test]).auc)
    report = make_report({f"{i}": {"sae": {"5": auc}} for i, auc in enumerate(aucs)})
    mean = report.mean("auc", "sae", "5")
    assert mean.low is not None
    assert mean.high is not None
    assert mean.low < 0.5 < mean.high
    assert mean.high - mean.low < 0.1


def test_a_probe_has_no_test_label_to_see_and_its_test_rows_change_nothing() -> None:
    x, labels = planted()
    train, test = stratified_split(labels, test_fraction=0.3, seed=0)
    before = train_probe(x[train], labels[train], 5, CONFIG)
    flipped, other = labels.copy(), x.copy()
    flipped[test] = 1 - flipped[test]
    other[test] = 7.0
    after = train_probe(other[train], flipped[train], 5, CONFIG)
    for field in dataclasses.fields(before):
        np.testing.assert_array_equal(getattr(before, field.name), getattr(after, field.name))
    assert before.score(x[test], flipped[test]).auc == 0.0


def test_weights_are_those_of_scikit_learn_on_standardised_units() -> None:
    rng = np.random.default_rng(2)
    labels = np.arange(150) % 3 // 2
    x = (rng.standard_normal((150, 8)) * 5 + labels[:, None]).astype(np.float32)
    probe = train_probe(x, labels, None, ProbingConfig(inverse_penalties=(0.1,)))
    z = (x.astype(np.float64) - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000).fit(z, labels)
    np.testing.assert_allclose(probe.logits(x), model.decision_function(z), atol=1e-4)


def test_the_penalty_is_chosen_by_what_the_folds_lose() -> None:
    """Many useless units want a strong penalty, one that decides wants a weak one."""
    rng = np.random.default_rng(3)
    labels = np.arange(120) % 2
    noise = rng.standard_normal((120, 100)).astype(np.float32)
    assert train_probe(noise, labels, None, CONFIG).inverse_penalty == min(CONFIG.inverse_penalties)
    clear = (labels[:, None] + 0.1 * noise[:, :1]).astype(np.float32)
    assert train_probe(clear, labels, None, CONFIG).inverse_penalty == max(CONFIG.inverse_penalties)


def test_a_split_keeps_the_classes_shares_and_follows_its_seed() -> None:
    labels = np.array([0] * 70 + [1] * 30)
    train, test = stratified_split(labels, test_fraction=0.3, seed=4)
    assert sorted([*train, *test]) == list(range(100))
    assert labels[test].sum() == 9
    assert len(test) == 30
    np.testing.assert_array_equal(test, stratified_split(labels, test_fraction=0.3, seed=4)[1])
    assert not np.array_equal(test, stratified_split(labels, test_fraction=0.3, seed=5)[1])


def make_report(aucs: dict[str, dict[str, dict[str, float]]], families: dict[str, str] | None = None) -> ProbingReport:
    """A report of given AUCs: set -> method -> k -> AUC."""
    sets = tuple(
        SetScores(
            name=name,
            family=(families or {}).get(name, name),
            classes=("0", "1"),
            n_train=70,
            n_test=30,
            counts={"rows": 100},
            scores={
                method: {k: ProbeScore(auc=auc, balanced_accuracy=auc / 2) for k, auc in by_k.items()}
                for method, by_k in by_method.items()
            },
            latents=(1, 2),
        )
        for name, by_method in aucs.items()
    )
    methods = {method: method.upper() for method in next(iter(aucs.values()))} if aucs else {}
    subject = {"id": "a", "architecture": "topk", "n_latents": 8, "d_in": 4, "hook_point": "layers.0"}
    config = json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    skipped = (SkippedSet(name="small", reason="it is small"),)
    return ProbingReport(
        subject=subject, measured_on={}, config=config, methods=methods, sets=sets, skipped=skipped, notes=("a note",)
    )


def test_means_and_intervals_are_over_families_by_hand() -> None:
    """Families {a, b} and {c}: resampled, both are a and b, both are c, or one of each; the outer quarters are the bounds."""
    report = make_report(
        {"a": {"sae": {"1": 0.5}}, "b": {"sae": {"1": 0.7}}, "c": {"sae": {"1": 0.9}}},
        families={"a": "x", "b": "x", "c": "y"},
    )
    mean = report.mean("auc", "sae", "1")
    assert (mean.n_sets, mean.n_families) == (3, 2)
    np.testing.assert_allclose([mean.value, mean.low, mean.high], [0.7, 0.6, 0.9])
    np.testing.assert_allclose(report.mean("balanced_accuracy", "sae", "1").value, 0.35)


def test_differences_are_paired_and_a_tie_is_said_when_seeds_differ_as_much() -> None:
    rng = np.random.default_rng(0)
    easy = rng.uniform(0.5, 0.9, 20)
    aucs = {
        str(i): {"sae": {"1": ease + 0.05}, "seed": {"1": ease + 0.05}, "random": {"1": ease}, "pca": {"1": ease + 0.1}}
        for i, ease in enumerate(easy)
    }
    outcomes = {each.control: each for each in make_report(aucs).differences() if each.metric == "auc"}
    np.testing.assert_allclose(
        [outcomes["random"].difference.value, outcomes["random"].difference.low, outcomes["random"].difference.high],
        0.05,
    )
    assert outcomes["random"].outcome == "better"
    assert outcomes["pca"].outcome == "worse"
    for each in aucs.values():
        each["seed"]["1"] -= 0.06
    outcomes = {each.control: each.outcome for each in make_report(aucs).differences()}
    assert outcomes["random"] == "tie"


def test_a_report_comes_back_as_it_was_and_says_everything(tmp_path) -> None:
    aucs = {
        name: {"sae": {"1": 0.8, "5": 0.9}, "random": {"1": 0.6, "5": 0.9}, "dense": {"all": 0.95}} for name in "abc"
    }
    report = make_report(aucs)
    report.save(tmp_path / "probing.json")
    assert ProbingReport.load(tmp_path / "probing.json") == report
    body = json.loads((tmp_path / "probing.json").read_text())
    assert body["means"]["auc"]["sae"]["5"]["n_sets"] == 3
    assert [each["outcome"] for each in body["differences"]][:3] == ["better", "tie", "worse"]
    text = report.text()
    for words in (
        "0.800 [0.800, 0.800]",
        "The SAE beats RANDOM, at k = 1",
        "Tie with RANDOM, at k = 5",
        "NOT beat DENSE; it is worse, at k = 5",
    ):
        assert words in text
    assert "Skipped small: it is small." in text
    assert "Note: a note" in text
    body.pop("sets")
    (tmp_path / "probing.json").write_text(json.dumps(body))
    with pytest.raises(RunError, match=r"'sets'.*Delete it"):
        ProbingReport.load(tmp_path / "probing.json")


def test_a_report_of_no_sets_is_refused_with_the_reason() -> None:
    with pytest.raises(MetricError, match="small: it is small"):
        make_report({})


def test_without_scikit_learn_one_line_says_what_to_install(monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MetricError, match="pip install scikit-learn"):
        require_sklearn()


@pytest.mark.parametrize(
    "wrong",
    [
        {"ks": ()},
        {"ks": (5, 1)},
        {"test_fraction": 1.0},
        {"max_prompts": 3},
        {"min_per_class": 10, "test_fraction": 0.9},
        {"inverse_penalties": (0.0,)},
    ],
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(MetricError, match="expected"):
        ProbingConfig(**wrong)
