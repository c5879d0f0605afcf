"""From sums per document to the rows and verdicts of a report. Every metric's ratio is written here, once.

fvu = error / variance          cosine = cosine / tokens          l0 = l0 / tokens
ce  = ce / tokens               kl     = kl / tokens
recovered_zero = (ce_zero - ce) / (ce_zero - ce_clean), recovered_mean likewise with ce_mean
"""

from collections.abc import Mapping, Sequence

from sparsight.metrics.classes import CLASS_NAMES
from sparsight.metrics.intervals import DocumentSums, Estimate, ResampledSums
from sparsight.metrics.report import MethodReport, Verdict
from sparsight.metrics.sparsity import LatentCounts

__all__ = ["compare_methods", "method_reports"]

# The controls an SAE must beat; ablations and the clean model are yardsticks, not rivals, and a second seed is the yardstick of chance.
RIVALS = ("frozen-decoder", "random", "pca")
SECOND_SEED = "seed"
ABLATIONS = ("zero", "mean")


def method_reports(
    labels: Mapping[str, str],
    *,
    reconstruction: DocumentSums,
    downstream: DocumentSums | None,
    counts: Mapping[str, LatentCounts],
    fixed_l0: Mapping[str, float],
    n_resamples: int,
    seed: int,
) -> tuple[tuple[MethodReport, ...], tuple[Verdict, ...]]:
    """One row for each label, in its order, and the verdicts on the SAE.

    `counts` has the dictionaries' latents; `fixed_l0` the methods whose L0 is set and not measured (PCA).
    """
    rebuilt = reconstruction.resample(n_resamples=n_resamples, seed=seed)
    spliced = None if downstream is None else downstream.resample(n_resamples=n_resamples, seed=seed)
    reports = []
    for name, label in labels.items():
        metrics = _metrics(name, rebuilt, spliced, None)
        if name in fixed_l0:
            metrics["l0"] = _exact(fixed_l0[name], metrics["fvu"])
        if name in counts:
            metrics["dead_share"] = _exact(counts[name].dead_share, metrics["fvu"])
        reports.append(
            MethodReport(
                name=name,
                label=label,
                metrics=metrics,
                by_class={
                    class_name: _metrics(name, rebuilt, spliced, group)
                    for group, class_name in enumerate(CLASS_NAMES)
                    if rebuilt.sums.shape[1] == len(CLASS_NAMES)
                },
                density=counts[name].histogram() if name in counts else None,
            )
        )
    return tuple(reports), compare_methods([name for name in RIVALS if name in labels], rebuilt, spliced)


def compare_methods(
    rivals: Sequence[str], rebuilt: ResampledSums, spliced: ResampledSums | None
) -> tuple[Verdict, ...]:
    """Verdicts on the SAE against each rival, by FVU, CE and KL; differences are resampled in pairs.

    Where a second seed was measured, what differs between the two seeds is the noise that a difference must exceed.
    """
    verdicts = []
    for rival in rivals:
        pairs = [
            ("fvu", "error", "variance", rebuilt),
            ("ce", "ce", "tokens", spliced),
            ("kl", "kl", "tokens", spliced),
        ]
        for metric, column, per, sums in pairs:
            if sums is not None and f"{column}_{rival}" in sums.names:
                difference = sums.estimate({f"{column}_{rival}": 1, f"{column}_sae": -1}, {per: 1})
                noise = None
                if f"{column}_{SECOND_SEED}" in sums.names:
                    noise = sums.estimate({f"{column}_{SECOND_SEED}": 1, f"{column}_sae": -1}, {per: 1}).value
                verdicts.append(Verdict(baseline=rival, metric=metric, difference=difference, seed_difference=noise))
    return tuple(verdicts)


def _metrics(
    name: str, rebuilt: ResampledSums, spliced: ResampledSums | None, group: int | None
) -> dict[str, Estimate]:
    metrics = {}
    for metric, per in (("error", "variance"), ("cosine", "tokens"), ("l0", "tokens")):
        if f"{metric}_{name}" in rebuilt.names:
            metrics[{"error": "fvu"}.get(metric, metric)] = rebuilt.estimate(
                {f"{metric}_{name}": 1}, {per: 1}, group=group
            )
    if spliced is None:
        return metrics
    for metric in ("ce", "kl"):
        if f"{metric}_{name}" in spliced.names:
            metrics[metric] = spliced.estimate({f"{metric}_{name}": 1}, {"tokens": 1}, group=group)
    for ablation in ABLATIONS:
        if f"kl_{name}" in spliced.names and f"ce_{ablation}" in spliced.names and name not in ABLATIONS:
            metrics[f"recovered_{ablation}"] = spliced.estimate(
                {f"ce_{ablation}": 1, f"ce_{name}": -1}, {f"ce_{ablation}": 1, "ce_clean": -1}, group=group
            )
    return metrics


def _exact(value: float, measured: Estimate) -> Estimate:
    """A number without an interval, on as much text as `measured`."""
    return Estimate(value=value, low=None, high=None, n_tokens=measured.n_tokens, n_documents=measured.n_documents)
