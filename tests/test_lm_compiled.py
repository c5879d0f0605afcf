"""Compiled decoder blocks read what plain ones read, step aside for hooks, and say so when they cannot be had.

The compiler's tracing is run here, its code generation is not: on a CPU it gains nothing and takes a C++ compiler half a minute.
"""

import logging
from functools import partial

import pytest
import torch
import torch._dynamo
from transformers import AutoModel, LlamaConfig, Qwen3_5TextConfig

from sparsight.errors import ModelError
from sparsight.lm import LanguageModel, ModelConfig
from sparsight.lm.batches import TokenBatch
from sparsight.lm.compiled import compile_blocks
from sparsight.lm.hooks import hooked

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 16}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
POINTS = ("layers.1", "layers.2.mlp", "layers.3.mlp.input")


def tiny(config):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.manual_seed(0)
    return AutoModel.from_config(config).eval()


@pytest.fixture
def module():
    return tiny(LlamaConfig(**SIZES))


def reader(module, shape=(2, 24), points=POINTS):
    ids = torch.randint(97, shape, generator=torch.Generator().manual_seed(1))

    def read():
        found = {}
        actions = {name: (lambda value, n=name: found.__setitem__(n, value)) for name in points}
        with torch.inference_mode(), hooked(module, actions):
            module(input_ids=ids, use_cache=False)
        return found

    return read


@pytest.mark.parametrize(
    "config", [LlamaConfig(**SIZES), Qwen3_5TextConfig(**SIZES, **DELTA)], ids=["llama", "qwen3_5"]
)
def test_compiled_blocks_read_the_same_at_every_shape(config):
    module, shapes = tiny(config), [(2, 24), (1, 8), (3, 16)]
    expected = [reader(module, shape)() for shape in shapes]
    record = compile_blocks(module, reader(module), largest_difference=1e-5, backend="eager")
    assert record["failed"] is None
    assert record["blocks"] == 4
    assert record["difference"] <= 1e-5
    for shape, plain in zip(shapes, expected, strict=True):
        compiled = reader(module, shape)()
        for name in POINTS:
            torch.testing.assert_close(compiled[name], plain[name], atol=1e-5, rtol=1e-5)
    assert record["failed"] is None
    # one for each kind of block, and one more where a batch is a single row
    kinds = 1 if config.model_type == "llama" else 2
    assert 0 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * kinds


def test_a_hook_inside_a_compiled_block_still_fires(module):
    expected = reader(module)()
    compile_blocks(module, reader(module, points=("layers.3",)), largest_difference=1e-5, backend="eager")
    reader(module, points=("layers.3",))()  # all blocks compiled, without any hook within
    for name, value in reader(module)().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
    with torch.inference_mode(), hooked(module, {"layers.0.mlp": torch.zeros_like}):
        replaced = module(input_ids=torch.arange(24).unsqueeze(0), use_cache=False).last_hidden_state
    plain = module(input_ids=torch.arange(24).unsqueeze(0), use_cache=False).last_hidden_state
    assert not torch.allclose(replaced, plain, atol=1e-3)


def test_a_compiler_that_fails_is_recorded_and_changes_nothing(module, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no such instruction")

    expected = reader(module)()
    with caplog.at_level(logging.WARNING):
        record = compile_blocks(module, reader(module), largest_difference=1e-5, backend=broken)
    assert "no such instruction" in record["failed"]
    assert "run uncompiled" in caplog.text
    for name, value in reader(module)().items():
        assert torch.equal(value, expected[name])


def test_compiled_blocks_that_compute_something_else_are_refused(module):
    def wrong(graph, inputs):
        return lambda *args: tuple(1.1 * out if isinstance(out, torch.Tensor) else out for out in graph(*args))

    expected = reader(module)()
    record = compile_blocks(module, reader(module), largest_difference=0.05, backend=wrong)
    assert record["difference"] > 0.05
    assert "activations differ by" in record["failed"]
    assert all(torch.equal(value, expected[name]) for name, value in reader(module)().items())


def test_too_many_compilations_end_in_plain_blocks(module, monkeypatch):
    monkeypatch.setattr("sparsight.lm.compiled._MOST_COMPILATIONS", 1)
    record = compile_blocks(module, reader(module), largest_difference=1e-5, backend="eager")
    for shape in [(1, 1), (1, 8), (2, 1), (3, 16)]:
        reader(module, shape)()
    assert "RecompileLimit" in record["failed"]


def test_the_option_compiles_when_asked_and_is_off_on_a_cpu(model_folder, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr("sparsight.lm.model.compile_blocks", partial(compile_blocks, backend="eager"))
    ids, none = torch.arange(24).reshape(2, 12), torch.zeros(2, 12, dtype=torch.int32)
    batch = TokenBatch(input_ids=ids, mask=ids >= 0, document_ids=ids, positions=none, piece_ids=none)
    auto = LanguageModel.load(ModelConfig(id=str(model_folder), dtype="float32"), hook_points=["layers.2.mlp"])
    assert "compile" not in auto.provenance
    config = ModelConfig(id=str(model_folder), dtype="float32", compile="layers")
    layers = LanguageModel.load(config, hook_points=["layers.2.mlp"])
    assert layers.provenance["compile"]["failed"] is None
    assert 0 <= layers.provenance["compile"]["difference"] < 1e-5
    for name, value in auto.read(batch, ["layers.2.mlp"]).items():
        torch.testing.assert_close(layers.read(batch, ["layers.2.mlp"])[name], value, atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match=r"model\.compile is 'max'. Expected one of auto, off, layers"):
        ModelConfig(id="x", compile="max")
