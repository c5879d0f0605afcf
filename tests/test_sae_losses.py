"""The objectives against their formulas, and AuxK's gradients against finite differences."""

import pytest
import torch
from torch.nn import functional

from sparsight.sae import SAEConfig
from sparsight.sae.initial import initial_weights
from sparsight.sae.losses import LossInput, auxk_loss, training_losses

N, D, F = 24, 6, 16


def batch(weights, **changes):
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(5))
    given = {
        "x": x,
        "target": x,
        "centre": weights["b_dec"],
        "dead": torch.zeros(F, dtype=torch.bool),
        "sparsity_weight": 1.0,
        "threshold": torch.zeros(()),
        "bandwidth": torch.tensor(0.5),
    }
    return LossInput(**(given | changes))


def configured(architecture, **changes):
    given = {"id": "a", "architecture": architecture, "n_latents": F, "k": 3, "precision": "float32", "init": "linear"}
    cfg = SAEConfig(**(given | changes))
    weights = {name: tensor.requires_grad_() for name, tensor in initial_weights(cfg, D, D).items()}
    return cfg, weights


def test_the_founding_loss_is_mse_plus_the_mean_of_the_latents():
    cfg, w = configured("relu", l1_coefficient=0.7)
    inputs = batch(w)
    z = functional.relu((inputs.x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    expected = functional.mse_loss(z @ w["W_dec"] + w["b_dec"], inputs.x) + 0.7 * z.abs().mean()
    losses = training_losses(cfg, w, inputs)
    torch.testing.assert_close(losses.loss, expected)
    ours = torch.autograd.grad(losses.loss, list(w.values()))
    for mine, plain in zip(ours, torch.autograd.grad(expected, list(w.values())), strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-4)


def test_the_decoder_norm_penalty_cannot_be_cheated_by_scaling_the_decoder():
    cfg, w = configured("relu", l1_penalty="decoder-norm", l1_coefficient=5.0)
    cheated = {name: tensor.detach() for name, tensor in w.items()}
    cheated |= {"W_enc": w["W_enc"] / 10, "b_enc": w["b_enc"] / 10, "W_dec": w["W_dec"] * 10}
    honest, other = training_losses(cfg, w, batch(w)), training_losses(cfg, cheated, batch(w))
    torch.testing.assert_close(honest.loss, other.loss)
    raw = configured("relu")[0]
    assert training_losses(raw, cheated, batch(w)).sparsity < 0.11 * training_losses(raw, w, batch(w)).sparsity


def test_the_penalty_is_scaled_by_the_warmup():
    for architecture in ("relu", "jumprelu", "gated"):
        cfg, w = configured(architecture, l1_coefficient=1.0, l0_coefficient=1.0)
        full, half, none = (training_losses(cfg, w, batch(w, sparsity_weight=s)) for s in (1.0, 0.5, 0.0))
        torch.testing.assert_close(full.loss - half.loss, half.loss - none.loss)
        torch.testing.assert_close(full.loss - none.loss, full.sparsity)


def test_matryoshka_averages_the_errors_of_its_prefixes():
    cfg, w = configured("matryoshka", prefix_widths=(4, 8, F), auxk_coefficient=0.0)
    inputs = batch(w)
    z = functional.relu((inputs.x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    z = z * (z >= z.flatten().topk(N * 3).values[-1])
    errors = [functional.mse_loss(z[:, :p] @ w["W_dec"][:p] + w["b_dec"], inputs.x) for p in (4, 8, F)]
    losses = training_losses(cfg, w, inputs)
    torch.testing.assert_close(losses.loss, torch.stack(errors).mean())
    torch.testing.assert_close(losses.mse, errors[-1])


def test_gated_auxiliary_loss_leaves_the_decoder_alone():
    cfg, w = configured("gated", l1_coefficient=0.0)
    inputs = batch(w)
    losses = training_losses(cfg, w, inputs)
    ours = torch.autograd.grad(losses.loss, [w["W_dec"], w["b_gate"]], retain_graph=True)
    without_aux = torch.autograd.grad(losses.mse, [w["W_dec"], w["b_gate"]], allow_unused=True)
    torch.testing.assert_close(ours[0], without_aux[0])
    gate = functional.relu((inputs.x - w["b_dec"]) @ w["W_enc"] + w["b_gate"])
    through = gate @ w["W_dec"].detach() + w["b_dec"].detach()
    (alone,) = torch.autograd.grad(functional.mse_loss(through, inputs.x), [w["b_gate"]])
    torch.testing.assert_close(ours[1] - without_aux[1], alone)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_auxk_gives_dead_latents_the_gradient_that_finite_differences_find(architecture):
    cfg, w = configured(architecture, k=2, k_aux=3, auxk_coefficient=1.0)
    w = {name: tensor.detach() for name, tensor in w.items()}
    dead = torch.zeros(F, dtype=torch.bool)
    dead[10:] = True
    w["b_enc"] = w["b_enc"] + torch.where(dead, -0.2, 1.5)  # dead ones never reach the top k, yet some are positive
    residual = torch.randn(N, D, generator=torch.Generator().manual_seed(6))

    def loss(W_enc, W_dec):
        pre = batch(w).x @ W_enc + w["b_enc"]
        return auxk_loss(pre, W_dec, residual, dead, 3)

    W_enc, W_dec = w["W_enc"].clone().requires_grad_(), w["W_dec"].clone().requires_grad_()
    d_enc, d_dec = torch.autograd.grad(loss(W_enc, W_dec), [W_enc, W_dec])
    assert (d_enc[:, 10:].abs().sum(0) > 0).any(), "the encoder of dead latents must learn"
    assert (d_dec[10:].abs().sum(1) > 0).any(), "the decoder of dead latents must learn"
    assert d_enc[:, :10].abs().sum() == 0
    assert d_dec[:10].abs().sum() == 0
    for gradient, name, at in ((d_enc, "W_enc", (2, 12)), (d_enc, "W_enc", (0, 15)), (d_dec, "W_dec", (13, 1))):
        step = 1e-3
        shifted = [{"W_enc": W_enc.detach().clone(), "W_dec": W_dec.detach().clone()} for _ in range(2)]
        shifted[0][name][at] += step
        shifted[1][name][at] -= step
        slope = (loss(**shifted[0]) - loss(**shifted[1])) / (2 * step)
        assert gradient[at].item() == pytest.approx(slope.item(), rel=0.05, abs=2e-4)
    whole, full_w = training_losses(cfg, w, batch(w, dead=dead)), training_losses(cfg, w, batch(w))
    torch.testing.assert_close(whole.loss, full_w.loss + whole.aux)


def test_auxk_reaches_the_encoder_of_dead_latents_through_the_whole_objective():
    cfg, w = configured("topk", k=1)
    inputs = batch(w)
    fired = training_losses(cfg, w, inputs).latent_sums > 0
    dead = ~fired
    assert dead.any()
    (without,) = torch.autograd.grad(training_losses(cfg, w, inputs).loss, [w["W_enc"]])
    (with_aux,) = torch.autograd.grad(training_losses(cfg, w, batch(w, dead=dead)).loss, [w["W_enc"]])
    assert without[:, dead].abs().sum() == 0
    assert with_aux[:, dead].abs().sum() > 0


def test_auxk_is_zero_without_dead_latents_and_one_when_they_explain_nothing():
    residual = torch.randn(N, D)
    residual = residual - residual.mean(0)
    silent = -torch.ones(N, F)
    none = torch.zeros(F, dtype=torch.bool)
    assert auxk_loss(silent, torch.ones(F, D), residual, none, 4) == 0
    torch.testing.assert_close(auxk_loss(silent, torch.ones(F, D), residual, ~none, 4), torch.ones(()))
