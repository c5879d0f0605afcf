"""The GPU kernels against plain torch: run in Triton's interpreter on CPU, and compiled to machine code for three generations of GPUs.

Both show that the programs compute what they should and that a GPU would take them. Neither shows how fast they are.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from sparsight.sae.kernels import eager, gpu

FLOATS = (torch.bfloat16, torch.float32)
TRUNCATED = {"atol": 1e-3, "rtol": 2**-7}  # the interpreter cuts a float32 to bfloat16 where a GPU rounds it


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both(function, *tensors, **options):
    """What eager and kernel return, and what they made of their arguments."""
    results = []
    for module in (eager, gpu):
        copies = [each.clone() if isinstance(each, torch.Tensor) else each for each in tensors]
        returned = getattr(module, function)(*copies, **options)
        returned = returned if isinstance(returned, tuple) else (returned,)
        results.append([each for each in (*returned, *copies) if isinstance(each, torch.Tensor)])
    return zip(*results, strict=True)


def rows_to_select_from(dtype):
    """Rows wider than one power of two, and each a special case."""
    rows = randn(7, 150, dtype=dtype)
    rows[1] = 0.5  # all equal
    rows[2] = rows[2].clamp_max(0)  # nothing positive
    rows[3] = -1.0
    rows[3, [149, 20, 90]] = torch.tensor([1.0, 2.0, 3.0], dtype=dtype)  # fewer than k positive
    rows[4] = rows[4].sign() * 0.25 + (rows[4] > 1.5)  # two values only, so that ties straddle the limit
    rows[5] = -0.0
    rows[6] *= 1e30
    return rows


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [1, 5, 150])
def test_topk_keeps_the_k_largest_and_of_equal_ones_the_first(k, dtype):
    for expected, got in both("select_topk_", rows_to_select_from(dtype), k):
        assert torch.equal(expected, got)


def test_topk_is_torchs_where_no_values_are_equal():
    pre = randn(6, 131).abs()
    expected = torch.zeros_like(pre).scatter(1, *reversed(pre.topk(9, dim=1)))
    gpu.select_topk_(pre, 9)
    assert torch.equal(pre, expected)
    assert ((pre > 0).sum(1) == 9).all()


def test_topk_of_rows_that_take_several_blocks(monkeypatch):
    monkeypatch.setattr(gpu, "_ROW_BLOCK", 32)
    for dtype in FLOATS:
        for expected, got in both("select_topk_", rows_to_select_from(dtype), 5):
            assert torch.equal(expected, got)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n_kept", [1, 40, 7 * 150])
def test_the_batch_threshold_is_exactly_the_nth_largest_value(n_kept, dtype):
    for pre in (randn(7, 150, dtype=dtype), randn(7, 150, dtype=dtype) - 1, rows_to_select_from(dtype)):
        ((expected, got), _) = both("batch_threshold", pre, n_kept)
        assert torch.equal(expected, got)


def test_the_batch_threshold_counts_over_many_programs(monkeypatch):
    monkeypatch.setattr(gpu, "_HISTOGRAM", {"TILES": 2, "BLOCK": 128})
    pre = randn(9, 211, dtype=torch.bfloat16)
    assert gpu.batch_threshold(pre, 300) == pre.flatten().topk(300).values[-1]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("threshold", [None, 0.7])
def test_activation_keeps_sums_and_counts(threshold, dtype):
    pre = randn(70, 150, dtype=dtype)
    pre[3, 7] = 0.7  # the smallest kept value is kept
    threshold = None if threshold is None else pre[3, 7].float()
    for expected, got in both("activate_", pre, threshold):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    untouched = pre.clone()
    gpu.activate_(pre, threshold, write=False)
    assert torch.equal(pre, untouched)


def test_column_sums_over_several_parts(monkeypatch):
    monkeypatch.setattr(gpu, "_ROWS_EACH", 32)
    for expected, got in both("activate_", randn(75, 13)):
        torch.testing.assert_close(got, expected)
    for expected, got in both("mask_gradient_", randn(75, 13), randn(75, 13, seed=1)):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shifted", [False, True])
def test_the_gradient_is_shifted_where_the_latent_is_active(shifted, dtype):
    shift = randn(150, seed=2) if shifted else None
    for expected, got in both(
        "mask_gradient_", randn(37, 150, dtype=dtype), randn(37, 150, dtype=dtype, seed=1), shift
    ):
        if dtype == torch.bfloat16 and expected.ndim == 1:  # sums of up to 37 such cuts
            torch.testing.assert_close(got, expected, atol=37 * 2**-7, rtol=0)
        elif dtype == torch.bfloat16:
            torch.testing.assert_close(got, expected, **TRUNCATED)
        else:
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_residual_its_gradient_and_its_squares(dtype):
    scale, raw = torch.tensor(3.7), 5 * randn(19, 75, dtype=dtype, seed=1) + 2
    for expected, got in both("residual_", randn(19, 75), randn(75, seed=2), raw, scale, dtype):
        torch.testing.assert_close(got, expected)
    for expected, got in both("centred", raw, scale, randn(75, seed=2), dtype):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("extras", [False, True])
def test_rows_are_updated_as_by_adam(unit_norm, extras):
    W = torch.nn.functional.normalize(randn(9, 75), dim=1)
    mean, square = randn(9, 75, seed=2), randn(9, 75, seed=3).square()
    gradient, rates = randn(9, 75, seed=1), torch.tensor([2e-3, 1.7, 0.6])
    results = []
    for module in (eager, gpu):
        state = [each.clone() for each in (W, gradient, mean, square)]
        outputs = {"shadow": torch.empty(9, 75, dtype=torch.bfloat16), "norms": torch.empty(9)} if extras else {}
        pull = {"pull": randn(9, seed=4)} if extras else {}
        module.update_rows_(*state, rates, betas=(0.9, 0.999), eps=1e-8, unit_norm=unit_norm, **outputs, **pull)
        results.append([state[0], *state[2:], *outputs.values()])
    for expected, got in zip(*results, strict=True):
        tolerance = TRUNCATED if expected.dtype == torch.bfloat16 else {"atol": 1e-6, "rtol": 1e-5}
        torch.testing.assert_close(got, expected, **tolerance)
    assert not torch.allclose(results[1][0], W)


def test_the_row_update_is_torchs_adam():
    W, steps = randn(4, 40), 6
    parameter = torch.nn.Parameter(W.clone())
    adam = torch.optim.Adam([parameter], lr=3e-3, betas=(0.9, 0.99), eps=1e-8)
    mean, square = torch.zeros_like(W), torch.zeros_like(W)
    for step in range(1, steps + 1):
        parameter.grad = randn(4, 40, seed=step)
        adam.step()
        rates = torch.tensor([3e-3 / (1 - 0.9**step), (1 - 0.99**step) ** -0.5, 1.0])
        gpu.update_rows_(W, randn(4, 40, seed=step), mean, square, rates, betas=(0.9, 0.99), eps=1e-8)
    torch.testing.assert_close(W, parameter.detach(), atol=1e-6, rtol=1e-5)


COMPILE = """
import json, re, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sparsight.sae.kernels import gpu_programs as programs

sizes = {"BLOCK": 256, "BLOCK_N": 16, "BLOCK_F": 128, "TILES": 2, "SHIFT": 8, "BETA1": 0.9, "BETA2": 0.999, "EPS": 1e-8}
whole = {"F", "k", "d", "n", "rows_each", "n_values", "n_wanted"}
element = {"state_ptr": "i32", "counts_ptr": "i32"}
inputs = {"pre_ptr", "x_ptr", "dz_ptr", "z_ptr", "target_ptr", "gradient_ptr", "out_ptr", "shadow_ptr"}
built = {}
for name in programs.__all__:
    for bits, kind in ((15, "bf16"), (31, "fp32")):
        program, signature, constants = getattr(programs, name), {}, {}
        for argument in program.arg_names:
            if argument.isupper() and argument != "F" and argument != "W_ptr":
                constants[argument] = bits if argument == "BITS" else sizes.get(argument, True)
                signature[argument] = "constexpr"
            elif argument.endswith("_ptr"):
                narrow = argument in inputs and not (name == "update_program" and argument == "gradient_ptr")
                signature[argument] = "*" + element.get(argument, kind if narrow else "fp32")
            else:
                signature[argument] = "i32" if argument in whole else "fp32"
        if name == "histogram_program":
            constants["FIRST"] = False
        for capability in map(int, sys.argv[1:] if kind == "bf16" else sys.argv[-1:]):
            code = compile(ASTSource(program, signature, constants), target=GPUTarget("cuda", capability, 32))
            built[f"{name} {kind} {capability}"] = len(code.asm["cubin"])
print(json.dumps(built))
"""


def test_every_program_compiles_for_ampere_ada_and_hopper(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE, "80", "89", "90"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    built = json.loads(done.stdout.splitlines()[-1])
    assert len(built) == 8 * (3 + 1)  # in bfloat16, and in float32 for the newest
    assert min(built.values()) > 1000
