"""Products on the tiles: against float32, whole models that use them against unfused ones, hooks, changed weights."""

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F

from sparsight.artifact.native import native_library
from sparsight.lm import blocks, fused, product
from sparsight.lm.fused import fuse
from sparsight.lm.kernels import Kernels, kernel_library
from sparsight.lm.product import Norm, Products
from test_lm_fused import POINTS, difference, outputs, random, run

LIBRARY = kernel_library()
pytestmark = pytest.mark.skipif(LIBRARY is None or LIBRARY.support() < 2, reason="no AMX tiles")

ROWS = [1, 16, 31, 33, 100, 300, 700]
IDS = torch.randint(3, 300, (3, 101), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def products() -> Products:
    assert LIBRARY is not None
    library = Products.library()
    assert library is not None
    return Products(library, Kernels(LIBRARY).empty)


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def linear(d_out: int, d_in: int, seed: int) -> nn.Linear:
    made = nn.Linear(d_in, d_out, bias=False, dtype=torch.bfloat16)
    made.weight.data = random(d_out, d_in, seed=seed, scale=d_in**-0.5)
    return made


def normed(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    x = x.float()
    scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * (norm.offset + norm.weight.float())
    return scaled.bfloat16().float()


@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("d_in", "d_out"), [(32, 32), (64, 96), (288, 32), (320, 64), (576, 160), (1536, 64)])
def test_product_is_that_of_float32_rounded_once(products, threads, rows, d_in, d_out):
    weight, x, base = linear(d_out, d_in, 1), random(rows, d_in), random(rows, d_out, seed=2)
    packed = products.pack(weight)
    exact = x.float() @ weight.weight.float().t()
    torch.testing.assert_close(products.product(x, None, packed, None), exact.bfloat16(), rtol=0.008, atol=1e-5)
    with_base = (exact + base.float()).bfloat16()
    torch.testing.assert_close(products.product(x, None, packed, base), with_base, rtol=0.008, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("d", "hidden"), [(32, 32), (64, 96), (576, 160), (96, 1536)])
@pytest.mark.parametrize("offset", [None, 0.0, 1.0])
def test_gated_is_a_whole_mlp_within_rounding(products, threads, rows, d, hidden, offset):
    gate, up, down = linear(hidden, d, 1), linear(hidden, d, 2), linear(d, hidden, 3)
    x, base = random(rows, d), random(rows, d, seed=4)
    norm = None if offset is None else Norm(random(d, seed=5), offset, 1e-5)
    packed = products.pack(gate, up, alternate=True), products.pack(down)
    h = x.float() if norm is None else normed(x, norm)
    middle = F.silu(h @ gate.weight.float().t()) * (h @ up.weight.float().t())
    exact = middle @ down.weight.float().t()
    assert difference(products.gated(x, norm, *packed, None), exact) < 0.005
    assert difference(products.gated(x, norm, *packed, base), exact + base.float()) < 0.005


@torch.no_grad()
def test_rows_depend_neither_on_threads_nor_on_other_rows(products):
    gate, up, down = linear(160, 96, 1), linear(160, 96, 2), linear(96, 160, 3)
    packed, x = (products.pack(gate, up, alternate=True), products.pack(down)), random(700, 96)
    norm, before = Norm(random(96, seed=5), 0.0, 1e-5), torch.get_num_threads()
    whole = products.gated(x, norm, *packed, x)
    x[650:] = torch.nan
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            again = products.gated(x, norm, *packed, x)
            assert torch.equal(again[:650], whole[:650])
            assert again[650:].isnan().all()
        assert torch.equal(products.gated(x[40:77].contiguous(), norm, *packed, x[40:77].contiguous()), whole[40:77])
    finally:
        torch.set_num_threads(before)


def test_only_fitting_weights_are_packed(products):
    assert products.pack(linear(64, 48, 1)) is None
    assert products.pack(linear(48, 64, 1)) is None
    assert products.pack(linear(32, 8192, 1)) is None  # a group of rows would not stay in the cache
    with torch.inference_mode():
        assert products.pack(linear(64, 64, 1)) is None  # changes could not be noticed
    assert products.pack(linear(64, 64, 1)) is not None
    assert products.packed_bytes == 64 * 64 * 2


@torch.no_grad()
@pytest.mark.parametrize(
    "how", ["in place", "past the counter", "another tensor", "another parameter", "another module"]
)
def test_changed_weights_are_noticed(products, how):
    layer = linear(64, 64, 1)
    packed = products.pack(layer)
    assert products.holds(packed, layer)
    if how == "in place":
        layer.weight[3, 5] += 1
    elif how == "past the counter":
        layer.weight.data.mul_(1.5)
    elif how == "another tensor":
        layer.weight.data = layer.weight.data.clone()
    elif how == "another parameter":
        layer.weight = nn.Parameter(random(64, 64, seed=7))
    else:
        layer = nn.Identity()
    assert not products.holds(packed, layer)


def wide(key_heads: int = 2, **changes: Any) -> hf.PreTrainedModel:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": key_heads,
        "head_dim": 32,
    }
    config = hf.LlamaConfig(**sizes, initializer_range=0.15, attn_implementation="sdpa", **changes)
    return hf.LlamaForCausalLM(config).bfloat16().eval()


def fused_copy(model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    twin = copy.deepcopy(model)
    return twin, fuse(twin, lambda: run(twin, IDS))


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_packed_model_is_no_farther_from_float32_than_the_unfused(key_heads):
    model = wide(key_heads)
    twin, counts = fused_copy(model)
    linears = [module for name, module in model.named_modules() if name.endswith("_proj")]
    assert counts["packed_bytes"] == sum(module.weight.nbytes for module in linears)
    exact = run(copy.deepcopy(model).float(), IDS)
    assert difference(run(twin, IDS), exact) < 1.1 * difference(run(model, IDS), exact)


def seen(model: nn.Module, names: list[str], monkeypatch: Any) -> dict[str, torch.Tensor]:
    monkeypatch.setattr("test_lm_fused.run", lambda module: run(module, IDS))
    return outputs(model, names)


@pytest.mark.parametrize("names", [*([name] for name in POINTS), POINTS])
def test_a_hook_anywhere_sees_what_it_would_see_unfused(monkeypatch, names):
    model = wide()
    twin, _ = fused_copy(model)
    mine, own = seen(twin, names, monkeypatch), seen(model, names, monkeypatch)
    exact = seen(copy.deepcopy(model).float(), names, monkeypatch)
    assert set(mine) == set(names)
    for name in names:
        assert difference(mine[name], exact[name]) < 1.2 * difference(own[name], exact[name])


@pytest.mark.parametrize("name", POINTS)
def test_a_replaced_output_reaches_the_logits(name):
    model = wide()
    twin, _ = fused_copy(model)
    for each in (model, twin):
        each.get_submodule(name).register_forward_hook(
            lambda module, args, output: (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5
        )
    assert difference(run(twin, IDS), run(model, IDS)) < 0.05


def test_changed_weights_and_copies_give_what_the_unfused_model_gives():
    model = wide()
    twin, _ = fused_copy(model)
    before, other = run(twin, IDS), copy.deepcopy(twin)
    for each in (model, other):
        with torch.no_grad():
            each.model.layers[0].mlp.up_proj.weight.mul_(1.5)
            each.model.layers[0].self_attn.o_proj.weight.data.mul_(1.5)
            each.model.layers[1].post_attention_layernorm.weight.mul_(2)
    assert difference(run(other, IDS), run(model, IDS)) < 0.05
    assert torch.equal(run(twin, IDS), before)
    twin.load_state_dict(model.state_dict())
    assert difference(run(twin, IDS), run(model, IDS)) < 0.05


@pytest.mark.parametrize("why", ["too large", "no library"])
def test_without_packed_weights_all_else_is_still_fused(monkeypatch, why):
    if why == "too large":
        monkeypatch.setattr(product, "_MOST_BYTES", 1000)
    else:
        monkeypatch.setattr(fused.Products, "library", staticmethod(lambda: None))
    model = wide()
    twin, counts = fused_copy(model)
    assert "packed_bytes" not in counts
    assert counts["layer"] == 3
    assert difference(run(twin, IDS), run(model, IDS)) < 0.05


def test_few_rows_are_left_to_torch(monkeypatch):
    twin, _ = fused_copy(wide())
    packed = run(twin, IDS)
    monkeypatch.setattr(blocks, "FEWEST_ROWS", IDS.numel() + 1)
    plain = run(twin, IDS)
    assert not torch.equal(plain, packed)
    assert difference(plain, packed) < 0.02


def test_a_changed_header_compiles_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
    source, header = tmp_path / "a.c", tmp_path / "a.h"
    source.write_text('#include "a.h"\nint value(void) { return VALUE; }\n', encoding="utf-8")
    for wanted in (1, 2):
        header.write_text(f"#define VALUE {wanted}\n", encoding="utf-8")
        native_library.cache_clear()
        library = native_library(source)
        assert library is not None
        assert library.value() == wanted
    native_library.cache_clear()
