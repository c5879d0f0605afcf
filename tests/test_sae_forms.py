"""Which form of the step is chosen where, and that the trainer trains alike by each; the dense one without a GPU here."""

import logging
import sys

import pytest
import torch

from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations
from sparsight.errors import SAEError
from sparsight.sae import ARCHITECTURES, SAEConfig, SAETrainer
from sparsight.sae import forms as forms_module
from sparsight.sae.forms import chosen_form
from sparsight.sae.fused import fuses
from sparsight.sae.initial import initial_weights
from sparsight.sae.kernels import cpu

D, D_OUT, F, N, STEPS = 16, 5, 48, 96, 20
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CASES = {
    "topk": {"architecture": "topk", "k_aux": 3},
    "batchtopk-transcoder": {"architecture": "batchtopk", "target_hook_point": "out"},
    "relu": {"architecture": "relu", "l1_penalty": "decoder-norm", "l1_coefficient": 2.0},
    "topk-frozen": {"architecture": "topk", "k_aux": 3, "freeze_decoder": True},
    "relu-frozen": {
        "architecture": "relu",
        "l1_penalty": "decoder-norm",
        "l1_coefficient": 2.0,
        "freeze_decoder": True,
    },
    "relu, shortened": {
        "architecture": "relu",
        "l1_penalty": "decoder-norm",
        "l1_coefficient": 2.0,
        "max_gradient_norm": 0.5,
    },
    "topk-transcoder, shortened": {"architecture": "topk", "target_hook_point": "out", "max_gradient_norm": 0.5},
}


def config(architecture="topk", **changes):
    given = {"id": "a", "n_latents": F, "k": 4, "lr": 3e-3, "warmup_steps": 4, "dead_after_tokens": 3 * N}
    return SAEConfig(**(given | {"architecture": architecture} | changes))


def batches(cfg):
    mix = torch.randn(D, D_OUT, generator=torch.Generator().manual_seed(3))
    for batch in SyntheticActivations(32, D, mean_active=3).batches(N, STEPS):
        x = 7 * batch[SYNTHETIC_HOOK_POINT] + 3
        yield x, 0.1 * x @ mix - 2 if cfg.is_transcoder else None


def new_trainer(cfg, form):
    d_out = D_OUT if cfg.is_transcoder else D
    return SAETrainer(cfg, D, d_out, total_steps=STEPS, batch_tokens=N, form=form)


def begun_trainer(cfg, form, first):
    trainer = new_trainer(cfg, form)
    with torch.no_grad():
        trainer.weights["W_enc"][:, :5] *= 0.05  # these die, and AuxK revives them
    trainer.initialize(*first)
    return trainer


def check_alike(first, second, tolerance):
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("form", "precision"), [("dense", "float32"), ("dense", "bfloat16"), ("fused", "bfloat16")])
def test_a_trainer_trains_alike_in_closed_form_and_by_autograd(case, form, precision):
    """Half way each goes on from the other's state: what is saved does not tell which form wrote it."""
    cfg, exact = config(precision=precision, **CASES[case]), precision == "float32"
    if form == "fused" and not fuses(cfg, CPU):
        pytest.skip("no C compiler")
    data = list(batches(cfg))
    closed, autograd = (begun_trainer(cfg, each, data[0]) for each in (form, "autograd"))
    for number, (x, target) in enumerate(data):
        if number == STEPS // 2:
            states = closed.state_dict(), autograd.state_dict()
            closed, autograd = new_trainer(cfg, form), new_trainer(cfg, "autograd")
            closed.load_state_dict(states[1])
            autograd.load_state_dict(states[0])
            assert closed.steps_done == autograd.steps_done == STEPS // 2
        got, expected = closed.step(x, target), autograd.step(x, target)
        assert got.keys() == expected.keys()
        for name in got if exact else ("loss", "mse", "fvu", "lr"):
            torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-4 if exact else 0.05)
    assert "aux_loss" not in got or expected["aux_loss"] > 0
    if exact:
        check_alike(closed, autograd, {"atol": 3e-5, "rtol": 1e-4})
        x = torch.cat([x for x, _ in data[:2]])
        torch.testing.assert_close(closed.finished().encode(x), autograd.finished().encode(x), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("form", ["autograd", "fused", "dense"])
@pytest.mark.parametrize("case", ["relu", "topk", "batchtopk-transcoder"])
def test_no_gradient_is_longer_than_asked_for_and_a_shorter_one_is_left_alone(form, case):
    """Adam's first moment after one step is (1 - beta1) times the gradient, all weights together."""

    def gradient(**changes):
        cfg = config(sparsity_warmup_fraction=0.0, **CASES[case], **changes)
        if form == "fused" and not fuses(cfg, CPU):
            pytest.skip("no C compiler")
        trainer = begun_trainer(cfg, form, first)
        trainer.step(*first)
        return torch.cat([pair["exp_avg"].flatten() for pair in trainer._moments.values()]) / (1 - cfg.betas[0])

    first = next(batches(config(**CASES[case])))
    width = D_OUT if "transcoder" in case else D
    free = gradient(max_gradient_norm=1e9)
    if not config(**CASES[case]).unit_norm_decoder:  # else a part of it is removed after its length was taken
        torch.testing.assert_close(
            gradient(max_gradient_norm=0.01).norm(), torch.tensor(0.01 / width), rtol=1e-3, atol=0
        )
    length = float(free.norm())
    torch.testing.assert_close(gradient(max_gradient_norm=10 * width * length), free)
    short = gradient(max_gradient_norm=0.1 * width * length)
    assert float(short.norm()) < 0.11 * length
    torch.testing.assert_close(short / short.norm(), free / length, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("form", ["autograd", "fused", "dense"])
def test_a_gradient_of_zero_moves_nothing(form):
    cfg = config(**CASES["relu"] | {"l1_coefficient": 0.0, "b_dec_init": "zero", "normalize": "none"})
    if form == "fused" and not fuses(cfg, CPU):
        pytest.skip("no C compiler")
    trainer = new_trainer(cfg, form)
    trainer.initialize(torch.randn(N, D))
    before = trainer.state_dict()
    assert trainer.step(torch.zeros(N, D))["loss"] == 0
    for name, weight in trainer.weights.items():
        assert torch.equal(weight, before[f"weights.{name}"]), name


def test_a_resumed_dense_run_equals_an_uninterrupted_one_bit_for_bit():
    cfg = config("batchtopk", precision="bfloat16")
    data = list(batches(cfg))
    whole = begun_trainer(cfg, "dense", data[0])
    for x, _ in data[:8]:
        assert whole.step(x, with_metrics=False) == {}
    resumed = new_trainer(cfg, "dense")
    resumed.load_state_dict(whole.state_dict())
    for x, _ in data[8:]:
        expected, got = whole.step(x), resumed.step(x)
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    check_alike(whole, resumed, {"atol": 0, "rtol": 0})


@pytest.mark.parametrize("form", ["autograd", "fused", "dense"])
def test_weights_that_a_user_changed_are_taken_up(form):
    cfg = config("relu", sparsity_warmup_fraction=0.0)
    if form == "fused" and not fuses(cfg, CPU):
        pytest.skip("no C compiler")
    data = list(batches(cfg))
    trainer = begun_trainer(cfg, form, data[0])
    trainer.step(data[0][0])
    with torch.no_grad():
        for name in ("W_enc", "b_enc"):
            trainer.weights[name].zero_()
    assert trainer.step(data[1][0])["l0"] == 0


def test_what_is_chosen_follows_from_architecture_precision_and_device(monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: True)
    monkeypatch.setattr(forms_module, "_gpu_kernels", lambda: forms_module.eager)
    for architecture in ARCHITECTURES:
        closed = architecture in ("relu", "topk", "batchtopk")
        assert chosen_form(config(architecture), CUDA) == ("dense" if closed else "autograd")
        assert chosen_form(config(architecture), CPU) == ("fused" if closed else "autograd")
        for device in (CPU, CUDA):
            assert chosen_form(config(architecture, precision="float32"), device) == "autograd"
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert chosen_form(config(), CPU) == "autograd"


def test_without_triton_a_gpu_trains_by_autograd_and_one_warning_says_so(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sparsight.sae.kernels.gpu", None)
    monkeypatch.delattr("sparsight.sae.kernels.gpu", raising=False)
    forms_module._gpu_kernels.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [chosen_form(config(), CUDA) for _ in range(3)] == ["autograd"] * 3
        with pytest.raises(SAEError, match=r"has no 'dense' step on cuda\. Expected auto or one of autograd"):
            chosen_form(config(), CUDA, "dense")
    forms_module._gpu_kernels.cache_clear()
    assert len(caplog.records) == 1
    assert "Install sparsight[gpu]" in caplog.text


def test_a_form_that_cannot_be_had_is_refused():
    with pytest.raises(SAEError, match=r"has no 'dense' step on cpu\. Expected auto or one of autograd"):
        new_trainer(config("jumprelu"), "dense")
    with pytest.raises(SAEError, match="has no 'quick' step on cpu"):
        new_trainer(config("relu"), "quick")


FROZEN = [(architecture, "autograd") for architecture in ARCHITECTURES]
FROZEN += [(architecture, form) for architecture in ("topk", "batchtopk", "relu") for form in ("fused", "dense")]


@pytest.mark.parametrize(("architecture", "form"), FROZEN)
def test_a_frozen_decoder_stays_as_it_was_drawn_and_the_rest_learns(architecture, form):
    cfg = config(architecture, freeze_decoder=True)
    if form == "fused" and not fuses(cfg, CPU):
        pytest.skip("no compiler here")
    trainer, drawn, given = new_trainer(cfg, form), initial_weights(cfg, D, D), list(batches(cfg))
    trainer.initialize(*given[0])
    begun = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    losses = [float(trainer.step(*batch)["mse"]) for batch in given]
    assert torch.equal(trainer.weights["W_dec"].detach(), drawn["W_dec"])
    assert torch.equal(trainer.finished().W_dec, drawn["W_dec"])
    for name in ("W_enc", "b_dec"):
        assert not torch.equal(trainer.weights[name].detach(), begun[name]), name
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("form", ["autograd", "fused", "dense"])
def test_without_freezing_the_same_steps_move_the_decoder(form):
    cfg = config()
    if form == "fused" and not fuses(cfg, CPU):
        pytest.skip("no compiler here")
    trainer, given = new_trainer(cfg, form), list(batches(cfg))
    trainer.initialize(*given[0])
    for batch in given:
        trainer.step(*batch)
    assert not torch.equal(trainer.weights["W_dec"].detach(), initial_weights(cfg, D, D)["W_dec"])
