"""Is an SAE of ours as good as the best of SAELens and dictionary_learning? The same rows, width, k and steps; three seeds.

    make bench-quality                                         # half an hour on 2 cores
    python benchmarks/peers/quality.py --parts peers           # the comparison alone
    python benchmarks/peers/quality.py STORE --parts dead      # how many latents die in ordinary runs, at 8 and 64 times the width

peers: every tool trains at the rate that was best for it in `make bench`, in its own environment; its SAE is saved in its own format,
read by `sparsight.load_sae`, and measured by one definition for all: held-out FVU, L0 and dead share, cross-entropy and KL with the SAE in
place, and k-sparse probes on 37 labelled sets; beside them ours before training. dead: our topk and batchtopk on three passes over a store,
for the latents that are active on none of its rows, and on no held-out token.

Writes benchmarks/records/quality.json and quality.md; what is trained lies in build/quality and is not trained again.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from install import ROOT, install
from launch import commit, hardware, prepared, run, versions
from plan import Sizes, best_rate, new_job

from sparsight import (
    EvaluateConfig,
    LanguageModel,
    ModelConfig,
    ProbingConfig,
    SAEConfig,
    SparseAutoencoder,
    TextConfig,
    TrainConfig,
    evaluate_sae,
    load_sae,
)
from sparsight.activations import ActivationStore, StoreSource, last_token_activations
from sparsight.lm import builtin_sets, sample_prompts
from sparsight.metrics import one_thread, stratified_split, train_probe
from sparsight.sae import SAETrainer
from sparsight.train import train_saes

HOOK, MODEL = "layers.15.mlp", "smollm2-135m-instruct"
SEEDS = (0, 1, 2)
TOOLS = ("sparsight", "sae-lens", "dictionary-learning")
ARCHITECTURES = ("topk", "batchtopk")
SAVED = {"sparsight": "sae", "sae-lens": "sae", "dictionary-learning": "trainer_0"}
WIDTHS = {4608: SEEDS, 36_864: SEEDS[:1]}
RECORDS = Path(__file__).resolve().parents[1] / "records"
FOLDER = ROOT / "build" / "quality"
MEASURES = ("fvu", "l0", "dead_share", "ce_lost", "kl", "recovered_zero", "auc_1", "auc_5", "auc_16")
LOWER_IS_BETTER = ("fvu", "ce_lost", "kl")
HIGHER_IS_BETTER = ("auc_1", "auc_5", "auc_16")

Row = dict[str, Any]


def main() -> None:
    """Runs the parts that are asked for and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "store", nargs="?", type=Path, help="a store of the MLP output of SmolLM2's layer 15, for `dead`"
    )
    parser.add_argument("--parts", nargs="+", choices=("peers", "dead"), default=["peers", "dead"])
    options = parser.parse_args()
    file = RECORDS / "quality.json"
    record = json.loads(file.read_text()) if file.exists() else {}
    for tool in TOOLS[1:]:
        install(tool)
    about = {"commit": commit(), "versions": {tool: versions(tool) for tool in TOOLS}, "hardware": hardware()}
    if "peers" in options.parts:
        record["peers"] = about | {"sizes": vars(Sizes()), "saes": list(peers())}
    if "dead" in options.parts:
        if options.store is None:
            parser.error("part `dead` needs a store: give one, such as runs/demo/activations")
        record["dead"] = about | {"saes": list(dead(options.store))}
    file.write_text(json.dumps(record, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(record))
    print(file.with_suffix(".md").read_text())


def peers() -> Iterator[Row]:
    """Every tool's SAEs and ours before training, measured."""
    sizes = Sizes()
    files = prepared(ROOT / "build" / "bench" / "inputs", sizes)
    rates = best_rate(json.loads((RECORDS / "peers.json").read_text())["runs"])
    saes: dict[tuple[str, str, int], SparseAutoencoder] = {}
    for seed in SEEDS:
        for architecture in ARCHITECTURES:
            for tool in TOOLS:
                lr = rates[tool, architecture]
                saes[tool, architecture, seed] = _trained(tool, architecture, seed, lr, sizes, files)
    store = ActivationStore.open(Path(files["store"]))
    for seed in SEEDS:
        saes["untrained", "topk", seed] = _untrained(seed, sizes, store)
    model = LanguageModel.load(ModelConfig(id=MODEL))
    aucs = _aucs(list(saes.values()))
    for (key, sae), auc in zip(saes.items(), aucs, strict=True):
        config = EvaluateConfig(downstream_tokens=8192)
        report = evaluate_sae(sae, store, model, with_pca=False, config=config, hook_point=HOOK)
        measured = {name: report.value(name) for name in ("fvu", "l0", "dead_share", "kl", "recovered_zero")}
        measured["ce_lost"] = report.value("ce") - report.value("ce", "clean")  # pyright: ignore[reportOptionalOperand]
        tool, architecture, seed = key
        row = {"tool": tool, "architecture": architecture, "seed": seed, "lr": rates.get((tool, architecture))}
        print(row, measured, flush=True)
        yield row | measured | auc | {"measured_on": report.measured_on}


def _trained(
    tool: str, architecture: str, seed: int, lr: float, sizes: Sizes, files: dict[str, str]
) -> SparseAutoencoder:
    """A tool's SAE, trained unless it lies there, read from its own format."""
    folder = FOLDER / f"{tool}-{architecture}-{seed}-{lr:g}"
    if not folder.exists():
        job = new_job(
            sizes,
            seed,
            part="train",
            tool=tool,
            architecture=architecture,
            setting="best",
            lr=lr,
            n_tokens=sizes.train_rows,
        )
        result = run(job, files, FOLDER / "scratch")
        if "error" in result:
            raise SystemExit(f"{tool} {architecture}: {result['error']}")
        shutil.move(FOLDER / "scratch" / SAVED[tool], folder)
        print(f"trained {folder.name}", flush=True)
    return load_sae(folder)


def _untrained(seed: int, sizes: Sizes, store: ActivationStore) -> SparseAutoencoder:
    """Ours before its first step: the control of every column."""
    config = SAEConfig(id="untrained", n_latents=sizes.n_latents, k=sizes.k, seed=seed)
    first = next(StoreSource(store, (HOOK,), 1, seed).batches(sizes.batch_tokens))[HOOK]
    trainer = SAETrainer(config, first.shape[1], first.shape[1], total_steps=1, batch_tokens=sizes.batch_tokens)
    trainer.initialize(first)
    return trainer.finished()


def _aucs(saes: Sequence[SparseAutoencoder]) -> list[Row]:
    """Mean test AUC of k-sparse probes over the quick labelled sets, for each SAE: see `sparsight probe`."""
    config, reader = ProbingConfig(), LanguageModel.load(ModelConfig(id=MODEL), hook_points=[HOOK])
    found: list[dict[int, list[float]]] = [{k: [] for k in config.ks} for _ in saes]
    caps = {"max_prompts": config.max_prompts, "max_tokens": config.max_tokens, "seed": config.seed}
    for labelled in builtin_sets():
        prompts = sample_prompts(labelled, reader.tokenizer, TextConfig(builtin="probe-text"), **caps)
        smallest = min((prompts.labels == label).sum() for label in (0, 1))
        if len(prompts.classes) < 2 or smallest < config.min_per_class:
            continue
        train, test = stratified_split(prompts.labels, test_fraction=config.test_fraction, seed=config.seed)
        x = last_token_activations(reader, prompts.pieces, [HOOK], batch_tokens=2048)[HOOK].float()
        for sae, scores in zip(saes, found, strict=True):
            with torch.inference_mode():
                latents = sae.encode(x).numpy()
            with one_thread():
                for k in config.ks:
                    probe = train_probe(latents[train], prompts.labels[train], k, config)
                    scores[k].append(probe.score(latents[test], prompts.labels[test]).auc)
    return [
        {f"auc_{k}": statistics.mean(values) for k, values in each.items()} | {"n_sets": len(each[1])} for each in found
    ]


def dead(path: Path) -> Iterator[Row]:
    """Shares of latents that are active on no held-out token after three passes over a store."""
    store = ActivationStore.open(path)
    for n_latents, seeds in WIDTHS.items():
        for seed in seeds:
            configs = [
                SAEConfig(
                    id=architecture, architecture=architecture, n_latents=n_latents, lr=1e-3, seed=seed, hook_point=HOOK
                )
                for architecture in ARCHITECTURES
            ]
            source = StoreSource(store, (HOOK,), 3, seed)
            folder = FOLDER / f"dead-{n_latents}-{seed}"
            for sae in train_saes(source, configs, folder, train=TrainConfig(batch_tokens=1024)):
                report = evaluate_sae(sae, store, with_pca=False, hook_point=HOOK)
                measured = {name: report.value(name) for name in ("fvu", "l0", "dead_share")}
                measured["never_in_training"] = _never_active(sae, store)
                row = {"architecture": sae.cfg.architecture, "n_latents": n_latents, "seed": seed}
                print(row, measured, flush=True)
                yield row | measured | {"train_tokens": source.n_rows, "measured_on": report.measured_on}


@torch.inference_mode()
def _never_active(sae: SparseAutoencoder, store: ActivationStore) -> float:
    """Share of latents that the finished SAE has active on none of the rows it was trained on."""
    fired = torch.zeros(sae.n_latents, dtype=torch.bool)
    for batch in store.batches("train", 4096, hook_points=[HOOK]):
        latents = sae.encode_sparse(batch[HOOK].float())
        fired[latents.indices[latents.values > 0]] = True
    return 1 - fired.float().mean().item()


def markdown(record: dict[str, Any]) -> str:
    """The tables, and where ours is behind."""
    lines = ["# Quality beside SAELens and dictionary_learning", ""]
    if part := record.get("peers"):
        lines += [*_peers_lines(part), ""]
    if part := record.get("dead"):
        lines += [*_dead_lines(part), ""]
    return "\n".join(lines)


def _peers_lines(part: dict[str, Any]) -> Iterator[str]:
    sizes, rows = part["sizes"], part["saes"]
    groups = {key: [row for row in rows if (row["tool"], row["architecture"]) == key] for key in _cases(rows)}
    measured = rows[0]["measured_on"]
    yield f"Commit {part['commit']}. {sizes['train_rows']:,} rows of {HOOK} of SmolLM2-135M, {sizes['n_latents']:,} latents, "
    yield f"k = {sizes['k']}, steps of {sizes['batch_tokens']:,}, each tool at its best of three rates; "
    yield f"median of {len(SEEDS)} seeds (least to greatest). Held out: "
    yield f"{_held_out(measured['reconstruction'])}; CE and KL on {_held_out(measured['downstream'])}. "
    yield f"Probes: mean test AUC over {rows[0]['n_sets']} sets with k latents."
    yield ""
    yield "| tool | SAE | lr | " + " | ".join(MEASURES) + " |"
    yield "|---" * (3 + len(MEASURES)) + "|"
    for (tool, architecture), group in groups.items():
        cells = [_spread([row[name] for row in group]) for name in MEASURES]
        yield f"| {tool} | {architecture} | {group[0]['lr'] or ''} | " + " | ".join(cells) + " |"
    yield ""
    yield "Ours against the best peer, by each measure (a tie where the seeds' ranges overlap):"
    yield ""
    for name in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER):
        for architecture in ARCHITECTURES:
            yield _verdict(name, architecture, groups)


def _cases(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["tool"], row["architecture"]) for row in rows))


def _verdict(name: str, architecture: str, groups: dict[tuple[str, str], list[Row]]) -> str:
    """`fvu, topk: 0.383 (...), tie with sae-lens topk 0.383 (...)`."""
    sign = 1 if name in LOWER_IS_BETTER else -1
    ours = [sign * row[name] for row in groups["sparsight", architecture]]
    rivals = {key: [sign * row[name] for row in group] for key, group in groups.items() if key[0] in TOOLS[1:]}
    best = min(rivals, key=lambda key: statistics.median(rivals[key]))
    theirs = rivals[best]
    outcome = "better than" if max(ours) < min(theirs) else "WORSE than" if min(ours) > max(theirs) else "tie with"
    shown = [_spread([sign * value for value in values]) for values in (ours, theirs)]
    return f"- {name}, {architecture}: {shown[0]}, {outcome} {' '.join(best)} {shown[1]}"


def _dead_lines(part: dict[str, Any]) -> Iterator[str]:
    rows = part["saes"]
    yield f"Commit {part['commit']}. Ours at lr 1e-3, k = 32, {rows[0]['train_tokens']:,} rows in three passes; "
    yield "dead: active on none of these rows; beside it on none of "
    yield f"{_held_out(rows[0]['measured_on']['reconstruction'])}, where rare latents look dead too."
    yield ""
    yield "| SAE | latents | seed | fvu | l0 | dead | not active on the held-out tokens |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        cells = [row["architecture"], f"{row['n_latents']:,}", row["seed"], f"{row['fvu']:.3f}", f"{row['l0']:.1f}"]
        cells += [f"{row['never_in_training']:.3%}", f"{row['dead_share']:.3%}"]
        yield f"| {' | '.join(map(str, cells))} |"


def _held_out(counts: dict[str, int]) -> str:
    return f"{counts['tokens']:,} tokens of {counts['documents']:,} documents"


def _spread(values: Sequence[float]) -> str:
    if len(set(values)) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
