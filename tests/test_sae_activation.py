"""Activation functions against hand-computed cases and brute force."""

import pytest
import torch

from sparsight.sae.activation import batch_topk, gated_magnitude, jumprelu_train, keep_topk, kth_largest, topk


def test_topk_keeps_the_largest_and_then_rectifies():
    indices, values = topk(torch.tensor([[3.0, -1.0, 2.0, -5.0], [-3.0, -1.0, -2.0, -5.0]]), 2)
    assert {*zip(indices[0].tolist(), values[0].tolist(), strict=True)} == {(0, 3.0), (2, 2.0)}
    assert values[1].tolist() == [0, 0]


def test_keep_topk_is_topk_in_dense_form():
    pre = torch.randn(5, 9, generator=torch.Generator().manual_seed(1))
    indices, values = topk(pre, 3)
    assert torch.equal(keep_topk(pre, 3), torch.zeros(5, 9).scatter(1, indices, values))
    assert torch.equal(keep_topk(pre, 9), pre.relu())


@pytest.mark.parametrize("hint", [None, -1.0, 1.5, 100.0])
def test_batch_topk_is_a_topk_over_the_flattened_batch_whatever_the_hint(hint):
    pre = torch.randn(16, 32, generator=torch.Generator().manual_seed(2))
    z, smallest = batch_topk(pre, 3, None if hint is None else torch.tensor(hint))
    expected = torch.zeros(16 * 32)
    best = pre.flatten().topk(48)
    expected[best.indices] = best.values
    assert torch.equal(z, expected.view(16, 32))
    assert smallest == best.values[-1]


def test_batch_topk_keeps_all_ties_with_the_smallest_in_bfloat16():
    pre = torch.randn(64, 32, generator=torch.Generator().manual_seed(3)).bfloat16().requires_grad_()
    z, smallest = batch_topk(pre, 3)
    kept = pre.detach() >= smallest
    assert kept.sum() > 64 * 3
    assert torch.equal(z > 0, kept)
    assert torch.equal(torch.autograd.grad(z.sum(), pre)[0], kept.bfloat16())


def test_batch_topk_never_lets_a_negative_value_through():
    pre = -torch.rand(4, 8)
    pre[0, 0] = 0.5
    z, _ = batch_topk(pre, 2)
    assert z.sum() == 0.5


def test_kth_largest_counts_ties():
    assert kth_largest(torch.tensor([[1.0, 2.0], [2.0, 3.0]]), 3) == 2


def test_jumprelu_has_the_papers_pseudo_derivatives():
    # threshold 2, bandwidth 1: the kernel covers (1.5, 2.5) with height 1
    pre = torch.tensor([[1.2], [1.8], [2.2], [4.0]], requires_grad=True)
    threshold = torch.tensor([2.0], requires_grad=True)
    z, l0 = jumprelu_train(pre, threshold, torch.tensor(1.0))
    assert z.squeeze().tolist() == pytest.approx([0, 0, 2.2, 4.0])
    assert l0 == 0.5
    weights = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    d_pre, d_threshold = torch.autograd.grad((z * weights).sum(), [pre, threshold], retain_graph=True)
    assert d_pre.squeeze().tolist() == [0, 0, 100, 1000]
    assert d_threshold.item() == pytest.approx(-2 * (10 + 100))
    d_pre, d_threshold = torch.autograd.grad(l0, [pre, threshold])
    assert d_pre.abs().sum() == 0
    assert d_threshold.item() == pytest.approx(-2 / 4)


def test_gate_decides_and_magnitude_counts():
    gate = torch.tensor([[1.0, -1.0, 0.5]])
    zero = torch.zeros(3)
    z = gated_magnitude(gate, zero, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([-0.25, 5.0, 0.0]))
    torch.testing.assert_close(z, torch.tensor([[0.75, 0.0, 0.5 * torch.e]]))
