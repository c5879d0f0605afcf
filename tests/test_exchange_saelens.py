"""The SAELens folder: round trips, folders of SAELens' making, and hostile ones."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsight.errors import FormatError
from sparsight.sae import ARCHITECTURES, SAEConfig, SparseAutoencoder
from sparsight.sae.exchange.saelens import tensor_shapes

D, F, D_OUT = 6, 20, 4


def make(architecture, **changes):
    cfg = SAEConfig(id="a", architecture=architecture, n_latents=F, k=3, hook_point="layers.3", **changes)
    generator = torch.Generator().manual_seed(4)
    shapes = tensor_shapes(cfg.inference, D, F, D_OUT if cfg.is_transcoder else D)
    return SparseAutoencoder(
        cfg, {name: torch.rand(shape, generator=generator) - 0.3 for name, shape in shapes.items()}
    )


def described(folder):
    return json.loads((folder / "cfg.json").read_text())


def rewrite(folder, **changes):
    (folder / "cfg.json").write_text(json.dumps(described(folder) | changes))


def saelens_folder(folder, architecture, tensors, **cfg):
    folder.mkdir()
    save_file(tensors, folder / "sae_weights.safetensors")
    shared = {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "normalize_activations": "none"}
    metadata = {"hook_name": "blocks.3.hook_resid_post", "sae_lens_version": "6.1.0"}
    (folder / "cfg.json").write_text(json.dumps(shared | {"metadata": metadata} | cfg))
    return folder


@pytest.mark.parametrize("target", ["", "layers.3.mlp"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_saved_is_loaded(architecture, target, tmp_path):
    sae = make(architecture, target_hook_point=target)
    sae.save(tmp_path / "a", metadata={"model_name": "tiny", "sparsight": {"tokens": 5}})
    again = SparseAutoencoder.load(tmp_path / "a")
    assert again.cfg == sae.cfg
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in sae.state_dict().items())
    metadata = described(tmp_path / "a")["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == ("tiny", "layers.3")
    assert metadata["sparsight"]["tokens"] == 5
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_batchtopk_and_matryoshka_are_written_as_jumprelu_with_their_threshold(tmp_path):
    for architecture in ("batchtopk", "matryoshka"):
        make(architecture).save(tmp_path / architecture, metadata={})
        assert described(tmp_path / architecture)["architecture"] == "jumprelu"
        assert "threshold" in load_file(tmp_path / architecture / "sae_weights.safetensors")


def test_a_folder_that_saelens_wrote_is_read(tmp_path):
    sae = make("topk")
    folder = saelens_folder(tmp_path / "theirs", "topk", sae.state_dict(), k=3)
    again = SparseAutoencoder.load(folder)
    assert (again.cfg.id, again.cfg.architecture, again.cfg.k) == ("theirs", "topk", 3)
    assert again.cfg.hook_point == "blocks.3.hook_resid_post"
    x = torch.randn(5, D)
    assert torch.equal(again.reconstruct(x), sae.reconstruct(x))


@pytest.mark.parametrize("architecture", ["standard", "gated"])
def test_an_input_that_is_not_centred_is_read_exactly(architecture, tmp_path):
    t = make("gated" if architecture == "gated" else "relu").state_dict()
    sae = SparseAutoencoder.load(saelens_folder(tmp_path / "a", architecture, t, apply_b_dec_to_input=False))
    x = torch.randn(5, D)
    if architecture == "gated":
        magnitude = (x @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]).relu()
        expected = magnitude * (x @ t["W_enc"] + t["b_gate"] > 0)
    else:
        expected = (x @ t["W_enc"] + t["b_enc"]).relu()
    torch.testing.assert_close(sae.encode(x), expected, atol=1e-5, rtol=1e-5)


def test_a_topk_that_rescales_by_decoder_norms_is_read_exactly(tmp_path):
    t = make("topk").state_dict()
    sae = SparseAutoencoder.load(saelens_folder(tmp_path / "a", "topk", t, k=3, rescale_acts_by_decoder_norm=True))
    x, norms = torch.randn(5, D), t["W_dec"].norm(dim=1)
    pre = ((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms
    z = pre.relu() * (pre >= pre.topk(3, dim=1).values[:, -1:])
    torch.testing.assert_close(sae.reconstruct(x), (z / norms) @ t["W_dec"] + t["b_dec"], atol=1e-5, rtol=1e-5)


def test_bfloat16_weights_are_read_as_float32(tmp_path):
    t = {name: tensor.bfloat16() for name, tensor in make("relu").state_dict().items()}
    sae = SparseAutoencoder.load(saelens_folder(tmp_path / "a", "standard", t))
    assert sae.W_enc.dtype == torch.float32
    assert torch.equal(sae.W_enc, t["W_enc"].float())


@pytest.fixture
def saved(tmp_path):
    make("relu").save(tmp_path / "a", metadata={})
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "temporal"}, "'temporal'; readable are standard"),
        ({"architecture": ["standard"]}, "readable are standard"),
        ({"architecture": "topk"}, "contradicts itself"),
        ({"d_sae": F + 1}, "contradicts itself"),
        ({"d_in": D + 1}, "does not hold what it should"),
        ({"d_in": -1}, "d_in = -1"),
        ({"d_in": 10**12}, "a positive width"),
        ({"d_in": "6"}, "a positive width"),
        ({"normalize_activations": "layer_norm"}, "Fold it into the weights"),
        ({"metadata": []}, "does not describe an SAE"),
        ({"metadata": {"sparsight": {"config": {"id": "a", "n_latents": "many"}}}}, "does not describe an SAE"),
        ({"metadata": {"sparsight": {}}}, "does not describe an SAE"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(saved, change, said):
    rewrite(saved, **change)
    with pytest.raises(FormatError, match=said) as caught:
        SparseAutoencoder.load(saved)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(saved, tmp_path):
    with pytest.raises(FormatError, match="is missing or cannot be read"):
        SparseAutoencoder.load(tmp_path / "nowhere")
    (saved / "sae_weights.safetensors").unlink()
    with pytest.raises(FormatError, match="not a readable safetensors file"):
        SparseAutoencoder.load(saved)


def test_weights_that_are_truncated_or_lie_about_their_size_are_refused(saved):
    path = saved / "sae_weights.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(FormatError, match="not a readable safetensors file"):
        SparseAutoencoder.load(saved)
    header = json.dumps({"W_enc": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(FormatError, match="not a readable safetensors file"):
        SparseAutoencoder.load(saved)


def test_extra_missing_integer_and_infinite_tensors_are_refused(saved):
    path = saved / "sae_weights.safetensors"
    good = load_file(path)
    broken = [
        (good | {"extra": torch.zeros(1)}, "no such tensor"),
        ({name: tensor for name, tensor in good.items() if name != "b_enc"}, "it has {'b_enc': 'missing'}"),
        (good | {"b_enc": torch.zeros(F, dtype=torch.int32)}, "of type"),
        (good | {"b_enc": torch.full((F,), float("inf"))}, "not finite"),
    ]
    for tensors, said in broken:
        save_file(tensors, path)
        with pytest.raises(FormatError, match=said):
            SparseAutoencoder.load(saved)
