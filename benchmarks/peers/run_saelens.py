"""SAELens 6.54.12, through its own runner, trainer, cache and loader.

Worked around, without touching its files: nothing is broken. `wandb` is imported but kept off. Set for everyone alike, not its defaults: batch,
width, k, no BOS (SmolLM2 has none) and no separator between documents. Documents are packed into rows of 128 tokens, as it does.

`default`: float32, Adam 3e-4, no warm-up, mixing buffer of 20 contexts. `best`: the model in bfloat16, a buffer of 32 contexts (one forward pass),
its SAE in bfloat16 autocast, torch.compile for relu and batchtopk (topk is slower with it), a learning rate searched with a linear warm-up and
decay, and BatchTopK's threshold averaged ten times faster (0.1): at its 0.01 a short run ends with a threshold near 0 and an L0 of hundreds to
thousands, since it is used as a JumpReLU. Its sparse activations do not run on CPUs (no aten::view for SparseCPU).
"""

from typing import Any

import torch
from measure import Job, Marks, Work, batches_of, run_job, timed_steps, write_reconstruction
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    CacheActivationsRunner,
    CacheActivationsRunnerConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.load_model import load_model
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.sae_trainer import SAETrainer

HOOK = "model.layers.15.mlp"
COMPILED = ("relu", "batchtopk")
_CLASSES = {
    "relu": (StandardTrainingSAE, StandardTrainingSAEConfig),
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
}


def end_to_end(job: Job) -> dict[str, Any]:
    """Text to a trained SAE."""
    cfg = _runner_config(job)
    runner = LanguageModelSAETrainingRunner(cfg, override_dataset=_texts(job), override_model=_model(job))
    with Work(job, cfg.training_tokens) as work:
        sae = runner.run()
    _reconstruct(job, sae)
    return work.result


def collect(job: Job) -> dict[str, Any]:
    """Text to training batches, without a trainer."""
    cfg = _runner_config(job)
    store = ActivationsStore.from_config(_model(job), cfg, override_dataset=_texts(job))
    n_tokens = 0
    with Work(job, cfg.training_tokens) as work:
        while n_tokens < cfg.training_tokens:
            n_tokens += len(store.next_batch())
    return work.result


def train(job: Job) -> dict[str, Any]:
    """Rows in memory to a trained SAE, through SAETrainer.fit."""
    _, batches = batches_of(job)
    best, steps = job["setting"] == "best", len(batches)
    sae_class, _ = _CLASSES[job["architecture"]]
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * job["batch_tokens"],
        device="cpu",
        autocast=best,
        lr=job["lr"] or 3e-4,
        lr_end=(job["lr"] or 3e-4) / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=steps // 20 if best else 0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=steps // 5 if best else 0,
        n_restart_cycles=1,
        train_batch_size_samples=job["batch_tokens"],
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    marks = Marks()
    sae = sae_class(_sae_config(job))
    trainer = SAETrainer(cfg=cfg, sae=sae, data_provider=marks.through(iter(batches)))
    if best and job["architecture"] in COMPILED:
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)  # as its runner's compile_sae does
    trainer.fit()
    marks.mark()
    result = timed_steps(marks, job["batch_tokens"])
    _reconstruct(job, sae)
    return result


def store(job: Job) -> dict[str, Any]:
    """Writes rows from memory by CacheActivationsRunner.run, and reads them back by ActivationsStore."""
    rows, _ = batches_of(job)
    model, context = _model(job), job["context_tokens"]
    per_batch = 32 * context
    n_rows = len(rows) // (2 * per_batch) * 2 * per_batch  # two of its shards
    cfg = CacheActivationsRunnerConfig(
        dataset_path="",
        model_name=job["files"]["model"],
        model_class_name="AutoModelForCausalLM",
        model_batch_size=32,
        hook_name=HOOK,
        d_in=rows.shape[1],
        training_tokens=n_rows,
        context_size=context,
        new_cached_activations_path=f"{job['scratch']}/cache",
        buffer_size_gb=n_rows // 2 * rows.shape[1] * 4 / 1e9,
        dtype="float32",
        device="cpu",
        prepend_bos=False,
    )
    runner = CacheActivationsRunner(cfg, override_dataset=_texts(job))
    runner.activations_store = _FromMemory(rows[:n_rows], per_batch)  # in place of the model's forward pass
    with Work(job, n_rows) as write:
        runner.run()
    reading = _runner_config(job)
    reading.use_cached_activations, reading.cached_activations_path = True, cfg.new_cached_activations_path
    source = ActivationsStore.from_config(model, reading, override_dataset=_texts(job))
    n_read = 0
    with Work(job, n_rows) as read:
        while n_read < n_rows // 2:  # its mixing buffer holds rows back; past the end it would begin again
            n_read += len(source.next_batch())
    row_bytes = rows.shape[1] * 4
    return {
        "rows": n_rows,
        "dtype": "float32",
        "write_rows_per_second": n_rows / write.result["seconds"],
        "read_rows_per_second": n_read / read.result["seconds"],
        "write_megabytes_per_second": n_rows * row_bytes / write.result["seconds"] / 1e6,
        "read_megabytes_per_second": n_read * row_bytes / read.result["seconds"] / 1e6,
        "peak_megabytes": read.result["peak_megabytes"],
    }


class _FromMemory:
    """Serves rows as ActivationsStore would serve a forward pass's."""

    def __init__(self, rows: torch.Tensor, per_batch: int):
        self._blocks = iter(rows.split(per_batch))

    def get_raw_llm_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        block = next(self._blocks)
        return block, torch.zeros(len(block), dtype=torch.int64)


def _sae_config(job: Job) -> Any:
    options: dict[str, Any] = {"d_in": 576, "d_sae": job["n_latents"], "device": "cpu", "dtype": "float32"}
    if job["architecture"] == "relu":
        options |= {"l1_coefficient": job["l1"]}
    else:
        options |= {"k": job["k"]}
    if job["architecture"] == "batchtopk" and job["setting"] == "best":
        options["topk_threshold_lr"] = 0.1
    return _CLASSES[job["architecture"]][1](**options)


def _runner_config(job: Job) -> LanguageModelSAERunnerConfig[Any]:
    best = job["setting"] == "best"
    steps = job["n_tokens"] // job["batch_tokens"]
    return LanguageModelSAERunnerConfig(
        sae=_sae_config(job),
        model_name=job["files"]["model"],
        model_class_name="AutoModelForCausalLM",
        hook_name=HOOK,
        is_dataset_tokenized=False,
        context_size=job["context_tokens"],
        training_tokens=steps * job["batch_tokens"],
        train_batch_size_tokens=job["batch_tokens"],
        prepend_bos=False,
        sequence_separator_token=None,
        n_batches_in_buffer=32 if best else 20,
        autocast=best,
        compile_sae=best and job["architecture"] in COMPILED,
        lr=job["lr"] or 3e-4,
        lr_warm_up_steps=steps // 20 if best else 0,
        lr_decay_steps=steps // 5 if best else 0,
        seed=job["seed"],
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
        verbose=False,
    )


def _model(job: Job) -> Any:
    dtype = torch.bfloat16 if job["setting"] == "best" else torch.float32
    return load_model(
        "AutoModelForCausalLM",
        job["files"]["model"],
        device="cpu",
        model_from_pretrained_kwargs={"dtype": dtype},
        hook_names=[HOOK],
    )


def _texts(job: Job) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=job["files"]["texts"], split="train", cache_dir=f"{job['scratch']}/datasets")


def _reconstruct(job: Job, sae: Any) -> None:
    """By the SAE that it would hand to others: saved for inference and loaded again."""
    sae.save_inference_model(f"{job['scratch']}/sae")
    loaded = SAE.load_from_disk(f"{job['scratch']}/sae")

    def through(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        latents = loaded.encode(rows)
        return latents, loaded.decode(latents)

    write_reconstruction(job, through)


if __name__ == "__main__":
    run_job({"end-to-end": end_to_end, "collect": collect, "train": train, "store": store})
