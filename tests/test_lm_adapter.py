"""Adapters: on, they are the merged model; off, they are the base; what is more than a LoRA of this base is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from adapters import ALPHA, RANK, merge_by_hand, write_adapter
from sparsight.errors import ModelError
from sparsight.lm import Adapter, LanguageModel, ModelConfig, TokenBatch, is_adapter, iter_pieces, make_batches
from sparsight.lm.config import TextConfig

HOOKS = ["layers.1", "layers.2.mlp", "layers.3.self_attn.q_proj", "layers.3"]


@pytest.fixture(scope="module")
def whole(model_folder: Path) -> LanguageModel:
    return LanguageModel.load(ModelConfig(id=str(model_folder), dtype="float32"))


@pytest.fixture
def batch(whole: LanguageModel, text_path: str) -> TokenBatch:
    text = TextConfig(files=(text_path,), context_tokens=32)
    pieces = [piece for piece, _ in zip(iter_pieces(text, whole.tokenizer), range(6), strict=False)]
    options = {"isolation": "documents", "context_tokens": 32, "eos_id": 0}
    return make_batches(pieces, batch_tokens=512, pad_id=0, **options)[0]


def load(folder: Path, **changes: str) -> LanguageModel:
    return LanguageModel.load(ModelConfig(**({"id": str(folder), "dtype": "float32"} | changes)))  # type: ignore[arg-type]


def refused(folder: Path, whole: LanguageModel, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        whole.with_adapters({"tuned": Adapter.read(folder)})
    assert "\n" not in str(caught.value)


def test_an_adapter_is_the_model_merged_by_hand(
    tmp_path: Path, model_folder: Path, whole: LanguageModel, batch: TokenBatch
) -> None:
    products = write_adapter(tmp_path / "lora", base=str(model_folder))
    merged = load(merge_by_hand(model_folder, products, ALPHA / RANK, tmp_path / "merged"))
    models = whole.with_adapters({"tuned": Adapter.read(tmp_path / "lora")})
    torch.testing.assert_close(models["tuned"].logits(batch), merged.logits(batch), atol=1e-4, rtol=1e-4)
    ours, theirs, plain = (model.read(batch, HOOKS) for model in (models["tuned"], merged, whole))
    for name in HOOKS:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-4)
        assert (ours[name] - plain[name]).norm() > 0.05 * plain[name].norm()
    assert torch.equal(models["base"].logits(batch), whole.logits(batch))
    assert models["tuned"].shares_weights_with(whole)


def test_the_weights_stay_as_they_were_and_no_hook_is_left(
    tmp_path: Path, model_folder: Path, whole: LanguageModel, batch: TokenBatch
) -> None:
    write_adapter(tmp_path, base=str(model_folder))
    tuned = whole.with_adapters({"tuned": Adapter.read(tmp_path)})["tuned"]
    before = whole.logits(batch)
    tuned.logits(batch)

    def fails(_: torch.Tensor) -> torch.Tensor:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        tuned.logits(batch, replace={"layers.1": fails})
    assert torch.equal(whole.logits(batch), before)
    assert not any(module._forward_hooks for module in whole._module.modules())


def test_a_cut_model_takes_the_part_of_an_adapter_that_it_has(
    tmp_path: Path, model_folder: Path, whole: LanguageModel, batch: TokenBatch
) -> None:
    write_adapter(tmp_path, base=str(model_folder))
    adapter = Adapter.read(tmp_path)
    cut = LanguageModel.load(ModelConfig(id=str(model_folder), dtype="float32"), hook_points=["layers.1"])
    of_cut = cut.with_adapters({"tuned": adapter})["tuned"].read(batch, ["layers.1"])["layers.1"]
    of_whole = whole.with_adapters({"tuned": adapter})["tuned"].read(batch, ["layers.1"])["layers.1"]
    assert torch.equal(of_cut, of_whole)
    # a block that neither the cut model nor the whole one has
    write_adapter(tmp_path, base=str(model_folder), layers=(0, 4))
    with pytest.raises(ModelError, match=r"does not fit this base.*layers\.0 to layers\.1"):
        cut.with_adapters({"tuned": Adapter.read(tmp_path)})


def test_in_bfloat16_an_adapter_of_zeros_changes_no_bit(tmp_path: Path, model_folder: Path, batch: TokenBatch) -> None:
    write_adapter(tmp_path / "zero", base=str(model_folder), size=0.0)
    write_adapter(tmp_path / "small", base=str(model_folder), size=0.01)
    model = load(model_folder, dtype="bfloat16")
    models = model.with_adapters({"tuned": Adapter.read(tmp_path / "zero"), "null": Adapter.read(tmp_path / "small")})
    assert torch.equal(models["base"].logits(batch), models["tuned"].logits(batch))
    assert not torch.equal(models["base"].logits(batch), models["null"].logits(batch))


def test_scales_are_peft_s(tmp_path: Path, model_folder: Path) -> None:
    write_adapter(
        tmp_path,
        base=str(model_folder),
        use_rslora=True,
        alpha_pattern={"mlp.down_proj": 30, "layers.1.self_attn.q_proj": 9},
    )
    parts = Adapter.read(tmp_path).parts
    assert parts["model.layers.0.self_attn.q_proj"].scale == ALPHA / RANK**0.5
    assert parts["model.layers.0.mlp.down_proj"].scale == 30 / RANK**0.5
    assert parts["model.layers.1.self_attn.q_proj"].scale == 9 / RANK**0.5


def test_gpt2_s_matrices_lie_the_other_way_round(tmp_path: Path, whole: LanguageModel, batch: TokenBatch) -> None:
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()
    A, B = torch.randn(2, 32) * 0.3, torch.randn(96, 2) * 0.3
    names = [f"base_model.model.transformer.h.0.attn.c_attn.lora_{side}.weight" for side in "AB"]
    save_file(dict(zip(names, (A, B), strict=True)), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    model = LanguageModel.from_module(module, whole.tokenizer)
    tuned = model.with_adapters({"tuned": Adapter.read(tmp_path)})["tuned"].logits(batch)
    merged = copy.deepcopy(module)
    Adapter.read(tmp_path).fit(merged).merge()
    with torch.no_grad():
        module.transformer.h[0].attn.c_attn.weight += 2 * (B @ A).T
    torch.testing.assert_close(merged.transformer.h[0].attn.c_attn.weight, module.transformer.h[0].attn.c_attn.weight)
    torch.testing.assert_close(tuned, model.logits(batch), atol=1e-4, rtol=1e-4)


def test_half_an_adapter_lies_between(tmp_path: Path, model_folder: Path, batch: TokenBatch) -> None:
    products = write_adapter(tmp_path / "lora", base=str(model_folder))
    half = load(merge_by_hand(model_folder, products, 0.5 * ALPHA / RANK, tmp_path / "half"))
    module = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode(), Adapter.read(tmp_path / "lora").fit(module).applied(0.5):
        logits = module(input_ids=batch.input_ids, use_cache=False).logits
    torch.testing.assert_close(logits, half.logits(batch), atol=1e-4, rtol=1e-4)


def test_gradients_go_through_an_adapter_that_was_read_without(
    tmp_path: Path, model_folder: Path, whole: LanguageModel, batch: TokenBatch
) -> None:
    write_adapter(tmp_path, base=str(model_folder))
    module = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    Adapter.read(tmp_path).fit(module).merge()
    found = []
    for model in (
        whole.with_adapters({"tuned": Adapter.read(tmp_path)})["tuned"],
        LanguageModel.from_module(module, whole.tokenizer),
    ):
        value = model.read(batch, ["layers.0.input", "layers.3"])[
            "layers.0.input"
        ]  # in inference mode, through all adapters
        found.append(model.gradient(batch, "layers.0.input", value.clone(), lambda logits: logits.square().mean()))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-3)
    assert float(found[0].norm()) > 0


def test_merging_is_adding(tmp_path: Path, model_folder: Path, whole: LanguageModel, batch: TokenBatch) -> None:
    write_adapter(tmp_path, base=str(model_folder))
    adapter = Adapter.read(tmp_path)
    tuned = whole.with_adapters({"tuned": adapter})["tuned"].logits(batch)
    module = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    adapter.fit(module).merge()
    merged = LanguageModel.from_module(module, whole.tokenizer).logits(batch)
    torch.testing.assert_close(tuned, merged, atol=1e-4, rtol=1e-4)


def test_an_adapter_for_another_base_is_refused(tmp_path: Path, model_folder: Path, whole: LanguageModel) -> None:
    write_adapter(tmp_path / "name", base="someone/other-model")
    refused(
        tmp_path / "name", whole, r"made for someone/other-model, and the base given is .*tiny-llama\. Give that base"
    )
    write_adapter(tmp_path / "upper", base="hub/TINY-Llama")
    assert "tuned" in whole.with_adapters({"tuned": Adapter.read(tmp_path / "upper")})
    product = {f"base_model.model.model.layers.0.mlp.gate_proj.lora_{side}.weight": torch.ones(3, 3) for side in "AB"}
    write_adapter(tmp_path / "shape", base=str(model_folder), tensors=product)
    refused(
        tmp_path / "shape",
        whole,
        r"changes model\.layers\.0\.mlp\.gate_proj as a matrix \(3, 3\); this base has \(64, 32\)",
    )
    write_adapter(tmp_path / "deep", base=str(model_folder), layers=(0, 7))
    refused(tmp_path / "deep", whole, r"does not fit this base. model\.layers\.7.*layers\.0 to layers\.3")


def test_a_known_hash_counts_more_than_a_name(tmp_path: Path, model_folder: Path, whole: LanguageModel) -> None:
    write_adapter(tmp_path, base="any/name")
    file = tmp_path / "adapter_model.safetensors"
    identity = whole.provenance["sampled_sha256"]
    save_file(load_file(file), file, metadata={"base_identity": json.dumps({"sampled_sha256": identity})})
    assert "tuned" in whole.with_adapters({"tuned": Adapter.read(tmp_path)})
    save_file(load_file(file), file, metadata={"base_identity": json.dumps({"sampled_sha256": "0" * 64})})
    refused(tmp_path, whole, "made for any/name")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "more than a low-rank change of matrices .use_dora = True"),
        ({"bias": "all"}, "bias = all"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = pissa_niter_4"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'. Expected LORA"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "Only plain module names"),
        ({"lora_alpha": "much"}, "lora_alpha 'much'"),
    ],
)
def test_what_is_more_than_a_lora_is_refused(tmp_path: Path, whole: LanguageModel, config: dict, message: str) -> None:
    write_adapter(tmp_path, base="", **config)
    refused(tmp_path, whole, message)


def test_files_that_are_no_adapter_are_refused(tmp_path: Path, whole: LanguageModel) -> None:
    write_adapter(tmp_path / "a", base="", tensors={"base_model.model.lm_head.weight": torch.ones(2, 2)})
    refused(tmp_path / "a", whole, "'base_model.model.lm_head.weight', which is no lora_A or lora_B")
    write_adapter(tmp_path / "b", base="", tensors={"model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 32)})
    refused(tmp_path / "b", whole, r"Expected A \[r, d_in\] and B")
    nan = {f"lm_head.lora_{side}.weight": torch.full((2, 2), float("nan")) for side in "AB"}
    write_adapter(tmp_path / "c", base="", tensors=nan)
    refused(tmp_path / "c", whole, "no matrix of finite numbers")
    head = {"lm_head.lora_A.weight": torch.ones(2, 32), "lm_head.lora_B.weight": torch.ones(400, 2)}
    write_adapter(tmp_path / "d", base="", tensors=head)
    refused(tmp_path / "d", whole, "lm_head, which is no part of a decoder block")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    refused(tmp_path / "a", whole, "adapter_model.bin is a pickle")
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    refused(tmp_path / "b", whole, "not a readable safetensors file")
    (tmp_path / "c" / "adapter_config.json").write_text("[1]")
    refused(tmp_path / "c", whole, "not an object")


def test_an_adapter_given_as_a_model_is_told_from_one(tmp_path: Path, model_folder: Path) -> None:
    write_adapter(tmp_path, base=str(model_folder))
    assert is_adapter(tmp_path)
    assert not is_adapter(model_folder)
    with pytest.raises(ModelError, match="is an adapter without its base"):
        load(tmp_path)


def test_peft_gives_the_same(tmp_path: Path, model_folder: Path, whole: LanguageModel, batch: TokenBatch) -> None:
    peft = pytest.importorskip("peft")
    write_adapter(tmp_path, base=str(model_folder), alpha_pattern={"down_proj": 9})
    module = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(module, tmp_path).eval()
    with torch.inference_mode():
        expected = theirs(input_ids=batch.input_ids).logits
    ours = whole.with_adapters({"tuned": Adapter.read(tmp_path)})["tuned"].logits(batch)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
