"""Before a comparison: which models and texts may be compared, and that equal shares of two texts are equal."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from adapters import merge_by_hand, write_adapter
from conftest import make_documents
from sparsight.errors import HookPointError, ModelError, TextError
from sparsight.lm import LanguageModel, ModelConfig, TextConfig, check_pair, iter_documents, load_models, mix_texts


@pytest.fixture(scope="module")
def config(model_folder: Path) -> ModelConfig:
    return ModelConfig(id=str(model_folder), dtype="float32")


@pytest.fixture(scope="module")
def base(config: ModelConfig) -> LanguageModel:
    return LanguageModel.load(config)


def test_a_model_and_an_adapter_load_beside_their_base(tmp_path: Path, model_folder: Path, config: ModelConfig) -> None:
    products = write_adapter(tmp_path / "lora", base=str(model_folder))
    merge_by_hand(model_folder, products, 2.0, tmp_path / "merged")
    others = {"tuned": str(tmp_path / "merged"), "null": str(tmp_path / "lora")}
    models = load_models(config, others, hook_points=["layers.1"])
    assert list(models) == ["base", "tuned", "null"]
    facts = {role: check_pair(models["base"], models[role], ["layers.1"]) for role in ("tuned", "null")}
    assert (facts["tuned"].shared_memory, facts["null"].shared_memory) == (False, True)
    assert facts["tuned"].widths == {"layers.1": 32}
    assert facts["null"].n_layers == 4
    assert facts["null"].to_json()["same_template"]
    with pytest.raises(ModelError, match=r"other is no role of a model\. Expected tuned or null"):
        load_models(config, {"other": str(model_folder)})


def with_tokenizer(model_folder: Path, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    module = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    return LanguageModel.from_module(module, tokenizer)


def test_models_that_are_no_pair_are_refused_in_a_line(tmp_path: Path, model_folder: Path, base: LanguageModel) -> None:
    def other(name: str, **changes: object) -> LanguageModel:
        folder = tmp_path / name
        shutil.copytree(model_folder, folder)
        sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
        LlamaForCausalLM(LlamaConfig(**sizes | heads | changes)).save_pretrained(folder)
        return LanguageModel.load(ModelConfig(id=str(folder), dtype="float32"))

    cases = [
        (other("deep", num_hidden_layers=5), "have 4 and 5 decoder blocks. Expected the same"),
        (other("wide", hidden_size=64), "have 32 and 64 numbers at layers.1"),
        (other("large", vocab_size=408), "have 400 and 408 embeddings"),
    ]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_tokens(["<new>"])
    cases.append((with_tokenizer(model_folder, tokenizer), "tokenizers that differ in 1 tokens, such as '<new>'"))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    cases.append((with_tokenizer(model_folder, tokenizer), "cut 'The cat sat on the mat.' into different tokens"))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.add_special_tokens({"pad_token": "Ġdog"})
    cases.append((with_tokenizer(model_folder, tokenizer), r"disagree on whether token \d+ is special"))
    cases.append((other("apart"), "weights have a cosine of -?0.0"))  # of another base, though of one shape
    for tuned, message in cases:
        with pytest.raises(ModelError, match=message) as caught:
            check_pair(base, tuned, ["layers.1"])
        assert "\n" not in str(caught.value)
    with pytest.raises(HookPointError, match=r"layers\.9: the model has layers\.0 to layers\.3"):
        check_pair(base, base, ["layers.9"])


def test_the_cosine_of_weights_is_of_those_of_one_name_and_shape(model_folder: Path, base: LanguageModel) -> None:
    twice = LanguageModel.load(base.config)
    for weight in twice._module.parameters():
        weight.data *= 2.0
    assert base.weights_cosine(twice) == pytest.approx(1.0, abs=1e-6)
    names = [name for name, weight in twice._module.named_parameters() if weight.ndim > 1]
    turned = twice._module.get_parameter(names[0])
    ours = torch.cat([base._module.get_parameter(name).flatten() for name in names]).double()
    turned.data *= -1.0
    theirs = torch.cat([twice._module.get_parameter(name).flatten() for name in names]).double()
    expected = float(ours @ theirs / (ours.norm() * theirs.norm()))
    assert expected < 0.99
    assert base.weights_cosine(twice) == pytest.approx(expected, abs=1e-5)
    for name in names:
        weight = twice._module.get_parameter(name)
        weight.data = weight.data[:1]
    assert math.isnan(base.weights_cosine(twice))  # nothing in common tells nothing


def test_templates_must_agree_only_where_text_goes_through_them(model_folder: Path, base: LanguageModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tuned = LanguageModel.from_module(
        AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), tokenizer
    )
    assert not check_pair(base, tuned, []).same_template
    with pytest.raises(ModelError, match="have different chat templates"):
        check_pair(base, tuned, [], chat_template=True)


def write(path: Path, documents: list[str]) -> TextConfig:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return TextConfig(files=(str(path),))


def test_a_mixture_has_as_many_tokens_of_each_source_all_along(tmp_path: Path, base: LanguageModel) -> None:
    web = write(tmp_path / "web.jsonl", make_documents(300, seed=1, longest=100))
    facts = write(tmp_path / "facts.jsonl", make_documents(300, seed=2, shortest=40, longest=60))
    mixture = mix_texts({"web": web, "facts": facts}, base.tokenizer, tmp_path / "mix.jsonl", tokens_each=6000)
    assert mixture.balanced
    assert all(6000 <= share.tokens < 6400 and not share.ended for share in mixture.shares)
    records = [json.loads(line) for line in Path(mixture.path).read_text().splitlines()]
    assert len(records) == sum(share.documents for share in mixture.shares)
    tokens = [(record["source"] == "web", len(base.tokenizer(record["text"])["input_ids"])) for record in records]
    for part in (tokens[: len(tokens) // 3], tokens[len(tokens) // 3 :]):
        share = sum(n for is_web, n in part if is_web) / sum(n for _, n in part)
        assert 0.45 < share < 0.55
    before = Path(mixture.path).stat().st_mtime_ns
    assert mix_texts({"web": web, "facts": facts}, base.tokenizer, tmp_path / "mix.jsonl", tokens_each=6000) == mixture
    assert Path(mixture.path).stat().st_mtime_ns == before
    assert len(list(iter_documents(TextConfig(files=(mixture.path,))))) == len(records)


def test_a_source_that_ends_early_is_told(tmp_path: Path, base: LanguageModel) -> None:
    web = write(tmp_path / "web.jsonl", [*make_documents(100, seed=1), "", "  "])
    few = write(tmp_path / "few.jsonl", ["", *make_documents(3, seed=2), *make_documents(3, seed=1)])
    mixture = mix_texts({"web": web, "few": few}, base.tokenizer, tmp_path / "mix.jsonl", tokens_each=2000)
    assert not mixture.balanced
    share = mixture.shares[1]
    assert (share.documents, share.empty, share.shared, share.ended) == (3, 1, 3, True)


def test_texts_that_cannot_be_told_apart_are_refused(tmp_path: Path, base: LanguageModel) -> None:
    documents = make_documents(20)
    whole, part = write(tmp_path / "whole.jsonl", documents), write(tmp_path / "part.jsonl", documents[5:9])
    for sources in ({"whole": whole, "part": part}, {"part": part, "whole": whole}):
        with pytest.raises(TextError, match="All 4 documents of part stand in whole as well"):
            mix_texts(sources, base.tokenizer, tmp_path / "mix.jsonl", tokens_each=10_000)
    empty = write(tmp_path / "empty.jsonl", ["", " "])
    with pytest.raises(TextError, match="empty has no text: all its 2 documents are empty"):
        mix_texts({"whole": whole, "empty": empty}, base.tokenizer, tmp_path / "mix.jsonl", tokens_each=100)
