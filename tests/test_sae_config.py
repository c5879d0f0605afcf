"""SAEConfig refuses what cannot be trained, in one line that names the value and the remedy."""

import math

import pytest

from sparsight.errors import SAEError
from sparsight.sae import ARCHITECTURES, SAEConfig, founding_config


def test_every_architecture_has_working_defaults():
    for architecture in ARCHITECTURES:
        cfg = SAEConfig(id="a", architecture=architecture, n_latents=64)
        assert cfg.inference in ("relu", "topk", "jumprelu", "gated")
        assert cfg.prefixes[-1] == 64


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "top-k"}, "Did you mean 'topk'"),
        ({"architecture": "transformer"}, "choose from relu, topk"),
        ({"id": "../escape"}, "cannot name a folder"),
        ({"k": 65}, "k = 65 exceeds n_latents = 64"),
        ({"k": 0}, "k = 0 must be positive"),
        ({"n_latents": 0}, "n_latents = 0 must be positive"),
        ({"k": True}, "whole number"),
        ({"lr": -1e-3}, "lr = -0.001 must be positive"),
        ({"l1_penalty": "l2"}, "choose from raw, decoder-norm"),
        ({"max_gradient_norm": -1.0}, "must not be negative"),
        ({"l1_coefficient": -1.0}, "must not be negative"),
        ({"decay_fraction": 1.5}, "share between 0 and 1"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas"),
        ({"adam_betas": (0.9,)}, "must be two numbers"),
        ({"precision": "float16"}, "bfloat16, float32"),
        ({"prefix_widths": (32, 64)}, "no meaning for topk"),
        ({"architecture": "matryoshka", "prefix_widths": (32, 16, 64)}, "increasing"),
        ({"architecture": "matryoshka", "prefix_widths": (16, 32)}, "must end with n_latents = 64"),
    ],
)
def test_an_impossible_configuration_is_refused(change, said):
    with pytest.raises(SAEError, match=said):
        SAEConfig(**({"id": "a", "architecture": "topk", "n_latents": 64} | change))


def test_matryoshka_prefixes_double_by_default():
    assert SAEConfig(id="a", architecture="matryoshka", n_latents=64).prefixes == (4, 8, 16, 32, 64)


def test_adams_memory_is_shorter_where_k_sets_the_sparsity():
    betas = {name: SAEConfig(id="a", architecture=name, n_latents=64).betas for name in ARCHITECTURES}
    short = {"topk", "batchtopk", "matryoshka"}
    assert betas == {name: ((0.5 if name in short else 0.9), 0.999) for name in ARCHITECTURES}
    assert SAEConfig(id="a", n_latents=64, adam_betas=(0.8, 0.99)).betas == (0.8, 0.99)


def test_gradients_are_limited_by_default_where_a_free_decoder_makes_them_long():
    limits = {name: SAEConfig(id="a", architecture=name, n_latents=64).gradient_limit for name in ARCHITECTURES}
    assert limits == {name: (1.0 if name == "relu" else math.inf) for name in ARCHITECTURES}
    assert SAEConfig(id="a", n_latents=64, max_gradient_norm=0.5).gradient_limit == 0.5


def test_k_is_not_held_against_architectures_without_it():
    assert SAEConfig(id="a", architecture="relu", n_latents=16).k == 32


def test_the_founding_recipe_is_a_plain_relu_on_raw_activations():
    cfg = founding_config("f", 16384)
    assert (cfg.architecture, cfg.normalize, cfg.l1_penalty, cfg.l1_coefficient, cfg.lr) == (
        "relu",
        "none",
        "raw",
        0.005,
        5e-5,
    )
