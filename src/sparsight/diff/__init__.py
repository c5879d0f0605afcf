"""What differs between two models' dictionaries, beyond what two seeds of one model differ by. Statistics only: no language model in here."""

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
from sparsight.diff.scaling import LatentScaling, ScalingSums, scaled_crosscoder, scaled_sae
from sparsight.diff.seeds import SeedTables

__all__ = [
    "CHANGES",
    "LABELS",
    "ComparedSeeds",
    "Dictionary",
    "DriftTest",
    "GapTest",
    "Gaps",
    "LabelConfig",
    "Labelled",
    "LatentScaling",
    "Marks",
    "Partners",
    "ScalingSums",
    "SeedTables",
    "benjamini_hochberg",
    "compare_seeds",
    "decoder_drift",
    "drift_test",
    "gap_null",
    "gap_test",
    "label_latents",
    "label_seeds",
    "latent_gaps",
    "marked",
    "matched",
    "mutual_pairs",
    "naive_emergent",
    "permuted_gaps",
    "pw_mcc",
    "rank_p",
    "recall_by_rate",
    "scaled_crosscoder",
    "scaled_sae",
]
