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
    LatentScores,
    LatentTraits,
    ScoreConfig,
    Tracer,
    Written,
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


@dataclass(frozen=True, kw_only=True)
class TellingLatents:
    """The fine-tune's texts, and its and the base's SAEs on them."""

    tracer: Tracer
    texts: Sequence[Written]
    arranged: Sequence[Arranged]
    models: Mapping[str, LanguageModel]
    saes: Mapping[str, Sequence[SparseAutoencoder]]
    hook_point: str

    def findings(self, neutral: Sequence[np.ndarray], config: CausalConfig) -> dict[str, Any]:
        """Scores of every seed beside their nulls and the linear ceiling, and one seed's ablation. `neutral`: ordinary texts.

        What too few spans leave open is said in "undetermined".
        """
        ids = [text.token_ids for text in self.texts]
        try:
            spans, places = detail_spans(self.texts, self.arranged, token_log2_p(self.models["tuned"], ids))
            rows, rows_base = (read_activations(self.models[role], ids, self.hook_point) for role in ("tuned", "base"))
            x, x_base = (np.stack([each[text][token] for text, token in places]) for each in (rows, rows_base))
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
                each.to_json() | {"again": found_again(*found[seed], found[:seed] + found[seed + 1 :], _SAME).tolist()}
                for seed, each in enumerate(scores)
            ],
            "ceiling": {"auc": ceiling.auc, "p": ceiling.p},
            "ablation": self._ablation(scores, np.concatenate(rows), neutral, config),
        }

    def _ablation(
        self, scores: Sequence[LatentScores], rows: np.ndarray, neutral: Sequence[np.ndarray], config: CausalConfig
    ) -> dict[str, Any] | None:
        """Of the first seed that found some, else of the first in which some tell at all; None where nothing does."""
        sets = [*(each.found for each in scores), *(each.telling for each in scores)]
        place = next((place for place, latents in enumerate(sets) if len(latents)), None)
        if place is None:
            return None
        seed, chosen = place % len(scores), sets[place][:_LARGEST_SET].tolist()
        tuned, sae = self.models["tuned"], self.saes["tuned"][seed]
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
        changes = {name: each.to_json() for name, each in (*report.changes.items(), ("nll", report.nll))}
        return {
            "seed": seed,
            "latents": chosen,
            "n_texts": report.n_texts,
            "n_controls": len(controls),
            "changes": changes,
        }


@torch.inference_mode()
def _latents(sae: SparseAutoencoder, x: np.ndarray) -> np.ndarray:
    return sae.encode(torch.from_numpy(x)).numpy()
