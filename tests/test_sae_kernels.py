"""Each CPU kernel against its plain torch form."""

import pytest
import torch

from sparsight.sae.activation import batch_topk
from sparsight.sae.kernels import cpu
from sparsight.sae.kernels.cpu import Active, AdamStep
from sparsight.sae.kernels.workspace import Workspace

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no C compiler: nothing here is used")

SPACE = Workspace()
WIDTHS = [1, 31, 32, 33, 100, 257, 4608]


def matrix(n: int, width: int, *, seed: int = 0, ties: bool = False) -> torch.Tensor:
    """bfloat16 values, with `ties` only a few different ones."""
    values = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return ((values * 2).round() / 2 if ties else values).bfloat16()


def dense(active: Active, width: int) -> torch.Tensor:
    """The selection as a matrix."""
    n = len(active.starts) - 1
    out = torch.zeros(n, width)
    rows = torch.repeat_interleave(torch.arange(n), active.starts.diff())
    out.index_put_((rows, active.latents.long()), active.values.float(), accumulate=True)
    return out


def topk_oracle(pre: torch.Tensor, k: int) -> torch.Tensor:
    """By a stable sort: of equal values the lower columns."""
    order = pre.float().sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros(pre.shape).scatter(1, order, pre.float().gather(1, order)).relu()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("k", [1, 5, 32, 200])
@pytest.mark.parametrize("ties", [False, True])
def test_topk_is_a_stable_sorts_topk(width: int, k: int, ties: bool) -> None:
    k = min(k, width)
    pre = matrix(9, width, ties=ties)
    pre[0] = -1.0  # nothing positive
    pre[1] = 0.5  # all equal
    pre[2, 1:] = -3.0  # fewer than k positive
    pre[3] = 0.0
    active = cpu.select_topk(pre, k, SPACE)
    assert torch.equal(dense(active, width), topk_oracle(pre, k))
    assert torch.equal(active.starts, torch.arange(10) * k)


def test_topk_of_negative_zero_infinity_and_the_smallest_numbers() -> None:
    pre = torch.tensor([[-0.0, float("inf"), cpu.SMALLEST, 1.0, float("-inf"), 0.0]]).bfloat16()
    assert torch.equal(
        dense(cpu.select_topk(pre, 3, SPACE), 6), torch.tensor([[0, float("inf"), cpu.SMALLEST, 1.0, 0, 0]])
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("hint", [0.0, 0.5, 1e6])
def test_batch_selection_is_that_of_the_eager_form(width: int, hint: float) -> None:
    pre = matrix(12, width)
    k = max(1, width // 8)
    bound = cpu.batch_bound(pre, 12 * k, hint)
    expected, smallest = batch_topk(pre, k)
    assert bound == float(smallest)
    active = cpu.select_at_least(pre, bound, SPACE)
    assert active is not None
    assert torch.equal(dense(active, width), expected.float())


def test_batch_bound_with_too_few_positive_values_takes_all_of_them() -> None:
    pre = torch.full((4, 50), -1.0).bfloat16()
    pre[1, 3], pre[2, 40] = 2.0, 0.25
    bound = cpu.batch_bound(pre, 8, 0.0)
    assert bound == cpu.SMALLEST
    active = cpu.select_at_least(pre, bound, SPACE)
    assert active is not None
    assert torch.equal(dense(active, 50), pre.float().relu())


def test_selection_gives_up_beyond_its_limit() -> None:
    pre = matrix(8, 64)
    n_positive = int((pre > 0).sum())
    assert cpu.select_at_least(pre, cpu.SMALLEST, SPACE, limit=n_positive - 1) is None
    active = cpu.select_at_least(pre, cpu.SMALLEST, SPACE, limit=n_positive)
    assert active is not None
    assert torch.equal(dense(active, 64), pre.float().relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_centring_rounds_once(dtype: torch.dtype) -> None:
    x, middle = torch.randn(7, 45).to(dtype), torch.randn(45)
    centred = cpu.centre(cpu.Rows.of(x, 1.7), middle, SPACE)
    factor = torch.tensor(1 / 1.7)
    assert torch.equal(centred[:, :45], (x.float() * factor - middle).bfloat16())
    assert torch.equal(centred[:, 45:], torch.tensor([1, 1] + [0] * 17).bfloat16().expand(7, -1))


def test_the_bias_is_part_of_the_product() -> None:
    x, W_enc, bias = torch.randn(5, 45), torch.randn(9, 45), 100 * torch.randn(9)
    centred = cpu.centre(cpu.Rows.of(x, 1.0), torch.zeros(45), SPACE)
    product = centred.double() @ cpu.encoder_copy(W_enc, bias).double().T
    expected = x.bfloat16().double() @ W_enc.bfloat16().double().T + bias
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(product - expected, torch.zeros(5, 9).double(), rtol=0, atol=100 * 2**-14)


@pytest.mark.parametrize("d", [1, 40, 192, 300, 576])
def test_decode_gives_the_gradients_of_its_error(d: int) -> None:
    n, width = 130, 90
    active = cpu.select_topk(matrix(n, width), 7, SPACE)
    W_dec, b_dec, target, penalty = matrix(width, d, seed=1), torch.randn(d), torch.randn(n, d), torch.rand(width)
    rows = cpu.Rows.of(1.5 * target, 1.5)
    out = cpu.decode(active, W_dec, b_dec, rows, SPACE, penalty=penalty)
    z = dense(active, width)
    error = z.double() @ W_dec.double() + b_dec - target
    d_x_hat = 2 * error / error.numel()
    d_z = d_x_hat.bfloat16().double() @ W_dec.double().T + penalty  # rounded first, as for a dense product
    of_row = torch.arange(n).repeat_interleave(7)
    expected = d_z[of_row, active.latents.long()] * (active.values > 0)
    assert out.d_values is not None
    torch.testing.assert_close(out.d_x_hat.double(), d_x_hat, rtol=2**-8, atol=1e-9)
    torch.testing.assert_close(out.d_values.double(), expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(out.d_bias.double(), d_x_hat.sum(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out.squares, error.square().sum(1), rtol=1e-5, atol=1e-6)
    from_product = cpu.residual((z @ W_dec.float()).bfloat16(), b_dec, rows, SPACE)
    torch.testing.assert_close(from_product.squares.sum(), error.square().sum(), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("d", [1, 40, 300, 576])
@pytest.mark.parametrize("blocked", [False, True])
def test_gradient_rows_are_the_product_with_the_transposed_selection(
    d: int, blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocked:
        monkeypatch.setattr(cpu, "_CACHED_BYTES", 0)
    active = cpu.select_at_least(matrix(50, 70), 1.0, SPACE)
    assert active is not None
    columns = cpu.transpose(active, 70, SPACE)
    z = dense(active, 70)
    assert torch.equal(columns.starts.diff(), torch.count_nonzero(z, dim=0))
    values, sums = cpu.sort_entries(columns, active.values, "values", SPACE)
    torch.testing.assert_close(sums, z.sum(0))
    other = matrix(50, d, seed=3)
    expected = z.double().T @ other.double()
    torch.testing.assert_close(
        cpu.gradient_rows(columns, values, other, torch.empty(70, d).bfloat16()).double(),
        expected,
        rtol=2**-8,
        atol=1e-5,
    )


def test_masking_adds_the_penalty_where_latents_are_active() -> None:
    z, d_z, penalty = matrix(40, 600).relu(), matrix(40, 600, seed=1), torch.rand(600)
    exact = (d_z.float() + penalty) * (z > 0)
    sums, slopes, counts = cpu.mask_columns(z, d_z, penalty)
    assert torch.equal(d_z, exact.bfloat16())
    torch.testing.assert_close(sums, z.float().sum(0))
    torch.testing.assert_close(slopes, exact.sum(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(counts, (z > 0).sum(0).float())


@pytest.mark.parametrize("d", [1, 17, 576])
@pytest.mark.parametrize("kind", ["plain", "unit norm", "pulled"])
def test_updates_are_torchs_adam(d: int, kind: str) -> None:
    torch.manual_seed(0)
    weight, pull, coefficients = torch.randn(90, d), torch.rand(90), torch.randn(90)
    pull[3] = 0.0
    if kind == "unit norm":
        weight /= weight.norm(dim=1, keepdim=True)
    reference = weight.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.02, betas=(0.8, 0.95), eps=1e-6)
    moments, copy = (torch.zeros(90, d), torch.zeros(90, d)), torch.zeros(90, d).bfloat16()
    for step in range(5):
        gradient = torch.randn(90, d).mul(10.0 ** torch.randint(-6, 3, (90, 1))).bfloat16()
        gradient[7] = 0.0
        before = reference.detach().clone()
        wanted = gradient.float()
        if kind == "unit norm":
            wanted = wanted - (wanted * before).sum(1, keepdim=True) * before
        if kind == "pulled":
            wanted = wanted + pull[:, None] * before / before.norm(dim=1, keepdim=True)
        reference.grad = wanted
        adam.step()
        if kind == "unit norm":
            reference.data /= reference.data.norm(dim=1, keepdim=True)
        weighted = cpu.update_rows(
            gradient, weight, moments, copy, AdamStep(lr=0.02, betas=(0.8, 0.95), eps=1e-6, steps_done=step),
            unit_norm=kind == "unit norm", pull=pull if kind == "pulled" else None, coefficients=coefficients,
        )  # fmt: skip
        assert weighted is not None
        torch.testing.assert_close(weighted, coefficients @ before, rtol=1e-4, atol=1e-4)
        if d > 1 or kind == "plain":  # a row of one number and norm 1 has a gradient of rounding errors alone
            torch.testing.assert_close(weight, reference.detach(), rtol=1e-5, atol=1e-5)
        assert torch.equal(copy, weight.bfloat16())


def test_a_bias_is_updated_alike() -> None:
    bias, gradient = torch.randn(37), torch.randn(37)
    reference = bias.clone().requires_grad_()
    reference.grad = gradient.clone()
    torch.optim.Adam([reference], lr=0.1).step()
    cpu.update_vector(
        gradient, bias, (torch.zeros(37), torch.zeros(37)), AdamStep(lr=0.1, betas=(0.9, 0.999), eps=1e-8, steps_done=0)
    )
    torch.testing.assert_close(bias, reference.detach())


@pytest.mark.parametrize("d", [1, 17, 576])
@pytest.mark.parametrize("pulled", [False, True])
def test_the_squares_of_a_gradient_count_its_pull(d: int, pulled: bool) -> None:
    gradient, W, scales = matrix(130, d), matrix(130, d, seed=1).float(), matrix(2, 130, seed=2).float()
    pull = scales[0].abs() * (scales[0] > 0) if pulled else None
    wanted = gradient.double()
    if pull is not None:
        wanted = wanted + (pull / W.norm(dim=1)).unsqueeze(1) * W
    squares, weighted = cpu.gradient_squares(gradient, W, pull=pull, coefficients=scales[1])
    assert squares == pytest.approx(float(wanted.square().sum()), rel=1e-5)
    assert weighted is not None
    torch.testing.assert_close(weighted, scales[1] @ W, atol=1e-3, rtol=1e-5)
    assert cpu.gradient_squares(gradient, W, pull=pull) == (squares, None)


@pytest.mark.parametrize("d", [576, 37])
@pytest.mark.parametrize("m", [7, 64])
def test_chosen_products_are_those_of_the_whole_product(d: int, m: int) -> None:
    generator = torch.Generator().manual_seed(d)
    x, W = torch.randn(33, d, generator=generator), torch.randn(90, d, generator=generator)
    chosen = torch.randint(0, 90, (33, m), generator=generator, dtype=torch.int32)
    torch.testing.assert_close(
        cpu.chosen_products(x, W, chosen), (x @ W.T).gather(1, chosen.long()), rtol=1e-5, atol=1e-4
    )
