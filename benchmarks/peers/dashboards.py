"""An index beside sae-dashboard: the same SAE, model, tokens and latents, one after the other. Writes benchmarks/records/dashboards.json.

    python benchmarks/peers/dashboards.py [RUN] [--resume]      after `make demo`; about an hour, most of it the peer's

Both start from tokens and end with what a page needs of each of the 4,608 latents: ours as an index on disk, theirs in memory. Ours has
every activation, and what theirs has not: neighbours, co-activation, lift, positions, output scores, clusters. Theirs has
correlations with the layer's neurons. The share of tokens on which each latent is active is compared, since the same SAE on the same
tokens has to give the same.

Ours `default`: a model in bfloat16; `same`: without output scores, which the peer has none of; `float32`: as `same`, the model in
float32 as the peer's. The peer's are described in run_dashboard.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from install import ROOT, install
from launch import RECONSTRUCTION, commit, hardware, run, versions
from safetensors.torch import load_file, save_file

from sparsight.activations import ActivationStore
from sparsight.lm import ModelConfig, resolve_checkpoint

RECORD = ROOT / "benchmarks" / "records" / "dashboards.json"
MODEL, SAE, PEER = "smollm2-135m-instruct", "topk-8x", "sae-dashboard"
ROWS, LENGTH, N_LATENTS = 512, 128, 4608
OURS = "sparsight-index"
JOBS = ((OURS, "default"), (OURS, "same"), (OURS, "float32"), (PEER, "best"), (PEER, "default"))


def main(source: Path, resume: bool) -> None:
    """Runs the jobs, but for those that an interrupted run has done, and writes the record."""
    install(PEER)
    folder = ROOT / "build" / "dashboards"
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "tokens": str(write_tokens(ActivationStore.open(source / "activations"), folder / "tokens.safetensors")),
        "model": resolve_checkpoint(ModelConfig(id=MODEL)).source,
        "sae": str((source / "saes" / SAE).resolve()),
    }
    record: dict[str, Any] = {
        "command": "make bench-index",
        "commit": commit(),
        "hardware": hardware(),
        "versions": {tool: versions(tool) for tool in ("sparsight", PEER)},
        "latents": N_LATENTS,
        "runs": [],
    }
    if resume and RECORD.exists():
        record["runs"] = json.loads(RECORD.read_text())["runs"]
    done = {(each["tool"], each["setting"]) for each in record["runs"] if "error" not in each["result"]}
    densities = {each: density_of(folder, *each) for each in done}
    for tool, setting in [each for each in JOBS if each not in done]:
        job = {"part": "dashboards", "tool": tool, "setting": setting, "seed": 0, "n_latents": N_LATENTS}
        result = run(job, files, folder / f"{tool}-{setting}")
        record["runs"].append({"tool": tool, "setting": setting, "result": result})
        print(tool, setting, json.dumps(result), flush=True)
        if "error" not in result:
            densities[tool, setting] = density_of(folder, tool, setting)
        RECORD.write_text(json.dumps(record | summary(record["runs"], densities), indent=2) + "\n")


def density_of(folder: Path, tool: str, setting: str) -> torch.Tensor:
    """Of each latent, as the job left it."""
    return load_file(folder / f"{tool}-{setting}" / RECONSTRUCTION)["density"]


def write_tokens(store: ActivationStore, path: Path) -> Path:
    """Rows of 128 tokens: the beginnings of held-out pieces that are long enough."""
    pieces = store.pieces("heldout")
    found = [tokens[:LENGTH] for tokens in map(pieces.tokens, range(len(pieces))) if len(tokens) >= LENGTH]
    save_file({"tokens": torch.stack([torch.from_numpy(row.copy()) for row in found[:ROWS]])}, path)
    return path


def summary(runs: list[dict[str, Any]], densities: dict[tuple[str, str], torch.Tensor]) -> dict[str, Any]:
    """How many times the time of ours, by the clock and of the processors, and how far the two disagree about densities."""
    found = {
        kind: {(each["tool"], each["setting"]): each["result"].get(kind) for each in runs}
        for kind in ("seconds", "processor_seconds")
    }
    factors = {
        f"{theirs}_over_{ours}": {kind: values[PEER, theirs] / values[OURS, ours] for kind, values in found.items()}
        for theirs in ("default", "best")
        for ours in ("default", "same", "float32")
        if (PEER, theirs) in densities and (OURS, ours) in densities
    }
    if not factors:
        return {}
    first, second = densities[OURS, "float32"], densities[PEER, "best"]
    return {"factors": factors, "largest_difference_of_density": float((first - second).abs().max())}


if __name__ == "__main__":
    paths = [each for each in sys.argv[1:] if each != "--resume"]
    main(Path(paths[0]) if paths else ROOT / "runs" / "demo", "--resume" in sys.argv)
