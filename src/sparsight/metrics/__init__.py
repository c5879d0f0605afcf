"""Metrics: one definition each, every number with its n, its interval over documents, and its baseline."""

from sparsight.metrics.baselines import LinearBaseline, LinearFit
from sparsight.metrics.classes import CLASS_NAMES, TokenClasses
from sparsight.metrics.comparison import compare_methods, method_reports
from sparsight.metrics.config import EvaluateConfig
from sparsight.metrics.downstream import recovered_share, token_cross_entropy, token_kl
from sparsight.metrics.fitting import TrainFit, fit_on_train
from sparsight.metrics.intervals import (
    DocumentSums,
    Estimate,
    ResampledSums,
    document_bootstrap,
    document_weights,
    wilson_interval,
)
from sparsight.metrics.probing import (
    ProbeScore,
    ProbingConfig,
    SparseProbe,
    association,
    one_thread,
    require_sklearn,
    stratified_split,
    train_probe,
)
from sparsight.metrics.probing_report import (
    ALL_UNITS,
    ProbeDifference,
    ProbingReport,
    SetMean,
    SetScores,
    SkippedSet,
)
from sparsight.metrics.reconstruction import ReconstructionSums, cosine, fvu
from sparsight.metrics.report import METRICS, EvalReport, MethodReport, Verdict
from sparsight.metrics.sparsity import DensityHistogram, LatentCounts, l0
from sparsight.metrics.splicing import DownstreamSums, SpliceText, flat_tokens, kept_tokens, measure_downstream
from sparsight.metrics.stability import (
    CrossMoments,
    LatentMean,
    SeedPartners,
    SeedStability,
    seed_partners,
    seed_stability,
)
from sparsight.metrics.tables import report_markdown, report_text

__all__ = [
    "ALL_UNITS",
    "CLASS_NAMES",
    "METRICS",
    "CrossMoments",
    "DensityHistogram",
    "DocumentSums",
    "DownstreamSums",
    "Estimate",
    "EvalReport",
    "EvaluateConfig",
    "LatentCounts",
    "LatentMean",
    "LinearBaseline",
    "LinearFit",
    "MethodReport",
    "ProbeDifference",
    "ProbeScore",
    "ProbingConfig",
    "ProbingReport",
    "ReconstructionSums",
    "ResampledSums",
    "SeedPartners",
    "SeedStability",
    "SetMean",
    "SetScores",
    "SkippedSet",
    "SparseProbe",
    "SpliceText",
    "TokenClasses",
    "TrainFit",
    "Verdict",
    "association",
    "compare_methods",
    "cosine",
    "document_bootstrap",
    "document_weights",
    "fit_on_train",
    "flat_tokens",
    "fvu",
    "kept_tokens",
    "l0",
    "measure_downstream",
    "method_reports",
    "one_thread",
    "recovered_share",
    "report_markdown",
    "report_text",
    "require_sklearn",
    "seed_partners",
    "seed_stability",
    "stratified_split",
    "token_cross_entropy",
    "token_kl",
    "train_probe",
    "wilson_interval",
]
