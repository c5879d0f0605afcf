"""dictionary_learning 0.1.0, through its own ActivationBuffer and trainSAE.

Worked around, without touching its files:
- it pins nnsight 0.3, which pulls torchvision, diffusers and with them another torch; it is installed without them (install.py);
- nnsight 0.3 rewrites rotary scaling on loading and fails with this Transformers (KeyError 'factor'): the loaded module is handed over instead;
- its defaults are for long runs: warm-up 1,000 and sparsity warm-up 2,000 steps are refused for fewer steps and become 5 % of them, and
  BatchTopK's threshold, begun at step 1,000, is begun half way; a buffer of 3.84M tokens filled before the first step becomes 8,192 tokens.
  It keeps its buffer half full, so it reads a few percent more tokens than it trains on;
- one batch more than the steps is fetched and thrown away by its loop: it is given exactly as many as there are steps.
It reads the first 128 tokens of every document and pads on the left.

`default`: float32. `best`: the model in bfloat16, a decay over the last fifth and a learning rate searched. Its autocast is for CUDA alone.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import torch
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.dictionary import AutoEncoder
from dictionary_learning.trainers import BatchTopKTrainer, StandardTrainer, TopKTrainer
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.training import trainSAE
from measure import Job, Marks, Work, batches_of, run_job, timed_steps, write_reconstruction
from nnsight import LanguageModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

_TRAINERS = {"relu": StandardTrainer, "topk": TopKTrainer, "batchtopk": BatchTopKTrainer}
_DICTIONARIES = {"relu": AutoEncoder, "topk": AutoEncoderTopK, "batchtopk": BatchTopKSAE}
BUFFER_CONTEXTS = 64
ROWS_IN_FORWARD = 16  # more would be cut off: a refill needs half a buffer


def end_to_end(job: Job) -> dict[str, Any]:
    """Text to a trained SAE."""
    steps = job["n_tokens"] // job["batch_tokens"]
    buffer = _buffer(job)
    with Work(job, steps * job["batch_tokens"]) as work:
        _train(job, itertools.islice(buffer, steps), steps)
    _reconstruct(job)
    return work.result


def collect(job: Job) -> dict[str, Any]:
    """Text to training batches, without a trainer."""
    steps = job["n_tokens"] // job["batch_tokens"]
    buffer = _buffer(job)
    with Work(job, steps * job["batch_tokens"]) as work:
        for _ in itertools.islice(buffer, steps):
            pass
    return work.result


def train(job: Job) -> dict[str, Any]:
    """Rows in memory to a trained SAE, through trainSAE."""
    _, batches = batches_of(job)
    marks = Marks()
    _train(job, marks.through(iter(batches)), len(batches))
    result = timed_steps(marks, job["batch_tokens"])
    _reconstruct(job)
    return result


def _train(job: Job, batches: Iterator[Tensor], steps: int) -> None:
    short = max(1, steps // 20)
    options: dict[str, Any] = {"warmup_steps": short}
    if job["architecture"] == "relu":
        options |= {"l1_penalty": job["l1"], "sparsity_warmup_steps": short}
    else:
        options |= {"k": job["k"], "threshold_start_step": steps // 2}
    if job["lr"]:
        options["lr"] = job["lr"]
    if job["setting"] == "best":
        options["decay_start"] = steps - max(1, steps // 5)
    config = {
        "trainer": _TRAINERS[job["architecture"]],
        "steps": steps,
        "activation_dim": 576,
        "dict_size": job["n_latents"],
        "layer": 15,
        "lm_name": "SmolLM2-135M-Instruct",
        "seed": job["seed"],
        "device": "cpu",
        **options,
    }
    trainSAE(data=batches, trainer_configs=[config], steps=steps, save_dir=job["scratch"], device="cpu")


def _buffer(job: Job) -> ActivationBuffer:
    dtype = torch.bfloat16 if job["setting"] == "best" else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(job["files"]["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    module = AutoModelForCausalLM.from_pretrained(job["files"]["model"], dtype=dtype)
    model = LanguageModel(module, tokenizer=tokenizer)
    return ActivationBuffer(
        _texts(job),
        model,
        model.model.layers[15].mlp,
        d_submodule=576,
        n_ctxs=BUFFER_CONTEXTS,
        ctx_len=job["context_tokens"],
        refresh_batch_size=ROWS_IN_FORWARD,
        out_batch_size=job["batch_tokens"],
        device="cpu",
    )


def _texts(job: Job) -> Iterator[str]:
    with open(job["files"]["texts"], encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def _reconstruct(job: Job) -> None:
    """By the dictionary that it saved."""
    dictionary = _DICTIONARIES[job["architecture"]].from_pretrained(f"{job['scratch']}/trainer_0/ae.pt")

    def through(rows: Tensor) -> tuple[Tensor, Tensor]:
        latents = dictionary.encode(rows)
        return latents, dictionary.decode(latents)

    write_reconstruction(job, through)


if __name__ == "__main__":
    run_job({"end-to-end": end_to_end, "collect": collect, "train": train})
