"""A screened SAE finds what the plain one finds."""

import pytest
import torch
from torch.nn import functional

from sparsight.sae import SAEConfig, SparseAutoencoder, screened, screening
from sparsight.sae.screening import ScreenedAutoencoder

F, D, K = 700, 24, 8


def wide(rows: torch.Tensor, **config) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(1)
    weights = {
        "W_enc": rows.T.contiguous(),
        "W_dec": functional.normalize(rows, dim=1),
        "b_dec": torch.randn(D, generator=generator),
        "b_enc": 0.1 * torch.randn(len(rows), generator=generator),
    }
    return SparseAutoencoder(SAEConfig(id="wide", n_latents=len(rows), **({"k": K} | config)), weights)


def rows(n: int = F) -> torch.Tensor:
    """Directions of very different lengths."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, D, generator=generator) * torch.rand(n, 1, generator=generator).mul(3).exp()


def dense(latents, n_latents: int) -> torch.Tensor:
    return torch.zeros(len(latents.values), n_latents).scatter_add(1, latents.indices, latents.values)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precise", [False, True])
def test_the_same_latents_with_the_same_values(monkeypatch, precise, compiled):
    monkeypatch.setattr(screening.cpu, "available", lambda: compiled)
    sae = wide(rows())
    x = 3 * torch.randn(500, D, generator=torch.Generator().manual_seed(2))
    x = x if precise else x.bfloat16()  # as a model in bfloat16 gives it
    plain, quick = (each.encode_sparse(x) for each in (sae, ScreenedAutoencoder(sae)))
    torch.testing.assert_close(dense(quick, F), dense(plain, F))
    torch.testing.assert_close(dense(plain, F), sae.encode(x))


def test_what_bfloat16_cannot_tell_apart_is_computed_in_full(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    alike = rows(1) + 1e-4 * torch.randn(F, D, generator=generator)  # more of them than candidates
    sae = wide(alike)
    x = sae.b_dec + 3 * alike[:50]
    exact, quick = sae.encode(x), ScreenedAutoencoder(sae)
    torch.testing.assert_close(dense(quick.encode_sparse(x), F), exact)
    monkeypatch.setattr(screening, "_MARGIN", float("-inf"))
    assert (dense(quick.encode_sparse(x), F) - exact).abs().max() > 0.01  # without the guard, others are taken


def test_only_what_gains_is_screened(monkeypatch):
    sae = wide(rows())
    assert screened(sae) is sae
    monkeypatch.setattr(screening, "_LEAST_LATENTS", F)
    monkeypatch.setattr(screening, "_multiplies_bfloat16", lambda: True)
    quick = screened(sae)
    assert isinstance(quick, ScreenedAutoencoder)
    assert quick.state_dict().keys() == sae.state_dict().keys()
    monkeypatch.setattr(screening, "_multiplies_bfloat16", lambda: False)
    assert screened(sae) is sae
    monkeypatch.setattr(screening, "_multiplies_bfloat16", lambda: True)
    relu = wide(rows(), architecture="relu")
    assert screened(relu) is relu
