"""Does memory stay flat as tokens grow tenfold, and what do many SAEs from one pass save? Writes benchmarks/records/growth.json.

    make bench-growth

Each measurement is a process of its own, so that its peak resident memory is its own. Memory: collecting a store, training from it, and
training live, at N and 10 N tokens; on the real model (SmolLM2-135M, layers.15.mlp, probe text), and with many more tokens on a random model
of two narrow layers, where next to nothing but our own code could grow. Saving: 8 SAEs in one study against the same 8 in a study each,
interleaved, from loading the model to the saved weights.
"""

import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

REAL, HOOK, N_TOKENS = "smollm2-135m-instruct", "layers.15.mlp", 40_000
NARROW_HOOK, NARROW_N_TOKENS = "layers.1.mlp", 200_000
JOBS = ("collect", "train", "stream")
N_SAES = 8
REPEATS = 3
RECORD = Path(__file__).parent / "records" / "growth.json"


def make_narrow_model(folder: Path) -> None:
    """A random Llama, 2 layers of width 64, with SmolLM2's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from sparsight.lm import ModelConfig, resolve_checkpoint

    resolve_checkpoint(ModelConfig(id=REAL)).tokenizer().save_pretrained(folder)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=49152, num_hidden_layers=2, **shape)).save_pretrained(folder)


def child(job: str, folder: str, model_id: str, n_tokens: int, first_sae: int, n_saes: int) -> None:
    """One measurement; prints seconds and peak memory as JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import logging

    from sparsight import CaptureConfig, LanguageModel, ModelConfig, SAEConfig, TextConfig, TrainConfig, train_saes
    from sparsight.activations import ActivationStore, ActivationStream, StoreSource
    from sparsight.collect import collect_activations

    logging.disable(logging.WARNING)
    hook, n_latents = (HOOK, 4608) if model_id == REAL else (NARROW_HOOK, 512)
    text = TextConfig(builtin="probe-text", heldout_fraction=0.0)
    capture = CaptureConfig(hook_points=(hook,), n_tokens=n_tokens, heldout_tokens=0, window_tokens=16_384)
    options = {"architecture": "topk", "n_latents": n_latents, "k": 32, "hook_point": hook, "lr": 1e-3}
    saes = [SAEConfig(id=f"sae-{seed}", seed=seed, **options) for seed in range(first_sae, first_sae + n_saes)]
    path, train = Path(folder), TrainConfig(batch_tokens=1024)
    started = time.perf_counter()
    if job != "train":
        model = LanguageModel.load(ModelConfig(id=model_id), hook_points=[hook])
    if job in ("collect", "study"):
        collect_activations(model, text, capture, path / "activations")
    if job in ("train", "study"):
        source = StoreSource(ActivationStore.open(path / "activations"), (hook,), 1, 0)
        train_saes(source, saes, path / "saes", train=train)
    if job == "stream":
        train_saes(ActivationStream(model, text, capture, seed=0), saes, path / "saes", train=train)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_megabytes": megabytes}))


def run(
    job: str, folder: Path, n_tokens: int, first_sae: int = 0, n_saes: int = 1, model_id: str = REAL
) -> dict[str, float]:
    """`child` in a fresh process."""
    command = [sys.executable, __file__, "child", job, str(folder), model_id]
    command += [str(n_tokens), str(first_sae), str(n_saes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(scratch: Path, model_id: str, n_tokens: int) -> dict[str, dict[str, dict[str, float]]]:
    """job -> tokens -> seconds and peak memory."""
    rows: dict[str, dict[str, dict[str, float]]] = {job: {} for job in JOBS}
    for size in (n_tokens, 10 * n_tokens):
        for job in JOBS:
            folder = scratch / ("live" if job == "stream" else "store") / str(size)
            rows[job][str(size)] = run(job, folder, size, model_id=model_id)
            print(job, size, rows[job][str(size)], flush=True)
    return rows


def growth(sizes: dict[str, dict[str, float]]) -> str:
    """`peak A MB at N tokens, B MB at ten times as many`."""
    (n, small), (_, large) = sizes.items()
    a, b = small["peak_megabytes"], large["peak_megabytes"]
    return f"peak {a:.0f} MB at {int(n):,} tokens, {b:.0f} MB at ten times as many ({b / a - 1:+.1%})"


def measure_saving(scratch: Path) -> dict[str, object]:
    """Seconds of 8 SAEs in one study, and of 8 studies of one SAE."""
    together, apart = [], []
    for repeat in range(REPEATS):
        together.append(run("study", scratch / f"together-{repeat}", N_TOKENS, 0, N_SAES)["seconds"])
        runs = [run("study", scratch / f"apart-{repeat}-{seed}", N_TOKENS, seed) for seed in range(N_SAES)]
        apart.append(sum(each["seconds"] for each in runs))
        print(f"{N_SAES} SAEs: together {together[-1]:.1f} s, apart {apart[-1]:.1f} s", flush=True)
    ratios = [b / a for a, b in zip(together, apart, strict=True)]
    return {
        "n_saes": N_SAES,
        "n_tokens": N_TOKENS,
        "together_seconds": together,
        "apart_seconds": apart,
        "factor_median": statistics.median(ratios),
        "factor_range": [min(ratios), max(ratios)],
    }


def main() -> None:
    """Measures, writes the record, prints what it says."""
    scratch = Path(tempfile.mkdtemp(prefix="sparsight-growth-"))
    try:
        make_narrow_model(scratch / "narrow")
        memory = {
            "smollm2-135m": measure_memory(scratch / "real", REAL, N_TOKENS),
            "narrow": measure_memory(scratch / "narrow-runs", str(scratch / "narrow"), NARROW_N_TOKENS),
        }
        saving = measure_saving(scratch)
    finally:
        shutil.rmtree(scratch)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "command": "make bench-growth",
        "commit": head.stdout.strip(),
        "versions": {name: version(name) for name in ("sparsight", "torch", "transformers")},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "memory": memory,
        "many_saes": saving,
    }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for model, jobs in memory.items():
        for job, sizes in jobs.items():
            print(f"{model}, {job}: {growth(sizes)}")
    print(f"{N_SAES} SAEs from one pass: {saving['factor_median']:.1f}x faster than {N_SAES} runs")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:5], *(int(each) for each in sys.argv[5:]))
    else:
        main()
