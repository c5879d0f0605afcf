"""The founding job on this machine's GPU: how fast is each part, what share of the roof is that, and how long would all of it take?

    make reference-job            python benchmarks/reference_job.py --tiny

50M tokens of `layers.16.mlp` of Qwen3.5-9B into an SAE, 4096 -> 16384, batch 4096. No weights are fetched: the 17 blocks that reading takes are
made at random in the 9B's shape, which computes for as long, and text is random words. Measured, in this order: the rate of matrix products;
collection with plain and with compiled blocks; SAE steps from memory, by autograd and in closed form (one CUDA graph); both at once, live. Each
SAE with its rate, its share of the measured products' rate, peak memory and the times per step that the host waited for the device.

Predictions are arithmetic and shown as such: tokens * FLOPs a token / (rate of products * share measured here), for this machine with its measured
rate, for an RTX 4090 with its maker's. `--tiny` runs the same code in seconds on a CPU with toy sizes; its numbers mean nothing.
"""

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerFast, Qwen3_5TextConfig

from sparsight.activations import ActivationStream, CaptureConfig
from sparsight.activations.capture import Progress, capture_windows, make_buffer
from sparsight.artifact.devices import DEVICES, Device, measured, this_device
from sparsight.lm import LanguageModel, TextConfig, TokenBatch
from sparsight.lm.compiled import compile_blocks
from sparsight.lm.geometry import geometry_of
from sparsight.sae import SAEConfig, SAETrainer, founding_config

RECORD = Path(__file__).parent / "records" / "reference_job.json"
JOB_TOKENS = 50_000_000
LARGEST_DIFFERENCE = 0.1  # of compiled blocks, in bfloat16, at the hook point: what other shapes differ by as well
Step = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is measured, and on how much."""

    device: str
    dtype: str
    hook_point: str
    n_windows: int
    window_tokens: int
    forward_tokens: int
    batch_tokens: int
    widths: tuple[int, ...]
    k: int
    warm_steps: int
    timed_steps: int


FULL = Sizes(
    device="cuda", dtype="bfloat16", hook_point="layers.16.mlp", n_windows=8, window_tokens=65_536, forward_tokens=16_384,
    batch_tokens=4096, widths=(16_384, 65_536), k=64, warm_steps=5, timed_steps=50,
)  # fmt: skip
TINY = Sizes(
    device="cpu", dtype="float32", hook_point="layers.3.mlp", n_windows=3, window_tokens=512, forward_tokens=256,
    batch_tokens=64, widths=(128, 256), k=8, warm_steps=4, timed_steps=4,
)  # fmt: skip


def model_config(tiny: bool) -> Qwen3_5TextConfig:
    """The 9B's text model (the class's defaults) cut after block 16, or a toy of the same kind."""
    if tiny:
        toy = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
        toy |= {"num_key_value_heads": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
        return Qwen3_5TextConfig(num_hidden_layers=4, linear_key_head_dim=8, linear_value_head_dim=8, **toy)
    config = Qwen3_5TextConfig()
    config.num_hidden_layers, config.layer_types = 17, config.layer_types[:17]
    return config


def make_model(config: Qwen3_5TextConfig, sizes: Sizes, documents: list[str], *, compiled: bool) -> LanguageModel:
    """Random weights on the device, with a tokenizer learnt from the documents; the blocks compiled, which is recorded."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents[:50], vocab_size=300, special_tokens=["<s>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<s>")
    torch.manual_seed(0)
    with torch.device(sizes.device):
        module = AutoModel.from_config(config, dtype=getattr(torch, sizes.dtype)).eval().requires_grad_(False)
    model = LanguageModel.from_module(module, tokenizer, hook_points=[sizes.hook_point])
    if compiled:
        ids, none = torch.arange(256).reshape(4, 64), torch.zeros(4, 64, dtype=torch.int32)
        batch = TokenBatch(input_ids=ids, mask=ids >= 0, document_ids=ids, positions=none, piece_ids=none)
        check = partial(model.read, batch, [sizes.hook_point])
        model.provenance["compile"] = compile_blocks(module, check, largest_difference=LARGEST_DIFFERENCE)
    return model


def make_documents(n_tokens: int) -> list[str]:
    """At least n_tokens tokens of random words, in documents of 20 to 600 words."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(2000)]
    documents, n_words = [], 0
    while n_words < 1.2 * n_tokens:  # a word is a token or more
        length = rng.randint(20, 600)
        documents.append(" ".join(rng.choices(words, k=length)))
        n_words += length
    return documents


def synchronize(sizes: Sizes) -> None:
    """Waits for the device."""
    if sizes.device == "cuda":
        torch.cuda.synchronize()


def peak_gigabytes(sizes: Sizes) -> float | None:
    """Largest memory in use since the last call; None on a CPU."""
    if sizes.device != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def collection(model: LanguageModel, text: TextConfig, sizes: Sizes, flops: float, roof: float) -> dict[str, Any]:
    """Windows captured into device memory; the first, in which libraries load, is left out."""
    capture = capture_config(sizes)
    buffers = [make_buffer(model, text, capture, model.device)]
    rates, started = [], time.perf_counter()
    for window in capture_windows(
        model, text, capture, seed=0, progress=Progress(), splits=("train",), buffers=buffers
    ):
        synchronize(sizes)
        rates.append(window.counts["tokens"] / (time.perf_counter() - started))
        started = time.perf_counter()
    rate = statistics.median(rates[1:])
    summary = {"tokens_per_second": rate, "range": [min(rates[1:]), max(rates[1:])], "share": rate * flops / roof}
    return summary | {"flops_per_token": flops, "peak_gigabytes": peak_gigabytes(sizes)}


def capture_config(sizes: Sizes) -> CaptureConfig:
    """All windows as training rows."""
    return CaptureConfig(
        hook_points=(sizes.hook_point,),
        mode="stream",
        n_tokens=(sizes.n_windows - 1) * sizes.window_tokens,
        heldout_tokens=0,
        window_tokens=sizes.window_tokens,
    )


def sae_configs(sizes: Sizes) -> list[SAEConfig]:
    """The founding SAE, the same with bfloat16 products, and BatchTopK, at each width."""
    configs = []
    for width in sizes.widths:
        founding = founding_config(f"founding-{width}", width, hook_point=sizes.hook_point)
        configs += [founding, replace(founding, id=f"founding-bfloat16-{width}", precision="bfloat16")]
        options = {"architecture": "batchtopk", "n_latents": width, "k": sizes.k, "hook_point": sizes.hook_point}
        configs.append(SAEConfig(id=f"batchtopk-{width}", **options))
    return configs


def training_flops(cfg: SAEConfig, d: int) -> float:
    """Per token, of the five dense products: encode, decode, and the gradients of z, W_enc and W_dec."""
    return 10.0 * d * cfg.n_latents


def autograd_step(cfg: SAEConfig, x: Tensor, sizes: Sizes, total_steps: int) -> Step:
    """`SAETrainer`'s step by autograd."""
    return trainer_step(cfg, x, sizes, total_steps, form="autograd")


def closed_form_step(cfg: SAEConfig, x: Tensor, sizes: Sizes, total_steps: int) -> Step:
    """The same SAE's step in closed form, on CUDA by the GPU kernels and as a graph."""
    return trainer_step(cfg, x, sizes, total_steps, form="dense")


def trainer_step(cfg: SAEConfig, x: Tensor, sizes: Sizes, total_steps: int, *, form: str) -> Step:
    """The step, begun on `x`."""
    options = {"total_steps": total_steps, "batch_tokens": len(x), "device": sizes.device, "form": form}
    trainer = SAETrainer(cfg, x.shape[1], x.shape[1], **options)
    trainer.initialize(x)
    return trainer.step


def host_waits(step: Step, batches: Iterator[Tensor], n_steps: int, sizes: Sizes) -> float | None:
    """Times per step that the host waited for the device; None on a CPU."""
    if sizes.device != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for x in islice(batches, n_steps):
                step(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught) / n_steps


def training(make: Any, cfg: SAEConfig, rows: list[Tensor], sizes: Sizes, device: Device) -> dict[str, Any]:
    """Steps of one SAE on batches that lie in device memory."""
    total = sizes.warm_steps + 2 * sizes.timed_steps
    batches = cycle(rows)
    try:
        step = make(cfg, rows[0], sizes, total)
        for x in islice(batches, sizes.warm_steps):
            metrics = step(x)
        synchronize(sizes)
        started = time.perf_counter()
        for x in islice(batches, sizes.timed_steps):
            metrics = step(x)
        synchronize(sizes)
        rate = sizes.timed_steps * sizes.batch_tokens / (time.perf_counter() - started)
        waits = host_waits(step, batches, sizes.timed_steps, sizes)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True, "peak_gigabytes": peak_gigabytes(sizes)}
    flops = training_flops(cfg, rows[0].shape[1])
    assert metrics["loss"].isfinite()
    return {
        "tokens_per_second": rate,
        "share": rate * flops / device.flops[cfg.precision],
        "flops_per_token": flops,
        "host_waits_per_step": waits,
        "peak_gigabytes": peak_gigabytes(sizes),
    }


def live(model: LanguageModel, text: TextConfig, cfg: SAEConfig, sizes: Sizes) -> dict[str, Any]:
    """Collection and training at once; from the first batch on, by when one window is there and its time is not counted."""
    stream, step, n_rows, started = ActivationStream(model, text, capture_config(sizes), seed=0), None, 0, 0.0
    for batch in stream.batches(sizes.batch_tokens):
        x = batch[sizes.hook_point]
        if step is None:
            step = closed_form_step(cfg, x, sizes, stream.n_rows // sizes.batch_tokens)
            synchronize(sizes)
            started = time.perf_counter()
        step(x)
        n_rows += len(x)
    synchronize(sizes)
    rate = (n_rows - sizes.window_tokens) / (time.perf_counter() - started)
    return {"tokens_per_second": rate, "peak_gigabytes": peak_gigabytes(sizes)}


def prediction(collect: dict[str, Any], train: dict[str, Any], cfg: SAEConfig, here: Device) -> dict[str, Any]:
    """Seconds of the whole job on this machine and on an RTX 4090, one after the other, with the arithmetic."""
    if "share" not in train:
        return {}
    predicted = {}
    for device in (here, DEVICES["rtx-4090"]):
        seconds, lines = 0.0, []
        for name, part, dtype in (("collect", collect, "bfloat16"), ("train", train, cfg.precision)):
            reached = device.flops[dtype] * part["share"]
            seconds += (each := JOB_TOKENS * part["flops_per_token"] / reached)
            lines.append(
                f"{name}: {JOB_TOKENS:.3g} tokens * {part['flops_per_token']:.4g} FLOPs / "
                f"({device.flops[dtype]:.4g} FLOP/s * share {part['share']:.3g}) = {each:.0f} s"
            )
        predicted[device.name] = {"seconds": seconds, "arithmetic": lines}
    return predicted


def measure(tiny: bool, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Everything, as the record holds it."""
    config = model_config(tiny)
    geometry = geometry_of(config, [sizes.hook_point])
    d = geometry.widths[sizes.hook_point]
    here = measured(this_device(sizes.device), ("bfloat16", "float32"), sides=(d, geometry.widest))
    documents = make_documents(sizes.n_windows * sizes.window_tokens)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    options = {"context_tokens": 256, "batch_tokens": sizes.forward_tokens, "heldout_fraction": 0.0}
    text = TextConfig(files=(str(folder / "text.jsonl"),), **options)
    flops, roof = geometry.forward_flops(text.context_tokens), here.flops[sizes.dtype]
    model = make_model(config, sizes, documents, compiled=False)
    result: dict[str, Any] = {"device": asdict(here), "delta_net_kernels": find_spec("fla") is not None}
    result["collect"] = {"plain": collection(model, text, sizes, flops, roof)}
    with closing(ActivationStream(model, text, capture_config(sizes), seed=0).batches(sizes.batch_tokens)) as batches:
        rows = [batch[sizes.hook_point].clone() for batch in islice(batches, 4)]
    del model
    result["train"], result["predicted"], configs = {}, {}, sae_configs(sizes)
    for cfg in configs:
        result["train"][cfg.id] = {}
        for name, make in (("autograd", autograd_step), ("closed form", closed_form_step)):
            gc.collect()
            result["train"][cfg.id][name] = training(make, cfg, rows, sizes, here)
            print(cfg.id, name, result["train"][cfg.id][name], flush=True)
    model = make_model(config, sizes, documents, compiled=not tiny)  # on a CPU a C++ compiler would take a minute
    if not tiny:
        result["compile"] = model.provenance["compile"]
        result["collect"]["compiled"] = collection(model, text, sizes, flops, roof)
    result["live"] = {cfg.id: live(model, text, cfg, sizes) for cfg in configs[:3]}
    best = max(result["collect"].values(), key=lambda each: each["tokens_per_second"])
    for cfg in configs:
        result["predicted"][cfg.id] = prediction(best, result["train"][cfg.id]["closed form"], cfg, here)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes the record, prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes on the CPU, to see that it runs")
    parser.add_argument("--record", type=Path, help=f"where the record goes; without --tiny {RECORD.name}")
    asked = parser.parse_args(arguments)
    if not asked.tiny and not torch.cuda.is_available():
        print(
            "The reference job needs a CUDA GPU, and there is none here. --tiny runs the same code on the CPU.",
            file=sys.stderr,
        )
        return 2
    sizes = TINY if asked.tiny else FULL
    with tempfile.TemporaryDirectory(prefix="sparsight-reference-job-") as folder:
        result = measure(asked.tiny, sizes, Path(folder))
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "status": "toy sizes on a CPU: the numbers mean nothing" if asked.tiny else "measured",
        "command": "python benchmarks/reference_job.py --tiny" if asked.tiny else "make reference-job",
        "commit": head.stdout.strip(),
        "versions": {name: version(name) for name in ("sparsight", "torch", "transformers")},
        "sizes": asdict(sizes),
        **result,
    }
    path = asked.record or (None if asked.tiny else RECORD)
    if path:
        path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
