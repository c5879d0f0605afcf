"""The closed-form CPU step against autograd, which is the definition: same losses, same weights, step after step."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sparsight.sae import SAEConfig, SAETrainer, fused
from sparsight.sae.kernels import cpu

STEPS = 25
WIDTHS = (40, 40)  # not a multiple of the vectors' 16 lanes

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no C compiler: the autograd form is what trains here")


def config(architecture: str, **changes: object) -> SAEConfig:
    """A small SAE of which some latents die soon and are revived; Adam's long memory keeps two ways of rounding together."""
    given = {"n_latents": 300, "k": 5, "lr": 3e-3, "warmup_steps": 3, "dead_after_tokens": 300, "l1_coefficient": 0.5}
    given["adam_betas"] = (0.9, 0.999)
    return SAEConfig(id="one", architecture=architecture, **(given | changes))  # pyright: ignore[reportArgumentType]


def batches(d: int, n: int = 96) -> Iterator[Tensor]:
    """Sparse mixtures of fixed directions, in bfloat16 as a store gives them."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(60, d, generator=generator)
    while True:
        strengths = torch.randn(n, 60, generator=generator).relu() * (torch.rand(n, 60, generator=generator) < 0.1)
        yield (strengths @ directions + 0.3 + 0.01 * torch.randn(n, d, generator=generator)).bfloat16()


def stable_topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same choice among equal values as the kernel's: the lower latents."""
    indices = pre.detach().float().sort(dim=1, descending=True, stable=True).indices[:, :k]
    return indices, pre.gather(1, indices).relu()


def trained(
    cfg: SAEConfig, *, closed_form: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[SAETrainer, list[dict[str, float]]]:
    """A trainer after STEPS steps, with the metrics of each."""
    d_in, d_out = (40, 24) if cfg.is_transcoder else WIDTHS
    if not closed_form:
        monkeypatch.setattr("sparsight.sae.losses.topk", stable_topk)
    form = "auto" if closed_form else "autograd"
    trainer = SAETrainer(cfg, d_in, d_out, total_steps=STEPS, batch_tokens=96, form=form)
    assert trainer.form == ("fused" if closed_form else "autograd")
    mixing = torch.randn(d_in, d_out, generator=torch.Generator().manual_seed(2))
    metrics = []
    for step, x in zip(range(STEPS), batches(d_in), strict=False):
        target = torch.tanh(x.float() @ mixing) if cfg.is_transcoder else None
        if step == 0:
            trainer.initialize(x, target)
        metrics.append({name: float(value) for name, value in trainer.step(x, target).items()})
    return trainer, metrics


CASES = {
    "topk": config("topk"),
    "batchtopk": config("batchtopk"),
    "topk without auxk": config("topk", auxk_coefficient=0.0),
    "topk with k as wide as the dictionary": config("topk", n_latents=24, k=24),
    "transcoder": config("topk", target_hook_point="other"),
    "batchtopk transcoder": config("batchtopk", target_hook_point="other"),
    "relu, raw penalty": config("relu"),
    "relu, decoder-norm penalty": config("relu", l1_penalty="decoder-norm"),
    "relu, founding": config("relu", init="linear", b_dec_init="zero", normalize="none"),
    "relu, shortened": config("relu", l1_penalty="decoder-norm", max_gradient_norm=1.0),
    "topk, shortened": config("topk", max_gradient_norm=0.3),
    "unnormalised": config("topk", normalize="none"),
    "batchtopk crosscoder": config("batchtopk", models=2),
    "relu crosscoder": config("relu", models=2, l1_penalty="decoder-norm"),
    "relu crosscoder, shortened": config("relu", models=2, l1_penalty="decoder-norm", max_gradient_norm=1.0),
}


@pytest.mark.parametrize("cfg", CASES.values(), ids=CASES)
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dense", "sparse"])
def test_closed_form_and_autograd_take_the_same_steps(
    cfg: SAEConfig, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cfg.architecture != "relu" and share == 0:
        pytest.skip("only relu has a dense way")
    monkeypatch.setattr(fused, "_SPARSE_SHARE", share)
    ours, our_metrics = trained(cfg, closed_form=True, monkeypatch=monkeypatch)
    theirs, their_metrics = trained(cfg, closed_form=False, monkeypatch=monkeypatch)
    for step, (mine, yours) in enumerate(zip(our_metrics, their_metrics, strict=True)):
        assert mine.keys() == yours.keys()
        for name, value in mine.items():
            if name == "lr":
                assert value == yours[name]
            # bfloat16 rounds differently, and another choice among near-equal latents moves these a little; AuxK, about
            # few and dead ones, most of all
            near = 0.08 if name == "aux_loss" else 0.03
            least = 0.012 if name == "dead_share" else 1e-4
            assert value == pytest.approx(yours[name], rel=near, abs=least), (step, name)
    for name, weight in ours.weights.items():
        other = theirs.weights[name]
        moved = (
            other - SAETrainer(cfg, ours.d_in, ours.d_out, total_steps=STEPS, batch_tokens=96).weights[name]
        ).norm()
        assert float((weight - other).detach().norm() / moved.detach()) < 0.2, name


def test_dead_latents_come_up_in_these_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    _, metrics = trained(CASES["topk"], closed_form=True, monkeypatch=monkeypatch)
    assert max(each["dead_share"] for each in metrics) > 0.05
    assert max(each["aux_loss"] for each in metrics) > 0


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu"])
def test_the_first_gradient_is_autograds(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first moment after one step is (1 - beta) times the gradient; relu's, which chooses nothing, against float32."""
    cfg = config(architecture, l1_penalty="decoder-norm", sparsity_warmup_fraction=0.0)
    precision = "float32" if architecture == "relu" else "bfloat16"
    theirs = config(architecture, l1_penalty="decoder-norm", sparsity_warmup_fraction=0.0, precision=precision)
    x = next(batches(40))
    ours = SAETrainer(cfg, 40, 40, total_steps=STEPS, batch_tokens=96)
    monkeypatch.setattr("sparsight.sae.losses.topk", stable_topk)
    exact = SAETrainer(theirs, 40, 40, total_steps=STEPS, batch_tokens=96, form="autograd")
    for trainer in (ours, exact):
        trainer.initialize(x)
        trainer.step(x)
    for name, moments in ours._moments.items():
        expected = exact._moments[name]["exp_avg"]
        assert float((moments["exp_avg"] - expected).norm() / expected.norm()) < 0.02, name


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu"])
def test_the_number_of_threads_changes_no_bit(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, states = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            trainer, _ = trained(config(architecture), closed_form=True, monkeypatch=monkeypatch)
            states.append(trainer.state_dict())
    finally:
        torch.set_num_threads(before)
    for other in states[1:]:
        assert all(torch.equal(states[0][name], other[name]) for name in other)


def test_a_loaded_state_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config("topk")
    first = SAETrainer(cfg, 40, 40, total_steps=STEPS, batch_tokens=96)
    source = batches(40)
    for step, x in zip(range(10), source, strict=False):
        if step == 0:
            first.initialize(x)
        first.step(x)
    second = SAETrainer(cfg, 40, 40, total_steps=STEPS, batch_tokens=96)
    second.load_state_dict(first.state_dict())
    for _, x in zip(range(5), source, strict=False):
        assert float(first.step(x)["loss"]) == float(second.step(x)["loss"])
    assert all(torch.equal(first.state_dict()[name], value) for name, value in second.state_dict().items())


def test_steps_without_metrics_are_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config("batchtopk")
    quiet, talking = (SAETrainer(cfg, 40, 40, total_steps=STEPS, batch_tokens=96) for _ in range(2))
    for step, x in zip(range(6), batches(40), strict=False):
        if step == 0:
            quiet.initialize(x)
            talking.initialize(x)
        assert quiet.step(x, with_metrics=False) == {}
        assert talking.step(x)
    assert all(torch.equal(quiet.state_dict()[name], value) for name, value in talking.state_dict().items())
