"""Edits of latents against hand-computed x + (z' - z) W_dec, for every mode and kind of SAE."""

import pytest
import torch

from sparsight.errors import SteeringError
from sparsight.sae import LatentEdit, SAEConfig, SparseAutoencoder, edit_change, edited
from test_evaluate import relu_sae

D, F = 6, 20


def random_sae(architecture: str, **more) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    cfg = SAEConfig(id="random", architecture=architecture, n_latents=F, **more)
    d_out = 4 if cfg.is_transcoder else D
    tensors = {"W_enc": random(D, F), "W_dec": random(F, d_out), "b_dec": random(d_out), "b_enc": random(F)}
    if architecture == "jumprelu":
        tensors["threshold"] = random(F).abs()
    return SparseAutoencoder(cfg, tensors)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(50, D, generator=torch.Generator().manual_seed(1))


def test_each_mode_by_hand():
    sae = relu_sae(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    x = torch.tensor([[3.0, 5.0], [-1.0, 4.0]])  # z = [[3, 5], [0, 4]]; the SAE rebuilds x badly, on purpose
    assert edited(x, sae, [LatentEdit(1, "add", 10)]).tolist() == [[3, 25], [-1, 24]]
    assert edited(x, sae, [LatentEdit(0, "clamp", 7)]).tolist() == [[7, 5], [6, 4]]
    assert edited(x, sae, [LatentEdit(0, "ablate")]).tolist() == [[0, 5], [-1, 4]]
    assert edited(x, sae, [LatentEdit(1, "scale", 0.5)]).tolist() == [[3, 0], [-1, 0]]


def test_several_edits_apply_in_order_also_to_one_latent():
    sae = relu_sae(torch.eye(2), torch.eye(2))
    x = torch.tensor([[3.0, 5.0]])
    first = [LatentEdit(0, "scale", 2), LatentEdit(0, "add", 1), LatentEdit(1, "ablate")]
    assert edited(x, sae, first).tolist() == [[7, 0]]
    assert edited(x, sae, [first[1], first[0], first[2]]).tolist() == [[8, 0]]


@pytest.mark.parametrize("architecture", ["relu", "topk", "jumprelu"])
@pytest.mark.parametrize(("mode", "value"), [("add", -2.5), ("clamp", 4.0), ("ablate", 0.0), ("scale", 3.0)])
def test_the_change_is_that_of_the_reconstruction_and_the_error_stays(x, architecture, mode, value):
    sae = random_sae(architecture, **({"k": 5} if architecture == "topk" else {}))
    latents = sae.encode(x)
    one = int(((latents > 0).sum(0) - 25).abs().argmin())  # active on about half
    z, after = latents[:, one], latents.clone()
    assert 5 < (z > 0).sum() < 45
    after[:, one] = {"add": z + value, "clamp": value, "ablate": 0, "scale": z * value}[mode]
    result = edited(x, sae, [LatentEdit(one, mode, value)])
    assert torch.allclose(result, x + sae.decode(after) - sae.decode(latents), atol=1e-5)
    assert torch.allclose(result - sae.decode(after), x - sae.decode(latents), atol=1e-5)


def test_an_edit_that_changes_no_latent_changes_no_bit(x):
    sae = random_sae("topk", k=5)
    latents = sae.encode(x)
    one = int(((latents > 0).sum(0) - 25).abs().argmin())
    silent = latents[:, one] == 0
    assert 0 < silent.sum() < len(x)
    result = edited(x, sae, [LatentEdit(one, "ablate"), LatentEdit(2, "add", 0.0)])
    assert torch.equal(result[silent], x[silent])
    assert not torch.equal(result[~silent], x[~silent])


def test_some_latents_are_encoded_as_all_together(x):
    sae = random_sae("topk", k=5)  # which latents are active depends on all of them
    assert torch.equal(sae.encode_latents(x, [4, 0, 4]), sae.encode(x)[:, [4, 0, 4]])


def test_a_transcoders_edit_acts_on_its_target(x):
    sae = random_sae("relu", target_hook_point="layers.1")
    y = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)).bfloat16()
    result = edited(x, sae, [LatentEdit(3, "scale", 2)], y)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, (y.float() + sae.encode(x)[:, 3:4] @ sae.W_dec[3:4]).bfloat16())
    with pytest.raises(SteeringError, match="transcoder"):
        edited(x, sae, [LatentEdit(3, "ablate")])


def test_edits_that_cannot_be_say_why(x):
    with pytest.raises(SteeringError, match="'boost' is no edit; expected add, clamp"):
        LatentEdit(1, "boost", 2)
    with pytest.raises(SteeringError, match="finite"):
        LatentEdit(1, "add", float("nan"))
    with pytest.raises(SteeringError, match="no latent 20; the SAE has latents 0 to 19"):
        edit_change(x, random_sae("relu"), [LatentEdit(20, "ablate")])
