"""SAEs + LanguageModel + labelled sets -> a ProbingReport each: do single latents say what a prompt is about?

For each set the activations at the last tokens are read once and shared by everything that is probed: the SAE, its controls, raw dimensions,
principal components, all raw dimensions together (the dense bar), and the SAE with shuffled training labels, which must come out at AUC 1/2.
Principal components are those of the training parts of all sets together, since the SAE's dictionary is not of one set either.

Costs max_prompts * max_tokens tokens of a forward cut at the hook point and some 290 small regressions a set; memory 4 bytes * max_prompts *
n_latents. Nothing is kept before the end: a run that was killed starts anew.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from sparsight.activations import last_token_activations
from sparsight.errors import MetricError, SAEError
from sparsight.lm import LabelledPrompts, LabelledSet, LanguageModel, TextConfig, sample_prompts
from sparsight.metrics import (
    ALL_UNITS,
    LinearBaseline,
    LinearFit,
    ProbeScore,
    ProbingConfig,
    ProbingReport,
    SetScores,
    SkippedSet,
    one_thread,
    require_sklearn,
    stratified_split,
    train_probe,
)
from sparsight.sae import SparseAutoencoder

__all__ = ["probe_saes"]

_DEFAULTS = ProbingConfig()
_LABELS = {
    "sae": "SAE",
    "seed": "second seed",
    "frozen-decoder": "frozen decoder",
    "random": "untrained SAE",
    "raw": "raw dimensions",
    "pca": "PCA",
    "dense": "all raw dimensions",
    "shuffled": "SAE, labels shuffled",
}
_DICTIONARIES = ("sae", "seed", "frozen-decoder", "random")


@dataclass(frozen=True, kw_only=True)
class _Probed:
    """One set, read and split."""

    labelled: LabelledSet
    prompts: LabelledPrompts
    activations: dict[str, Tensor]
    """Hook point -> [n, d] at the last tokens, in the model's dtype."""
    train: np.ndarray
    test: np.ndarray


@torch.inference_mode()
def probe_saes(
    saes: Mapping[str, Mapping[str, SparseAutoencoder]],
    model: LanguageModel,
    sets: Sequence[LabelledSet],
    *,
    hook_points: Mapping[str, str],
    text: TextConfig,
    config: ProbingConfig = _DEFAULTS,
    measured_on: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, ProbingReport]:
    """SAE id -> report. `saes`: id -> {"sae": ..., and of "seed", "frozen-decoder", "random" what there is}; `hook_points`: id -> where it reads.

    `text` says how prompts are tokenised: as the SAE's training text was. Raises TextError for a file that is no labelled set,
    SAEError when a width does not match the model, MetricError without scikit-learn or when no set can be probed.
    """
    require_sklearn()
    for sae_id, dictionaries in saes.items():
        _check(sae_id, dictionaries, model, hook_points[sae_id])
    probed, skipped = _read_sets(model, sets, list(dict.fromkeys(hook_points.values())), text, config)
    pca = {name: _pca(name, probed) for name in dict.fromkeys(hook_points.values())} if probed else {}
    reports = {}
    for sae_id, dictionaries in saes.items():
        hook_point = hook_points[sae_id]
        bar = tqdm(probed, desc=f"probe {sae_id}", unit=" sets", disable=None)
        with one_thread():
            scores = tuple(_score_set(each, dictionaries, pca[hook_point], hook_point, config) for each in bar)
        labels = {name: label for name, label in _LABELS.items() if name in dictionaries or name not in _DICTIONARIES}
        reports[sae_id] = ProbingReport(
            subject=_subject(sae_id, dictionaries["sae"], hook_point),
            measured_on=dict(measured_on or {"sets": [each.name for each in sets]}),
            config=asdict(config),
            methods=labels,
            sets=scores,
            skipped=tuple(skipped),
            notes=(*notes, *_notes(dictionaries, probed, config)),
        )
    return reports


def _check(sae_id: str, dictionaries: Mapping[str, SparseAutoencoder], model: LanguageModel, hook_point: str) -> None:
    if unknown := set(dictionaries) - set(_DICTIONARIES):
        raise MetricError(f"No such control: {', '.join(sorted(unknown))}; known are {', '.join(_DICTIONARIES[1:])}.")
    for dictionary in dictionaries.values():
        if dictionary.d_in != model.width(hook_point):
            raise SAEError(
                f"SAE {sae_id} reads activations of width {dictionary.d_in}; the model's `{hook_point}` is "
                f"{model.width(hook_point)} wide. Give the hook point and the model that it was trained on."
            )


def _read_sets(
    model: LanguageModel,
    sets: Sequence[LabelledSet],
    hook_points: Sequence[str],
    text: TextConfig,
    config: ProbingConfig,
) -> tuple[list[_Probed], list[SkippedSet]]:
    """Each set's activations and split; and those that cannot be probed, with the reason."""
    probed, skipped = [], []
    for labelled in tqdm(sets, desc="read prompts", unit=" sets", disable=None):
        prompts = sample_prompts(
            labelled,
            model.tokenizer,
            text,
            max_prompts=config.max_prompts,
            max_tokens=config.max_tokens,
            seed=config.seed,
        )
        if reason := _unfit(prompts, config):
            skipped.append(SkippedSet(name=labelled.name, reason=reason))
            continue
        train, test = stratified_split(prompts.labels, test_fraction=config.test_fraction, seed=config.seed)
        activations = last_token_activations(model, prompts.pieces, hook_points, batch_tokens=text.batch_tokens)
        probed.append(_Probed(labelled=labelled, prompts=prompts, activations=activations, train=train, test=test))
    return probed, skipped


def _unfit(prompts: LabelledPrompts, config: ProbingConfig) -> str:
    """Why a set cannot be probed, or nothing."""
    if len(prompts.classes) < 2:
        return f"it has one class, {prompts.classes[0]!r:.60}" if prompts.classes else "it has no rows"
    fewest = min(int((prompts.labels == label).sum()) for label in (0, 1))
    if fewest < config.min_per_class:
        return f"one class has {fewest} different prompts, fewer than {config.min_per_class}"
    return ""


def _pca(hook_point: str, probed: Sequence[_Probed]) -> LinearBaseline:
    """All principal components of the sets' training parts together."""
    fit = LinearFit()
    for each in probed:
        fit.add(each.activations[hook_point][each.train].float())
    return fit.baseline(min(fit.n_tokens - 1, probed[0].activations[hook_point].shape[1]))


def _score_set(
    each: _Probed,
    dictionaries: Mapping[str, SparseAutoencoder],
    pca: LinearBaseline,
    hook_point: str,
    config: ProbingConfig,
) -> SetScores:
    x = each.activations[hook_point].float()
    raw = x.numpy()
    scores, latents = {}, ()
    for name, dictionary in dictionaries.items():
        encoded = _encode(dictionary, x)
        scores[name], units = _score(encoded, each, config, each.prompts.labels)
        if name == "sae":
            latents = tuple(int(unit) for unit in units)
            scores["shuffled"], _ = _score(encoded, each, config, _shuffled(each, config.seed))
    scores["raw"], _ = _score(raw, each, config, each.prompts.labels)
    components = ((x - pca.input_mean.cpu()) @ pca.encoder.cpu()).numpy()
    scores["pca"], _ = _score(components, each, config, each.prompts.labels)
    dense = train_probe(raw[each.train], each.prompts.labels[each.train], None, config)
    scores["dense"] = {ALL_UNITS: dense.score(raw[each.test], each.prompts.labels[each.test])}
    return SetScores(
        name=each.labelled.name,
        family=each.labelled.family,
        classes=each.prompts.classes,
        n_train=len(each.train),
        n_test=len(each.test),
        counts=each.prompts.counts,
        scores=scores,
        latents=latents,
    )


def _score(
    x: np.ndarray, each: _Probed, config: ProbingConfig, train_labels: np.ndarray
) -> tuple[dict[str, ProbeScore], np.ndarray]:
    """k -> score on the test part, and the units chosen at the largest k. Only the training part's rows of `train_labels` are read."""
    scores, units = {}, np.zeros(0, np.int64)
    for k in config.ks:
        probe = train_probe(x[each.train], train_labels[each.train], k, config)
        scores[str(k)] = probe.score(x[each.test], each.prompts.labels[each.test])
        units = probe.units
    return scores, units


def _shuffled(each: _Probed, seed: int) -> np.ndarray:
    """Labels that know nothing: of each class's training rows half get 1, drawn by seed and name.

    By name, since one draw for all sets is one accident repeated; by halves, since a plain permutation keeps a correlation with the truth of
    some 0.06, which easy sets turn into AUCs far from 1/2.
    """
    named = int.from_bytes(hashlib.sha256(each.labelled.name.encode()).digest()[:4], "big")
    rng = np.random.default_rng([seed, named])
    labels = each.prompts.labels.copy()
    for label in (0, 1):
        rows = each.train[each.prompts.labels[each.train] == label]
        labels[rows] = rng.permutation((np.arange(len(rows)) + rng.integers(2)) % 2)
    return labels


def _encode(dictionary: SparseAutoencoder, x: Float[Tensor, "n d"]) -> Float[np.ndarray, "n F"]:
    device = dictionary.W_enc.device
    return torch.cat([dictionary.encode(rows.to(device)).cpu() for rows in x.split(256)]).numpy()


def _subject(sae_id: str, sae: SparseAutoencoder, hook_point: str) -> dict[str, Any]:
    return {
        "id": sae_id,
        "architecture": sae.cfg.architecture,
        "n_latents": sae.n_latents,
        "d_in": sae.d_in,
        "hook_point": hook_point,
    }


def _notes(
    dictionaries: Mapping[str, SparseAutoencoder], probed: Sequence[_Probed], config: ProbingConfig
) -> list[str]:
    counts = {name: sum(each.prompts.counts[name] for each in probed) for name in ("rows", "duplicates", "conflicting")}
    notes = [
        f"At most {config.max_prompts} prompts a set, half of each class; the last {config.max_tokens} tokens of each; "
        f"probed at the last token; {config.test_fraction:.0%} tested on.",
        f"Of {counts['rows']:,} rows, {counts['duplicates']:,} repeated a prompt and {counts['conflicting']:,} had prompts "
        "with both labels: left out, so that no prompt is trained and tested on.",
    ]
    if missing := [_LABELS[name] for name in _DICTIONARIES if name not in dictionaries]:
        notes.append(f"Not measured, as none was given: {', '.join(missing)}.")
    return notes
