"""How long does a feature index take, and what does its time grow with? Writes benchmarks/records/index.json.

    make bench-index                    after `make demo`; parts: make bench-index BENCH="--parts wide"

demo     the index of the demo's SAE (576 -> 4,608, TopK, k = 32) on 400,000 held-out tokens, which are collected once into
         build/index-bench: alone, with a second seed, with the map, and with both as in a study. Beside it, in the same process,
         what no index can do without: reading the rows and multiplying them by the encoder.
wide     131,072 latents: active pairs drawn at random (latents by a power law) and no SAE, through the same writer and statistics;
         at 1, 2, 4 and 8 million pairs, and 4 million pairs at 8,192, 32,768 and 131,072 latents. Neighbours, which cost the square
         of the number of latents, apart.

Every measurement is a process of its own, so that its peak resident memory is its own. The dashboards' comparison is benchmarks/peers/dashboards.py.
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import resource
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsight.activations import ActivationStore, CaptureConfig, PieceTable
from sparsight.collect import collect_activations
from sparsight.features import FeatureIndexWriter, IndexConfig
from sparsight.features.evidence import PairEvidence, of_directions
from sparsight.features.statistics import MapProcess
from sparsight.index import build_index
from sparsight.lm import LanguageModel, ModelConfig, TextConfig
from sparsight.sae import SAEConfig, SparseAutoencoder

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "records" / "index.json"
SCRATCH = ROOT / "build" / "index-bench"
MODEL, HOOK, N_TOKENS = "smollm2-135m-instruct", "layers.15.mlp", 400_000
PARTS = ("demo", "wide")
# Functions whose time, with what they call, makes up an index.
STAGES = (
    "_encode",
    "group",
    "of_directions",
    "strongest",
    "communities",
    "of_embeddings",
    "logit_weights",
    "output_scores",
    "points",
    "map_facts",
    "_of_partners",
)
WIDE, WIDE_WIDTH, L0, DOCUMENT_TOKENS, VOCABULARY = 131_072, 128, 32, 512, 50_000
MILLION = 1_000_000
GROWING_PAIRS = tuple((WIDE, n * MILLION) for n in (1, 2, 4, 8))
GROWING_LATENTS = tuple((n, 4 * MILLION) for n in (8_192, 32_768))


def collect() -> None:
    """400,000 held-out rows, once."""
    if (SCRATCH / "activations" / "store.json").exists():
        return
    text = TextConfig(builtin="probe-text", heldout_fraction=0.9)
    capture = CaptureConfig(hook_points=(HOOK,), n_tokens=1024, heldout_tokens=N_TOKENS)
    model = LanguageModel.load(ModelConfig(id=MODEL), hook_points=[HOOK])
    collect_activations(model, text, capture, SCRATCH / "activations")


def index_demo(run: Path, kind: str) -> dict[str, Any]:
    """Seconds of the index, of its stages, and of the bare encoder on the same rows."""
    store = ActivationStore.open(SCRATCH / "activations")
    sae = SparseAutoencoder.load(run / "saes" / "topk-8x")
    second = SparseAutoencoder.load(run / "saes" / "topk-8x.seed") if kind in ("second", "study") else None
    model = LanguageModel.load(ModelConfig(id=MODEL))
    config = IndexConfig(map=kind in ("map", "study"))
    out = SCRATCH / f"features-{kind}"
    shutil.rmtree(out, ignore_errors=True)
    measured = Measured()
    with measured:
        index = build_index(sae, store, model, second=second, path=out, config=config, hook_point=HOOK)
    started = time.perf_counter()
    for batch in store.batches("heldout", config.batch_tokens):
        torch.addmm(sae.get_parameter("b_enc"), batch[HOOK].float() - sae.b_dec, sae.W_enc)
    encoder = time.perf_counter() - started
    pairs = int(index.latent_offsets[-1])
    return measured.result | {
        "tokens": index.n_tokens,
        "latents": index.n_latents,
        "active_pairs": pairs,
        "encoder_seconds": encoder,
        "encoders": measured.result["seconds"] / encoder,
        "map": index.about.get("map"),
    }


def index_wide(n_latents: int, n_pairs: int, with_neighbours: bool) -> dict[str, Any]:
    """Seconds to write and count that many drawn pairs."""
    rng = np.random.default_rng(0)
    n_tokens = n_pairs // L0
    pieces = drawn_pieces(rng, n_tokens)
    share = (np.arange(n_latents) + 10.0) ** -0.8
    edges = np.cumsum(share / share.sum())
    out = SCRATCH / f"wide-{n_latents}-{n_pairs}"
    shutil.rmtree(out, ignore_errors=True)
    measured, writing = Measured(), 0.0
    with FeatureIndexWriter.create(out, pieces, n_latents, IndexConfig()) as writer:
        for start in range(0, n_tokens, 2048):
            tokens = np.arange(start, min(start + 2048, n_tokens))
            latents = np.minimum(np.searchsorted(edges, rng.random((len(tokens), L0))), n_latents - 1)
            latents.sort(axis=1)
            values = rng.exponential(1, latents.shape).astype(np.float32) + 0.01
            values[:, 1:][latents[:, 1:] == latents[:, :-1]] = 0  # drawn twice
            started = time.perf_counter()
            writer.add(tokens, latents, values)
            writing += time.perf_counter() - started
        weights = {"W_enc": torch.randn(WIDE_WIDTH, n_latents), "W_dec": torch.randn(n_latents, WIDE_WIDTH)}
        biases = {"b_enc": torch.zeros(n_latents), "b_dec": torch.zeros(WIDE_WIDTH)}
        sae = SparseAutoencoder(SAEConfig(id="wide", architecture="topk", n_latents=n_latents, k=L0), weights | biases)
        with measured, MapProcess(0, out / "none") as no_map:
            grouped = writer.group()
            parts = [PairEvidence(sae, grouped, IndexConfig(map=False), no_map).found]
            if with_neighbours:
                parts.append(of_directions(sae, grouped))
            for arrays, _ in parts:
                writer.set_arrays(arrays)
            writer.finish({})
    seconds = measured.result["seconds"] + writing - measured.result["stages"].get("of_directions", 0.0)
    shutil.rmtree(out)
    return measured.result | {
        "latents": n_latents,
        "alive": int(grouped.alive.sum()),
        "active_pairs": len(grouped.token_ranks),
        "seconds": seconds,
        "writing_seconds": writing,
        "nanoseconds_per_pair": seconds / len(grouped.token_ranks) * 1e9,
    }


def drawn_pieces(rng: np.random.Generator, n_tokens: int) -> PieceTable:
    """Documents of one piece each, tokens by a power law."""
    share = 1 / (np.arange(VOCABULARY) + 3.0)
    ids = np.searchsorted(np.cumsum(share / share.sum()), rng.random(n_tokens)).clip(max=VOCABULARY - 1)
    offsets = np.append(np.arange(0, n_tokens, DOCUMENT_TOKENS), n_tokens)
    numbers = np.arange(len(offsets) - 1)
    return PieceTable(ids.astype(np.int32), offsets, numbers, np.zeros(len(numbers), np.int32), numbers)


def processor_seconds() -> float:
    """Of this process and of those it started that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Measured:
    """Seconds by the clock and of the processors, stages, and the peak memory of the process and of the largest it started, together."""

    result: dict[str, Any]

    def __enter__(self) -> None:
        self._profile, self._started, self._used = cProfile.Profile(), time.perf_counter(), processor_seconds()
        self._profile.enable()

    def __exit__(self, *_: object) -> None:
        self._profile.disable()
        peaks = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        entries = pstats.Stats(self._profile).stats  # pyright: ignore[reportAttributeAccessIssue]
        found = {key[2]: timing[3] for key, timing in entries.items() if "sparsight" in key[0] and key[2] in STAGES}
        self.result = {
            "seconds": time.perf_counter() - self._started,
            "processor_seconds": processor_seconds() - self._used,
            "peak_megabytes": sum(peaks) / (1 << 10 if sys.platform == "linux" else 1 << 20),
            "stages": {name: round(found[name], 2) for name in STAGES if name in found},
        }


def child(*arguments: str) -> dict[str, Any]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(*arguments, json.dumps(result), flush=True)
    return result


def main() -> None:
    """Measures the parts asked for and writes them into the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    about = {
        "command": "make bench-index",
        "commit": head.stdout.strip(),
        "versions": {name: version(name) for name in ("sparsight", "torch", "numpy", "scipy")},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    if "demo" in arguments.parts:
        collect()
        record["demo"] = about | {
            kind: child("demo", str(arguments.run), kind) for kind in ("alone", "second", "map", "study")
        }
    if "wide" in arguments.parts:
        rows = [child("wide", *map(str, case), "") for case in (*GROWING_LATENTS, *GROWING_PAIRS[:-1])]
        rows.append(child("wide", *map(str, GROWING_PAIRS[-1]), "neighbours"))
        record["wide"] = about | {"rows": rows}
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] != ["child"]:
        main()
    elif sys.argv[2] == "demo":
        print(json.dumps(index_demo(Path(sys.argv[3]), sys.argv[4])))
    else:
        print(json.dumps(index_wide(int(sys.argv[3]), int(sys.argv[4]), bool(sys.argv[5]))))
