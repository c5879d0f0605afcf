"""Loading: a truncated model is the full model, bit for bit, and reads nothing that it does not need."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from sparsight.errors import HookPointError, ModelError
from sparsight.lm import LanguageModel, ModelConfig
from sparsight.lm import checkpoint as checkpoint_module
from sparsight.lm import load as load_module

N_LAYERS = 5
SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention", "linear_attention"],
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"], "sliding_window": 8}
GEMMA = SIZES | SLIDING | {"query_pre_attn_scalar": 16, "final_logit_softcapping": 2.0}


def tiny_config(family: str) -> hf.PreTrainedConfig:
    if family == "gpt2":
        ids = {"bos_token_id": 1, "eos_token_id": 2}
        return hf.GPT2Config(vocab_size=320, n_embd=32, n_layer=N_LAYERS, n_head=2, n_positions=256, **ids)
    if family == "gpt_neox":
        heads = {"num_key_value_heads", "head_dim"}
        return hf.GPTNeoXConfig(**{key: value for key, value in SIZES.items() if key not in heads})
    if family == "qwen3_5":
        return hf.Qwen3_5TextConfig(**SIZES, **DELTA_NET)
    if family == "qwen3_5_vision":
        vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
        return hf.Qwen3_5Config(text_config=tiny_config("qwen3_5").to_dict(), vision_config=vision)
    if family == "gemma3":
        return hf.Gemma3TextConfig(**GEMMA)
    if family == "gemma3_vision":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 7, "num_attention_heads": 2}
        text = tiny_config("gemma3").to_dict() | {"final_logit_softcapping": None}  # the wrapper does not apply it
        return hf.Gemma3Config(text_config=text, vision_config=vision)
    return {"llama": hf.LlamaConfig, "qwen3": hf.Qwen3Config}[family](**SIZES)


FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma3", "gemma3_vision", "qwen3", "qwen3_5", "qwen3_5_vision"]
WRAPPERS = {"qwen3_5_vision": "Qwen3_5ForConditionalGeneration", "gemma3_vision": "Gemma3ForConditionalGeneration"}


def tiny_model(family: str) -> hf.PreTrainedModel:
    """Random weights, large enough that every module matters, with a norm that is not the identity."""
    torch.manual_seed(0)
    config = tiny_config(family)
    model_class = getattr(hf, WRAPPERS[family]) if family in WRAPPERS else hf.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_tokenizer() -> hf.PreTrainedTokenizerFast:
    """One token a byte: any class of Transformers reads it alike."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<s>", "</s>", *alphabet]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def save(model: hf.PreTrainedModel, folder: Path, **options: str) -> Path:
    model.save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def local(folder: Path, dtype: str = "float32") -> ModelConfig:
    return ModelConfig(id=str(folder), dtype=dtype, device="cpu")


def output_at(model: nn.Module, path: str, input_ids: torch.Tensor) -> torch.Tensor:
    """The oracle: one hook, the whole forward pass."""
    found = []
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: found.append(output))
    with torch.inference_mode():
        model(input_ids=input_ids, use_cache=False)
    handle.remove()
    return found[0][0] if isinstance(found[0], tuple) else found[0]


def path_in_full(family: str, layer: int, module: str) -> str:
    blocks = {
        "gpt2": "transformer.h",
        "gpt_neox": "gpt_neox.layers",
        "qwen3_5_vision": "model.language_model.layers",
        "gemma3_vision": "model.language_model.layers",
    }.get(family, "model.layers")
    return f"{blocks}.{layer}{module and '.' + module}"


IDS = torch.arange(4, 68).view(2, 32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_truncated_model_equals_the_full_one_bit_for_bit(family, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsight.lm.model.fuse", lambda module, run: {})  # its kernels round otherwise
    tiny = tiny_model(family)
    save(tiny, tmp_path)
    full = type(tiny).from_pretrained(tmp_path, dtype=getattr(torch, dtype))
    names = ["layers.1", "layers.2.mlp"]
    model = LanguageModel.load(local(tmp_path, dtype), hook_points=names)
    read = model._passes.read(IDS, names)
    assert torch.equal(read["layers.1"], output_at(full, path_in_full(family, 1, ""), IDS))
    assert torch.equal(read["layers.2.mlp"], output_at(full, path_in_full(family, 2, "mlp"), IDS))
    assert model.n_layers == 3
    assert model.provenance["n_layers_total"] == N_LAYERS
    assert model.provenance["n_tensors_loaded"] < model.provenance["n_tensors_total"]


def test_model_whose_blocks_depend_on_their_number_is_read_whole(tmp_path):
    sizes = SIZES | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320, "num_kv_shared_layers": 2}
    layers = {"layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"], "sliding_window": 8}
    config = hf.Gemma3nTextConfig(**sizes, **layers, activation_sparsity_pattern=[0.0] * N_LAYERS, laurel_rank=4)
    torch.manual_seed(0)
    full = hf.Gemma3nForCausalLM(config).eval()
    save(full, tmp_path)
    model = LanguageModel.load(local(tmp_path), hook_points=["layers.1.mlp"])
    read = model._passes.read(IDS, ["layers.1.mlp"])["layers.1.mlp"]
    assert torch.equal(read, output_at(full, "model.layers.1.mlp", IDS))
    assert model.n_layers == N_LAYERS


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_text_model_gives_the_full_models_logits(family, tmp_path):
    full = tiny_model(family)
    save(full, tmp_path)
    model = LanguageModel.load(local(tmp_path))
    with torch.inference_mode():
        expected = full(input_ids=IDS, use_cache=False).logits
        assert torch.equal(model._passes.forward(IDS).logits, expected)
    assert not any("vis" in name for name, _ in model._module.named_modules())


def test_only_shards_with_needed_tensors_are_opened(tmp_path, monkeypatch):
    save(tiny_model("qwen3_5_vision"), tmp_path, max_shard_size="30KB")
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    opened = []
    real_open = checkpoint_module._open
    monkeypatch.setattr(checkpoint_module, "_open", lambda path: opened.append(Path(path).name) or real_open(path))
    LanguageModel.load(local(tmp_path), hook_points=["layers.1.mlp"])
    needed = {
        file
        for name, file in weight_map.items()
        if name.removeprefix("model.language_model.").startswith(("embed", "norm", "layers.0.", "layers.1."))
    }
    assert set(opened) == needed
    assert len(needed) < len(set(weight_map.values()))


def test_shards_that_are_not_needed_may_be_absent(tmp_path):
    save(tiny_model("llama"), tmp_path, max_shard_size="20KB")
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    kept = {
        file for name, file in weight_map.items() if not name.startswith(("model.layers.3", "model.layers.4", "lm_"))
    }
    for file in set(weight_map.values()) - kept:
        (tmp_path / file).unlink()
    assert set(weight_map.values()) - kept
    LanguageModel.load(local(tmp_path), hook_points=["layers.2"])
    with pytest.raises(ModelError, match=r"lacks model-.*Copy the missing shard"):
        LanguageModel.load(local(tmp_path), hook_points=["layers.4"])


def test_checkpoint_of_a_bare_trunk_loads(tmp_path):
    full = tiny_model("llama")
    save(full.model, tmp_path)
    assert "layers.0.mlp.up_proj.weight" in load_file(tmp_path / "model.safetensors")
    model = LanguageModel.load(local(tmp_path), hook_points=["layers.1"])
    assert torch.equal(model._passes.read(IDS, ["layers.1"])["layers.1"], output_at(full, "model.layers.1", IDS))


def test_tied_head_is_found_in_the_embedding(tmp_path):
    torch.manual_seed(0)
    full = hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, tie_word_embeddings=True)).eval()
    save(full, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = LanguageModel.load(local(tmp_path))
    with torch.inference_mode():
        assert torch.equal(model._passes.forward(IDS).logits, full(input_ids=IDS).logits)


def test_missing_tensor_is_an_error_that_names_it(tmp_path):
    save(tiny_model("llama"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks 1 tensors, among them layers\.1\.mlp\.up_proj\.weight"):
        LanguageModel.load(local(tmp_path), hook_points=["layers.2"])


def test_tensor_of_another_shape_is_an_error(tmp_path):
    save(tiny_model("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match="do not load"):
        LanguageModel.load(local(tmp_path), hook_points=["layers.0"])


def test_layer_beyond_the_model_is_refused_before_any_weight_is_read(tmp_path):
    save(tiny_model("llama"), tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:6000])
    with pytest.raises(ModelError):
        LanguageModel.load(local(tmp_path), hook_points=["layers.0"])
    save(tiny_model("llama"), tmp_path)
    with pytest.raises(HookPointError, match=r"layers\.0 to layers\.4"):
        LanguageModel.load(local(tmp_path), hook_points=["layers.9.mlp"])


def test_no_hook_points_at_all_is_an_error(tmp_path):
    with pytest.raises(HookPointError, match="at least one"):
        LanguageModel.load(local(tmp_path), hook_points=[])


def test_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        LanguageModel.load(local(tmp_path))


def test_unknown_id_is_an_error_of_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="smollm2-135m-instruct") as caught:
        LanguageModel.load(ModelConfig(id="nobody/nothing", device="cpu"), hook_points=["layers.0"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"Expected a Hub id"):
        LanguageModel.load(ModelConfig(id="./no/such/folder", device="cpu"), hook_points=["layers.0"])
    with pytest.raises(ModelError, match="does not exist"):
        LanguageModel.load(ModelConfig(id="absent.gguf", device="cpu"), hook_points=["layers.0"])


def test_pickled_weights_are_refused(tmp_path):
    model = tiny_model("llama")
    save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="can run code"):
        LanguageModel.load(local(tmp_path), hook_points=["layers.0"])


def test_code_in_a_repository_never_runs(tmp_path):
    save(tiny_model("llama"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "homemade", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(ModelError, match="without code of its own"):
        LanguageModel.load(local(tmp_path), hook_points=["layers.0"])
    assert not (tmp_path / "ran").exists()


def test_index_that_points_outside_its_folder_is_refused(tmp_path):
    save(tiny_model("llama"), tmp_path / "model", max_shard_size="20KB")
    index = tmp_path / "model" / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    first = next(iter(weight_map))
    shutil.copy(tmp_path / "model" / weight_map[first], tmp_path / "outside.safetensors")
    index.write_text(json.dumps({"weight_map": weight_map | {first: "../outside.safetensors"}}))
    with pytest.raises(ModelError, match=r"\.\./outside\.safetensors"):
        LanguageModel.load(local(tmp_path / "model"), hook_points=["layers.0"])


def test_quantised_and_encoder_decoder_models_are_refused(tmp_path):
    save(tiny_model("llama"), tmp_path / "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is quantised"):
        LanguageModel.load(local(tmp_path / "quantised"), hook_points=["layers.0"])
    t5 = hf.T5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    save(hf.T5ForConditionalGeneration(t5), tmp_path / "t5")
    with pytest.raises(ModelError, match="encoder-decoder"):
        LanguageModel.load(local(tmp_path / "t5"), hook_points=["layers.0"])


def test_gated_delta_net_on_cuda_needs_its_kernels(monkeypatch):
    cuda = torch.device("cuda")
    config = tiny_config("qwen3_5")
    monkeypatch.setattr(load_module, "_is_installed", lambda module: module == "fla")
    with pytest.raises(ModelError, match=r"pip install causal-conv1d$"):
        load_module._require_kernels(config, cuda)
    load_module._require_kernels(config, torch.device("cpu"))
    load_module._require_kernels(tiny_config("llama"), cuda)
    monkeypatch.setattr(load_module, "_is_installed", lambda module: True)
    load_module._require_kernels(config, cuda)


def test_absent_device_is_an_error_and_auto_says_that_it_is_the_cpu(monkeypatch, caplog):
    with pytest.raises(ModelError, match="Expected auto, cpu"):
        load_module.choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    load_module._say_it_is_the_cpu.cache_clear()
    assert load_module.choose_device("auto") == torch.device("cpu")
    assert "runs on the CPU" in caplog.text


def test_two_folders_with_other_weights_have_other_fingerprints(tmp_path):
    model = tiny_model("llama")
    save(model, tmp_path / "a")
    save(model, tmp_path / "b")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    save(model, tmp_path / "c")
    a, b, c = (
        LanguageModel.load(local(tmp_path / name), hook_points=["layers.0"]).provenance["sampled_sha256"]
        for name in "abc"
    )
    assert a == b != c


@pytest.mark.parametrize(("key", "value"), [("dtype", "int8"), ("attention", "magic"), ("id", "")])
def test_impossible_model_config_is_refused(key, value):
    with pytest.raises(ModelError, match=f"model.{key}"):
        ModelConfig(**({"id": "x"} | {key: value}))
