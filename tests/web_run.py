"""A small run made by hand, for the explorer: latents that fire on known tokens, strings from hostile people, every array of an index."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from conftest import recipe_text
from sparsight.activations import PieceTable
from sparsight.features import FeatureIndex, FeatureIndexWriter, IndexConfig
from sparsight.features.storage import ARRAYS
from sparsight.recipe import compare_pair, dump_recipe, load_recipe
from sparsight.sae import SAEConfig, SparseAutoencoder
from sparsight.web.app import make_app
from sparsight.web.explorer import Explorer

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202egnp.exe",
    "\x1b[2J\x00",
    "{{constructor.constructor('alert(1)')()}}",
    "' OR 1=1 --",
)
N_LATENTS, DEAD = 64, 63
FIRST = 262  # latent l fires on the token with the id 262 + l: pieces of words, each of its own
BASE = "/api/d/run/topk"
CHANGE = {"X-Sparsight": "1"}


def make_run(folder: Path, model_folder: Path, text_path: str, *, every_array: bool = True) -> Path:
    """A run directory `run` with one indexed SAE, `topk`, whose latent l fires on the token with the id FIRST + l."""
    own = shutil.copytree(model_folder, folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(own)
    tokenizer.add_tokens(list(HOSTILE))
    tokenizer.save_pretrained(own)
    run = folder / "run"
    run.mkdir()
    (folder / "tiny.toml").write_text(recipe_text(own, text_path).split('[[sae]]\nid = "relu"')[0])
    recipe = load_recipe(folder / "tiny.toml")
    (run / "recipe.toml").write_text(dump_recipe(recipe))
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(32, N_LATENTS, generator=generator)
    tensors = {"W_enc": W, "W_dec": W.T.contiguous(), "b_enc": torch.zeros(N_LATENTS), "b_dec": torch.zeros(32)}
    sae = SparseAutoencoder(SAEConfig(id="topk", architecture="topk", n_latents=N_LATENTS, k=4), tensors)
    sae.save(run / "saes" / "topk", metadata={})
    hostile = np.array(tokenizer.convert_tokens_to_ids(list(HOSTILE)))
    write_index(run / "features" / "topk", hostile, every_array=every_array)
    return run


def make_comparison(folder: Path, model_folder: Path) -> Path:
    """The run directory `compared` of a comparison whose page a hostile model wrote into."""
    run = folder / "compared"
    (run / "compare").mkdir(parents=True)
    (run / "recipe.toml").write_text(dump_recipe(compare_pair(str(model_folder), "tuned", hook_point="layers.1")))
    (run / "compare" / "report.md").write_text("# tuned\n\n3.0 latents differ.\n\n## Latents\n")
    head = "<style>:root{color-scheme:light dark}</style>"
    (run / "compare" / "report.html").write_text(
        f"<html><head>{head}</head><body><h1>tuned</h1>{HOSTILE[0]}</body></html>"
    )
    return run


def write_index(path: Path, hostile: np.ndarray, *, every_array: bool = True, seed: int = 0) -> FeatureIndex:
    """The index: 40 documents of 50 tokens; latent 5 fires beside every hostile token."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(FIRST, FIRST + DEAD, 2000).astype(np.int32)
    ids[7 : 7 + 50 * len(hostile) : 50] = hostile
    offsets = np.arange(0, 2001, 50)
    pieces = PieceTable(ids, offsets, np.arange(40) + 2**61, np.zeros(40, np.int32), np.arange(40))
    places = np.flatnonzero(ids < FIRST + DEAD)
    with FeatureIndexWriter.create(path, pieces, N_LATENTS, IndexConfig()) as writer:
        values = rng.uniform(0.5, 3, (len(places), 1)).astype(np.float32)
        writer.add(places, (ids[places, None] - FIRST).astype(np.int64), values)
        beside = np.flatnonzero(ids >= FIRST + DEAD)
        writer.add(beside, np.full((len(beside), 1), 5), np.full((len(beside), 1), 9, np.float32))
        text = writer.group().text
        writer.set_arrays(_arrays(rng, hostile))
        about = {"architecture": "topk", "n_latents": N_LATENTS, "hook_point": "layers.2.mlp"}
        about |= {
            "target_hook_point": "layers.2.mlp",
            "model": {},
            "split": "heldout",
            "why_no_logits": "",
            "why_no_map": "",
        }
        about |= {"seed_chance_cosine": 0.1, "position_tokens": text.position_tokens().tolist()}
        index = writer.finish(about)
    if not every_array:
        _as_version_1(path)
    return index


def _arrays(rng: np.random.Generator, hostile: np.ndarray) -> dict[str, np.ndarray]:
    n, near = N_LATENTS, (np.arange(N_LATENTS)[:, None] + np.arange(1, 4)) % N_LATENTS
    promoted = (FIRST + (np.arange(n)[:, None] + np.arange(10)) % DEAD).astype(np.int32)
    promoted[5, : len(hostile)] = hostile
    falling = np.tile(np.linspace(3, 1, 10, dtype=np.float32), (n, 1))
    return {
        "promoted_tokens": promoted,
        "promoted_weights": falling,
        "suppressed_tokens": promoted[::-1].copy(),
        "suppressed_weights": -falling,
        "decoder_neighbours": near.astype(np.int32),
        "decoder_cosines": np.tile(np.float32([0.9, 0.8, 0.7]), (n, 1)),
        "coactive_latents": np.where(np.arange(3) < 2, near, -1).astype(np.int32),
        "coactive_pmi": np.tile(np.float32([4, 3, np.nan]), (n, 1)),
        "coactive_jaccard": np.tile(np.float32([0.5, 0.25, np.nan]), (n, 1)),
        "cluster": np.where(np.arange(n) < 40, 0, np.where(np.arange(n) < 60, 1, -1)).astype(np.int32),
        "map": np.stack([np.arange(n), -np.arange(n)], 1).astype(np.float32),
        "seed_cosine": rng.uniform(0, 1, n).astype(np.float32),
        "seed_cosine_latent": np.arange(n, dtype=np.int32),
    }


def _as_version_1(path: Path) -> None:
    """What an index of before has: neither what came with version 2, nor promoted tokens, nor a second seed."""
    description = json.loads((path / "index.json").read_text())
    description["version"] = 1
    for name in set(description["arrays"]) - set(ARRAYS):
        del description["arrays"][name]
        (path / f"{name}.npy").unlink()
    (path / "index.json").write_text(json.dumps(description))


def make_client(*runs: Path) -> TestClient:
    """A browser that has opened the printed URL."""
    app = make_app(Explorer(runs), port=8000, token="secret")
    client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    assert client.get("/?token=secret", follow_redirects=False).status_code == 303
    return client


@contextmanager
def moved(path: Path) -> Iterator[Path]:
    """The path elsewhere for a while."""
    away = path.with_name(f"{path.name}-away")
    path.rename(away)
    try:
        yield away
    finally:
        away.rename(path)
