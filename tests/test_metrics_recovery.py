"""Recovery of a known dictionary, on cases worked out by hand and on SAEs that must and must not find it."""

import math

import numpy as np
import pytest
import torch

from sparsight.activations.synthetic import SyntheticActivations
from sparsight.errors import MetricError
from sparsight.metrics.recovery import RecoverySums, match_features
from sparsight.sae import SAEConfig, SAETrainer

D, N = 16, 12
FEATURES = torch.nn.functional.normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(0)), dim=1)


def magnitudes(n=200, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, N, generator=generator) < 0.3) * (1 + torch.rand(n, N, generator=generator))


def marked(W_dec, latents, truth, features=FEATURES, parents=None, step=70):
    sums = RecoverySums(W_dec, features, parents)
    for start in range(0, len(truth), step):
        sums.add(latents[start : start + step], truth[start : start + step])
    return sums.finish()


def test_the_truth_itself_has_a_perfect_score():
    a = magnitudes()
    found = marked(FEATURES, a, a)
    for value in (found.mcc, found.recovered, found.precision, found.recall, found.f1, found.shrinkage):
        assert value == pytest.approx(1, abs=1e-6)
    assert found.recovered_by_rate == (1, 1, 1)
    assert (found.n_features, found.n_shrinkage, found.n_tokens) == (N, N, 200)
    assert found.absorption is None


def test_order_and_scale_of_the_decoder_change_nothing():
    a, order = magnitudes(), torch.randperm(N, generator=torch.Generator().manual_seed(2))
    found = marked(3 * FEATURES[order], a[:, order] / 3, a)
    assert (order[torch.from_numpy(match_features(FEATURES[order], FEATURES).latent)] == torch.arange(N)).all()
    assert [found.mcc, found.f1, found.shrinkage] == pytest.approx([1, 1, 1])


def test_half_the_activation_is_a_shrinkage_of_a_half():
    a = magnitudes()
    assert marked(FEATURES, a / 2, a).shrinkage == pytest.approx(0.5)


def test_shrinkage_is_least_squares_through_the_origin_where_both_fire():
    # feature 0: z = 1 where a = 1 and where a = 2, silent where a = 4, and twice active on its own: (1*1 + 1*2) / (1 + 4)
    a, z = torch.zeros(5, N), torch.zeros(5, N)
    a[:3, 0], z[[0, 1, 3, 4], 0] = torch.tensor([1.0, 2.0, 4.0]), 1.0
    found = marked(FEATURES, z, a)
    assert found.shrinkage == pytest.approx(0.6)
    assert [found.precision, found.recall, found.f1] == pytest.approx([2 / 4, 2 / 3, 4 / 7])
    assert found.n_shrinkage == 1


def test_a_silent_dictionary_scores_nothing_but_its_directions():
    a = magnitudes()
    found = marked(FEATURES, 0 * a, a)
    assert found.mcc == pytest.approx(1)
    assert [found.precision, found.recall, found.f1, found.n_shrinkage] == [0, 0, 0, 0]
    assert math.isnan(found.shrinkage)


def test_the_matching_is_one_to_one_and_signed():
    eye = torch.eye(3)
    found = match_features(torch.stack([eye[2], (4 * eye[0] + 3 * eye[1]) / 5, eye[0]]), eye)
    assert found.latent.tolist() == [2, 1, 0]  # feature 0 would also do with latent 1
    np.testing.assert_allclose(found.cosine, [1, 0.6, 1], atol=1e-7)
    assert found.recovered.tolist() == [True, False, True]
    assert match_features(-eye[:1], eye[:1]).mcc == -1


def test_features_without_a_latent_count_as_zero():
    found = marked(FEATURES[:3], magnitudes()[:, :3], magnitudes())
    assert found.mcc == pytest.approx(3 / N)
    assert found.recovered == pytest.approx(3 / N)
    assert found.recall == pytest.approx(3 / N)


def test_recovery_is_split_by_how_often_features_fire():
    a = torch.zeros(N, N)
    for feature in range(N):
        a[: N - feature, feature] = 1.0
    other = FEATURES.clone()
    other[8:] = torch.randn(4, D, generator=torch.Generator().manual_seed(5))
    assert marked(other, a, a).recovered_by_rate == (1, 1, 0)


def test_absorption_by_hand():
    # parent 0 (child 2) fires on tokens 0-4. On 0 and 1 the child does as well and hides the parent's latent; on 2 both fire and no latent
    # does; on 3 the parent's latent is silent for no reason; on 4 it is found. Parent 1 (child 3): token 5 with the child, 6 alone, all found.
    parents = torch.tensor([-1, -1, 0, 1])
    a, z = torch.zeros(7, 4), torch.zeros(7, 4)
    a[:5, 0], a[:3, 2], a[5:, 1], a[5, 3] = 1.0, 1.0, 1.0, 1.0
    z[4, 0], z[:2, 2], z[5:, 1], z[5, 3] = 1.0, 1.0, 1.0, 1.0
    found = marked(FEATURES[:4], z, a, FEATURES[:4], parents, step=4).absorption
    assert found.n_parents == 2
    assert found.rate == pytest.approx((2 / 5 + 0) / 2)
    assert found.silent_with_child == pytest.approx((3 / 3 + 0) / 2)
    assert found.silent_alone == pytest.approx((1 / 2 + 0) / 2)
    assert marked(FEATURES[:4], a, a, FEATURES[:4], parents).absorption.rate == 0


def test_what_cannot_be_marked_is_said():
    with pytest.raises(MetricError, match="12 features on the same tokens"):
        RecoverySums(FEATURES, FEATURES).add(torch.zeros(3, N), torch.zeros(3, N - 1))
    with pytest.raises(MetricError, match="No true feature fired on 5 tokens"):
        marked(FEATURES, torch.zeros(5, N), torch.zeros(5, N))


def topk_on(rows, steps, d, n_latents=64):
    cfg = SAEConfig(id="a", architecture="topk", n_latents=n_latents, k=3, lr=5e-3)
    trainer = SAETrainer(cfg, d, d, total_steps=max(steps, 1), batch_tokens=256)
    trainer.initialize(rows(0))
    for step in range(steps):
        trainer.step(rows(step), with_metrics=False)
    return trainer.finished()


def test_a_trained_topk_finds_an_easy_dictionary_and_an_untrained_one_does_not():
    data = SyntheticActivations.of_kind("sparse", 40, 32, mean_active=3)
    truth = data.planted(2048, 0, seed=1)

    def score(steps):
        sae = topk_on(lambda step: data.planted(256, step).x, steps, 32)
        return marked(sae.W_dec, sae.encode(truth.x), truth.magnitudes, data.features, step=2048)

    trained, untrained = score(300), score(0)
    assert trained.mcc > 0.9
    assert trained.recovered > 0.9
    assert untrained.mcc < 0.5
    assert untrained.recovered == 0
    assert trained.f1 > untrained.f1 + 0.3


def test_on_noise_without_a_dictionary_recovery_is_at_chance():
    data = SyntheticActivations.of_kind("sparse", 40, 32, mean_active=3)

    def noise(step):
        return torch.randn(256, 32, generator=torch.Generator().manual_seed(1000 + step))

    chance = [match_features(torch.randn(64, 32, generator=torch.Generator().manual_seed(seed)), data.features).mcc
              for seed in range(10)]  # fmt: skip
    found = match_features(topk_on(noise, 200, 32).W_dec, data.features)
    assert found.mcc == pytest.approx(np.mean(chance), abs=4 * np.std(chance) + 0.01)
    assert not found.recovered.any()
