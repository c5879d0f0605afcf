"""Latent scaling: by hand on crosscoders made by hand, and on trained ones whose false exclusives are planted."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.diff import ScalingSums, scaled_crosscoder, scaled_sae
from sparsight.errors import MetricError
from sparsight.sae import SAEConfig, SparseAutoencoder, SparseLatents

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "validate_compare"))

import exclusive

N, D = 600, 6
E = torch.eye(D)


def crosscoder(rows, reads=None):
    """From rows (base, tuned) of the decoder; the encoder reads the same rows unless others are given."""
    W_dec = torch.stack([torch.cat(pair) for pair in rows])
    W_enc = W_dec if reads is None else torch.stack([torch.cat(pair) for pair in reads])
    W_enc = W_enc / W_enc.square().sum(1, keepdim=True)
    config = SAEConfig(id="c", architecture="relu", l1_penalty="decoder-norm", n_latents=len(rows), models=2)
    zeros = {"b_dec": torch.zeros(2 * D), "b_enc": torch.zeros(len(rows))}
    return SparseAutoencoder(config, {"W_enc": W_enc.T, "W_dec": W_dec} | zeros)


def scaled(sae, base, tuned):
    documents = torch.arange(N) // 20
    return scaled_crosscoder(sae, zip(documents.split(100), torch.cat([base, tuned], 1).split(100), strict=True))


def magnitudes(n_features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(N, n_features, generator=generator) < 0.2
    return fires * (1 + torch.rand(N, n_features, generator=generator))


def test_a_shrunken_norm_is_found_in_the_error():
    """Latent 0: the base has half of it and the crosscoder none. Latent 1: the fine-tune alone has it."""
    a, zero = magnitudes(2), torch.zeros(D)
    sae = crosscoder([(zero, E[0]), (zero, E[1])])
    scaling = scaled(sae, 0.5 * a[:, :1] * E[0], a[:, :1] * E[0] + a[:, 1:] * E[1]).finish("tuned")
    assert scaling.nu[0, 0] == pytest.approx([0.5, 0.0], abs=1e-6)
    assert scaling.nu[1, 0] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert scaling.nu[2, 0] == pytest.approx([0.5, 0.0], abs=1e-6)
    assert scaling.changed().tolist() == [True, True]
    assert np.isnan(scaling.nu[:, 1]).all()  # no decoder in the base
    assert scaling.exclusive().tolist() == [False, True]
    assert scaling.present().tolist() == [True, False]
    assert scaling.n_documents == 30


def test_what_two_latents_share_is_found_in_the_reconstruction():
    """One feature of both models, a latent for each of them; seen from either side."""
    a, zero = magnitudes(1), torch.zeros(D)
    sae = crosscoder([(zero, E[0]), (E[0], zero)])
    sums = scaled(sae, a * E[0], a * E[0])
    for model, latent in (("tuned", 0), ("base", 1)):
        scaling = sums.finish(model)
        assert scaling.nu[0, 0, latent] == pytest.approx(0.0, abs=1e-6)
        assert scaling.nu[1, 0, latent] == pytest.approx(1.0, abs=1e-6)
        assert not scaling.exclusive()[latent]
        assert scaling.present()[latent]
        assert scaling.same()[latent]
        assert not scaling.changed()[latent]


def test_a_shared_latent_that_turned_is_seen_along_the_other_decoder():
    a = magnitudes(1)
    sae = crosscoder([(E[1], E[0])], reads=[(torch.zeros(D), E[0])])
    scaling = scaled(sae, a * E[1], a * E[0]).finish("tuned")
    assert scaling.nu[:, 0, 0] == pytest.approx(
        [0.0, 0.0, 0.0], abs=1e-6
    )  # along the fine-tune's decoder alone: exclusive
    assert scaling.nu[:, 1, 0] == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    assert scaling.present().tolist() == [True]


def test_intervals_are_over_documents_and_hold_between_the_limits():
    """The base has the feature in a third of the documents: nu is 1/3 and uncertain, and neither is claimed of few documents."""
    a, zero = magnitudes(1), torch.zeros(D)
    documents = torch.arange(N) // 100
    base = a * E[0] * (documents % 6 == 0)[:, None]
    sae = crosscoder([(zero, E[0])])
    few = scaled_crosscoder(sae, [(documents, torch.cat([base, a * E[0]], 1))]).finish("tuned")
    assert few.nu[0, 0, 0] == pytest.approx(1 / 6, abs=0.06)
    assert few.low[0, 0, 0] < 0.05
    assert few.high[0, 0, 0] > 0.3
    assert not few.exclusive()[0]
    assert not few.present()[0]


def test_batches_add_up_and_dead_latents_stay_unknown():
    a, zero = magnitudes(1), torch.zeros(D)
    sae = crosscoder([(zero, E[0]), (zero, -E[5])])
    x = torch.cat([0.3 * a * E[0], a * E[0]], 1)
    documents = torch.arange(N) // 20
    whole = scaled_crosscoder(sae, [(documents, x)]).finish("tuned")
    parts = scaled_crosscoder(sae, zip(documents.split(30), x.split(30), strict=True)).finish("tuned")
    assert np.allclose(whole.nu, parts.nu, equal_nan=True)
    assert np.allclose(whole.high, parts.high, equal_nan=True)
    assert np.isnan(whole.nu[0, 0, 1])
    assert not whole.exclusive()[1]


def test_an_sae_against_the_other_models():
    """Its first latent the other model has at 0.4, unexplained; its second the other's SAE explains; its third is its own."""
    a = magnitudes(3)
    own_x, other_x = a @ E[:3], a[:, :2] @ torch.stack([0.4 * E[0], E[1]])

    def sae(rows):
        weights = {"W_enc": rows.T, "W_dec": rows, "b_dec": torch.zeros(D), "b_enc": torch.zeros(len(rows))}
        return SparseAutoencoder(SAEConfig(id="s", architecture="relu", n_latents=len(rows)), weights)

    batches = [(torch.arange(N) // 20, own_x, other_x)]
    scaling = scaled_sae(sae(E[:3]), sae(E[1:2]), batches).finish("own")
    assert scaling.nu[0, 0] == pytest.approx([0.4, 0.0, 0.0], abs=1e-5)
    assert scaling.nu[1, 0] == pytest.approx([0.0, 1.0, 0.0], abs=1e-5)
    assert scaling.nu[2, 0] == pytest.approx([0.4, 1.0, 0.0], abs=1e-5)
    assert scaling.exclusive().tolist() == [False, False, True]
    assert scaling.same().tolist() == [False, True, False]
    assert scaling.present().tolist() == [True, True, False]

    known = tuple(each.encode_sparse(x) for each, x in ((sae(E[:3]), own_x), (sae(E[1:2]), other_x)))
    parts = list(zip(*(each.split(30) for each in batches[0]), strict=True))
    from_known = scaled_sae(sae(E[:3]), sae(E[1:2]), parts, known).finish("own")
    assert np.allclose(from_known.nu, scaling.nu, equal_nan=True)
    with pytest.raises(MetricError, match="are not those of 30 rows"):
        scaled_sae(sae(E[:3]), sae(E[1:2]), parts[:1], known)


def test_what_cannot_be_scaled():
    with pytest.raises(MetricError, match="two models"):
        ScalingSums({"base": E})
    sums = ScalingSums({"base": E, "tuned": E})
    with pytest.raises(MetricError, match="no activations"):
        sums.finish("base")
    none = {"base": torch.zeros(4, D), "tuned": torch.zeros(4, D)}
    sums.add(
        torch.zeros(4, dtype=torch.int64),
        SparseLatents(torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, 1)),
        none,
        none,
    )
    with pytest.raises(MetricError, match="at least 2 documents"):
        sums.finish("base")


def test_false_exclusives_of_trained_crosscoders_are_flagged_and_true_ones_kept():
    runs = exclusive.repetition(0, steps=400, n_batches=20)
    total = {key: sum(run[key] for run in runs.values()) for key in next(iter(runs.values()))}
    assert all(run["artefacts"] >= 5 for run in runs.values())
    assert total["flagged"] >= 0.95 * total["artefacts"]
    assert total["true"] >= 10
    assert total["kept"] >= 0.8 * total["true"]


@pytest.mark.parametrize("n_active", [2, 20], ids=["each by itself", "as one product"])
def test_sums_of_many_and_of_few_active_latents_are_those_of_the_formula(
    n_active: int, monkeypatch: pytest.MonkeyPatch
):
    """c = sum z <y, u> / sum z^2 with y each model's error, its own part added back where the latent is written there."""
    monkeypatch.setattr("sparsight.diff.scaling._NUMBERS_AT_ONCE", 7 * D)  # several parts
    generator = torch.Generator().manual_seed(0)
    n_latents, n = 40, 64

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    decoders = {"base": drawn(n_latents, D), "tuned": drawn(n_latents, D)}
    errors, rebuilt = ({model: drawn(n, D) for model in decoders} for _ in range(2))
    z = torch.zeros(n, n_latents)
    indices = torch.rand(n, n_latents, generator=generator).topk(n_active).indices
    values = 0.5 + torch.rand(n, n_active, generator=generator)
    z.scatter_(1, indices, values)
    sums = ScalingSums(decoders)
    sums.add(torch.arange(n) // 8, SparseLatents(indices, values), errors, rebuilt)
    unit = decoders["tuned"] / decoders["tuned"].norm(dim=1, keepdim=True)
    strength = {}
    for model in decoders:
        by_latent = (z.T @ errors[model] * unit).sum(1) / z.square().sum(0)
        strength[model] = by_latent + (decoders[model] * unit).sum(1)
    expected = (strength["base"] / strength["tuned"]).numpy()
    known = strength["tuned"].numpy() > 0
    found = sums.finish("tuned", n_resamples=10).nu[0, 0]
    assert found[known] == pytest.approx(expected[known], rel=1e-4, abs=1e-4)
