"""FVU and cosine against hand-computed cases, and the stream against the whole."""

import numpy as np
import pytest
import torch

from sparsight.errors import MetricError
from sparsight.metrics import LinearFit, ReconstructionSums, cosine, fvu


@pytest.fixture
def activations() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator) * torch.arange(1, 7) + 50
    return x, x + torch.randn(500, 6, generator=generator)


def stream(x, x_hat, batch_tokens: int, centre: torch.Tensor, groups=None) -> ReconstructionSums:
    sums = ReconstructionSums(["sae"], centre, n_groups=1 if groups is None else 3)
    documents = torch.arange(len(x)) // 10
    for start in range(0, len(x), batch_tokens):
        rows = slice(start, start + batch_tokens)
        sums.add(x[rows], {"sae": x_hat[rows]}, documents[rows], None if groups is None else groups[rows])
    return sums


def test_fvu_of_a_hand_computed_case():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]])  # mean (1, 1): squared distances 2, 2, 4
    x_hat = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 3.0]])  # one error of 1
    assert fvu(x, x_hat) == pytest.approx(1 / 8)


def test_fvu_is_one_when_predicting_the_mean(activations):
    x, _ = activations
    assert fvu(x, x.mean(0).expand_as(x)) == pytest.approx(1.0, abs=1e-6)


def test_fvu_is_zero_for_a_copy(activations):
    x, _ = activations
    assert fvu(x, x.clone()) == 0.0


@pytest.mark.parametrize("batch_tokens", [1, 7, 64, 500])
@pytest.mark.parametrize("centre", ["zero", "first", "mean"])
def test_streamed_fvu_equals_the_formula_whatever_the_batch_and_the_centre(activations, batch_tokens, centre):
    x, x_hat = activations
    centre = {"zero": torch.zeros(6), "first": x[:3].mean(0), "mean": x.mean(0)}[centre]
    assert stream(x, x_hat, batch_tokens, centre).fvu("sae") == pytest.approx(fvu(x, x_hat), rel=1e-9)


def test_streamed_fvu_survives_a_mean_that_dwarfs_the_variance():
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1)).double() + 1e7
    x_hat = x + 0.1
    naive = (x.square().sum() - len(x) * x.mean(0).square().sum()).item()
    streamed = stream(x, x_hat, 100, x[:100].mean(0)).fvu("sae")
    assert streamed == pytest.approx(fvu(x, x_hat), rel=1e-7)
    assert abs(0.01 * 4 * 2000 / naive / fvu(x, x_hat) - 1) > 1e-4  # the textbook shortcut does lose it


def test_class_sums_use_the_mean_of_all_tokens_and_add_up(activations):
    x, x_hat = activations
    groups = torch.arange(len(x)) % 3
    sums = stream(x, x_hat, 64, x[:5].mean(0), groups).finish()
    for group in range(3):
        chosen = groups == group
        variance = (x[chosen].double() - x.double().mean(0)).square().sum().item()
        assert sums.total("variance", group) == pytest.approx(variance, rel=1e-9)
    assert sums.total("variance") == pytest.approx((x.double() - x.double().mean(0)).square().sum().item())


def test_merged_streams_equal_one(activations):
    x, x_hat = activations
    centre = x[:5].mean(0)
    half = stream(x[:250], x_hat[:250], 50, centre)
    half.merge(stream(x[250:], x_hat[250:], 50, centre))
    assert half.fvu("sae") == pytest.approx(fvu(x, x_hat), rel=1e-9)


def test_streams_about_different_centres_do_not_merge(activations):
    x, x_hat = activations
    with pytest.raises(MetricError, match="different centres"):
        stream(x, x_hat, 50, x[0]).merge(stream(x, x_hat, 50, x[1]))


def test_fvu_without_variance_or_with_nan_is_an_error():
    same = torch.ones(4, 2)
    with pytest.raises(MetricError, match="vary"):
        fvu(same, same)
    with pytest.raises(MetricError, match="NaN"):
        fvu(torch.randn(4, 2), torch.full((4, 2), float("nan")))
    with pytest.raises(MetricError, match="NaN or infinity"):
        stream(torch.randn(4, 2), torch.full((4, 2), float("nan")), 2, torch.zeros(2)).finish()


def test_cosine_equals_torch_and_counts_zero_vectors_as_zero(activations):
    x, x_hat = activations
    expected = torch.nn.functional.cosine_similarity(x.double(), x_hat.double()).mean().item()
    assert cosine(x, x_hat) == pytest.approx(expected, rel=1e-9)
    assert cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [2.0, 2.0]])) == pytest.approx(0.5)


def test_pca_with_every_component_is_a_copy_and_its_fvu_is_the_variance_left_out():
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(2)) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5]) + 7
    fit = LinearFit()
    for batch in x.split(333):
        fit.add(batch)
    assert fvu(x, fit.baseline(5).reconstruct(x)) < 1e-9
    eigenvalues = np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True))
    assert fvu(x, fit.baseline(2).reconstruct(x)) == pytest.approx(eigenvalues[:3].sum() / eigenvalues.sum(), rel=1e-4)
    assert torch.allclose(fit.output_mean, x.mean(0), atol=1e-4)


def test_linear_baseline_of_a_transcoder_equals_least_squares_at_full_rank_and_never_sees_the_target():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3000, 4, generator=generator) + 1
    y = x @ torch.randn(4, 6, generator=generator) + 2 + 0.5 * torch.randn(3000, 6, generator=generator)
    fit = LinearFit()
    for rows in torch.arange(3000).split(500):
        fit.add(x[rows], y[rows])
    with_ones = torch.cat([x, torch.ones(3000, 1)], 1)
    expected = with_ones @ torch.linalg.lstsq(with_ones, y).solution
    assert torch.allclose(fit.baseline(4).reconstruct(x), expected, atol=1e-3)
    by_rank = [fvu(y, fit.baseline(k).reconstruct(x)) for k in (1, 2, 3, 4)]
    assert by_rank == sorted(by_rank, reverse=True)
    assert by_rank[0] > by_rank[3] + 0.01
