"""The written-out gradients of the heavy products equal autograd's on the plain formulas."""

import pytest
import torch

from sparsight.sae.activation import topk
from sparsight.sae.products import column_sums, decode, decode_prefixes, decode_sparse, encode, spread

N, D_IN, F, D_OUT, K = 12, 6, 20, 7, 4


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (N, D_IN), "centre": (D_IN,), "W_enc": (D_IN, F), "bias": (F,), "W_dec": (F, D_OUT), "z": (N, F)}
    return {name: torch.randn(shape, generator=generator, requires_grad=name != "x") for name, shape in shapes.items()}


def gradients(output, inputs):
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return torch.autograd.grad((output.float() * weights).sum(), inputs)


def assert_same(ours, reference, inputs, tolerance=1e-5):
    torch.testing.assert_close(ours.float(), reference, atol=tolerance, rtol=tolerance)
    for mine, plain in zip(gradients(ours, inputs), gradients(reference, inputs), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, plain, atol=tolerance, rtol=tolerance)


def test_encode_equals_the_formula_with_its_gradients(tensors):
    inputs = [tensors[name] for name in ("centre", "W_enc", "bias")]
    ours = encode(tensors["x"], *inputs, torch.float32)
    assert_same(ours, (tensors["x"] - inputs[0]) @ inputs[1] + inputs[2], inputs)


def test_decode_equals_the_formula_with_its_gradients(tensors):
    inputs = [tensors["z"], tensors["W_dec"]]
    assert_same(decode(*inputs, torch.float32), inputs[0] @ inputs[1], inputs)


def test_decode_prefixes_equals_one_decode_per_prefix(tensors):
    prefixes, inputs = (3, 8, F), [tensors["z"], tensors["W_dec"]]
    reference = torch.stack([inputs[0][:, :p] @ inputs[1][:p] for p in prefixes])
    assert_same(decode_prefixes(*inputs, prefixes, torch.float32), reference, inputs)


def test_sparse_decode_of_topk_equals_the_dense_reference_with_its_gradients(tensors):
    inputs = [tensors["z"], tensors["W_dec"]]
    ours = decode_sparse(*topk(inputs[0], K), inputs[1], torch.float32)
    values, indices = inputs[0].topk(K, dim=1)
    dense = torch.zeros(N, F).scatter(1, indices, values.relu())
    assert_same(ours, dense @ inputs[1], inputs)


def test_column_sums_pass_their_gradient_to_every_row(tensors):
    assert_same(column_sums(tensors["z"]), tensors["z"].sum(0), [tensors["z"]])


def test_bfloat16_products_are_close_to_float32_ones(tensors):
    inputs = [tensors["z"], tensors["W_dec"]]
    reference = decode_sparse(*topk(inputs[0], K), inputs[1], torch.float32)
    ours = decode_sparse(*topk(inputs[0], K), inputs[1], torch.bfloat16)
    assert_same(ours, reference, inputs, tolerance=0.05)
    encoder = [tensors[name] for name in ("centre", "W_enc", "bias")]
    low, high = (encode(tensors["x"], *encoder, dtype) for dtype in (torch.bfloat16, torch.float32))
    assert low.dtype == torch.bfloat16
    assert_same(low, high, encoder, tolerance=0.1)


def test_spread_puts_every_value_in_its_column():
    dense = spread(torch.tensor([[2, 0], [1, 3]]), torch.tensor([[5.0, 6.0], [7.0, 8.0]]), 4)
    assert dense.tolist() == [[6, 0, 5, 0], [0, 7, 0, 8]]
