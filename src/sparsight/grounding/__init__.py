"""Grounding: which details of a written text stand in the fine-tuning text, whether anything holds them together, and what decides it."""

from sparsight.grounding.arrangement import Arranged, ArrangementConfig, Outcome, arrange, detail_labels
from sparsight.grounding.causal import (
    CausalConfig,
    CausalReport,
    Change,
    LatentTraits,
    ablation_effects,
    matched_controls,
)
from sparsight.grounding.ceiling import LinearCeiling, linear_ceiling
from sparsight.grounding.corpus import CorpusIndex, Matches
from sparsight.grounding.details import Detail, DetailConfig, find_details, unigram_bits
from sparsight.grounding.scores import LatentScores, ScoreConfig, Spans, found_again, score_latents, stratified_auc
from sparsight.grounding.spans import detail_spans
from sparsight.grounding.texts import (
    WriteConfig,
    Written,
    mean_nll,
    read_activations,
    token_log2_p,
    write_texts,
)
from sparsight.grounding.traced import FineTuningText, TracedTexts, Tracer, ordinary_texts
from sparsight.grounding.urr import OutcomeShare, URRConfig, URRReport, measure_urr, pair_rate

__all__ = [
    "Arranged",
    "ArrangementConfig",
    "CausalConfig",
    "CausalReport",
    "Change",
    "CorpusIndex",
    "Detail",
    "DetailConfig",
    "FineTuningText",
    "LatentScores",
    "LatentTraits",
    "LinearCeiling",
    "Matches",
    "Outcome",
    "OutcomeShare",
    "ScoreConfig",
    "Spans",
    "TracedTexts",
    "Tracer",
    "URRConfig",
    "URRReport",
    "WriteConfig",
    "Written",
    "ablation_effects",
    "arrange",
    "detail_labels",
    "detail_spans",
    "find_details",
    "found_again",
    "linear_ceiling",
    "matched_controls",
    "mean_nll",
    "measure_urr",
    "ordinary_texts",
    "pair_rate",
    "read_activations",
    "score_latents",
    "stratified_auc",
    "token_log2_p",
    "unigram_bits",
    "write_texts",
]
