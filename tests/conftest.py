"""What many tests stand on: shapes checked while tests run, a tiny model in a folder, a text with something in it."""

import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny matrices: a second thread only waits
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "TRITON_INTERPRET", "1"
)  # before anything imports Triton: its own library is defined by it as well
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

with install_import_hook("sparsight", "shapes.checked"):
    pass

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsight.lm import LanguageModel, ModelConfig

WORDS = (
    "the a red blue green old cat dog house tree river runs sleeps sings under over with and but then slowly 1 22 333 ( ) { } ; ,"
).split()


def make_documents(n: int, *, seed: int = 0, shortest: int = 5, longest: int = 120) -> list[str]:
    """n texts of random words, all different."""
    rng = random.Random(seed)
    return [f"{seed}-{i} " + " ".join(rng.choices(WORDS, k=rng.randint(shortest, longest))) for i in range(n)]


def write_texts(folder: Path, documents: list[str]) -> str:
    """The documents as one .jsonl file; returns its path."""
    import json

    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return str(path)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 4 layers and width 32 with a byte-level tokenizer, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        make_documents(200, seed=99), vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reader(model_folder: Path) -> LanguageModel:
    """The tiny model cut after layer 2's MLP."""
    return LanguageModel.load(
        ModelConfig(id=str(model_folder), dtype="float32"), hook_points=["layers.1", "layers.2.mlp"]
    )


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """600 documents, about 30 thousand tokens."""
    return write_texts(tmp_path_factory.mktemp("text"), make_documents(600))


def recipe_text(model_folder: Path, text_path: str) -> str:
    """A whole study that takes a second or two."""
    return f"""
schema = 1
name = "tiny"

[model]
id = "{model_folder}"
dtype = "float32"
device = "cpu"

[text]
files = ["{text_path}"]
context_tokens = 64
batch_tokens = 512
heldout_fraction = 0.2

[activations]
hook_points = ["layers.2.mlp"]
n_tokens = 8000
heldout_tokens = 1500
window_tokens = 1000
dtype = "float32"

[train]
batch_tokens = 100
epochs = 2
checkpoint_every_steps = 20
log_every_steps = 10

[[sae]]
id = "topk"
architecture = "topk"
n_latents = 64
k = 4
warmup_steps = 10

[[sae]]
id = "relu"
architecture = "relu"
n_latents = 48
warmup_steps = 10

[evaluate]
downstream_tokens = 500
n_resamples = 100
"""


@pytest.fixture
def recipe_path(tmp_path: Path, model_folder: Path, text_path: str) -> Path:
    """The tiny study as a file."""
    path = tmp_path / "tiny.toml"
    path.write_text(recipe_text(model_folder, text_path))
    return path
