"""Fused forwards: each kernel against eager torch, whole models against unfused ones, hooks, and what is left alone."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_modules

from sparsight.artifact.native import native_library
from sparsight.lm import Adapter, LanguageModel
from sparsight.lm.fused import fuse
from sparsight.lm.kernels import Kernels, kernel_library
from sparsight.lm.lowrank import LowRank
from test_lm_load import SIZES, local, save
from test_lm_load import tiny_model as family_model

LIBRARY = kernel_library()
SUPPORT = LIBRARY.support() if LIBRARY is not None else 0
pytestmark = pytest.mark.skipif(SUPPORT == 0, reason="no AVX-512 for bfloat16")
TILES = [
    pytest.param(False, id="vectors"),
    pytest.param(True, id="tiles", marks=pytest.mark.skipif(SUPPORT < 2, reason="no AMX tiles")),
]

IDS = torch.randint(3, 300, (3, 37), generator=torch.Generator().manual_seed(0))
LAYERS = 3
POINTS = [
    f"model.layers.1.{part}" for part in ("mlp", "mlp.gate_proj", "mlp.down_proj", "mlp.act_fn", "input_layernorm")
]
POINTS += [f"model.layers.1.{part}" for part in ("self_attn", "self_attn.q_proj", "self_attn.o_proj")]
POINTS += ["model.layers.1.post_attention_layernorm", "model.layers.1", "model.norm"]


@pytest.fixture
def kernels() -> Kernels:
    assert LIBRARY is not None
    return Kernels(LIBRARY)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def difference(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).norm() / reference.double().norm())


def tiny(key_heads: int = 2, head_dim: int = 24, **changes: Any) -> hf.PreTrainedModel:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 72,
        "intermediate_size": 104,
        "num_hidden_layers": LAYERS,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": key_heads, "head_dim": head_dim}
    config = hf.LlamaConfig(**sizes, **heads, initializer_range=0.2, attn_implementation="sdpa", **changes)
    return hf.LlamaForCausalLM(config).bfloat16().eval()


def run(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


def fused_copy(model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    twin = copy.deepcopy(model)
    return twin, fuse(twin, lambda: run(twin, IDS[:1]))


def outputs(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            seen[name] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    run(model)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 33), (5, 576)])
def test_norm_and_sum_are_those_of_float32_rounded_once(kernels, rows, width, offset):
    x, delta, weight = random(rows, width), random(rows, width, seed=1), random(width, seed=2)

    def reference(x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (offset + weight.float())

    torch.testing.assert_close(
        kernels.norm(x, weight, offset, 1e-5), reference(x.float()).bfloat16(), rtol=0.008, atol=0
    )
    total, normed = kernels.add_norm(x, delta, weight, offset, 1e-5)
    assert torch.equal(total, x + delta)
    torch.testing.assert_close(normed, reference(total.float()).bfloat16(), rtol=0.008, atol=0)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 33), (5, 1536)])
def test_silu_mul_is_that_of_float32_rounded_once(kernels, rows, width):
    both = random(rows, 2 * width, scale=20)
    wanted = F.silu(both[:, :width].float()) * both[:, width:].float()
    torch.testing.assert_close(kernels.silu_mul(both), wanted.bfloat16(), rtol=0.008, atol=1e-30)


def test_silu_mul_keeps_nan_and_extremes(kernels):
    gate = torch.tensor([[torch.nan, 1e30, -1e30, 0.0, 1.0]])
    got = kernels.silu_mul(torch.cat([gate, torch.ones(1, 5)], dim=1).bfloat16())[0].float()
    assert got[0].isnan()
    torch.testing.assert_close(got[1:], torch.tensor([1e30, 0.0, 0.0, 0.7310586]), rtol=0.008, atol=1e-5)


@pytest.mark.parametrize("tiles", TILES)
@pytest.mark.parametrize("heads", [(4, 4), (9, 3), (2, 1)])
@pytest.mark.parametrize(("positions", "width"), [(1, 64), (2, 8), (31, 24), (32, 64), (37, 10), (100, 96), (130, 64)])
def test_attention_is_that_of_float32_within_rounding(kernels, heads, positions, width, tiles):
    kernels.has_tiles = tiles
    n, (n_q, n_k) = 2, heads
    qkv, angles = random(n, positions, n_q + 2 * n_k, width), random(positions, width // 2, seed=1).float().repeat(1, 2)
    cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
    got = kernels.attention(qkv, cos[None], sin[None], (n, positions, n_q, n_k, width), width**-0.5)

    def rotated(x):
        low, high = x.chunk(2, dim=-1)
        return x * cos.float() + torch.cat([-high, low], dim=-1) * sin.float()

    q, k, v = qkv.float().transpose(1, 2).split([n_q, n_k, n_k], dim=1)
    wanted = F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True, enable_gqa=True)
    assert difference(got.view(n, positions, n_q, width), wanted.transpose(1, 2)) < 0.004


@pytest.mark.parametrize("tiles", TILES)
def test_attention_sees_neither_what_follows_nor_other_sequences(kernels, tiles):
    kernels.has_tiles = tiles
    qkv, table = random(2, 70, 6, 16), random(70, 16)[None]
    got = kernels.attention(qkv, table, table, (2, 70, 2, 2, 16), 0.25).view(2, 70, 32)
    changed = torch.cat([random(1, 70, 6, 16, seed=9), torch.cat([qkv[1:, :41], random(1, 29, 6, 16, seed=8)], dim=1)])
    again = kernels.attention(changed, table, table, (2, 70, 2, 2, 16), 0.25).view(2, 70, 32)
    alone = kernels.attention(qkv[1:, :41].contiguous(), table[:, :41], table[:, :41], (1, 41, 2, 2, 16), 0.25)
    assert torch.equal(got[1, :41], again[1, :41])
    assert torch.equal(got[1, :41], alone)


def test_buffers_are_used_again_only_when_nobody_holds_them(kernels):
    first = kernels.empty(4, 8)
    part = first[1:]
    second = kernels.empty(4, 8)
    assert second.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
    address = first.data_ptr()
    del first
    assert kernels.empty(4, 8).data_ptr() != address
    del part
    assert kernels.empty(3, 8).data_ptr() == address


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_fused_model_is_no_farther_from_float32_than_the_unfused(key_heads):
    model = tiny(key_heads)
    twin, counts = fused_copy(model)
    assert counts.pop("packed_bytes", 0) == 0
    assert counts == {"norm": 2 * LAYERS + 1, "mlp": LAYERS, "attention": LAYERS, "layer": LAYERS}
    exact = run(copy.deepcopy(model).float())
    assert difference(run(twin), exact) < 1.2 * difference(run(model), exact)
    assert not torch.equal(run(twin), run(model))


@pytest.mark.parametrize("name", POINTS)
def test_a_hook_anywhere_sees_what_it_would_see_unfused(name):
    model = tiny()
    twin, _ = fused_copy(model)
    exact = outputs(copy.deepcopy(model).float(), [name])[name]
    assert difference(outputs(twin, [name])[name], exact) < 1.2 * difference(outputs(model, [name])[name], exact)


def test_hooks_everywhere_at_once_all_fire():
    model = tiny()
    twin, _ = fused_copy(model)
    names = [name for name, module in model.named_modules() if name and name != "model"]
    seen, wanted = outputs(twin, names), outputs(model, names)
    assert set(seen) == set(wanted)
    exact = outputs(copy.deepcopy(model).float(), POINTS)
    for name in POINTS:
        assert difference(seen[name], exact[name]) < 1.2 * difference(wanted[name], exact[name])


@pytest.mark.parametrize("name", POINTS)
def test_a_replaced_output_reaches_the_logits(name):
    model = tiny()
    twin, _ = fused_copy(model)
    plain = run(model)
    for each in (model, twin):
        each.get_submodule(name).register_forward_hook(
            lambda module, args, output: (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5
        )
    assert difference(run(twin), run(model)) < 0.05
    assert difference(run(model), plain) > 0.05


def adapter_for(model: nn.Module, seed: int = 0, rank: int = 4) -> Adapter:
    paths = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and "layers" in name]
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for path in paths:
        d_out, d_in = model.get_submodule(path).weight.shape
        A, B = torch.randn(rank, d_in, generator=generator), torch.randn(d_out, rank, generator=generator)
        parts[path] = LowRank(A / d_in**0.5, 0.3 * B, 0.5)
    return Adapter(name="made here", parts=parts)


@pytest.mark.parametrize("others", [None, 0.0, 0.5])
def test_an_adapter_stays_on_the_fused_path_and_is_what_it_is_unfused(monkeypatch, others):
    model = tiny()
    adapter, other = adapter_for(model), adapter_for(model, seed=1)
    twin, _ = fused_copy(model)
    exact = copy.deepcopy(model).float()
    called: list[nn.Module] = []
    monkeypatch.setattr(
        nn.Linear, "forward", lambda self, x: called.append(self) or F.linear(x, self.weight, self.bias)
    )

    def adapted(model: nn.Module) -> torch.Tensor:
        with adapter.fit(model).applied(), nullcontext() if others is None else other.fit(model).applied(others):
            return run(model)

    own, wanted = adapted(model), adapted(exact)
    called.clear()
    fast = adapted(twin)
    assert called == [twin.lm_head]
    assert difference(wanted, run(exact)) > 0.2
    assert difference(fast, wanted) < 1.2 * difference(own, wanted)
    assert difference(run(twin), run(exact)) < 1.2 * difference(run(model), run(exact))  # and it is gone


def test_an_adapter_at_no_strength_leaves_the_same_numbers():
    twin, _ = fused_copy(tiny())
    plain = run(twin)
    with adapter_for(twin).fit(twin).applied(0.0):
        assert torch.equal(run(twin), plain)


@pytest.mark.parametrize("name", POINTS)
def test_a_hook_anywhere_sees_what_an_adapter_changed(name):
    model = tiny()
    adapter = adapter_for(model)
    twin, _ = fused_copy(model)
    exact = copy.deepcopy(model).float()
    seen = []
    for each in (twin, model, exact):
        with adapter.fit(each).applied():
            seen.append(outputs(each, [name])[name])
    fast, own, wanted = seen
    assert difference(fast, wanted) < 1.2 * difference(own, wanted)
    assert difference(outputs(exact, [name])[name], wanted) > 0.02


def test_what_a_hook_kept_is_not_overwritten_by_later_passes():
    twin, _ = fused_copy(tiny())
    kept: list[torch.Tensor] = []
    handle = twin.model.layers[1].register_forward_hook(lambda module, args, output: kept.append(output))
    run(twin)
    before = kept[0].clone()
    handle.remove()
    run(twin, IDS.flip(1))
    assert torch.equal(kept[0], before)


def test_two_passes_and_any_number_of_threads_give_the_same_bits():
    twin, _ = fused_copy(tiny())
    first, threads = run(twin), torch.get_num_threads()
    assert torch.equal(run(twin), first)
    names = [f"model.layers.{layer}" for layer in range(LAYERS)]
    one = outputs(twin, names)
    try:
        torch.set_num_threads(3)
        assert all(torch.equal(value, one[name]) for name, value in outputs(twin, names).items())
    finally:
        torch.set_num_threads(threads)


def test_text_to_the_right_and_in_other_rows_changes_little():
    twin, _ = fused_copy(tiny())
    longer = torch.cat([IDS, IDS.flip(0)], dim=1)
    assert difference(run(twin, longer)[:, : IDS.shape[1]], run(twin)) < 0.02


@pytest.mark.parametrize("what", ["gradients", "mask", "cache", "float32"])
def test_elsewhere_the_modules_own_forward_is_called(what):
    model = tiny()
    twin, _ = fused_copy(model)
    mask = torch.ones_like(IDS)
    mask[0, 20:] = 0
    options: dict[str, Any] = {"attention_mask": mask} if what == "mask" else {"use_cache": what == "cache"}
    if what == "float32":
        model, twin = model.float(), twin.float()
    with torch.set_grad_enabled(what == "gradients"):
        mine, own = twin(input_ids=IDS, **options).logits, model(input_ids=IDS, **options).logits
    if what in ("gradients", "float32"):
        assert torch.equal(mine, own)
    else:
        assert difference(mine[mask.bool()], own[mask.bool()]) < 0.05
    if what == "gradients":
        mine.float().sum().backward()
        assert twin.model.layers[0].mlp.gate_proj.weight.grad is not None


def test_changed_weights_are_seen():
    model = tiny()
    twin, _ = fused_copy(model)
    for each in (model, twin):
        with torch.no_grad():
            each.model.layers[0].mlp.up_proj.weight.mul_(1.5)
            each.model.layers[1].self_attn.q_proj.weight.data = random(96, 72, seed=5, scale=0.2)
            each.model.layers[1].input_layernorm.weight.mul_(2)
    assert difference(run(twin), run(model)) < 0.05


def test_a_copy_is_independent_of_the_model():
    twin, _ = fused_copy(tiny())
    before = run(twin)
    other = copy.deepcopy(twin)
    with torch.no_grad():
        other.model.norm.weight.mul_(3)
        other.model.layers[0].mlp.gate_proj.weight.mul_(3)
    assert torch.equal(run(twin), before)
    assert difference(run(other), before) > 0.1


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", {"norm", "mlp", "attention", "layer"}),
        ("qwen2", {"norm", "mlp", "layer"}),  # biases of q, k and v
        ("qwen3", {"norm", "mlp", "layer"}),  # norms of q and k
        ("gemma2", {"norm"}),  # GELU, norms after the sublayers, capped scores
        ("gemma3", {"norm"}),
        ("gpt2", set()),
        ("gpt_neox", set()),
    ],
)
def test_only_what_is_recognised_is_fused(family, kinds):
    if family in ("qwen2", "gemma2"):
        model = {"qwen2": hf.Qwen2ForCausalLM, "gemma2": hf.Gemma2ForCausalLM}[family](
            {"qwen2": hf.Qwen2Config, "gemma2": hf.Gemma2Config}[family](**SIZES)
        )
    else:
        model = family_model(family)
    model = model.bfloat16().eval()
    twin, counts = fused_copy(model)
    found = {kind for kind, n in counts.items() if kind not in ("none", "packed_bytes") and n}
    assert found == kinds
    assert difference(run(twin), run(model)) < 0.05
    if not kinds:
        assert counts == {"none": "no module is recognised"}
        assert torch.equal(run(twin), run(model))


@pytest.mark.parametrize("changes", [{"mlp_bias": True}, {"hidden_act": "gelu"}, {"hidden_act": "relu"}])
def test_another_mlp_is_left_alone(changes):
    _, counts = fused_copy(tiny(**changes))
    assert counts["mlp"] == 0


def test_another_attention_is_left_alone():
    assert fused_copy(tiny(attention_bias=True))[1]["attention"] == 0
    eager = tiny()
    eager.config._attn_implementation = "eager"
    assert fused_copy(eager)[1]["attention"] == 0


def test_nothing_is_fused_in_float32_or_without_a_compiler(monkeypatch):
    assert fused_copy(tiny().float())[1] == {"none": "not bfloat16 on the CPU"}
    native_library.cache_clear()
    monkeypatch.setenv("SPARSIGHT_NATIVE", "0")
    model = tiny()
    twin, counts = fused_copy(model)
    native_library.cache_clear()
    assert counts == {"none": "no compiled kernels"}
    assert torch.equal(run(twin), run(model))


def test_a_loaded_model_is_fused_and_records_it(tmp_path):
    save(family_model("llama").bfloat16(), tmp_path)
    model = LanguageModel.load(local(tmp_path, dtype="bfloat16"), hook_points=None)
    assert model.provenance["fused"]["mlp"] > 0
    assert LanguageModel.load(local(tmp_path), hook_points=["layers.1"]).provenance["fused"] == {
        "none": "not bfloat16 on the CPU"
    }


@pytest.mark.parametrize("name", ["_storage_Use_Count", "_has_any_global_hook"])
def test_nothing_is_fused_where_torch_lacks_a_name_it_needs(monkeypatch, name):
    monkeypatch.delattr(torch._C if name == "_storage_Use_Count" else torch_modules, name)
    model = tiny()
    counts = fuse(model, lambda: run(model))
    assert list(counts) == ["none"]
    assert "lacks" in counts["none"]
    assert not any("forward" in vars(module) for module in model.modules())
