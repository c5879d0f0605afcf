"""Cross-entropy, KL and the recovered share against torch and by hand."""

import pytest
import torch
from torch.nn import functional

from sparsight.errors import MetricError
from sparsight.metrics import recovered_share, token_cross_entropy, token_kl


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean, other = torch.randn(2, 300, 50, generator=generator) * 3
    return clean, other, torch.randint(0, 50, (300,), generator=generator)


def test_cross_entropy_equals_torch(logits):
    clean, _, targets = logits
    expected = functional.cross_entropy(clean, targets, reduction="none")
    assert torch.allclose(token_cross_entropy(clean, targets), expected, atol=1e-5)


def test_kl_equals_torch_and_is_from_clean_to_spliced(logits):
    clean, other, _ = logits
    expected = functional.kl_div(other.log_softmax(-1), clean.log_softmax(-1), reduction="none", log_target=True).sum(
        -1
    )
    assert torch.allclose(token_kl(clean, other), expected, atol=1e-5)
    assert not torch.allclose(token_kl(other, clean), expected, atol=1e-2)


def test_kl_of_a_distribution_to_itself_is_zero(logits):
    clean, _, _ = logits
    assert token_kl(clean, clean).abs().max() == 0


def test_half_precision_logits_are_measured_in_float32(logits):
    clean, _, targets = logits
    half = clean.bfloat16()
    expected = functional.cross_entropy(half.float(), targets, reduction="none")
    assert torch.allclose(token_cross_entropy(half, targets), expected, atol=1e-5)


def test_recovered_share_is_one_as_good_as_clean_and_zero_as_bad_as_ablation():
    assert recovered_share(ce_clean=2.0, ce_sae=2.0, ce_ablated=6.0) == 1
    assert recovered_share(ce_clean=2.0, ce_sae=6.0, ce_ablated=6.0) == 0
    assert recovered_share(ce_clean=2.0, ce_sae=3.0, ce_ablated=6.0) == 0.75


def test_nothing_is_recovered_when_ablation_costs_nothing():
    with pytest.raises(MetricError, match="needs it to rise"):
        recovered_share(ce_clean=2.0, ce_sae=2.0, ce_ablated=1.9)
