"""Training: resuming changes nothing, folding changes nothing, and the schedule and counters do what they say."""

import pytest
import torch

from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations
from sparsight.errors import ActivationError, FormatError, SAEError
from sparsight.sae import ARCHITECTURES, SAEConfig, SAETrainer, untrained_sae
from sparsight.sae.activation import batch_topk, keep_topk

D, F, N = 16, 48, 128
DATA = SyntheticActivations(32, D, mean_active=3)


def batches(n, start=0):
    # raw activations far from unit scale and from zero, so that folding has something to fold
    return [7 * b[SYNTHETIC_HOOK_POINT] + 3 for b in DATA.batches(N, start + n, start_batch=start)]


def trainer(architecture="topk", steps=20, d_out=D, **changes):
    given = {"id": "a", "architecture": architecture, "n_latents": F, "k": 4, "lr": 3e-3, "warmup_steps": 5}
    given |= {"dead_after_tokens": 3 * N, "l1_coefficient": 0.05}
    return SAETrainer(SAEConfig(**(given | changes)), D, d_out, total_steps=steps, batch_tokens=N)


def trained(architecture, steps=20, **changes):
    t = trainer(architecture, steps, **changes)
    data = batches(steps)
    t.initialize(data[0])
    for x in data:
        metrics = t.step(x)
    return t, metrics


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(architecture):
    whole = trainer(architecture)
    data = batches(20)
    whole.initialize(data[0])
    for x in data[:8]:
        whole.step(x)
    saved = whole.state_dict()
    resumed = trainer(architecture)
    resumed.load_state_dict(saved)
    for x in data[8:]:
        expected, got = whole.step(x), resumed.step(x)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    final, again = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(final[name], again[name]) for name in final)
    assert not torch.equal(saved["weights.W_enc"], final["weights.W_enc"])


@pytest.mark.parametrize("normalize", ["rms", "none"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_finished_sae_on_raw_activations_is_the_trainers_forward_scaled_back(architecture, normalize):
    t, _ = trained(architecture, precision="float32", normalize=normalize)
    state = {name.removeprefix("weights."): tensor.double() for name, tensor in t.state_dict().items()}
    scale = state["measured.input_scale"]
    x = batches(1, start=500)[0]
    normalised = x.double() / scale
    product = (normalised - state["b_dec"]) @ state["W_enc"]
    if architecture == "gated":
        z = (product + state["b_gate"] > 0) * (product * state["r_mag"].exp() + state["b_mag"]).relu()
    else:
        z = (product + state["b_enc"]).relu()
    if architecture == "topk":
        z = z * (z >= z.topk(4, dim=1).values[:, -1:])
    elif architecture == "jumprelu":
        z = z * (z > state["log_threshold"].exp())
    elif architecture in ("batchtopk", "matryoshka"):
        z = z * (z > state["measured.threshold"])
    expected = (z @ state["W_dec"] + state["b_dec"]) * scale
    output = t.finished()(x)
    assert (scale == 1) == (normalize == "none")
    torch.testing.assert_close(output.x_hat.double(), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(output.latents.double(), z * scale, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["relu", "topk", "batchtopk", "jumprelu", "gated"])
def test_a_transcoder_is_folded_like_an_autoencoder(architecture):
    t = trainer(architecture, d_out=5, target_hook_point="out", precision="float32")
    mix = torch.randn(D, 5, generator=torch.Generator().manual_seed(3))
    for i, x in enumerate(batches(10)):
        target = 0.1 * x @ mix - 2
        if i == 0:
            t.initialize(x, target)
        t.step(x, target)
    state = {name.removeprefix("weights."): tensor.double() for name, tensor in t.state_dict().items()}
    s_in, s_out = state["measured.input_scale"], state["measured.target_scale"]
    assert (s_in - s_out).abs() > 1
    product = (x.double() / s_in - state["measured.input_mean"]) @ state["W_enc"]
    sae = t.finished()
    z = sae.encode(x).double()
    active = z > 0
    magnitude = product * state["r_mag"].exp() + state["b_mag"] if architecture == "gated" else product + state["b_enc"]
    torch.testing.assert_close(z[active], (magnitude * s_out)[active], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        sae.decode(z.float()).double(), z @ state["W_dec"] + state["b_dec"] * s_out, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "relu"])
def test_decoder_rows_keep_norm_one_and_stay_so_after_folding(architecture):
    norms = trained(architecture)[0].finished().W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(F))


def test_a_free_relu_decoder_leaves_its_initial_norm():
    norms = trained("relu")[0].finished().W_dec.norm(dim=1)
    assert (norms - 0.1).abs().max() > 0.005


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_lowers_the_error(architecture):
    t = trainer(architecture, 150, lr=1e-2, l0_coefficient=1e-2)
    data = batches(150)
    t.initialize(data[0])
    first = t.step(data[0])["fvu"]
    for x in data[1:]:
        metrics = t.step(x)
    assert metrics["fvu"] < 0.6 * first
    assert all(value.ndim == 0 and value.isfinite() for value in metrics.values())


def test_bfloat16_products_train_as_well_as_float32_ones():
    fvu = [trained("topk", 200, lr=1e-2, precision=p)[1]["fvu"].item() for p in ("bfloat16", "float32")]
    assert fvu[0] == pytest.approx(fvu[1], abs=0.02)


def test_a_latent_is_dead_after_the_tokens_it_was_silent_for():
    t = trainer("topk", dead_after_tokens=2 * N)
    x = batches(1)[0]
    t.initialize(x)
    with torch.no_grad():
        t.weights["b_enc"][:10] = -1e3
    shares = [t.step(x)["dead_share"].item() for _ in range(3)]
    assert shares[0] == 0
    assert shares[1] >= 0.99 * 10 / F
    assert t.state_dict()["measured.tokens_since_fired"][:10].tolist() == [3 * N] * 10


@pytest.mark.parametrize(
    ("given", "total", "expected"), [(0, 10**8, 500_000), (0, 1_200_000, 100_000), (77, 10**6, 77)]
)
def test_unless_told_a_latent_is_dead_after_a_twelfth_of_a_short_run(given, total, expected):
    assert SAEConfig(id="a", n_latents=64, dead_after_tokens=given).dead_after(total) == expected


def test_a_short_run_of_the_default_revives_in_its_first_eighth():
    t = trainer("topk", steps=400, dead_after_tokens=0)
    x = batches(1)[0]
    t.initialize(x)
    with torch.no_grad():
        t.weights["b_enc"][:10] = -1e3
    dead = [t.step(x)["dead_share"].item() for _ in range(50)]
    assert dead[30] == 0
    assert dead[40] >= 0.99 * 10 / F


def test_the_threshold_is_the_running_mean_of_the_smallest_kept_value():
    t, _ = trained("batchtopk", 60)
    x = torch.cat(batches(8, start=900))
    l0 = (t.finished().encode(x) > 0).sum(1).float().mean().item()
    assert l0 == pytest.approx(4, rel=0.25)


def test_the_untrained_baseline_has_the_trained_l0_and_the_initial_weights():
    for architecture in ("jumprelu", "batchtopk", "topk"):
        start = trainer(architecture)
        start.initialize(batches(1)[0])
        initial = start.initial_state(torch.cat(batches(8, start=900)))
        t, _ = trained(architecture, 60, l0_coefficient=1e-2)
        x = torch.cat(batches(8, start=900))
        finished = t.finished()
        baseline = untrained_sae(finished, initial)
        l0 = [(sae.encode(x) > 0).sum(1).float().mean().item() for sae in (finished, baseline)]
        torch.testing.assert_close(baseline.b_dec, start.finished().b_dec)
        assert l0[0] == pytest.approx(l0[1], rel=0.25)
        # an initial encoder is the initial decoder, at the scale that fits the first batch
        scale = 1.0 if architecture == "jumprelu" else initial["encoder_scale"]
        assert scale == 1.0 or 0.1 < scale < 0.99
        torch.testing.assert_close(baseline.W_enc, scale * baseline.W_dec.T)
        assert not torch.allclose(finished.W_enc, baseline.W_enc)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_the_encoders_first_scale_rebuilds_the_first_batch_best(architecture):
    x = torch.cat(batches(3, start=50))[:256]
    t = trainer(architecture)
    t.initialize(x)
    errors = {}
    for factor in (0.9, 1.0, 1.1):
        weights = {name: weight.detach().clone() for name, weight in t.weights.items()}
        weights["W_enc"] *= factor
        normalised = x / t._measured["input_scale"]
        pre = (normalised - weights["b_dec"]) @ weights["W_enc"]
        z = keep_topk(pre, t.cfg.k) if architecture == "topk" else batch_topk(pre, t.cfg.k)[0]
        errors[factor] = float((z @ weights["W_dec"] + weights["b_dec"] - normalised).square().sum())
    assert errors[1.0] < min(errors[0.9], errors[1.1])


def test_a_few_tokens_with_large_norms_do_not_set_the_first_scale():
    x = torch.cat(batches(3, start=50))[:256]
    x = torch.where(torch.arange(256)[:, None] % 16 == 0, 30 * (x - x.mean(0)), x - x.mean(0))
    scales = {}
    for architecture in ("topk", "batchtopk", "matryoshka"):
        t = trainer(architecture)
        t.initialize(x)
        scales[architecture] = float(t._measured["encoder_scale"])
    normalised = x / t._measured["input_scale"] - t.weights["b_dec"].detach()
    start = {name: weight.detach() for name, weight in t.weights.items()}
    z = batch_topk(normalised @ start["W_enc"] / scales["matryoshka"], t.cfg.k)[0]
    rebuilt = z @ start["W_dec"]
    alone = float((rebuilt * normalised).sum() / rebuilt.square().sum())
    assert alone < 0.67 * scales["topk"]  # what the batch's k would have asked for
    assert scales["batchtopk"] == scales["matryoshka"] == pytest.approx(0.7 * scales["topk"])


@pytest.mark.parametrize("change", [{"architecture": "relu"}, {"init": "linear"}, {"target_hook_point": "other"}])
def test_other_starts_are_not_scaled(change):
    cfg = SAEConfig(**({"id": "a", "architecture": "topk", "n_latents": F, "k": 4} | change))
    t = SAETrainer(cfg, D, D, total_steps=5, batch_tokens=N)
    before, x = t.weights["W_enc"].detach().clone(), batches(1)[0]
    t.initialize(x, x if cfg.is_transcoder else None)
    assert torch.equal(t.weights["W_enc"].detach(), before)


def test_the_first_batch_must_be_usable():
    with pytest.raises(ActivationError, match="standard deviation"):
        trainer().initialize(torch.ones(N, D))
    with pytest.raises(ActivationError, match="standard deviation nan"):
        trainer().initialize(torch.full((N, D), float("nan")))
    with pytest.raises(ActivationError, match="expects widths 16 -> 16, got 15"):
        trainer().initialize(torch.randn(N, 15))


def test_targets_and_widths_must_fit_the_configuration():
    with pytest.raises(SAEError, match="takes no target"):
        trainer().initialize(torch.randn(N, D), torch.randn(N, D))
    with pytest.raises(SAEError, match="needs a target"):
        trainer(target_hook_point="out").initialize(torch.randn(N, D))
    with pytest.raises(SAEError, match="d_out = 5 must equal"):
        trainer(d_out=5)


def test_a_checkpoint_of_another_sae_is_refused():
    state = trained("topk", 2)[0].state_dict()
    with pytest.raises(FormatError, match="log_threshold"):
        trainer("jumprelu").load_state_dict(state)
    with pytest.raises(FormatError, match=r"weights\.W_enc"):
        trainer("topk", n_latents=F + 1).load_state_dict(state)


def test_geometric_median_resists_an_outlier():
    t = trainer(b_dec_init="geometric_median", normalize="none")
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    x[0] = 1e4
    t.initialize(x)
    assert t.weights["b_dec"].norm() < 2 < x.mean(0).norm()


def test_the_same_seed_starts_alike_and_another_does_not():
    first, same, other = (trainer(seed=seed).weights["W_enc"] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
