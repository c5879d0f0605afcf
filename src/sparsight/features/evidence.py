"""What an index says of each latent beyond where it was active: its directions, the latents active with it, what it writes.

Each function gives arrays of the index and facts for its `about`: what they were measured on, and the control.
"""

import logging
from typing import Any

import numpy as np
import torch

from sparsight.activations import PieceTable
from sparsight.errors import MetricError
from sparsight.features.config import IndexConfig
from sparsight.features.logits import logit_weights
from sparsight.features.statistics import (
    N_NEIGHBOURS,
    Coactivation,
    MapProcess,
    centred_embeddings,
    chance_nearest,
    communities,
    edges_of,
    map_facts,
    nearest,
    output_scores,
    token_coherence,
    why_no_map,
)
from sparsight.features.writer import Grouped
from sparsight.lm import LanguageModel
from sparsight.sae import SparseAutoencoder

__all__ = ["Evidence", "PairEvidence", "of_directions", "of_embeddings", "of_outputs"]

_log = logging.getLogger(__name__)

Evidence = tuple[dict[str, np.ndarray], dict[str, Any]]
"""Arrays of the index and facts of its `about`."""


def of_directions(sae: SparseAutoencoder, grouped: Grouped) -> Evidence:
    """Neighbours on both sides."""
    alive, arrays = grouped.alive, {}
    for side, directions in (("decoder", sae.W_dec), ("encoder", sae.W_enc.T)):
        arrays[f"{side}_neighbours"], arrays[f"{side}_cosines"] = nearest(directions, alive, N_NEIGHBOURS)
    n_alive = int(alive.sum())
    chance = {"decoder": chance_nearest(n_alive, sae.d_out), "encoder": chance_nearest(n_alive, sae.d_in)}
    return arrays, {"chance_cosine": chance}


class PairEvidence:
    """Which latents are active together, their communities, and the map, which is laid out while other evidence is made."""

    def __init__(self, sae: SparseAutoencoder, grouped: Grouped, config: IndexConfig, process: MapProcess) -> None:
        self._pairs = Coactivation(grouped.latent_offsets, grouped.token_ranks, grouped.text.n_measured)
        self._process, self._n_latents = process, sae.n_latents
        arrays, coactive = self._pairs.strongest()
        partners, pmi = arrays["coactive_latents"], arrays["coactive_pmi"]
        arrays["cluster"], clusters = communities(edges_of(partners, pmi), sae.n_latents)
        self._linked = np.flatnonzero(partners[:, 0] >= 0)
        reason = why_no_map(len(self._linked)) if config.map else "[index] map = false"
        self.found: Evidence = arrays, {"coactive": coactive, "clusters": clusters, "why_no_map": reason}
        """All but the map."""
        if not reason:
            numbers = np.full(sae.n_latents + 1, -1, np.int32)  # the last, for the padding of -1
            numbers[self._linked] = np.arange(len(self._linked))
            directions = sae.W_dec.detach().float().cpu().numpy()[self._linked]
            process.begin(numbers[partners[self._linked]], pmi[self._linked], directions)

    def map(self) -> Evidence:
        """Coordinates of every latent, NaN without a place, and how far to trust them; or why there are none, since an index is of use without."""
        if self.found[1]["why_no_map"]:
            return {}, {}
        points, linked = np.full((self._n_latents, 2), np.nan, np.float32), self._linked
        try:
            points[linked] = self._process.points()
        except MetricError as failed:
            _log.warning("%s", failed)
            return {}, {"why_no_map": str(failed)}
        return {"map": points}, {
            "map": map_facts(points[linked], lambda some: self._pairs.pmi(linked[some])[:, linked])
        }


def of_embeddings(model: LanguageModel | None, grouped: Grouped) -> Evidence:
    """Whether the tokens that a latent is active on mean alike, by the model's own embeddings."""
    if model is None:
        return {}, {}
    text, offsets = grouped.text, grouped.latent_offsets
    embeddings = centred_embeddings(model.token_embeddings().numpy(), text.token_ids)
    places = text.places(grouped.token_ranks)
    found = {
        name: token_coherence(offsets, text.token_ids[at], embeddings)
        for name, at in (("token_coherence", places), ("chance_token_coherence", text.half_turn(places)))
    }
    return found, {}


def of_outputs(
    sae: SparseAutoencoder,
    model: LanguageModel | None,
    grouped: Grouped,
    pieces: PieceTable,
    config: IndexConfig,
    target_hook_point: str,
) -> Evidence:
    """Promoted and suppressed tokens, and whether boosting a latent promotes them."""
    why_no_logits = _why_no_logits(sae, model)
    if model is None or why_no_logits:
        return {}, {"why_no_logits": why_no_logits}
    arrays = logit_weights(model, sae.W_dec, config.promoted_tokens)
    maxima = sae.W_dec * torch.from_numpy(grouped.maximum).to(sae.W_dec)[:, None]
    arrays["output_score"], about = output_scores(
        model,
        maxima,
        arrays["promoted_tokens"],
        grouped.alive,
        pieces,
        target_hook_point=target_hook_point,
        n_latents=config.output_latents,
    )
    return arrays, {"why_no_logits": "", "output_score": about}


def _why_no_logits(sae: SparseAutoencoder, model: LanguageModel | None) -> str:
    """Why promoted tokens are not stored; empty when they are."""
    if model is None:
        return "no language model was given"
    residual = model.width(f"layers.{model.n_layers - 1}")
    if sae.d_out != residual:
        return f"the SAE writes {sae.d_out} numbers, the residual stream has {residual}"
    return ""
