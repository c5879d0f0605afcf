"""The finished SAE: its sparse, dense and chunked forms agree, and bad input is named."""

import pytest
import torch

from sparsight.errors import ActivationError, FormatError
from sparsight.sae import ARCHITECTURES, SAEConfig, SparseAutoencoder
from sparsight.sae import autoencoder as module
from sparsight.sae.exchange.saelens import tensor_shapes

D, F = 8, 40


def make(architecture, d_out=D, **changes):
    cfg = SAEConfig(id="a", architecture=architecture, n_latents=F, k=5, **changes)
    generator = torch.Generator().manual_seed(4)
    shapes = tensor_shapes(cfg.inference, D, F, d_out)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
    return SparseAutoencoder(cfg, tensors)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_and_dense_latents_are_the_same_numbers(architecture):
    sae, x = make(architecture), torch.randn(30, D)
    dense, sparse = sae.encode(x), sae.encode_sparse(x)
    rebuilt = torch.zeros(30, F).scatter_add(1, sparse.indices, sparse.values)
    torch.testing.assert_close(rebuilt, dense)
    assert sparse.indices.shape[1] == (5 if architecture == "topk" else int((dense > 0).sum(1).max()))
    assert sparse.indices[sparse.values == 0].sum() == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_working_in_chunks_changes_nothing(architecture, monkeypatch):
    sae, x = make(architecture), torch.randn(23, D)
    whole, sparse = sae(x), sae.encode_sparse(x)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 4 * F)
    torch.testing.assert_close(sae.reconstruct(x), whole.x_hat, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sae.encode_sparse(x).values.sum(1), sparse.values.sum(1))
    assert sae.encode_sparse(x).values.shape == sparse.values.shape


def test_forward_is_the_written_formula():
    sae, x = make("jumprelu"), torch.randn(9, D)
    pre = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    z = torch.where(pre > sae.threshold, pre, 0)
    torch.testing.assert_close(sae(x).latents, z)
    torch.testing.assert_close(sae(x).x_hat, z @ sae.W_dec + sae.b_dec, atol=1e-4, rtol=1e-5)


def test_a_transcoder_does_not_centre_its_input():
    sae, x = make("relu", d_out=3, target_hook_point="out"), torch.randn(9, D)
    torch.testing.assert_close(sae.encode(x), (x @ sae.W_enc + sae.b_enc).relu())
    assert sae.reconstruct(x).shape == (9, 3)


def test_bfloat16_activations_are_read_and_no_tokens_give_no_rows():
    sae = make("topk")
    x = torch.randn(4, D).bfloat16()
    torch.testing.assert_close(sae.reconstruct(x), sae.reconstruct(x.float()))
    assert sae.reconstruct(x[:0]).shape == (0, D)
    assert sae.encode_sparse(x[:0]).indices.shape[0] == 0


def test_activations_of_another_width_are_refused():
    with pytest.raises(ActivationError, match="width 8, got 9"):
        make("relu").reconstruct(torch.randn(2, 9))


def test_tensors_that_do_not_fit_are_refused():
    sae = make("relu")
    with pytest.raises(FormatError, match="expected"):
        SparseAutoencoder(SAEConfig(id="a", architecture="gated", n_latents=F), sae.state_dict())
    with pytest.raises(FormatError, match="lacks W_enc"):
        SparseAutoencoder(sae.cfg, {})
