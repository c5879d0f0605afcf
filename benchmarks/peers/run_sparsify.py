"""sparsify 1.3.3 (PyPI: eai-sparsify), through its own chunk_and_tokenize and Trainer; TopK alone, as it has no other of the three.

Worked around, without touching its files: its command line wants CUDA, so its Trainer is called directly. It has no collection of its own (the
model runs inside the step) and no loop over rows in memory: for `train` the Trainer gets a module that looks rows up instead of a model.
Documents are packed into rows of 128 tokens with its separator between them; a batch of 1,024 tokens is 8 rows.

`default`: float32, all 30 layers, signum at 5e-3 / sqrt(width / 2^14). `best`: the model in bfloat16 and cut after the hook's layer (its Trainer
itself runs every layer that it is given), the learning rate searched.
"""

from typing import Any

import torch
from datasets import Dataset, load_dataset
from measure import Job, Marks, Work, batches_of, run_job, timed_steps, write_reconstruction
from sparsify import SparseCoder, SparseCoderConfig, TrainConfig, Trainer
from sparsify.data import chunk_and_tokenize
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer


def end_to_end(job: Job) -> dict[str, Any]:
    """Text to a trained SAE."""
    best = job["setting"] == "best"
    cut = {"num_hidden_layers": 16} if best else {}
    dtype = torch.bfloat16 if best else torch.float32
    model = AutoModel.from_pretrained(job["files"]["model"], dtype=dtype, **cut)
    tokenizer = AutoTokenizer.from_pretrained(job["files"]["model"])
    texts = load_dataset(
        "json", data_files=job["files"]["texts"], split="train", cache_dir=f"{job['scratch']}/datasets"
    )
    n_rows = job["n_tokens"] // job["batch_tokens"] * (job["batch_tokens"] // job["context_tokens"])
    with Work(job, n_rows * job["context_tokens"]) as work:
        tokens = chunk_and_tokenize(
            texts, tokenizer, max_seq_len=job["context_tokens"], num_proc=1, load_from_cache_file=False
        )
        tokens = tokens.shuffle(seed=job["seed"]).with_format("torch").select(range(n_rows))
        Trainer(_config(job, "layers.15.mlp"), tokens, model).fit()
    _reconstruct(job, "layers.15.mlp")
    return work.result


def train(job: Job) -> dict[str, Any]:
    """Rows in memory to a trained SAE, through Trainer.fit."""
    rows, batches = batches_of(job)
    context = job["context_tokens"]
    n_used = len(batches) * job["batch_tokens"]
    numbers = Dataset.from_dict({"input_ids": torch.arange(n_used).reshape(-1, context).numpy()}).with_format("torch")
    model = _Rows(rows)
    trainer = Trainer(_config(job, "rows"), numbers, model)
    model.marks = Marks()
    trainer.fit()  # its last step ends with saving, so it is left out of the rate
    result = timed_steps(model.marks, job["batch_tokens"])
    _reconstruct(job, "rows")
    return result


class _Rows(nn.Module):
    """Stands where a language model would: its one module puts out the rows with the given numbers."""

    def __init__(self, values: Tensor):
        super().__init__()
        self.values, self.rows, self.marks = values, nn.Identity(), Marks()
        self.device = values.device
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.int64)}

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        self.marks.mark()
        return self.rows(self.values[input_ids])


def _config(job: Job, hook_point: str) -> TrainConfig:
    return TrainConfig(
        SparseCoderConfig(num_latents=job["n_latents"], k=job["k"]),
        batch_size=job["batch_tokens"] // job["context_tokens"],
        lr=job["lr"],
        hookpoints=[hook_point],
        init_seeds=[job["seed"]],
        log_to_wandb=False,
        save_dir=job["scratch"],
        run_name="sae",
    )


def _reconstruct(job: Job, hook_point: str) -> None:
    """By the SAE that it saved: its optimiser averages weights, and only those saved are the averaged ones."""
    sae = SparseCoder.load_from_disk(f"{job['scratch']}/sae/{hook_point}")

    def through(rows: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, _ = sae.encode(rows)
        return torch.zeros(len(rows), job["n_latents"]).scatter_(1, indices, values), sae.decode(values, indices)

    write_reconstruction(job, through)


if __name__ == "__main__":
    run_job({"end-to-end": end_to_end, "train": train})
