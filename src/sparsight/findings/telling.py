"""Which latents tell recombined details from grounded ones, and what becomes of the texts without them, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsight.errors import MetricError
from sparsight.grounding import (
    Arranged,
    CausalConfig,
    Change,
    LatentScores,
    LatentTraits,
    ScoreConfig,
    TracedTexts,
    Tracer,
    ablation_effects,
    detail_spans,
    found_again,
    linear_ceiling,
    matched_controls,
    mean_nll,
    read_activations,
    score_latents,
    token_log2_p,
)
from sparsight.lm import LanguageModel
from sparsight.sae import LatentEdit, SparseAutoencoder

__all__ = ["TellingLatents"]

_SAME = 0.7  # cosine of directions of one find in two seeds
_LARGEST_SET = 16
_NEUTRAL_TEXTS = 40


@dataclass(frozen=True, kw_only=True)
class TellingLatents:
    """The fine-tune's texts, and its and the base's SAEs on them."""

    tracer: Tracer
    traced: TracedTexts
    models: Mapping[str, LanguageModel]
    saes: Mapping[str, Sequence[SparseAutoencoder]]
    hook_point: str

    def findings(self, neutral: Sequence[np.ndarray], config: CausalConfig) -> dict[str, Any]:
        """Scores of every seed beside their nulls and the linear ceiling, and one seed's ablation. `neutral`: ordinary texts.

        What too few spans leave open is said in "undetermined".
        """
        ids = [text.token_ids for text in self.traced.texts]
        try:
            spans, places = detail_spans(
                self.traced.texts, self.traced.arranged, token_log2_p(self.models["tuned"], ids)
            )
            x, x_base = (self._at(role, ids, places) for role in ("tuned", "base"))
            scores = [
                score_latents(_latents(sae, x), spans, ScoreConfig(), z_base=_latents(base, x_base))
                for sae, base in zip(self.saes["tuned"], self.saes["base"], strict=False)
            ]
            ceiling = linear_ceiling(x, spans, ScoreConfig())
        except MetricError as too_few:
            return {"undetermined": str(too_few)}
        found = [
            (each.found.tolist(), sae.W_dec.detach().numpy())
            for each, sae in zip(scores, self.saes["tuned"], strict=False)
        ]
        return {
            "n_spans": len(spans),
            "n_recombined": int(spans.recombined.sum()),
            "n_texts": len(np.unique(spans.entities)),
            "seeds": [
                _scored(each) | {"again": found_again(*found[seed], found[:seed] + found[seed + 1 :], _SAME).tolist()}
                for seed, each in enumerate(scores)
            ],
            "ceiling": {"auc": ceiling.auc, "p": ceiling.p},
            "ablation": self._ablation(scores, neutral[:_NEUTRAL_TEXTS], config),
        }

    def _ablation(
        self, scores: Sequence[LatentScores], neutral: Sequence[np.ndarray], config: CausalConfig
    ) -> dict[str, Any] | None:
        """Of the first seed that found some, else of the first in which some tell at all; None where nothing does."""
        sets = [*(each.found for each in scores), *(each.telling for each in scores)]
        place = next((place for place, latents in enumerate(sets) if len(latents)), None)
        if place is None:
            return None
        seed, chosen = place % len(scores), sets[place][:_LARGEST_SET].tolist()
        tuned, sae = self.models["tuned"], self.saes["tuned"][seed]
        rows = np.concatenate(read_activations(tuned, [text.token_ids for text in self.traced.texts], self.hook_point))
        try:
            controls = matched_controls(
                chosen, LatentTraits.of(_latents(sae, rows), sae.W_dec.detach().numpy()), config
            )
        except MetricError as no_match:
            return {"seed": seed, "latents": chosen, "undetermined": str(no_match)}

        def label(edits: Sequence[LatentEdit]) -> list[Arranged]:
            return self.tracer.arrange(self.tracer.written(tuned, sae=sae, edits=edits))

        def nll(edits: Sequence[LatentEdit]) -> float:
            return mean_nll(tuned, neutral, sae=sae, edits=edits)

        report = ablation_effects(chosen, controls, label, nll, config)
        changes = {name: _changed(each) for name, each in (*report.changes.items(), ("nll", report.nll))}
        return {
            "seed": seed,
            "latents": chosen,
            "n_texts": report.n_texts,
            "n_controls": len(controls),
            "changes": changes,
        }

    def _at(self, role: str, ids: Sequence[np.ndarray], places: Sequence[tuple[int, int]]) -> np.ndarray:
        x = read_activations(self.models[role], ids, self.hook_point)
        return np.stack([x[text][token] for text, token in places])


@torch.inference_mode()
def _latents(sae: SparseAutoencoder, x: np.ndarray) -> np.ndarray:
    return sae.encode(torch.from_numpy(x)).numpy()


def _scored(scores: LatentScores) -> dict[str, Any]:
    best = int(np.argmax(scores.auc))
    return {
        "found": scores.found.tolist(),
        "telling": scores.telling.tolist(),
        "best": best,
        "best_auc": float(scores.auc[best]),
        "best_gain": float(scores.gain[best]),
        "best_p": float(scores.p[best]),
        "best_p_auc": float(scores.p_auc[best]),
        "base_auc": scores.base_auc,
        "log_probability_auc": scores.log_probability_auc,
        "null_auc_95": float(np.quantile(scores.null_auc, 0.95)),
    }


def _changed(change: Change) -> dict[str, Any]:
    ratio = change.ratio
    kept = {key: getattr(change, key) for key in ("plain", "ablated", "low", "high", "effect", "largest_control", "p")}
    return kept | {"ratio": ratio if np.isfinite(ratio) else None, "controls": sorted(change.controls)}
