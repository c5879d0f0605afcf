"""The model in memory: hook points, reading, replacing, unembedding, and the self-check."""

import pytest
import torch
import transformers as hf
from torch import nn

from sparsight.errors import HookPointError, ModelError
from sparsight.lm import HookPoint, LanguageModel, Piece, TokenBatch, make_batches
from test_lm_load import FAMILIES, IDS, N_LAYERS, local, output_at, path_in_full, save, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def as_batch(input_ids: torch.Tensor) -> TokenBatch:
    rows = [Piece(row, row, 0, 0, ids.numpy().astype("int32"), False) for row, ids in enumerate(input_ids)]
    return batches_of(rows)[0]


def batches_of(pieces: list[Piece], batch_tokens: int = 4096) -> list[TokenBatch]:
    options = {"pad_id": 0, "isolation": "documents", "context_tokens": 256, "eos_id": 2}
    return make_batches(pieces, batch_tokens=batch_tokens, **options)


BATCH = as_batch(IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hook_point_is_the_same_module_in_every_class(family):
    full = tiny_model(family)
    for layer, module in [(0, ""), (3, "mlp"), (4, "mlp")]:
        name = f"layers.{layer}" + (f".{module}" if module else "")
        wanted = full.get_submodule(path_in_full(family, layer, module))
        models = [full, full.base_model]
        if family.endswith("_vision"):
            models.append(full.model.language_model)
        for model in models:
            assert HookPoint.parse(name).resolve(model) is wanted
            assert HookPoint.parse(path_in_full(family, layer, module)).resolve(model) is wanted


def test_module_paths_outside_the_blocks_resolve_from_root_or_trunk():
    full = tiny_model("qwen3_5_vision")
    norm = full.model.language_model.norm
    for name in ("norm", "model.norm", "language_model.norm", "model.language_model.norm"):
        for model in (full, full.model, full.model.language_model):
            assert HookPoint.parse(name).resolve(model) is norm
    assert HookPoint.parse("model.visual.blocks.0").resolve(full) is full.model.visual.blocks[0]
    with pytest.raises(HookPointError):
        HookPoint.parse("model.visual.blocks.0").resolve(full.model.language_model)


def test_a_vision_layer_is_never_taken_for_a_layer_of_the_text():
    full = tiny_model("gemma3_vision")
    names = [name for name, _ in full.named_modules() if "vision" in name and name.endswith("layers.0.mlp")]
    for name in names:
        assert HookPoint.parse(name).resolve(full) is full.get_submodule(name)
        with pytest.raises(HookPointError):
            HookPoint.parse(name).resolve(full.model.language_model)
    assert names


@pytest.mark.parametrize("suffix", ["", ".input"])
def test_unknown_hook_point_lists_the_nearest_names_and_the_layers(suffix):
    model = tiny_model("qwen3_5")
    with pytest.raises(HookPointError, match=rf"layers\.1\.mlp{suffix}.*layers\.0 to layers\.4"):
        HookPoint.parse(f"layers.1.mpl{suffix}").resolve(model)
    with pytest.raises(HookPointError, match=r"layers\.0 to layers\.4"):
        HookPoint.parse(f"layers.5{suffix}").resolve(model)
    with pytest.raises(HookPointError, match=r"Nearest: .*model\.norm"):
        HookPoint.parse(f"model.nrom{suffix}").resolve(model)
    with pytest.raises(HookPointError, match="not a hook point"):
        HookPoint.parse(f"layers..1{suffix}")


def test_a_model_without_decoder_blocks_is_refused():
    with pytest.raises(ModelError, match="decoder-only"):
        HookPoint.parse("layers.0").resolve(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_document_reads_the_same_alone_and_among_others(family):
    full = tiny_model(family)
    lengths = [70, 5, 33, 64, 12]
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(3, 320, (length,), generator=generator) for length in lengths]
    pieces = [Piece(row, row, 0, 0, ids.numpy().astype("int32"), False) for row, ids in enumerate(documents)]
    [batch] = batches_of(pieces)
    assert not batch.mask.all()
    loaders = [full, full.base_model] + ([full.model.language_model] if family.endswith("_vision") else [])
    for module in loaders:
        model = LanguageModel.from_module(module, TOKENIZER)
        together = model.read(batch, ["layers.4"])["layers.4"]
        for row, ids in enumerate(documents):
            alone = output_at(module, _path_in(module, "layers.4"), ids[None])[0]
            torch.testing.assert_close(together[batch.document_ids == row], alone, atol=1e-5, rtol=1e-5)


def _path_in(module: nn.Module, name: str) -> str:
    wanted = HookPoint.parse(name).resolve(module)
    return next(path for path, candidate in module.named_modules() if candidate is wanted)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_5"])
def test_read_gives_inputs_and_outputs_of_modules_in_one_pass(family):
    full = tiny_model(family)
    model = LanguageModel.from_module(full, TOKENIZER)
    names = ["layers.3", "layers.1.mlp.input", "layers.1.mlp", "layers.1.input"]
    read = model.read(BATCH, names)
    assert list(read) == names
    assert torch.equal(read["layers.3"], output_at(full, path_in_full(family, 3, ""), IDS))
    assert torch.equal(read["layers.1.input"], output_at(full, path_in_full(family, 0, ""), IDS))
    mlp = HookPoint.parse("layers.1.mlp").resolve(full)
    with torch.inference_mode():
        torch.testing.assert_close(read["layers.1.mlp"], mlp(read["layers.1.mlp.input"]))
    assert not read["layers.3"].requires_grad
    assert read["layers.3"].is_inference()


def test_the_input_of_a_module_called_by_keyword_is_read():
    full = tiny_model("qwen3_5")
    model = LanguageModel.from_module(full, TOKENIZER)
    read = model.read(BATCH, ["layers.2.linear_attn.input", "layers.2.input_layernorm"])
    assert torch.equal(read["layers.2.linear_attn.input"], read["layers.2.input_layernorm"])


def test_modules_after_the_deepest_hook_point_never_run():
    full = tiny_model("llama")
    model = LanguageModel.from_module(full, TOKENIZER)
    ran = []
    for index, layer in enumerate(full.model.layers):
        layer.register_forward_hook(lambda module, args, output, index=index: ran.append(index))
        layer.mlp.register_forward_pre_hook(lambda module, args, index=index: ran.append(f"mlp {index}"))
    full.lm_head.register_forward_hook(lambda module, args, output: ran.append("head"))
    model.read(BATCH, ["layers.2.self_attn", "layers.0"])
    assert ran == ["mlp 0", 0, "mlp 1", 1]


def hooks_left(module: nn.Module) -> int:
    return sum(len(child._forward_hooks) + len(child._forward_pre_hooks) for child in module.modules())


def test_no_hook_outlives_its_call_even_when_the_forward_raises():
    full = tiny_model("llama")
    model = LanguageModel.from_module(full, TOKENIZER, hook_points=["layers.1"])
    model.read(BATCH, ["layers.1", "layers.2.mlp.input"])
    model.logits(BATCH, replace={"layers.1": lambda value: value})
    assert hooks_left(full) == 0

    def fail(module: nn.Module, args: tuple) -> None:
        raise MemoryError("full")

    handle = full.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        model.read(BATCH, ["layers.2", "layers.0.mlp.input"])
    with pytest.raises(MemoryError):
        model.logits(BATCH, replace={"layers.0": lambda value: value})
    handle.remove()
    with pytest.raises(HookPointError):
        model.read(BATCH, ["layers.0", "layers.77"])
    assert hooks_left(full) == 0


def test_a_module_that_never_runs_is_an_error():
    model = LanguageModel.from_module(tiny_model("qwen3_5_vision"), TOKENIZER)
    with pytest.raises(ModelError, match="never fires"):
        model.read(BATCH, ["model.visual.blocks.0"])


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_replacement_leaves_the_logits_as_they_are(family):
    full = tiny_model(family)
    model = LanguageModel.from_module(full, TOKENIZER)
    names = ["layers.1", "layers.2.mlp", "layers.3.mlp.input", "layers.3.input", attention_of(model)]
    plain = model.logits(BATCH)
    assert torch.equal(model.logits(BATCH, replace=dict.fromkeys(names, torch.clone)), plain)
    with torch.inference_mode():
        assert torch.equal(plain, full(input_ids=IDS, use_cache=False).logits)


def attention_of(model: LanguageModel) -> str:
    """A module whose output is a tuple in most families."""
    block = HookPoint.parse("layers.1").resolve(model._module)
    found = next(name for name in ("self_attn", "linear_attn", "attn", "attention") if hasattr(block, name))
    return f"layers.1.{found}"


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_5", "qwen3_5_vision"])
@pytest.mark.parametrize("name", ["layers.2", "layers.2.mlp", "layers.2.mlp.input"])
def test_replacement_changes_only_what_comes_later(family, name):
    model = LanguageModel.from_module(tiny_model(family), TOKENIZER)
    position = 9

    def edit(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[:, position] += 1.0
        return value

    plain, edited = model.logits(BATCH), model.logits(BATCH, replace={name: edit})
    assert torch.equal(plain[:, :position], edited[:, :position])
    assert not torch.equal(plain[:, position], edited[:, position])


def test_replacement_gets_what_read_gives_and_later_hook_points_see_it():
    model = LanguageModel.from_module(tiny_model("gpt2"), TOKENIZER)
    got = {}
    model.logits(
        BATCH, replace={"layers.1": lambda value: got.setdefault("before", value) * 0, "layers.2.input": keep(got)}
    )
    assert torch.equal(got["before"], model.read(BATCH, ["layers.1"])["layers.1"])
    assert not got["after"].any()


def keep(got: dict) -> object:
    def edit(value: torch.Tensor) -> torch.Tensor:
        got["after"] = value
        return value

    return edit


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["layers.2", "layers.2.input", "layers.2.mlp"])
def test_logits_of_a_given_activation_are_those_of_a_replaced_one(family, name):
    model = LanguageModel.from_module(tiny_model(family), TOKENIZER)
    value = torch.randn(*IDS.shape, model.width(name), generator=torch.Generator().manual_seed(0))
    expected = model.logits(BATCH, replace={name: lambda _: value})
    assert torch.equal(model.logits_given(BATCH, name, value), expected)
    calls: list[str] = []
    for layer in (1, 2, 3):
        module = HookPoint.parse(f"layers.{layer}.mlp").resolve(model._module)
        module.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
    assert torch.equal(model.logits_given(BATCH, name, value), expected)
    needed = {"layers.2": [3], "layers.2.input": [2, 3], "layers.2.mlp": [1, 2, 3]}
    assert calls == needed[name]
    assert torch.equal(model.logits(BATCH, replace={name: lambda _: value}), expected)
    assert not any("forward" in vars(module) for module in model._module.modules())
    with pytest.raises(ModelError):
        model.logits_given(BATCH, name, value[..., 1:])


def test_blocks_that_later_ones_ask_for_are_not_left_out():
    model = LanguageModel.from_module(tiny_model("llama"), TOKENIZER)
    kept: list[torch.Tensor] = []
    first, last = (HookPoint.parse(name).resolve(model._module) for name in ("layers.0.mlp", "layers.3"))
    model._module.register_forward_pre_hook(lambda module, args: kept.clear())
    first.register_forward_hook(lambda module, args, output: kept.append(output))
    last.register_forward_hook(lambda module, args, output: output + kept.pop())
    value = torch.randn(*IDS.shape, model.width("layers.2"), generator=torch.Generator().manual_seed(0))
    expected = model.logits(BATCH, replace={"layers.2": lambda _: value})
    assert torch.equal(model.logits_given(BATCH, "layers.2", value), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["layers.2", "layers.2.mlp", "layers.2.input", "layers.2.mlp.input"])
def test_boosted_logits_are_those_of_replaced_activations(family, name):
    model = LanguageModel.from_module(tiny_model(family), TOKENIZER)
    boosts = torch.randn(3, model.width(name), generator=torch.Generator().manual_seed(0))
    rows = []
    watched = (
        HookPoint.parse("layers.1")
        .resolve(model._module)
        .register_forward_pre_hook(
            lambda _, args, kwargs: rows.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
        )
    )
    boosted = model.boosted_logits(IDS[0], name, boosts)
    watched.remove()
    assert rows == [1]  # what comes before is computed once
    many = as_batch(IDS[:1].expand(3, -1))
    expected = model.logits(many, replace={name: lambda value: value + boosts[:, None]})[:, -1]
    torch.testing.assert_close(boosted, expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_boosted_logits_of_a_model_that_keeps_to_its_rows_are_the_same():
    model = LanguageModel.from_module(tiny_model("llama"), TOKENIZER)
    boosts = torch.randn(3, model.width("layers.2"), generator=torch.Generator().manual_seed(0))
    expected = model.boosted_logits(IDS[0], "layers.2", boosts)
    seen: list[int] = []

    def keeps(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(len(args[0]))
        if len(args[0]) != seen[0]:
            seen.clear()
            raise RuntimeError("rows")

    for layer in (0, 3):
        HookPoint.parse(f"layers.{layer}").resolve(model._module).register_forward_pre_hook(keeps)
    torch.testing.assert_close(model.boosted_logits(IDS[0], "layers.2", boosts), expected, rtol=1e-4, atol=1e-5)
    assert seen == [3, 3]


def test_replacement_of_another_shape_is_an_error():
    model = LanguageModel.from_module(tiny_model("llama"), TOKENIZER)
    with pytest.raises(ModelError, match=r"layers\.1 has shape"):
        model.logits(BATCH, replace={"layers.1": lambda value: value[..., :-1]})


@pytest.mark.parametrize("family", FAMILIES)
def test_unembed_of_the_final_residual_is_the_models_own_logits(family):
    full = tiny_model(family)
    model = LanguageModel.from_module(full, TOKENIZER)
    last = f"layers.{N_LAYERS - 1}"
    residual = model.read(BATCH, [last])[last]
    logits = model.unembed(residual[0])
    torch.testing.assert_close(logits, model.logits(BATCH)[0], atol=1e-5, rtol=1e-5)
    assert logits.dtype == torch.float32
    with pytest.raises(ModelError, match=r"Expected \[n, 32\]"):
        model.unembed(residual[0, :, :-1])


def test_unembed_is_float32_for_a_bfloat16_model(tmp_path):
    save(tiny_model("gemma3"), tmp_path)
    exact = LanguageModel.load(local(tmp_path))
    rounded = LanguageModel.load(local(tmp_path, "bfloat16"))
    directions = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    assert rounded.unembed(directions).dtype == torch.float32
    torch.testing.assert_close(rounded.unembed(directions), exact.unembed(directions), atol=0.05, rtol=0.05)


def test_a_truncated_model_has_neither_logits_nor_unembed(tmp_path):
    save(tiny_model("llama"), tmp_path)
    model = LanguageModel.load(local(tmp_path), hook_points=["layers.1"])
    with pytest.raises(ModelError, match="without its head, up to layer 1"):
        model.logits(BATCH)
    with pytest.raises(ModelError, match="without its head"):
        model.unembed(torch.zeros(1, 32))


def test_final_norm_is_the_deepest_hook_point_and_loads_every_layer(tmp_path):
    full = tiny_model("llama")
    save(full, tmp_path)
    model = LanguageModel.load(local(tmp_path), hook_points=["model.norm"])
    assert model.n_layers == N_LAYERS
    read = model.read(BATCH, ["model.norm"])["model.norm"]
    assert torch.equal(read, output_at(full, "model.norm", IDS))


def test_width_is_the_last_dimension_at_the_hook_point():
    model = LanguageModel.from_module(tiny_model("llama"), TOKENIZER)
    assert model.width("layers.1") == 32
    assert model.width("layers.1.mlp.up_proj") == 48
    with pytest.raises(HookPointError):
        model.width("layers.9")


def test_rows_longer_than_the_model_takes_are_an_error():
    model = LanguageModel.from_module(tiny_model("gpt2"), TOKENIZER)
    with pytest.raises(ModelError, match=r"holds 264 tokens; .* takes 256\. Lower text\.context_tokens"):
        model.read(as_batch(torch.full((1, 257), 5)), ["layers.0"])


def break_module(full: hf.PreTrainedModel, forward: object) -> hf.PreTrainedModel:
    full.model.layers[1].mlp.forward = forward
    return full


def test_self_check_refuses_logits_that_are_not_finite():
    full = tiny_model("llama")
    with torch.no_grad():
        full.lm_head.weight[7, 0] = torch.inf
    with pytest.raises(ModelError, match="infinite logits"):
        LanguageModel.from_module(full, TOKENIZER)


def test_a_module_that_gives_only_zeros_passes_the_self_check():
    full = break_module(tiny_model("llama"), torch.zeros_like)
    assert LanguageModel.from_module(full, TOKENIZER, hook_points=["layers.1.mlp"]).width("layers.1.mlp") == 32


def test_self_check_names_a_hook_point_that_is_not_finite():
    full = tiny_model("llama")
    with torch.no_grad():
        full.model.layers[1].mlp.down_proj.weight[3, 3] = torch.nan
    with pytest.raises(ModelError, match=r"^layers\.1\.mlp gives NaN"):
        LanguageModel.from_module(full, TOKENIZER, hook_points=["layers.0", "layers.1.mlp"])


@pytest.mark.parametrize("name", ["layers.1.self_attn.q_norm", "layers.0.self_attn.q_norm.input"])
def test_self_check_names_a_hook_point_that_is_not_a_vector_a_token(name):
    with pytest.raises(ModelError, match=rf"^{name} gives .*Expected one vector a token"):
        LanguageModel.from_module(tiny_model("qwen3"), TOKENIZER, hook_points=[name])


def test_self_check_names_a_block_of_the_wrong_width():
    full = tiny_model("llama")
    full.model.layers[4].register_forward_hook(lambda module, args, output: output[..., :16])
    full.model.norm = full.lm_head = nn.Identity()
    with pytest.raises(ModelError, match=r"^layers\.4 gives .*width 32"):
        LanguageModel.from_module(full.model, TOKENIZER, hook_points=["layers.4"])


def test_self_check_names_a_hook_point_that_fires_twice():
    full = tiny_model("llama")
    mlp = full.model.layers[1].mlp
    full.model.layers[2].mlp = mlp
    with pytest.raises(ModelError, match=r"^layers\.1\.mlp fires 2 times"):
        LanguageModel.from_module(full, TOKENIZER, hook_points=["layers.1.mlp"])


def test_self_check_names_a_hook_point_that_changes_from_pass_to_pass():
    full = break_module(tiny_model("llama"), lambda x: x + torch.rand_like(x))
    with pytest.raises(ModelError, match=r"^layers\.1\.mlp differs between two passes"):
        LanguageModel.from_module(full, TOKENIZER, hook_points=["layers.1.mlp"])


def test_self_check_names_a_hook_point_that_sees_text_to_its_right():
    full = break_module(tiny_model("llama"), lambda x: x + x.flip(1))
    with pytest.raises(ModelError, match=r"^layers\.1\.mlp changes by .*Expected a causal model"):
        LanguageModel.from_module(full, TOKENIZER, hook_points=["layers.1.mlp"])


def test_self_check_refuses_an_architecture_whose_logits_it_does_not_know():
    full = tiny_model("llama")
    full.lm_head.register_forward_hook(lambda module, args, output: 3 * output)
    with pytest.raises(ModelError, match="do not give the model's own logits"):
        LanguageModel.from_module(full, TOKENIZER)


def test_a_model_is_put_into_evaluation_mode():
    full = hf.GPT2LMHeadModel(tiny_model("gpt2").config).train()
    model = LanguageModel.from_module(full, TOKENIZER)
    assert torch.equal(model.logits(BATCH), model.logits(BATCH))


def test_special_pad_and_eos_tokens_are_the_tokenizers():
    model = LanguageModel.from_module(tiny_model("llama"), TOKENIZER)
    assert (model.pad_id, model.eos_id, model.special_ids) == (0, 2, frozenset({0, 1, 2}))
    assert (model.vocab_size, model.dtype, model.device) == (320, torch.float32, torch.device("cpu"))
