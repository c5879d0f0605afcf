"""EvalReport: what an evaluation found, as one tree of dataclasses that becomes evaluation.json.

    {"format": "sparsight.evaluation", "version": 1,
     "subject":     {...}    architecture, n_latents, d_in, d_out, hook_point, target_hook_point, pca_components
     "measured_on": {...}    tokens and documents of each part; positions replaced and kept; train tokens of the fits
     "config":      {...}    EvaluateConfig
     "methods":     [{"name": sae | seed | frozen-decoder | random | pca | clean | zero | mean, "label": for people,
                      "metrics": {METRIC: estimate}, "by_class": {CLASS: {METRIC: estimate}},
                      "density": null | {log10_edges, n_latents, n_dead, n_tokens}}]
     "verdicts":    [{"baseline", "metric", "outcome": better | worse | tie, "difference": estimate, "seed_difference"}]
     "stability":   null | {"n_alive": [SAE, second seed], mmcs, chance_mmcs, pw_mcc, chance_pw_mcc: latent mean | null}
     "notes":       [...]}   what was not measured, and why

    estimate = {"value", "low", "high", "n_tokens", "n_documents"}: a ratio of sums over tokens with the 95 % interval
               of resampled documents; null where it has no meaning
    latent mean = {"value", "low", "high", "n_latents"}: see stability.py; pw_mcc is null for wide dictionaries
    METRIC = fvu, cosine, l0, dead_share, ce, kl (nats per token), recovered_zero, recovered_mean
    CLASS  = first, frequent, middle, rare (see classes.py)

A verdict's difference is (baseline - SAE) for fvu, ce and kl, so that positive is in the SAE's favour; it is
resampled in pairs. It is "better" or "worse" only when its interval excludes zero and it exceeds the difference between
two seeds of the same SAE (`seed_difference`, where a second seed was measured); otherwise it is a tie. Version 1 had no
second seed, no frozen decoder, no stability, and called `random` "untrained".
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsight.artifact import read_json, write_json
from sparsight.errors import RunError
from sparsight.metrics.intervals import Estimate, outcome_of
from sparsight.metrics.sparsity import DensityHistogram
from sparsight.metrics.stability import LatentMean, SeedStability

__all__ = ["METRICS", "EvalReport", "MethodReport", "Verdict"]

FORMAT = "sparsight.evaluation"
VERSION = 2
_LATENT_MEANS = ("mmcs", "chance_mmcs", "pw_mcc", "chance_pw_mcc")
METRICS = ("fvu", "cosine", "l0", "dead_share", "ce", "kl", "recovered_zero", "recovered_mean")


@dataclass(frozen=True, kw_only=True)
class MethodReport:
    """One row of the tables: the SAE, a baseline, the untouched model or an ablation."""

    name: str
    """sae, seed, frozen-decoder, random, pca, clean, zero or mean."""
    label: str
    """The name for people, such as `PCA (k = 32)`."""
    metrics: dict[str, Estimate]
    """By METRICS; a metric that does not apply is absent."""
    by_class: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """The same metrics by class of token."""
    density: DensityHistogram | None = None
    """Of dictionaries only."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the SAE beats a baseline by one metric."""

    baseline: str
    """Name of the method it is compared with."""
    metric: str
    """fvu, ce or kl."""
    difference: Estimate
    """Baseline minus SAE, in the metric's unit; positive is in the SAE's favour."""
    seed_difference: float | None = None
    """The second seed minus the SAE, by the same metric; None where none was measured."""

    @property
    def outcome(self) -> str:
        """better | worse | tie"""
        return outcome_of(self.difference.value, self.difference.low, self.difference.high, self.seed_difference)


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """Everything an evaluation found."""

    subject: dict[str, Any]
    """What was measured."""
    measured_on: dict[str, Any]
    """How much text each part was measured on."""
    config: dict[str, Any]
    """EvaluateConfig as a dict."""
    methods: tuple[MethodReport, ...]
    """The SAE first."""
    verdicts: tuple[Verdict, ...]
    """The SAE against each baseline."""
    notes: tuple[str, ...]
    """What was not measured, or needs saying."""
    stability: SeedStability | None = None
    """How much of the dictionary a second seed found again; None where none was measured."""

    def method(self, name: str) -> MethodReport:
        """One method's row. Raises RunError when it was not measured."""
        for method in self.methods:
            if method.name == name:
                return method
        names = ", ".join(method.name for method in self.methods)
        raise RunError(f"The evaluation has no method {name!r}; it measured {names}.")

    def value(self, metric: str, method: str = "sae") -> float | None:
        """One number; None where it was not measured or has no meaning."""
        estimate = self.method(method).metrics.get(metric)
        return None if estimate is None else estimate.value

    def to_json(self) -> dict[str, Any]:
        """The report as plain values; see the head of this module."""
        body = asdict(self)
        for verdict, written in zip(self.verdicts, body["verdicts"], strict=True):
            written["outcome"] = verdict.outcome
        return {"format": FORMAT, "version": VERSION, **body}

    def text(self) -> str:
        """The report for a terminal; see tables.py."""
        from sparsight.metrics.tables import report_text

        return report_text(self)

    def markdown(self, title: str = "") -> str:
        """The report as Markdown under a heading of its own, or `title`; see tables.py."""
        from sparsight.metrics.tables import report_markdown

        return report_markdown(self, title)

    def save(self, path: str | Path) -> None:
        """Write evaluation.json, atomically."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "EvalReport":
        """Read evaluation.json. Raises RunError when it is not one."""
        path = Path(path)
        body = read_json(path)
        if not isinstance(body, dict) or body.get("format") != FORMAT or body.get("version") != VERSION:
            raise RunError(
                f"`{path}` is not an evaluation of version {VERSION}. Delete it and run `sparsight evaluate`."
            )
        try:
            return cls(
                subject=body["subject"],
                measured_on=body["measured_on"],
                config=body["config"],
                methods=tuple(_method(method) for method in body["methods"]),
                verdicts=tuple(
                    Verdict(
                        baseline=v["baseline"],
                        metric=v["metric"],
                        difference=Estimate(**v["difference"]),
                        seed_difference=v["seed_difference"],
                    )
                    for v in body["verdicts"]
                ),
                notes=tuple(body["notes"]),
                stability=_stability(body["stability"]),
            )
        except (KeyError, TypeError) as error:
            raise RunError(f"`{path}` lacks or garbles {error}. Delete it and run `sparsight evaluate`.") from None


def _method(body: dict[str, Any]) -> MethodReport:
    density = body["density"]
    if density is not None:
        density = DensityHistogram(
            log10_edges=tuple(density["log10_edges"]),
            n_latents=tuple(density["n_latents"]),
            n_dead=density["n_dead"],
            n_tokens=density["n_tokens"],
        )
    return MethodReport(
        name=body["name"],
        label=body["label"],
        metrics=_estimates(body["metrics"]),
        by_class={name: _estimates(metrics) for name, metrics in body["by_class"].items()},
        density=density,
    )


def _stability(body: dict[str, Any] | None) -> SeedStability | None:
    if body is None:
        return None
    means: dict[str, Any] = {name: None if body[name] is None else LatentMean(**body[name]) for name in _LATENT_MEANS}
    return SeedStability(n_alive=tuple(body["n_alive"]), **means)


def _estimates(body: dict[str, Any]) -> dict[str, Estimate]:
    return {metric: Estimate(**estimate) for metric, estimate in body.items()}
