"""Sparsight, from the same tokens, model and SAE to a whole index: the model is read once into a store, then build_index.

`default`: the model in bfloat16, as the demo's recipe has it. `same`: without output scores. `float32`: the same in float32, as the peer's.
The map, which takes a package of its own, is left out.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as its command line does

from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Job, Work, run_job
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsight import LanguageModel, ModelConfig
from sparsight.activations import ActivationStore, StoreWriter
from sparsight.activations.batch import PieceTable
from sparsight.activations.capture import Window
from sparsight.features import IndexConfig
from sparsight.index import build_index
from sparsight.lm import Piece, TextCounts, TextCursor, make_batches
from sparsight.sae import SparseAutoencoder

HOOK, FORWARD_TOKENS = "layers.15.mlp", 2048


def dashboards(job: Job) -> dict[str, Any]:
    """Tokens to an index of every latent."""
    tokens = load_file(job["files"]["tokens"])["tokens"].numpy()
    config = ModelConfig(id=job["files"]["model"], dtype="float32" if job["setting"] == "float32" else "bfloat16")
    reader, model = LanguageModel.load(config, hook_points=[HOOK]), LanguageModel.load(config)
    sae = SparseAutoencoder.load(Path(job["files"]["sae"]))
    scratch = Path(job["scratch"])
    settings = IndexConfig(map=False, output_latents=8192 if job["setting"] == "default" else 0)
    with Work(job, tokens.size) as work:
        store = read_store(reader, tokens, scratch / "activations")
        index = build_index(sae, store, model, path=scratch / "index", config=settings, hook_point=HOOK)
    save_file({"density": torch.from_numpy(index.density.astype(np.float32))}, job["reconstruction"])
    return work.result | {"latents": index.n_latents}


def read_store(reader: LanguageModel, tokens: np.ndarray, path: Path) -> ActivationStore:
    """The activations of every token of every row."""
    n_rows, length = tokens.shape
    pieces = [Piece(i, i, 0, 0, row, True) for i, row in enumerate(tokens)]
    batches = make_batches(
        pieces, batch_tokens=FORWARD_TOKENS, pad_id=0, isolation="documents", context_tokens=length, eos_id=0
    )
    columns: dict[str, list[Tensor]] = {"document_ids": [], "positions": [], "piece_ids": []}
    rows, ids = [], []
    for batch in batches:
        rows.append(reader.read(batch, [HOOK])[HOOK][batch.mask])
        ids.append(batch.input_ids[batch.mask].int())
        for name, parts in columns.items():
            parts.append(getattr(batch, name)[batch.mask])
    numbers = np.arange(n_rows)
    table = PieceTable(
        tokens.reshape(-1), np.arange(0, tokens.size + 1, length), numbers, np.zeros(n_rows, np.int32), numbers
    )
    window = Window(
        split="heldout",
        number=0,
        rows={HOOK: torch.cat(rows)},
        token_ids=torch.cat(ids),
        **{name: torch.cat(parts) for name, parts in columns.items()},
        order=torch.arange(tokens.size),
        pieces=table,
        start=TextCursor(0, 0),
        end=TextCursor(n_rows, 0),
        counts={"tokens": tokens.size, "special": 0, "sinks": 0, "beyond_wanted": 0},
    )
    description = {"hook_points": {HOOK: reader.width(HOOK)}, "model": {}, "text": {}}
    StoreWriter(path, description, "float32").add(window, TextCounts())
    return ActivationStore.open(path)


if __name__ == "__main__":
    run_job({"dashboards": dashboards})
