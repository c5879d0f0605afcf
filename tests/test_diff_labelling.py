"""Labels against planted truth, with a control where nothing was planted; and the rules of labelling by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsight.activations.synthetic_pair import PlantedPair
from sparsight.diff import (
    LABELS,
    Dictionary,
    Gaps,
    LabelConfig,
    LatentScaling,
    SeedTables,
    compare_seeds,
    label_latents,
    label_seeds,
    marked,
    matched,
    naive_emergent,
    recall_by_rate,
)
from sparsight.errors import ActivationError, MetricError
from sparsight.findings import LatentFindings
from sparsight.findings.summaries import changed_in
from sparsight.sae import SAEConfig, SAETrainer

D, F, SEEDS, STEPS, BATCH = 32, 56, 4, 300, 512
PAIR = PlantedPair(
    24, D, changed=dict.fromkeys(("emergent", "lost", "rotated", "reweighted"), 2), rates=(0.02, 0.06), noise=0.03
)
CONFIG = LabelConfig(n_strata=2)


@pytest.fixture(scope="module")
def seeds():
    """Dictionaries of the base, the fine-tune and the base again, all trained and read on the same tokens."""
    arms = {"base": ("base", 0), "tuned": ("tuned", 10), "reseed": ("base", 20)}
    trainers = {
        (arm, index): SAETrainer(
            SAEConfig(id="s", n_latents=F, k=2, lr=5e-3, seed=first + index, dead_after_tokens=20 * BATCH),
            D,
            D,
            total_steps=STEPS,
            batch_tokens=BATCH,
        )
        for arm, (_, first) in arms.items()
        for index in range(SEEDS)
    }
    for step in range(STEPS):
        x = PAIR.planted(BATCH, step).x
        for (arm, _), trainer in trainers.items():
            if step == 0:
                trainer.initialize(x[arms[arm][0]])
            trainer.step(x[arms[arm][0]], with_metrics=False)
    heldout = [PAIR.planted(2048, index, seed=1).x for index in range(4)]
    return {
        arm: [Dictionary.of(trainers[arm, i].finished(), [x[model] for x in heldout]) for i in range(SEEDS)]
        for arm, (model, _) in arms.items()
    }


@pytest.fixture(scope="module")
def compared(seeds):
    return compare_seeds(seeds["base"], seeds["tuned"], config=CONFIG)


def marks_of(seeds, compared, side):
    other = {"tuned": {"lost": "shared"}, "base": {"emergent": "shared", "lost": "emergent"}}[side]
    kinds = [other.get(kind, kind) for kind in PAIR.kinds]
    truth = PAIR.directions[side], kinds, PAIR.probabilities, PAIR.gains[side] > 0
    return [
        marked(labelled, one.directions, *truth)
        for labelled, one in zip(getattr(compared, side), seeds[side], strict=True)
    ]


@pytest.mark.parametrize("side", ["tuned", "base"])
def test_planted_changes_are_found_and_little_else(seeds, compared, side):
    marks = marks_of(seeds, compared, side)
    for kind in ("emergent", "rotated", "reweighted"):  # of the base's latents emergent means lost
        found = np.array(list(recall_by_rate(marks, [kind]).values())).sum(0)
        assert found[0] >= 0.75 * found[2], kind
    assert sum(mark.n_wrong for mark in marks) <= 0.1 * sum(mark.n_called for mark in marks)


def test_what_is_found_in_one_seed_is_found_in_the_others(compared):
    for labelled in compared.tuned:
        emergent = labelled.is_label("emergent")
        assert emergent.any()
        assert labelled.replicated[emergent].mean() > SEEDS - 2
        assert labelled.n_seeds == SEEDS - 1


def test_where_nothing_changed_nothing_is_found_though_a_naive_count_finds_much(seeds):
    same = compare_seeds(seeds["base"], seeds["reseed"], config=CONFIG)
    assert sum(each.counts()["emergent"] for each in (*same.tuned, *same.base)) == 0
    assert sum(each.counts()["rotated"] for each in (*same.tuned, *same.base)) <= 1
    assert naive_emergent(matched(seeds["reseed"][0], seeds["base"][0])[0].cosine) > 0.05


def test_two_seeds_are_too_few(seeds):
    with pytest.raises(MetricError, match="2 seeds of the base"):
        compare_seeds(seeds["base"][:2], seeds["tuned"])
    with pytest.raises(MetricError, match="1 of the null fine-tune"):
        compare_seeds(seeds["base"], seeds["tuned"], seeds["reseed"][:1])


def test_three_seeds_and_a_null_fine_tune_have_nulls_too(seeds):
    three = {arm: each[:3] for arm, each in seeds.items()}
    config = LabelConfig(n_strata=1)
    by_seeds = compare_seeds(three["base"], three["tuned"], config=config)
    by_model = compare_seeds(three["base"], three["tuned"], three["reseed"], config=config)
    for compared in (by_seeds, by_model):
        assert compared.tuned[0].counts()["emergent"] >= 3
        assert sum(each.counts()["emergent"] for each in compared.null) == 0


@pytest.mark.parametrize("with_null", [False, True])
def test_fewer_seeds_of_what_was_matched_are_what_fewer_seeds_give(seeds, with_null):
    tables = SeedTables.of(seeds["base"], seeds["tuned"], seeds["reseed"])
    few = label_seeds(tables.first(3, null=with_null), config=CONFIG)
    null = seeds["reseed"][:3] if with_null else ()
    again = compare_seeds(seeds["base"][:3], seeds["tuned"][:3], null, config=CONFIG)
    for side in ("tuned", "base", "null"):
        for one, other in zip(getattr(few, side), getattr(again, side), strict=True):
            assert (one.label == other.label).all()
            assert np.array_equal(one.tests["direction"].p, other.tests["direction"].p, equal_nan=True)


def gaps(**given):
    plain = {"direction": 0.0, "activation": 0.0, "strength": 0.0, "own": 0.95, "partner": 0.95, "firings": 100}
    rows = [plain | each for each in given["rows"]]
    return Gaps(**{name: np.array([row[name] for row in rows]) for name in plain})


def scaling(nu_error, nu_reconstruction, width=0.05):
    """Of the first latents as given, of none after them."""
    nu = np.zeros((3, 2, 15))
    nu[0, :, : len(nu_error)], nu[1, :, : len(nu_error)] = nu_error, nu_reconstruction
    nu[2] = nu[0] + nu[1]
    return LatentScaling(nu=nu, low=nu - width, high=nu + width, n_documents=9, n_tokens=99)


NULL = gaps(rows=[{"direction": 0.001 * i, "activation": 0.001 * i, "strength": 0.001 * i} for i in range(400)])
ROWS = [
    {"direction": 0.5, "activation": 0.8, "partner": 0.1},  # nothing like it
    {"direction": 0.5, "activation": 0.8, "partner": 0.1},
    {"direction": 0.5, "activation": 0.8, "partner": 0.1},
    {"direction": 0.5, "activation": 0.0},  # it fires and points elsewhere
    {"strength": -0.7},  # half as strong as it was
    {"strength": 0.41},  # no larger than a null value, if beyond the limit
    {"direction": 0.5, "activation": 0.8, "partner": 0.1, "own": 0.5},  # its own seeds do not find it
    {"direction": 0.5, "activation": 0.8, "partner": 0.1, "firings": 5},
    {"direction": 0.05},  # significant and too little to matter
    *[{}] * 6,
]


def test_labels_by_hand():
    label, tests = label_latents(gaps(rows=ROWS), NULL, LabelConfig(n_strata=1))
    names = [LABELS[each] for each in label]
    unknown, shared = "undetermined", "shared"
    assert names[:9] == ["emergent"] * 3 + ["rotated", "reweighted", "reweighted", unknown, unknown, shared]
    assert names[9:] == [shared] * 6
    assert tests["direction"].n_tested == 13
    strict, _ = label_latents(gaps(rows=ROWS), NULL, LabelConfig(n_strata=1, least_ratio=1.6))
    assert [LABELS[each] for each in strict[4:6]] == ["reweighted", shared]


def test_latent_scaling_has_to_agree():
    """Latents 0 to 2 look emergent, 3 rotated, 4 and 5 reweighted; what the other model holds of them decides."""
    error, rebuilt = [0.0, 0.95, 0.2, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.5, 1.0]
    label, _ = label_latents(gaps(rows=ROWS), NULL, LabelConfig(n_strata=1), scaling(error, rebuilt))
    assert [LABELS[each] for each in label[:6]] == [
        "emergent",
        "shared",  # the other model has all of it in its error
        "undetermined",  # and a fifth of this one
        "rotated",
        "reweighted",
        "shared",
    ]
    label, _ = label_latents(gaps(rows=ROWS), NULL, LabelConfig(n_strata=1), scaling([0, 0, 0, 1.0], [0, 0, 0, 0]))
    assert LABELS[label[3]] == "shared"


def test_latent_scaling_is_asked_of_the_null_fine_tune_as_of_the_fine_tune(seeds):
    """A planted change in the null's place: found by the seeds, and not where its latents are in the other model, as scaling would show."""
    found = LatentFindings({"base": seeds["base"], "tuned": seeds["reseed"], "null": seeds["tuned"]}, CONFIG)
    same = np.ones((3, 2, F))
    held = LatentScaling(nu=same, low=same - 0.05, high=same + 0.05, n_documents=9, n_tokens=99)
    found.scaling = {f"{role}.{seed}": held for role in ("base", "tuned", "null") for seed in range(SEEDS)}
    alone, scaled = found.to_json()["counts_by_seeds"]["null"], found.to_json()["counts"]["null"]
    assert all(changed_in(counts) >= 3 for counts in alone)
    assert [changed_in(counts) for counts in scaled] == [0] * SEEDS


def test_what_cannot_be_asked_for():
    with pytest.raises(MetricError, match="q = 0"):
        LabelConfig(q=0)
    with pytest.raises(MetricError, match="'none' is unknown"):
        LabelConfig(null="none")


def test_a_pair_is_what_it_says_it_is():
    a = PAIR.planted(4096, 0)
    fires = a.magnitudes > 0
    assert torch.allclose(fires.float().mean(0), PAIR.probabilities, atol=0.02)
    cosines = (PAIR.directions["base"] * PAIR.directions["tuned"]).sum(1)
    assert torch.allclose(cosines[PAIR.is_kind("rotated")], torch.tensor(0.5), atol=1e-5)
    assert torch.allclose(cosines[~PAIR.is_kind("rotated")], torch.tensor(1.0), atol=1e-5)
    for model in ("base", "tuned"):
        noise = a.x[model] - (a.magnitudes * PAIR.gains[model]) @ PAIR.directions[model]
        assert float(noise.std()) == pytest.approx(0.03, rel=0.02)
    (batch,) = PAIR.batches(64, 1)
    x = PAIR.planted(64, 0).x
    assert torch.equal(batch["both:synthetic"], torch.cat([x["base"], x["tuned"]], 1))
    assert torch.equal(batch["difference:synthetic"], x["tuned"] - x["base"])
    drifted = PlantedPair(8, 64, drift=0.1).directions
    assert float((drifted["base"] * drifted["null"]).sum(1).mean()) == pytest.approx((1 + 0.1**2) ** -0.5, abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"rates": (0.1, 0.01)}, {"changed": {"split": 1}}, {"gain": 0.0}, {"rotation_cosine": 2.0}, {"drift": -1.0}],
)
def test_what_cannot_be_planted(wrong):
    with pytest.raises(ActivationError):
        PlantedPair(4, 8, **wrong)


def test_marks_by_hand(seeds, compared):
    """A label that is changed by hand is counted as wrong; a feature that nothing points at as not learned."""
    one, labelled = seeds["tuned"][0], compared.tuned[0]
    kinds = [{"lost": "shared"}.get(kind, kind) for kind in PAIR.kinds]
    truth = one.directions, PAIR.directions["tuned"], kinds, PAIR.probabilities, PAIR.gains["tuned"] > 0
    all_new = replace(labelled, label=np.full_like(labelled.label, LABELS.index("emergent")))
    marks = marked(all_new, *truth)
    assert marks.found.sum() == marks.learned[PAIR.is_kind("emergent").numpy()].sum()
    assert marks.called["emergent"] == F
    assert marks.wrong["emergent"] == F - sum(
        int(kinds[int(i)] == "emergent" and v >= 0.8 and np.isfinite(own))
        for v, i, own in zip(
            *(torch.nn.functional.normalize(one.directions, dim=1) @ PAIR.directions["tuned"].T)
            .masked_fill(PAIR.gains["tuned"] == 0, -1)
            .max(1),
            labelled.gaps.own,
            strict=True,
        )
    )
    assert not marks.learned[PAIR.is_kind("lost").numpy()].any()
    with pytest.raises(MetricError, match="cannot be marked"):
        marked(labelled, one.directions, PAIR.directions["tuned"], ["lost"], *truth[3:])
