"""The founding .pt: it loads into the published class, and a pickle with code in it runs nothing."""

import pickle

import pytest
import torch
from torch import nn

from sparsight.convert import load_sae
from sparsight.errors import FormatError, SAEError
from sparsight.sae import SAEConfig, SAETrainer, founding_config
from sparsight.sae.exchange import founding

D, F = 6, 20


class FoundingSAE(nn.Module):
    """The class as published."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(D))
        self.encoder = nn.Linear(D, F)
        self.decoder = nn.Linear(F, D, bias=False)

    def forward(self, x):
        z = torch.relu(self.encoder(x - self.bias))
        return self.decoder(z) + self.bias, z


def trained(cfg, steps=5):
    generator = torch.Generator().manual_seed(0)
    trainer = SAETrainer(cfg, D, D, total_steps=steps, batch_tokens=64)
    for step in range(steps):
        x = 3 * torch.randn(64, D, generator=generator) + 1
        if step == 0:
            trainer.initialize(x)
        trainer.step(x)
    return trainer


def test_a_saved_file_loads_strictly_into_the_published_class_with_the_same_output(tmp_path):
    sae = trained(founding_config("f", F)).finished()
    founding.write(tmp_path / "sae_base_best.pt", sae.cfg, sae.state_dict())
    theirs = FoundingSAE()
    theirs.load_state_dict(
        torch.load(tmp_path / "sae_base_best.pt", weights_only=True)["model_state_dict"], strict=True
    )
    x = torch.randn(50, D)
    x_hat, z = theirs(x)
    torch.testing.assert_close(sae.reconstruct(x), x_hat.detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(sae.encode(x), z.detach(), atol=1e-6, rtol=1e-6)


def test_a_published_file_is_read(tmp_path):
    theirs = FoundingSAE()
    torch.save({"model_state_dict": theirs.state_dict()}, tmp_path / "a.pt")
    sae, x = load_sae(tmp_path / "a.pt"), torch.randn(50, D)
    assert (sae.d_in, sae.n_latents, sae.cfg.architecture) == (D, F, "relu")
    torch.testing.assert_close(sae.reconstruct(x), theirs(x)[0].detach(), atol=1e-6, rtol=1e-6)


def test_the_founding_recipe_takes_the_founding_steps():
    ours = trained(founding_config("f", F))
    theirs = FoundingSAE()
    start = SAETrainer(founding_config("f", F), D, D, total_steps=5, batch_tokens=64).weights
    with torch.no_grad():
        theirs.encoder.weight.copy_(start["W_enc"].T)
        theirs.encoder.bias.copy_(start["b_enc"])
        theirs.decoder.weight.copy_(start["W_dec"].T)
    adam = torch.optim.Adam(theirs.parameters(), lr=5e-5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = 3 * torch.randn(64, D, generator=generator) + 1
        x_hat, z = theirs(x)
        adam.zero_grad()
        (nn.functional.mse_loss(x_hat, x) + 0.005 * z.abs().mean()).backward()
        adam.step()
    torch.testing.assert_close(ours.weights["W_enc"].T, theirs.encoder.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.weights["b_dec"], theirs.bias, atol=1e-6, rtol=1e-5)


def test_initial_weights_are_those_of_torchs_linear_layers():
    weights = SAETrainer(founding_config("f", 4000), 64, 64, total_steps=1, batch_tokens=1).weights
    for name, fan_in in (("W_enc", 64), ("b_enc", 64), ("W_dec", 4000)):
        bound = fan_in**-0.5
        assert weights[name].abs().max() <= bound
        assert weights[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_in_it_is_refused_and_runs_nothing(tmp_path):
    planted = tmp_path / "planted"
    for name, write in (
        ("torch.pt", torch.save),
        ("raw.pt", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        write({"model_state_dict": {"bias": Malice(planted)}}, tmp_path / name)
        with pytest.raises(FormatError, match="without running code") as caught:
            load_sae(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert not planted.exists()


def test_files_that_are_something_else_are_refused(tmp_path):
    good = FoundingSAE().state_dict()
    huge = {name: torch.zeros(1).expand(*(10**7 if n == F else n for n in t.shape)) for name, t in good.items()}
    broken = [
        ({"weights": good}, "no `model_state_dict`"),
        ({"model_state_dict": good | {"more": torch.zeros(1)}}, "expected"),
        ({"model_state_dict": good | {"bias": torch.zeros(D + 1)}}, "expected {'bias'"),
        ({"model_state_dict": good | {"bias": torch.full((D,), float("nan"))}}, "not finite"),
        ({"model_state_dict": huge}, "more than the file"),
        ({"model_state_dict": good | {"bias": [1.0]}}, "not a dense tensor"),
        ({"model_state_dict": good | {"bias": torch.zeros(D, dtype=torch.int64)}}, "not a dense tensor"),
    ]
    for content, said in broken:
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(FormatError, match=said):
            load_sae(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"not a zip")
    with pytest.raises(FormatError, match="without running code"):
        load_sae(tmp_path / "a.pt")
    with pytest.raises(FormatError, match="does not exist"):
        load_sae(tmp_path / "absent.pt")


def test_only_relu_autoencoders_fit_the_founding_format(tmp_path):
    sae = trained(SAEConfig(id="a", architecture="topk", n_latents=F, k=2)).finished()
    with pytest.raises(SAEError, match="a topk autoencoder"):
        founding.write(tmp_path / "a.pt", sae.cfg, sae.state_dict())
