"""What an ablation does beside its controls, on texts whose cause is known; matched controls take out as much."""

from collections.abc import Sequence

import numpy as np
import pytest

from sparsight.errors import MetricError
from sparsight.grounding import (
    Arranged,
    ArrangementConfig,
    CausalConfig,
    Change,
    Detail,
    LatentTraits,
    ablation_effects,
    arrange,
    matched_controls,
)
from sparsight.sae import LatentEdit

CONFIG = CausalConfig(n_controls=20, n_resamples=200)


def text(*supports: list[int]) -> Arranged:
    details = [
        Detail(
            start=i, core=i, end=i + 1, surprise_bits=25.0, advantage_bits=None, documents=np.array(documents, np.int64)
        )
        for i, documents in enumerate(supports)
    ]
    return arrange(details, ArrangementConfig())


def label(edits: Sequence[LatentEdit]) -> list[Arranged]:
    """40 texts: latent 3 keeps the first half from recombining, latent 4 makes one text abstain."""
    edited = {edit.latent for edit in edits}
    texts = [text([0], [1]) if 3 in edited and i < 20 else text([0], [0]) for i in range(40)]
    return [text() if 4 in edited and i == 39 else each for i, each in enumerate(texts)]


def nll(edits: Sequence[LatentEdit]) -> float:
    return 2.0 + 0.1 * len(edits)


def test_the_latent_that_matters_stands_out_from_its_controls() -> None:
    controls = [(LatentEdit(10 + i, "scale", 0.5),) for i in range(19)] + [(LatentEdit(4, "ablate"),)]
    report = ablation_effects([3], controls, label, nll, CONFIG)
    urr, recombined = report.changes["urr"], report.changes["recombined"]
    assert (urr.plain, urr.ablated) == (0.0, 0.5)
    assert (recombined.change, recombined.largest_control, recombined.ratio) == (
        0.5,
        0.0,
        20,
    )  # 20 texts where 1 would show
    assert recombined.low < 0.5 < recombined.high
    assert recombined.p == 1 / 21
    grounded = report.changes["grounded"]
    assert grounded.change == -0.5
    assert grounded.largest_control == pytest.approx(1 / 40)
    assert grounded.ratio == pytest.approx(20)
    assert grounded.effect == pytest.approx(-0.5 + 1 / 800)
    assert report.changes["abstaining or novel"].change == 0
    assert report.nll.change == pytest.approx(0.1)
    assert report.n_texts == 40


def test_a_latent_like_any_other_has_no_effect() -> None:
    report = ablation_effects([7], [(LatentEdit(i, "ablate"),) for i in (3, 5)], label, nll, CONFIG)
    assert report.changes["urr"].change == 0
    assert report.changes["urr"].p == 1
    assert report.changes["urr"].ratio == 0
    assert Change(plain=0.0, ablated=0.0, low=None, high=None, controls=(0.0,)).ratio == 0
    assert Change(plain=0.0, ablated=0.1, low=None, high=None, controls=(0.0,)).ratio == float("inf")
    assert Change(plain=0.0, ablated=0.1, low=None, high=None, controls=(0.0,), resolution=0.05).ratio == 2


def test_a_rate_without_pairs_is_left_out() -> None:
    def silent(edits: Sequence[LatentEdit]) -> list[Arranged]:
        return [text()] * 5 if edits else [text([0], [0])] * 5

    report = ablation_effects([1], [(LatentEdit(2, "ablate"),)], silent, nll, CONFIG)
    assert "urr" not in report.changes
    assert report.changes["abstaining or novel"].ablated == 1
    with pytest.raises(MetricError, match="without controls"):
        ablation_effects([1], [], silent, nll, CONFIG)


def test_controls_are_alike_and_take_out_as_much() -> None:
    rng = np.random.default_rng(0)
    rates = np.geomspace(0.01, 0.5, 60)
    z = np.where(rng.random((4000, 60)) < rates, 1 + rng.random((4000, 60)), 0.0)
    W_dec = rng.normal(size=(60, 200))
    W_dec[30] = W_dec[31] + 0.01
    traits = LatentTraits.of(z, W_dec)
    assert traits.norm[5] == pytest.approx(z[:, 5].mean() * np.linalg.norm(W_dec[5]))
    sets = matched_controls([10, 30], traits, CausalConfig(n_controls=25, nearest=8))
    assert len(sets) == 25
    assert len({tuple(sorted(edit.latent for edit in edits)) for edits in sets}) > 5
    for edits in sets:
        latents = [edit.latent for edit in edits]
        assert len(set(latents)) == len(latents)
        assert all(0 <= edit.value < 1 for edit in edits)  # an ablation at most, never the opposite
        assert not set(latents) & {10, 30, 31}
        taken_out = sum(float(traits.norm[edit.latent] * (1 - edit.value)) for edit in edits)
        assert taken_out == pytest.approx(traits.norm[[10, 30]].sum())
        nearest = np.abs(np.log(traits.density[latents])[:, None] - np.log(traits.density[[10, 30]])).min(1)
        assert nearest.max() < 0.9


def test_a_latent_is_no_control_for_itself() -> None:
    z = np.random.default_rng(0).random((50, 4))
    sets = matched_controls([2], LatentTraits.of(z, np.eye(4)), CausalConfig(most_cosine=1.0))
    assert {edit.latent for edits in sets for edit in edits} == {0, 1, 3}


def test_what_was_never_active_or_has_no_like_cannot_be_matched() -> None:
    z = np.ones((10, 3)) * [1.0, 0.0, 1.0]
    traits = LatentTraits.of(z, np.eye(3))
    with pytest.raises(MetricError, match="each active"):
        matched_controls([1], traits, CONFIG)
    with pytest.raises(MetricError, match="1 latents are left"):
        matched_controls([0], traits, CONFIG)


def test_a_control_never_takes_out_less() -> None:
    norms = np.array([1.0, 1.0, 1.5, 0.6])  # together enough for the first two; one of the others each is not
    traits = LatentTraits(density=np.full(4, 0.5), norm=norms, W_dec=np.eye(4))
    with pytest.raises(MetricError, match="write too little"):
        matched_controls([0, 1], traits, CONFIG)
    with pytest.raises(MetricError, match=r"write 2\.1 where these write 2\.5"):
        matched_controls(
            [0, 2], LatentTraits(density=traits.density, norm=np.array([1.0, 1.5, 1.5, 0.6]), W_dec=np.eye(4)), CONFIG
        )


def test_settings_that_judge_nothing_are_refused() -> None:
    with pytest.raises(MetricError, match="causal:"):
        CausalConfig(n_controls=0)
