"""Does memory stay flat as tokens grow tenfold, and what do many SAEs from one pass save? Writes benchmarks/records/growth.json.

    make bench-growth

Each measurement is a process of its own on the real model (SmolLM2-135M, layers.15.mlp, probe text), so that its peak resident memory is
its own. Memory: collecting a store, training from it, and training live, at N and 10 N tokens. Saving: 8 SAEs in one study against the same
8 in a study each, interleaved, from loading the model to the saved weights; loading is outside of neither.
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

HOOK = "layers.15.mlp"
N_TOKENS = 40_000
N_SAES = 8
REPEATS = 3
RECORD = Path(__file__).parent / "records" / "growth.json"


def child(job: str, folder: str, n_tokens: int, first_sae: int, n_saes: int) -> None:
    """One measurement; prints seconds and peak memory as JSON."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import logging

    from sparsight import CaptureConfig, LanguageModel, ModelConfig, SAEConfig, TextConfig, TrainConfig, train_saes
    from sparsight.activations import ActivationStore, ActivationStream, StoreSource
    from sparsight.collect import collect_activations

    logging.disable(logging.WARNING)
    text = TextConfig(builtin="probe-text", heldout_fraction=0.0)
    capture = CaptureConfig(hook_points=(HOOK,), n_tokens=n_tokens, heldout_tokens=0, window_tokens=16_384)
    options = {"architecture": "topk", "n_latents": 4608, "k": 32, "hook_point": HOOK, "lr": 1e-3}
    saes = [SAEConfig(id=f"sae-{seed}", seed=seed, **options) for seed in range(first_sae, first_sae + n_saes)]
    path, train = Path(folder), TrainConfig(batch_tokens=1024)
    started = time.perf_counter()
    if job in ("collect", "study", "stream"):
        model = LanguageModel.load(ModelConfig(id="smollm2-135m-instruct"), hook_points=[HOOK])
    if job in ("collect", "study"):
        collect_activations(model, text, capture, path / "activations")
    if job in ("train", "study"):
        train_saes(
            StoreSource(ActivationStore.open(path / "activations"), (HOOK,), 1, 0), saes, path / "saes", train=train
        )
    if job == "stream":
        train_saes(ActivationStream(model, text, capture, seed=0), saes, path / "saes", train=train)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_megabytes": megabytes}))


def run(job: str, folder: Path, n_tokens: int, first_sae: int = 0, n_saes: int = 1) -> dict[str, float]:
    """`child` in a fresh process."""
    command = [sys.executable, __file__, "child", job, str(folder), str(n_tokens), str(first_sae), str(n_saes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(scratch: Path) -> dict[str, dict[str, dict[str, float]]]:
    """job -> tokens -> seconds and peak memory."""
    rows: dict[str, dict[str, dict[str, float]]] = {"collect": {}, "train": {}, "stream": {}}
    for n_tokens in (N_TOKENS, 10 * N_TOKENS):
        for job in rows:
            rows[job][str(n_tokens)] = run(
                job, scratch / ("live" if job == "stream" else "store") / str(n_tokens), n_tokens
            )
            print(job, n_tokens, rows[job][str(n_tokens)], flush=True)
    return rows


def measure_saving(scratch: Path) -> dict[str, object]:
    """Seconds of 8 SAEs in one study, and of 8 studies of one SAE."""
    together, apart = [], []
    for repeat in range(REPEATS):
        together.append(run("study", scratch / f"together-{repeat}", N_TOKENS, 0, N_SAES)["seconds"])
        apart.append(
            sum(run("study", scratch / f"apart-{repeat}-{seed}", N_TOKENS, seed)["seconds"] for seed in range(N_SAES))
        )
        print(f"8 SAEs: together {together[-1]:.1f} s, apart {apart[-1]:.1f} s", flush=True)
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
    scratch = Path(tempfile.mkdtemp(prefix="sparsight-growth-"))
    try:
        memory, saving = measure_memory(scratch), measure_saving(scratch)
    finally:
        shutil.rmtree(scratch)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    record = {
        "command": "make bench-growth",
        "commit": commit,
        "versions": {name: version(name) for name in ("sparsight", "torch", "transformers")},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "memory": memory,
        "many_saes": saving,
    }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for job, sizes in memory.items():
        small, large = (sizes[str(n)]["peak_megabytes"] for n in (N_TOKENS, 10 * N_TOKENS))
        print(
            f"{job}: peak {small:.0f} MB at {N_TOKENS:,} tokens, {large:.0f} MB at ten times as many ({large / small - 1:+.1%})"
        )
    print(
        f"{N_SAES} SAEs from one pass: {saving['factor_median']:.1f}x faster than {N_SAES} runs, {saving['factor_range']}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], *(int(each) for each in sys.argv[4:]))
    else:
        main()
