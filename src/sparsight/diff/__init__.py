"""What fine-tuning changed: where, which latents beyond seed noise, how much of it a few of them carry, and what simpler measures say."""

from sparsight.diff.attribution import attribute_latents
from sparsight.diff.closure import ClosureRow, DifferenceCode, closure_curve, measure_closure, rank_latents
from sparsight.diff.dense import (
    DenseDifference,
    TokenDifference,
    difference_lens,
    fit_difference,
    top_token_differences,
)
from sparsight.diff.drift import DriftTest, decoder_drift, drift_test
from sparsight.diff.emergence import (
    Gaps,
    GapTest,
    benjamini_hochberg,
    gap_null,
    gap_test,
    latent_gaps,
    permuted_gaps,
    rank_p,
)
from sparsight.diff.labelling import (
    LABELS,
    ComparedSeeds,
    LabelConfig,
    Labelled,
    compare_seeds,
    label_latents,
    label_seeds,
)
from sparsight.diff.marking import CHANGES, Marks, marked, naive_emergent, recall_by_rate
from sparsight.diff.matching import Dictionary, Partners, matched, mutual_pairs, pw_mcc
from sparsight.diff.power import PowerTable, Recall, power_table
from sparsight.diff.scaling import LatentScaling, ScalingSums, scaled_crosscoder, scaled_sae
from sparsight.diff.seeds import SeedTables
from sparsight.diff.where import LayerChange, layer_closure, measure_layers

__all__ = [
    "CHANGES",
    "LABELS",
    "ClosureRow",
    "ComparedSeeds",
    "DenseDifference",
    "Dictionary",
    "DifferenceCode",
    "DriftTest",
    "GapTest",
    "Gaps",
    "LabelConfig",
    "Labelled",
    "LatentScaling",
    "LayerChange",
    "Marks",
    "Partners",
    "PowerTable",
    "Recall",
    "ScalingSums",
    "SeedTables",
    "TokenDifference",
    "attribute_latents",
    "benjamini_hochberg",
    "closure_curve",
    "compare_seeds",
    "decoder_drift",
    "difference_lens",
    "drift_test",
    "fit_difference",
    "gap_null",
    "gap_test",
    "label_latents",
    "label_seeds",
    "latent_gaps",
    "layer_closure",
    "marked",
    "matched",
    "measure_closure",
    "measure_layers",
    "mutual_pairs",
    "naive_emergent",
    "permuted_gaps",
    "power_table",
    "pw_mcc",
    "rank_latents",
    "rank_p",
    "recall_by_rate",
    "scaled_crosscoder",
    "scaled_sae",
    "top_token_differences",
]
