"""Sparsight, through its own verbs: collect_activations, train_saes, train_sae, the store and build_index.

`default`: what the demo's recipe says (bfloat16 model and products, lr 1e-3, a store between model and training), with rows of 128 tokens as for
everyone. `best`: the same with a learning rate searched and, as for the peers, a warm-up of 5 % of the steps instead of a fifth;
for relu no warm-up of the penalty.
`float32`: the default with model and products in float32, to part what the type of number gives from what the rest gives.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as its command line does

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import roofline
import torch
from measure import Job, Marks, Work, batches_of, run_job, timed_steps, write_reconstruction
from torch import Tensor

from sparsight import CaptureConfig, LanguageModel, ModelConfig, SAEConfig, TextConfig, TrainConfig
from sparsight.activations import ActivationBatch, ActivationStore, StoreSource, StoreWriter
from sparsight.activations.batch import PieceTable
from sparsight.activations.capture import Window
from sparsight.collect import collect_activations
from sparsight.index import build_index
from sparsight.lm import TextCounts, TextCursor, iter_pieces, make_batches, resolve_checkpoint
from sparsight.sae import SAETrainer, SparseAutoencoder
from sparsight.train import train_sae, train_saes

HOOK = "layers.15.mlp"


def end_to_end(job: Job) -> dict[str, Any]:
    """Text to a trained SAE, by way of a store."""
    reader, text, capture = _reading(job)
    scratch = Path(job["scratch"])
    with Work(job, capture.n_tokens) as work:
        store = collect_activations(reader, text, capture, scratch / "activations")
        source = StoreSource(store, (HOOK,), 1, job["seed"])
        (sae,) = train_saes(
            source, [_sae_config(job)], scratch / "saes", train=TrainConfig(batch_tokens=job["batch_tokens"])
        )
    _reconstruct(job, sae)
    return work.result


def collect(job: Job) -> dict[str, Any]:
    """Text to a store."""
    reader, text, capture = _reading(job)
    with Work(job, capture.n_tokens) as work:
        collect_activations(reader, text, capture, Path(job["scratch"]) / "activations")
    return work.result


def train(job: Job) -> dict[str, Any]:
    """Rows in memory to a trained SAE, through train_sae."""
    _, batches = batches_of(job)
    marks = Marks()
    sae = train_sae(marks.through(map(_batch, batches)), _sae_config(job), total_steps=len(batches))
    marks.mark()
    result = timed_steps(marks, job["batch_tokens"])
    _reconstruct(job, sae)
    return result


def width(job: Job) -> dict[str, Any]:
    """A few training steps of one width, to see how time and memory grow."""
    _, batches = batches_of(job)
    config = _sae_config(job)
    trainer = SAETrainer(config, 576, 576, total_steps=len(batches), batch_tokens=job["batch_tokens"])
    trainer.initialize(batches[0])
    marks = Marks()
    for batch in marks.through(iter(batches)):
        trainer.step(batch, with_metrics=False)
    return timed_steps(marks, job["batch_tokens"])


def store(job: Job) -> dict[str, Any]:
    """Writes rows from memory as a store, and reads them back as training batches."""
    rows, _ = batches_of(job)
    dtype = "float32" if job["setting"] == "float32" else "bfloat16"
    rows = rows.to(getattr(torch, dtype))
    writer = StoreWriter(Path(job["scratch"]) / "store", {"hook_points": {HOOK: rows.shape[1]}}, dtype)
    with Work(job, len(rows)) as write:
        for number, block in enumerate(rows.split(CaptureConfig(hook_points=(HOOK,)).window_tokens)):
            writer.add(_window(block, number), TextCounts())
        writer.finish()
    source = StoreSource(ActivationStore.open(writer.path), (HOOK,), 1, job["seed"])
    n_read = 0
    with Work(job, len(rows)) as read:
        for batch in source.batches(job["batch_tokens"]):
            n_read += len(batch)
    row_bytes = rows.shape[1] * rows.element_size()
    return {
        "rows": len(rows),
        "dtype": dtype,
        "write_rows_per_second": len(rows) / write.result["seconds"],
        "read_rows_per_second": n_read / read.result["seconds"],
        "write_megabytes_per_second": len(rows) * row_bytes / write.result["seconds"] / 1e6,
        "read_megabytes_per_second": n_read * row_bytes / read.result["seconds"] / 1e6,
        "peak_megabytes": read.result["peak_megabytes"],
    }


def index(job: Job) -> dict[str, Any]:
    """The feature index of an SAE on the held-out rows of a store, without the vocabulary's part."""
    _, batches = batches_of(job)
    sae = train_sae(map(_batch, batches), _sae_config(job), total_steps=len(batches))
    heldout = ActivationStore.open(job["files"]["store"])
    with Work(job, heldout.n_tokens("heldout")) as work:
        build_index(sae, heldout, path=Path(job["scratch"]) / "features", hook_point=HOOK)
    return work.result


def machine(job: Job) -> dict[str, Any]:
    """The machine's own rates, and the share of them that each stage reaches."""
    rates = roofline.machine_rates(job)
    reader, text, capture = _reading(job)
    pieces = list(itertools.islice(iter_pieces(text, reader.tokenizer), 256))
    options = {"pad_id": reader.pad_id, "isolation": text.isolation, "context_tokens": text.context_tokens}
    batch = make_batches(pieces, batch_tokens=text.batch_tokens, eos_id=reader.eos_id, **options)[0]
    n_tokens = batch.input_ids.numel()
    shapes = roofline.projection_shapes(resolve_checkpoint(reader.config).transformers_config(), 16)
    bare = roofline.projections_seconds(shapes, n_tokens, reader.dtype)
    forward = roofline.seconds_of(lambda: reader.read(batch, [HOOK]))
    with Work(job, capture.n_tokens) as work:
        collect_activations(reader, text, capture, Path(job["scratch"]) / "activations")
    collection = {
        "projections_tokens_per_second": n_tokens / bare,
        "read_tokens_per_second": n_tokens / forward,
        "collect_tokens_per_second": work.result["tokens_per_second"],
        "share_of_read": bare / forward,
        "share_of_collect": bare / n_tokens * work.result["tokens_per_second"],
        "largest": roofline.largest_operations(lambda: reader.read(batch, [HOOK])),
    }
    written = store(job | {"scratch": f"{job['scratch']}/share"})
    shares = {
        "write_share_of_file": written["write_megabytes_per_second"] / rates["file_write_megabytes_per_second"],
        "read_share_of_file": written["read_megabytes_per_second"] / rates["file_read_megabytes_per_second"],
    }
    training = roofline.training_share(job, lambda name, rows: _stepper(job | {"architecture": name}, rows))
    return {"rates": rates, "collection": collection, "training": training, "store": written | shares}


def _stepper(job: Job, rows: Tensor) -> Callable[[Tensor], Any]:
    trainer = SAETrainer(_sae_config(job), 576, 576, total_steps=10**6, batch_tokens=job["batch_tokens"])
    trainer.initialize(rows)
    return lambda batch: trainer.step(batch, with_metrics=False)  # as between two lines of the log


def many(job: Job) -> dict[str, Any]:
    """Seconds of 8 SAEs from one pass and of 8 studies: the measurement of `make bench-growth`."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import growth

    return growth.measure_saving(Path(job["scratch"]))


def _reading(job: Job) -> tuple[LanguageModel, TextConfig, CaptureConfig]:
    dtype = "float32" if job["setting"] == "float32" else "bfloat16"
    reader = LanguageModel.load(ModelConfig(id=job["files"]["model"], dtype=dtype), hook_points=[HOOK])
    text = TextConfig(
        files=(job["files"]["texts"],), context_tokens=job["context_tokens"], batch_tokens=2048, heldout_fraction=0.0
    )
    n_tokens = job["n_tokens"] // job["batch_tokens"] * job["batch_tokens"]
    return reader, text, CaptureConfig(hook_points=(HOOK,), n_tokens=n_tokens, heldout_tokens=0)


def _sae_config(job: Job) -> SAEConfig:
    options: dict[str, Any] = {"lr": job["lr"] or 1e-3, "seed": job["seed"], "hook_point": HOOK}
    if job["architecture"] == "relu":
        options |= {"l1_coefficient": job["l1"] or 5.0, "l1_penalty": "decoder-norm"}  # as the peers weigh it
    else:
        options["k"] = job["k"]
    if job["setting"] == "float32":
        options["precision"] = "float32"
    if job["setting"] == "best":
        options["warmup_steps"] = job["n_tokens"] // job["batch_tokens"] * job["epochs"] // 20
        options["sparsity_warmup_fraction"] = 0.0  # in so short a run the penalty has no time to wait
    return SAEConfig(id="sae", architecture=job["architecture"], n_latents=job["n_latents"], **options)


def _batch(rows: Tensor) -> ActivationBatch:
    none = torch.zeros(len(rows), dtype=torch.int64)
    return ActivationBatch({HOOK: rows}, none, none, none, none)


def _window(rows: Tensor, number: int) -> Window:
    """Rows as a capture would hand them to the store: one piece of text for all."""
    n = len(rows)
    zeros = torch.zeros(n, dtype=torch.int64)
    one = np.zeros(1, np.int64)
    table = PieceTable(np.zeros(n, np.int32), np.array([0, n]), one, one.astype(np.int32), one)
    return Window(
        split="train",
        number=number,
        rows={HOOK: rows},
        token_ids=zeros,
        document_ids=zeros,
        positions=torch.arange(n),
        piece_ids=zeros,
        order=torch.randperm(n),
        pieces=table,
        start=TextCursor(number, 0),
        end=TextCursor(number + 1, 0),
        counts={"tokens": n, "special": 0, "sinks": 0, "beyond_wanted": 0},
    )


def _reconstruct(job: Job, sae: SparseAutoencoder) -> None:
    """By the SAE saved and loaded again."""
    folder = Path(job["scratch"]) / "sae"
    sae.save(folder, metadata={})
    loaded = SparseAutoencoder.load(folder)
    write_reconstruction(job, lambda rows: tuple(loaded(rows)))


PARTS = {
    "end-to-end": end_to_end,
    "collect": collect,
    "train": train,
    "width": width,
    "store": store,
    "index": index,
    "many": many,
    "roofline": machine,
}

if __name__ == "__main__":
    run_job(PARTS)
