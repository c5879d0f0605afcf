"""Crosscoders: their weights, their training against the definition written out, their file; and training that starts from a finished SAE."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsight.activations.synthetic_pair import PlantedPair
from sparsight.errors import SAEError
from sparsight.recipe import TrainConfig
from sparsight.sae import SAEConfig, SAETrainer, SparseAutoencoder, model_decoders, relative_norm
from sparsight.sae.activation import batch_topk
from sparsight.sae.crosscoder import latent_weights
from sparsight.sae.losses import LossInput, training_losses
from sparsight.train import train_sae, train_saes

D, F = 24, 32
PAIR = PlantedPair(12, D, changed={"emergent": 1, "lost": 1}, rates=(0.05, 0.1), seed=3)


def crosscoder(architecture="batchtopk", **options):
    penalty = {"l1_penalty": "decoder-norm"} if architecture == "relu" else {}
    given = {
        "id": "c",
        "architecture": architecture,
        "n_latents": F,
        "k": 1,
        "models": 2,
        "hook_point": "both:synthetic",
    }
    return SAEConfig(**{**given, **penalty, "precision": "float32", "lr": 5e-3, **options})


def rows(n=64, seed=0):
    return torch.randn(n, 2 * D, generator=torch.Generator().manual_seed(seed))


def test_relative_norm_by_hand():
    W_dec = torch.tensor([[3.0, 4.0, 0.0, 0.0], [3.0, 4.0, 0.0, 5.0], [0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 4.0]])
    assert relative_norm(W_dec).tolist() == pytest.approx([0.0, 0.5, 1.0, 0.875])
    assert model_decoders(W_dec).shape == (2, 4, 2)
    with pytest.raises(SAEError, match="width 3"):
        model_decoders(torch.zeros(2, 3))


def loss_of(cfg, weights, x):
    batch = LossInput(
        x=x,
        target=x,
        centre=weights["b_dec"],
        dead=torch.zeros(F, dtype=torch.bool),
        sparsity_weight=1.0,
        threshold=torch.zeros(()),
        bandwidth=torch.ones(()),
    )
    return training_losses(cfg, weights, batch)


def drawn(seed=1):
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.randn(F, 2 * D, generator=generator)
    W_dec[: F // 2, D:] = 0  # one model alone
    return {"W_enc": W_dec.T.clone(), "W_dec": W_dec, "b_enc": torch.zeros(F), "b_dec": torch.zeros(2 * D)}


def test_the_k_are_chosen_by_latent_times_both_norms():
    cfg, weights, x = crosscoder(auxk_coefficient=0.0), drawn(), rows()
    both = weights["W_dec"].view(F, 2, D).norm(dim=2).sum(1)
    z = (x @ weights["W_enc"]).relu()
    cut = (z * both).flatten().topk(len(x) * cfg.k).values[-1]
    x_hat = (z * (z * both >= cut)) @ weights["W_dec"]
    losses = loss_of(cfg, weights, x)
    assert float(losses.mse) == pytest.approx(float((x_hat - x).square().mean()), rel=1e-5)
    assert losses.threshold is not None
    assert float(losses.threshold) == pytest.approx(float(cut), rel=1e-6)
    unweighed = batch_topk(z, cfg.k)[0] @ weights["W_dec"]
    assert float((unweighed - x).square().mean()) != pytest.approx(float(losses.mse), rel=1e-2)


def test_the_penalty_counts_the_norms_of_both_models():
    cfg, weights, x = crosscoder("relu"), drawn(), rows()
    z = (x @ weights["W_enc"]).relu()
    by_hand = (z * weights["W_dec"].view(F, 2, D).norm(dim=2).sum(1)).sum(1).mean() / (2 * D)
    assert float(loss_of(cfg, weights, x).sparsity) == pytest.approx(float(by_hand), rel=1e-5)  # pyright: ignore[reportArgumentType]


def test_a_finished_crosscoder_has_a_threshold_for_each_latent():
    sae = train_sae(PAIR.batches(256, 60), crosscoder(), total_steps=60)
    weighed = sae.threshold * latent_weights(sae.cfg, sae.W_dec)
    assert weighed.std() < 1e-5 * weighed.mean()
    assert sae.threshold.std() > 1e-3 * sae.threshold.mean()
    (batch,) = PAIR.batches(2048, 1, seed=1)
    assert 0.6 < float((sae.encode(batch["both:synthetic"]) > 0).sum(1).float().mean()) < 1.5


def test_a_crosscoder_has_no_dense_step():
    cfg = crosscoder(precision="bfloat16")
    assert SAETrainer(cfg, 2 * D, 2 * D, total_steps=2, batch_tokens=8).form in ("fused", "autograd")
    with pytest.raises(SAEError, match="no 'dense' step"):
        SAETrainer(cfg, 2 * D, 2 * D, total_steps=2, batch_tokens=8, form="dense")


class Pairs:
    """A source of planted pairs."""

    n_rows = 256 * 400

    @property
    def hook_points(self):
        return {"both:synthetic": 2 * D}

    @property
    def counts(self):
        return {"tokens": self.n_rows}

    def batches(self, batch_tokens, *, start_batch=0):
        return PAIR.batches(batch_tokens, self.n_rows // batch_tokens, start_batch=start_batch)

    def state_dict(self):
        return {}


def test_a_crosscoder_trains_in_a_run_and_finds_whose_latents_are_whose(tmp_path: Path):
    train = TrainConfig(batch_tokens=256, checkpoint_every_steps=100)
    (sae,) = train_saes(Pairs(), [crosscoder()], tmp_path, train=train)
    again = SparseAutoencoder.load(tmp_path / "c")
    assert again.cfg == sae.cfg
    assert torch.equal(again.W_dec, sae.W_dec)
    delta, (base, tuned) = relative_norm(sae.W_dec), torch.nn.functional.normalize(model_decoders(sae.W_dec), dim=2)
    for kind, model, expected in (("emergent", tuned, 1.0), ("lost", base, 0.0), ("shared", tuned, 0.5)):
        name = "base" if kind == "lost" else "tuned"
        cosines, latents = (PAIR.directions[name][PAIR.is_kind(kind)] @ model.T).max(1)
        assert float(cosines.mean()) > 0.95
        assert float(delta[latents[cosines > 0.9]].median()) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"architecture": "topk"}, "models = 2 has no meaning for topk"),
        ({"architecture": "relu", "l1_penalty": "raw"}, "no meaning for relu"),
        ({"target_hook_point": "x"}, "target_hook_point"),
        ({"models": 0}, "must be positive"),
    ],
)
def test_what_a_crosscoder_cannot_be(wrong, complaint):
    with pytest.raises(SAEError, match=complaint):
        crosscoder(**wrong)


@pytest.mark.parametrize("architecture", ["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_before_its_first_step_a_warm_start_is_the_sae_that_it_starts_from(architecture):
    cfg = SAEConfig(id="a", architecture=architecture, n_latents=F, k=3, lr=5e-3, hook_point="base:synthetic")
    first = train_sae(PAIR.batches(256, 40), cfg, total_steps=40)
    trainer = SAETrainer(replace(cfg, seed=7), D, D, total_steps=10, batch_tokens=256)
    x = 3 * PAIR.planted(256, 0, seed=5).x["tuned"]  # another scale
    trainer.initialize(x)
    trainer.start_from(first)
    started = trainer.finished()
    for name, tensor in first.state_dict().items():
        if name != "threshold" or architecture == "jumprelu":
            assert torch.allclose(started.state_dict()[name], tensor, rtol=1e-5, atol=1e-6), name
    trainer.step(x)
    assert not torch.equal(trainer.finished().W_dec, started.W_dec)


def test_training_starts_from_the_folder_of_an_sae(tmp_path: Path):
    cfg = SAEConfig(id="a", n_latents=F, k=3, hook_point="base:synthetic", lr=5e-3)
    first = train_sae(PAIR.batches(256, 100), cfg, total_steps=100)
    first.save(tmp_path / "a", metadata={})
    warm = replace(cfg, id="w", hook_point="tuned:synthetic", start_from=str(tmp_path / "a"), seed=9, lr=1e-4)
    second = train_sae(PAIR.batches(256, 5), warm, total_steps=5)
    cosines = torch.nn.functional.cosine_similarity(first.W_dec, second.W_dec)
    assert cosines.min() > 0.99
    with pytest.raises(SAEError, match="cannot start from a"):
        train_sae(PAIR.batches(256, 5), replace(warm, n_latents=12), total_steps=5)
