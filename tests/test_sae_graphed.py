"""The closed-form step against autograd's, its kernels against plain torch, and that nothing in it needs the host.

Without a GPU no CUDA graph can be captured. What a graph needs is checked instead: a step traced once, with every number that Python could see
taken as a constant, and repeated, must go on as the step itself does.
"""

import inspect

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations
from sparsight.errors import SAEError
from sparsight.sae import SAEConfig, SAETrainer
from sparsight.sae.dense import DenseStep
from sparsight.sae.graphed import GraphedStep
from sparsight.sae.kernels import eager, gpu

D, F, STEPS = 16, 48, 20
DATA = SyntheticActivations(32, D, mean_active=3)
CASES = {
    "topk": {"architecture": "topk"},
    "topk-all": {"architecture": "topk", "k": F},
    "topk-transcoder": {"architecture": "topk", "target_hook_point": "out"},
    "batchtopk": {"architecture": "batchtopk"},
    "batchtopk-transcoder": {"architecture": "batchtopk", "target_hook_point": "out"},
    "batchtopk-no-aux": {"architecture": "batchtopk", "auxk_coefficient": 0.0},
    "relu-raw": {"architecture": "relu", "l1_coefficient": 0.5},
    "relu-decoder-norm": {"architecture": "relu", "l1_penalty": "decoder-norm", "l1_coefficient": 2.0},
    "relu-transcoder": {"architecture": "relu", "target_hook_point": "out", "normalize": "none"},
}


def config(case, **changes):
    given = {"id": "a", "n_latents": F, "k": 4, "lr": 3e-3, "warmup_steps": 5, "precision": "float32", "k_aux": 6}
    return SAEConfig(**(given | {"dead_after_tokens": 3 * 96} | CASES[case] | changes))


def batches(cfg, n=STEPS, rows=96):
    mix = torch.randn(D, 5, generator=torch.Generator().manual_seed(3))
    raw = [7 * b[SYNTHETIC_HOOK_POINT] + 3 for b in DATA.batches(rows, n)]
    return [(x, 0.1 * x @ mix - 2) if cfg.is_transcoder else (x, None) for x in raw]


def begun_trainer(cfg, data, steps=STEPS, form="autograd"):
    d_out = 5 if cfg.is_transcoder else D
    trainer = SAETrainer(cfg, D, d_out, total_steps=steps, batch_tokens=len(data[0][0]), form=form)
    with torch.no_grad():
        trainer.weights["W_enc"][:, :9] *= 0.05  # these die, active but never among the largest, for AuxK to revive
    trainer.initialize(*data[0])
    return trainer


def state_of(trainer):
    """Copies of a trainer's tensors as the closed-form step takes them."""
    weights = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    weights["W_enc"] = weights["W_enc"].T.contiguous().T
    moments = {
        name: {key: torch.empty_like(weights[name]).copy_(pair[key]) for key in ("exp_avg", "exp_avg_sq")}
        for name, pair in trainer._moments.items()
    }
    return weights, moments, {name: tensor.clone() for name, tensor in trainer._measured.items()}


def closed_form(trainer, **options):
    weights, moments, measured = state_of(trainer)
    dense = DenseStep(trainer.cfg, weights, moments, measured, total_steps=trainer.total_steps, **options)
    return GraphedStep(dense, steps_done=trainer.steps_done), weights, moments, measured


def check_equal(trainer, weights, moments, measured, tolerance):
    for name, weight in trainer.weights.items():
        torch.testing.assert_close(weights[name], weight.detach(), **tolerance, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(moments[name]["exp_avg"], trainer._moments[name]["exp_avg"], **tolerance)
    assert torch.equal(measured["tokens_since_fired"], trainer._measured["tokens_since_fired"])
    torch.testing.assert_close(measured["threshold"], trainer._measured["threshold"], **tolerance)


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_autograd(case):
    cfg = config(case)
    data = batches(cfg)
    trainer = begun_trainer(cfg, data)
    step, *state = closed_form(trainer, aux_capacity=F)
    for x, target in data:
        expected, got = trainer.step(x, target), step.step(x, target)
        assert got.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(
                got[name], expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
    if "aux_loss" in expected and case != "topk-all":
        assert expected["aux_loss"] > 0
        assert trainer._moments["W_dec"]["exp_avg"][:9].abs().sum() > 0
    check_equal(trainer, *state, {"atol": 3e-5, "rtol": 1e-4})


@pytest.mark.parametrize("case", ["topk", "batchtopk", "relu-raw"])
def test_bfloat16_training_ends_where_autograds_does(case):
    cfg = config(case, precision="bfloat16", warmup_steps=2, decay_fraction=0.0)
    data = batches(cfg)
    trainer = begun_trainer(cfg, data)
    step, *_ = closed_form(trainer, aux_capacity=F)
    for x, target in data:
        expected, got = trainer.step(x, target), step.step(x.bfloat16(), target)
    assert got["fvu"].item() == pytest.approx(expected["fvu"].item(), rel=0.02)
    assert got["l0"].item() == pytest.approx(expected["l0"].item(), rel=0.1)


@pytest.mark.parametrize("case", ["topk", "batchtopk", "relu-decoder-norm"])
def test_steps_by_the_kernels_are_those_of_plain_torch(case):
    steps = 20 if case.startswith("relu") else 4  # the interpreter takes 50 ms to select a row
    cfg = config(case, n_latents=20, auxk_coefficient=0.5, dead_after_tokens=14, k=3)
    data = batches(cfg, steps, rows=7)
    trainer = begun_trainer(cfg, data, steps)
    plain, *_ = closed_form(trainer, aux_capacity=12)
    kernels, *state = closed_form(trainer, aux_capacity=12, ops=gpu)
    for x, _ in data:
        expected, got = plain.step(x), kernels.step(x)
        trainer.step(x)
        for name in expected:
            torch.testing.assert_close(
                got[name], expected[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert "aux_loss" not in expected or expected["aux_loss"] > 0
    check_equal(trainer, *state, {"atol": 1e-3, "rtol": 1e-3})


@pytest.mark.parametrize("case", ["topk", "batchtopk", "relu-decoder-norm", "topk-transcoder"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_trace_of_one_step_repeated_is_the_step_repeated(case, precision):
    """Tracing fails on whatever waits for a value; replaying it shows that none was taken as a constant."""
    cfg = config(case, precision=precision, n_latents=40, sparsity_warmup_fraction=0.5)
    data = batches(cfg)
    trainer = begun_trainer(cfg, data)
    stepping, *expected_state = closed_form(trainer)
    traced, *state = closed_form(trainer)
    traced.step(*data[0])
    assert traced._inputs is not None
    replay = make_fx(lambda: traced.dense(*traced._inputs))()  # tracing runs the step once: on the first batch again
    stepping.step(*data[0])
    stepping.step(*data[0])
    for x, target in data[2:]:
        expected = stepping.step(x, target)
        traced._buffered(x, target)
        replay()
        got = dict(zip(traced.dense.metric_names, traced.dense.metrics, strict=True))
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], msg=lambda m, n=name: f"{n}: {m}")
    for name, weight in expected_state[0].items():
        torch.testing.assert_close(state[0][name], weight)


def test_every_dead_latent_gets_its_turn_when_there_are_more_than_the_capacity():
    cfg = config("topk", dead_after_tokens=1, auxk_coefficient=1.0)
    data = batches(cfg)
    trainer = begun_trainer(cfg, data)
    step, _, moments, measured = closed_form(trainer, aux_capacity=7)
    with torch.no_grad():
        step.dense._weights["b_enc"][:] = -100.0
        step.dense._weights["b_enc"][5:9] = 0.0
    measured["tokens_since_fired"].fill_(1000)
    touched = torch.zeros(F, dtype=torch.bool)
    x = step._buffered(*data[0])[0]
    for number in range(7):  # 48 dead latents, 7 at a time
        step.dense._step.fill_(number)
        columns, any_dead, values = step.dense._dead_columns(torch.randn(len(x), F))
        assert any_dead
        assert len(columns.unique()) == 7
        assert (values != 0).all()
        touched[columns] = True
    assert touched.all()
    step.dense._step.zero_()
    step.step(x)
    changed = moments["W_dec"]["exp_avg"].abs().sum(1) > 0
    assert changed.sum() <= 4 + 7


def test_a_living_latent_is_no_part_of_auxk():
    cfg = config("topk")
    step, _, _, measured = closed_form(begun_trainer(cfg, batches(cfg)), aux_capacity=10)
    measured["tokens_since_fired"].zero_()
    pre = torch.randn(6, F)
    _, any_dead, values = step.dense._dead_columns(pre)
    assert not any_dead
    assert (values == 0).all()
    measured["tokens_since_fired"][[3, 40]] = 10_000
    columns, any_dead, values = step.dense._dead_columns(pre)
    assert any_dead
    assert sorted(columns[:2].tolist()) == [3, 40]
    assert torch.equal(values[:, :2], pre[:, columns[:2]])
    assert (values[:, 2:] == 0).all()


def test_going_on_from_copied_tensors_changes_nothing():
    cfg = config("batchtopk", precision="bfloat16")
    data = batches(cfg)
    trainer = begun_trainer(cfg, data)
    whole, weights, moments, measured = closed_form(trainer)
    for x, _ in data[:8]:
        whole.step(x)
    parts = (
        {k: v.clone() for k, v in weights.items()},
        {k: {name: m.clone() for name, m in v.items()} for k, v in moments.items()},
    )
    again = DenseStep(cfg, *parts, {k: v.clone() for k, v in measured.items()}, total_steps=STEPS)
    resumed = GraphedStep(again, steps_done=8)
    for x, _ in data[8:]:
        expected, got = whole.step(x), resumed.step(x)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert all(torch.equal(weights[name], parts[0][name]) for name in weights)


def test_weights_put_back_in_place_are_taken_up_by_reload():
    cfg = config("relu-decoder-norm", precision="bfloat16")
    data = batches(cfg)
    step, *state = closed_form(begun_trainer(cfg, data))
    tensors = [*state[0].values(), *(each for pair in state[1].values() for each in pair.values()), *state[2].values()]
    before = [tensor.clone() for tensor in tensors]
    first = [step.step(x)["loss"] for x, _ in data[:5]]
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(old)
    step.reload(0)
    assert [step.step(x)["loss"] for x, _ in data[:5]] == first


def test_what_does_not_fit_is_refused():
    cfg = config("topk")
    data = batches(cfg)
    trainer = begun_trainer(cfg, data, steps=2)
    step, *state = closed_form(trainer)
    step.step(data[0][0])
    with pytest.raises(SAEError, match=r"a batch is \(95, 16\) of torch.float32; all must be \(96, 16\)"):
        step.step(data[0][0][:95])
    step.step(data[1][0])
    with pytest.raises(SAEError, match="all 2 planned steps are done"):
        step.step(data[2][0])
    jumprelu = SAEConfig(id="j", architecture="jumprelu", n_latents=F)
    assert not DenseStep.supports(jumprelu)
    with pytest.raises(SAEError, match="jumprelu has no closed-form step; relu, topk, batchtopk have one"):
        DenseStep(jumprelu, *state, total_steps=2)


def test_both_forms_of_the_kernels_take_the_same_arguments():
    assert gpu.__all__ == eager.__all__
    for name in gpu.__all__:
        assert str(inspect.signature(getattr(gpu, name))) == str(inspect.signature(getattr(eager, name)))
