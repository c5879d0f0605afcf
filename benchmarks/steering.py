"""Is steering real? Do edits of many features move their promoted tokens as predicted, and more than matched random latents do?

    make bench-steering           # after the demo: its model, SAE and feature index; writes benchmarks/records/steering.json and .md

Features are drawn at random from those active in at least 20 held-out documents: none is chosen for its looks. What is measured is the
change of log p, in nats, averaged over the ten tokens that a feature's direction promotes, and that minus the same of the ten it
suppresses (which no flattening of the whole distribution can move); beside the same edit of a matched random latent, measured on the same
tokens:

    boost     add N p99 at every token of held-out text, effect at every token; predicted: up. Random: latents alike in density, p99 and norm
    ablate    set to 0 at a token where the feature is active, effect on its next-token prediction; predicted: down. Random: the latent
              active at that very token whose part of the reconstruction is nearest in length
    text      continuations of a few prompts at 4 p99: effect on each arm's own text and promoted tokens among the generated

Intervals are 95 %, of resampling features and documents both (boost), or features with their own documents (ablate, text).
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsight import FeatureIndex, LanguageModel, SparseAutoencoder, SteerConfig, load_recipe, steer_text
from sparsight.artifact import RunDir
from sparsight.lm import Piece, TokenBatch, make_batches
from sparsight.recipe import TrainedSAEs
from sparsight.sae import LatentEdit
from sparsight.steering import LatentEditor, matched_latents, matching_traits, strength_of

RECORDS = Path(__file__).parent / "records"
N_FEATURES, LEAST_DOCUMENTS = 80, 20
STRENGTHS, PRIMARY = (1.0, 2.0, 4.0), 2.0
N_CONTROLS = 2
OUTCOMES = ("promoted", "promoted minus suppressed")
BOOST_TEXTS, BOOST_TOKENS = 8, 48
ABLATE_TEXTS, ABLATE_TOKENS = 10, 96
TEXT_STRENGTH, TEXT_TOKENS = 4.0, 24
PROMPTS = (
    "My favourite place is",
    "The report begins with",
    "In the morning we",
    "It is well known that",
    "She opened the box and",
    "To solve this problem,",
)
N_RESAMPLES = 2000


class Subject:
    """What is steered, with the way to edit and to measure it."""

    def __init__(self, model: LanguageModel, sae: SparseAutoencoder, index: FeatureIndex, hook_point: str) -> None:
        self.model, self.sae, self.index, self.hook_point = model, sae, index, hook_point
        self.traits = matching_traits(index, sae)

    def changes(
        self, batch: TokenBatch, edits: list[LatentEdit], where: torch.Tensor, tokens: list[int], clean: torch.Tensor
    ) -> torch.Tensor:
        """Mean change of log p at each position [outcomes, rows, positions]; row i is edited by edits[i].

        `tokens`: the promoted, then as many suppressed; outcomes: the promoted's, and that minus the suppressed's.
        """
        editor = LatentEditor(self.sae, [[edit] for edit in edits], hook_point=self.hook_point)
        change = log_p(self.model, batch, tokens, editor.hooks(where)) - clean
        promoted, suppressed = change.tensor_split(2, dim=-1)
        return torch.stack([promoted.mean(-1), promoted.mean(-1) - suppressed.mean(-1)])

    def tokens(self, latent: int) -> list[int]:
        """The promoted tokens, then the suppressed."""
        return [*self.index.promoted(latent).token_ids.tolist(), *self.index.suppressed(latent).token_ids.tolist()]


@torch.inference_mode()
def log_p(model: LanguageModel, batch: TokenBatch, tokens: list[int], replace: dict[str, Any]) -> torch.Tensor:
    """log p of each token at each position [rows, positions, tokens], float32."""
    logits = model.logits(batch, replace=replace)
    total = torch.stack([row.float().logsumexp(-1) for row in logits])
    return logits[:, :, tokens].float() - total[..., None]


def draw_features(index: FeatureIndex, n: int, seed: int) -> list[int]:
    """n latents at random from those active in enough documents."""
    eligible = np.flatnonzero(index.n_documents >= LEAST_DOCUMENTS)
    drawn = np.random.default_rng(seed).choice(eligible, min(n, len(eligible)), replace=False)
    return sorted(map(int, drawn))


def boost_texts(index: FeatureIndex, seed: int) -> TokenBatch:
    """The beginnings of some held-out documents, the same for every feature."""
    lengths = np.diff(index.piece_offsets)
    fit = np.flatnonzero((lengths >= BOOST_TOKENS) & (np.asarray(index.piece_starts) == 0))
    chosen = np.random.default_rng(seed).choice(fit, BOOST_TEXTS, replace=False)
    return one_batch([tokens_of(index, int(piece), BOOST_TOKENS) for piece in chosen])


def tokens_of(index: FeatureIndex, piece: int, n: int) -> np.ndarray:
    """The first n tokens of a piece."""
    start = int(index.piece_offsets[piece])
    return np.array(index.piece_tokens[start : start + n], np.int32)


def one_batch(rows: list[np.ndarray]) -> TokenBatch:
    """The rows in their order, as one batch."""
    pieces = [Piece(row, row, 0, 0, ids, True) for row, ids in enumerate(rows)]
    longest = max(map(len, rows))
    options = {"pad_id": 0, "isolation": "documents", "context_tokens": longest, "eos_id": 0}
    (batch,) = make_batches(pieces, batch_tokens=len(rows) * (longest + 8), **options)
    order = torch.argsort(batch.piece_ids[:, 0])
    return TokenBatch(**{name: value[order] for name, value in vars(batch).items()})


def measure_boost(subject: Subject, features: list[int], seed: int) -> dict[str, np.ndarray]:
    """strength -> [features, outcomes, 2, documents]: mean effect of the feature and of its matched random latents."""
    batch = boost_texts(subject.index, seed)
    rows = len(batch.input_ids)
    found = {strength: np.zeros((len(features), len(OUTCOMES), 2, rows)) for strength in STRENGTHS}
    for number, latent in enumerate(features):
        tokens = subject.tokens(latent)
        clean = log_p(subject.model, batch, tokens, {})
        others = matched_latents(subject.index, subject.sae, latent, n=N_CONTROLS, seed=seed, traits=subject.traits)
        for strength in STRENGTHS:
            length = strength_of(subject.index, latent, p99=strength) * subject.sae.W_dec[latent].norm()
            effects = []
            for each in (latent, *map(int, others)):
                edit = LatentEdit(each, "add", float(length / subject.sae.W_dec[each].norm()))
                change = subject.changes(batch, [edit] * rows, batch.mask, tokens, clean)
                effects.append(((change * batch.mask).sum(2) / batch.mask.sum(1)).numpy())
            found[strength][number] = np.stack([effects[0], np.mean(effects[1:], 0)], 1)
        print(
            f"boost {number + 1}/{len(features)}: latent {latent}, {found[PRIMARY][number].mean(2).tolist()}",
            flush=True,
        )
    return {f"{strength:g}": values for strength, values in found.items()}


def active_places(index: FeatureIndex, latent: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """(piece, offset) of some activations at or above the latent's median, one a document, in random order."""
    tokens, values = index.activations(latent)
    pieces = index.pieces_of(tokens)
    offsets = tokens - index.piece_offsets[pieces]
    strong = np.flatnonzero((values >= np.median(values)) & (offsets < ABLATE_TOKENS))
    seen = set()
    for i in rng.permutation(strong):
        document = int(index.piece_documents[pieces[i]])
        if document not in seen:
            seen.add(document)
            yield int(pieces[i]), int(offsets[i])


@torch.inference_mode()
def measure_ablation(subject: Subject, features: list[int], seed: int) -> list[np.ndarray]:
    """[outcomes, 2, documents] a feature: effect of ablating it where it is active, and of ablating its neighbour in length there."""
    found = []
    for number, latent in enumerate(features):
        places = active_places(subject.index, latent, np.random.default_rng((seed, latent)))
        chosen = [place for place, _ in zip(places, range(ABLATE_TEXTS), strict=False)]
        rows = [tokens_of(subject.index, piece, offset + 1) for piece, offset in chosen]
        if not rows:
            print(f"ablate {number + 1}/{len(features)}: latent {latent} has no place in reach", flush=True)
            continue
        batch = one_batch(rows)
        last = torch.tensor([len(row) - 1 for row in rows])
        every = torch.arange(len(rows))
        where = torch.zeros_like(batch.mask)
        where[every, last] = True
        x = subject.model.read(batch, [subject.hook_point])[subject.hook_point][every, last].float()
        z = subject.sae.encode(x)
        active = z[:, latent] > 0  # reading a piece in another batch rounds differently: a weak one may be gone
        parts = z * subject.sae.W_dec.norm(dim=1)
        distance = (parts - parts[:, latent : latent + 1]).abs().masked_fill(z == 0, torch.inf)
        distance[:, latent] = torch.inf
        tokens = subject.tokens(latent)
        clean = log_p(subject.model, batch, tokens, {})
        own = [LatentEdit(latent, "ablate")] * len(rows)
        others = [LatentEdit(int(other), "ablate") for other in distance.argmin(1)]
        pair = [
            subject.changes(batch, edits, where, tokens, clean)[:, every, last][:, active] for edits in (own, others)
        ]
        found.append(torch.stack(pair, 1).numpy())
        print(f"ablate {number + 1}/{len(features)}: latent {latent}, {found[-1].mean(2).tolist()}", flush=True)
    return found


def measure_text(subject: Subject, features: list[int], seed: int) -> dict[str, dict[str, list[float]]]:
    """arm -> promoted tokens per generated token, nll and repetition, of one prompt a feature."""
    found: dict[str, dict[str, list[float]]] = {}
    config = SteerConfig(max_new_tokens=TEXT_TOKENS, seed=seed)
    for number, latent in enumerate(features):
        edit = LatentEdit(latent, "add", strength_of(subject.index, latent, p99=TEXT_STRENGTH))
        options = {"hook_point": subject.hook_point, "index": subject.index}
        prompt = PROMPTS[number % len(PROMPTS)]
        steered = steer_text(subject.model, subject.sae, prompt, [edit], config, **options)
        for name, arm in steered.arms.items():
            columns = found.setdefault(name, {"effect": [], "promoted": [], "nll": [], "kl": [], "repetition": []})
            columns["effect"].append(arm.effect or 0.0)
            columns["promoted"].append((arm.promoted or 0) / len(arm.events))
            columns["nll"].append(arm.nll)
            columns["kl"].append(arm.kl)
            columns["repetition"].append(arm.repetition)
        print(f"text {number + 1}/{len(features)}: latent {latent}", flush=True)
    return found


def interval(rows: list[np.ndarray], *, crossed: bool, seed: int = 0) -> dict[str, float]:
    """Mean of the features' means, 95 %. `rows`: one array of documents a feature; `crossed` when these are the same documents."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(N_RESAMPLES):
        features = rng.integers(len(rows), size=len(rows))
        if crossed:
            documents = rng.integers(len(rows[0]), size=len(rows[0]))
            means.append(np.stack(rows)[features][:, documents].mean())
        else:
            means.append(np.mean([rows[i][rng.integers(len(rows[i]), size=len(rows[i]))].mean() for i in features]))
    low, high = np.percentile(means, (2.5, 97.5))
    return {"value": float(np.mean([row.mean() for row in rows])), "low": float(low), "high": float(high)}


def compared(pairs: list[np.ndarray], sign: int, *, crossed: bool) -> dict[str, Any]:
    """Of [2, documents] a feature: effect, control, their difference in the predicted direction, and shares of features."""
    own, control = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    gain = [sign * (pair[0] - pair[1]) for pair in pairs]

    def share(rows: list[np.ndarray]) -> dict[str, float]:
        hits = [np.array([float(row.mean() > 0)]) for row in rows]
        return interval(hits, crossed=False)

    return {
        "n_features": len(pairs),
        "n_documents": len(pairs[0][0]) if crossed else int(sum(pair.shape[1] for pair in pairs)),
        "effect": interval(own, crossed=crossed),
        "random": interval(control, crossed=crossed),
        "beyond_random": interval(gain, crossed=crossed),
        "share_as_predicted": share([sign * row for row in own]),
        "share_random_as_predicted": share([sign * row for row in control]),
        "share_beyond_random": share(gain),
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""

    def shown(each: dict[str, float], digits: int = 3) -> str:
        return f"{each['value']:.{digits}f} [{each['low']:.{digits}f}, {each['high']:.{digits}f}]"

    lines = [
        "# Steering is real",
        "",
        f"`{record['command']}`, commit {record['commit']}, {record['hardware']}, "
        + ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        + f"; {record['minutes']:.0f} minutes. {record['subject']}.",
        "",
        "Change of log p (nats) averaged over the ten tokens that a feature promotes, by an edit of the feature and by the same edit of a "
        "matched random latent on the same tokens; 95 % intervals. Definitions are at the head of `benchmarks/steering.py`.",
        "",
    ]
    for outcome, table in record["results"].items():
        lines += [
            f"Of the {outcome} tokens:" if outcome == OUTCOMES[0] else f"Of the {outcome}:",
            "",
            "| edit | features | effect | random | beyond random, as predicted | features as predicted | random so | beyond random |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, each in table.items():
            nats = [shown(each[column]) for column in ("effect", "random", "beyond_random")]
            shares = ("share_as_predicted", "share_random_as_predicted", "share_beyond_random")
            cells = [name, str(each["n_features"]), *nats, *(shown(each[column], 2) for column in shares)]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += [
        f"Generated text, {record['text_features']} features at {TEXT_STRENGTH:g} p99, {TEXT_TOKENS} tokens each, greedy:",
        "",
        "| arm | effect | promoted tokens a token | nll under the unsteered model | kl | repetition |",
        "|---|---|---|---|---|---|",
    ]
    for arm, columns in record["text"].items():
        cells = (shown(columns[column]) for column in ("effect", "promoted", "nll", "kl", "repetition"))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, writes the record, prints it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--features", type=int, default=N_FEATURES)
    parser.add_argument("--text-features", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    started, run = time.monotonic(), RunDir.open(options.run)
    recipe = load_recipe(run.recipe)
    saes = TrainedSAEs(recipe, run)
    chosen = saes.chosen(None)[0]
    model = LanguageModel.load(recipe.model)
    index = FeatureIndex.open(run.features(chosen.id))
    subject = Subject(model, saes.load(chosen, str(model.device)), index, chosen.hook_point)
    features = draw_features(index, options.features, options.seed)
    boosts = measure_boost(subject, features, options.seed)
    ablations = measure_ablation(subject, features, options.seed)
    texts = measure_text(subject, features[:: max(1, len(features) // options.text_features)], options.seed)
    measured = [(f"add {n} p99", list(pairs), 1) for n, pairs in boosts.items()]
    measured.append(("ablate where active", ablations, -1))
    results = {
        outcome: {name: compared([pair[i] for pair in pairs], sign, crossed=sign > 0) for name, pairs, sign in measured}
        for i, outcome in enumerate(OUTCOMES)
    }
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    record = {
        "command": "make bench-steering",
        "commit": head.stdout.strip(),
        "versions": {name: version(name) for name in ("sparsight", "torch", "transformers")},
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "minutes": (time.monotonic() - started) / 60,
        "subject": f"{recipe.model.id}, {chosen.hook_point}, {chosen.architecture} with {chosen.n_latents:,} latents, "
        f"features drawn at random (seed {options.seed}) from those active in {LEAST_DOCUMENTS} held-out documents",
        "features": features,
        "results": results,
        "boost_by_feature": {n: pairs.mean(3).round(4).tolist() for n, pairs in boosts.items()},
        "ablate_by_feature": [pair.mean(2).round(4).tolist() for pair in ablations],
        "text_features": len(texts["plain"]["nll"]),
        "text": {
            arm: {
                name: interval([np.array([value]) for value in values], crossed=False)
                for name, values in columns.items()
            }
            for arm, columns in texts.items()
        },
    }
    options.out.mkdir(exist_ok=True, parents=True)
    (options.out / "steering.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "steering.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
