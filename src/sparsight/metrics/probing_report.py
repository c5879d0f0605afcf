"""ProbingReport: what probes found, over sets, as one tree of dataclasses that becomes probing.json.

    {"format": "sparsight.probing", "version": 1,
     "subject":     {...}    architecture, n_latents, d_in, hook_point
     "measured_on": {...}    which sets (names or files, with hashes), the model
     "config":      {...}    ProbingConfig
     "sets":        [{"name", "family", "classes": [negative, positive], "n_train", "n_test", "counts": {...},
                      "scores": {METHOD: {K: {"auc", "balanced_accuracy"}}}, "latents": [the SAE's at the largest k, best first]}]
     "skipped":     [{"name", "reason"}]
     "methods":     {METHOD: label for people}
     "means":       {METRIC: {METHOD: {K: mean}}}
     "differences": [{"control", "k", "control_k", "metric", "difference": mean, "seed_difference", "outcome": better | worse | tie}]
     "notes":       [...]}

    mean   = {"value", "low", "high", "n_sets", "n_families"}: over sets, each the same; 95 % interval of resampled families; null with one family
    METHOD = sae, seed, frozen-decoder, random, raw, pca, dense, shuffled      METRIC = auc, balanced_accuracy      K = "1", "5", ... or "all"

A difference is the SAE minus the control on the same sets, resampled in pairs; positive is in the SAE's favour. It is "better" or "worse" only
when its interval excludes zero and it exceeds the second seed's distance from the SAE (where one was measured); otherwise it is a tie.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.artifact import read_json, write_json
from sparsight.errors import MetricError, RunError
from sparsight.metrics.intervals import document_bootstrap, outcome_of
from sparsight.metrics.probing import ProbeScore, ProbingConfig

__all__ = ["ALL_UNITS", "PROBE_METRICS", "ProbeDifference", "ProbingReport", "SetMean", "SetScores", "SkippedSet"]

FORMAT = "sparsight.probing"
VERSION = 1
PROBE_METRICS = ("auc", "balanced_accuracy")
ALL_UNITS = "all"
_RIVALS = ("frozen-decoder", "random", "raw", "pca")


@dataclass(frozen=True, kw_only=True)
class SetMean:
    """A mean over sets."""

    value: float
    """Every set counts the same."""
    low: float | None
    """2.5th percentile over resampled families; None with one family."""
    high: float | None
    """97.5th percentile."""
    n_sets: int
    n_families: int


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """What was found on one set."""

    name: str
    family: str
    classes: tuple[str, ...]
    """Negative, positive."""
    n_train: int
    n_test: int
    counts: dict[str, int]
    """Rows of the file, and what of it was left out; see lm/labelled.py."""
    scores: dict[str, dict[str, ProbeScore]]
    """Method -> k or "all" -> score."""
    latents: tuple[int, ...]
    """The SAE's latents chosen at the largest k, the most associated first."""


@dataclass(frozen=True, kw_only=True)
class SkippedSet:
    """A set that was not measured."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProbeDifference:
    """The SAE against one control."""

    control: str
    k: str
    """Of the SAE."""
    control_k: str
    """Of the control: the same, or "all" for the dense probe."""
    metric: str
    difference: SetMean
    """SAE minus control."""
    seed_difference: float | None
    """The SAE minus its second seed at the same k."""

    @property
    def outcome(self) -> str:
        """better | worse | tie"""
        return outcome_of(self.difference.value, self.difference.low, self.difference.high, self.seed_difference)


@dataclass(frozen=True, kw_only=True)
class ProbingReport:
    """Everything a probing found."""

    subject: dict[str, Any]
    measured_on: dict[str, Any]
    config: dict[str, Any]
    """ProbingConfig as a dict."""
    methods: dict[str, str]
    """Name -> label for people, the SAE first."""
    sets: tuple[SetScores, ...]
    skipped: tuple[SkippedSet, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.sets:
            reasons = "; ".join(f"{each.name}: {each.reason}" for each in self.skipped[:3])
            raise MetricError(
                f"No set can be probed ({reasons or 'none was given'}). Give larger sets with two classes."
            )

    def ks(self, method: str) -> list[str]:
        """The ks that a method was probed with."""
        return list(self.sets[0].scores[method])

    def mean(self, metric: str, method: str, k: str) -> SetMean:
        """The mean of a metric over sets."""
        return self._over_sets([getattr(each.scores[method][k], metric) for each in self.sets])

    def difference(self, metric: str, control: str, k: str, control_k: str = "") -> SetMean:
        """SAE minus control, set by set."""
        pairs = [(each.scores["sae"][k], each.scores[control][control_k or k]) for each in self.sets]
        return self._over_sets([getattr(ours, metric) - getattr(theirs, metric) for ours, theirs in pairs])

    def differences(self) -> list[ProbeDifference]:
        """The SAE against every control at each k, and at the largest against the dense probe."""
        ks = self.ks("sae")
        pairs = [(control, k, k) for control in ("seed", *_RIVALS) if control in self.methods for k in ks]
        pairs += [("dense", ks[-1], ALL_UNITS)] if "dense" in self.methods else []
        return [
            ProbeDifference(
                control=control,
                k=k,
                control_k=control_k,
                metric=metric,
                difference=self.difference(metric, control, k, control_k),
                seed_difference=self.difference(metric, "seed", k).value
                if "seed" in self.methods and control != "seed"
                else None,
            )
            for metric in PROBE_METRICS
            for control, k, control_k in pairs
        ]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values; see the head of this module."""
        means = {
            metric: {
                method: {k: asdict(self.mean(metric, method, k)) for k in self.ks(method)} for method in self.methods
            }
            for metric in PROBE_METRICS
        }
        differences = [asdict(each) | {"outcome": each.outcome} for each in self.differences()]
        return {"format": FORMAT, "version": VERSION, **asdict(self), "means": means, "differences": differences}

    def text(self) -> str:
        """The report for a terminal; see probing_tables.py."""
        from sparsight.metrics.probing_tables import probing_text

        return probing_text(self)

    def save(self, path: str | Path) -> None:
        """Write probing.json, atomically."""
        write_json(Path(path), self.to_json())

    @classmethod
    def is_at(cls, path: Path, config: ProbingConfig, measured_on: Mapping[str, Any]) -> bool:
        """Whether a report of the same sets with the same settings is there."""
        if not path.exists():
            return False
        there = cls.load(path)
        asked = json.loads(json.dumps({"config": asdict(config), "measured_on": measured_on}))
        return there.config == asked["config"] and there.measured_on == asked["measured_on"]

    @classmethod
    def load(cls, path: str | Path) -> "ProbingReport":
        """Read probing.json. Raises RunError when it is not one."""
        body = read_json(Path(path))
        if not isinstance(body, dict) or body.get("format") != FORMAT or body.get("version") != VERSION:
            raise RunError(f"`{path}` is not a probing of version {VERSION}. Delete it and run `sparsight probe`.")
        try:
            parts = {field.name: body[field.name] for field in fields(cls)}
            parts |= {
                "sets": tuple(_set_scores(each) for each in body["sets"]),
                "skipped": tuple(SkippedSet(**each) for each in body["skipped"]),
                "notes": tuple(body["notes"]),
            }
            return cls(**parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise RunError(f"`{path}` lacks or garbles {error}. Delete it and run `sparsight probe`.") from None

    def _over_sets(self, values: Sequence[float]) -> SetMean:
        families = sorted({each.family for each in self.sets})
        of = np.array([families.index(each.family) for each in self.sets])
        sums = np.bincount(of, weights=np.asarray(values, dtype=np.float64))
        n_sets = np.bincount(of).astype(np.float64)
        value, low, high = float(np.mean(values)), None, None
        if len(families) > 1:
            value, low, high = document_bootstrap(
                sums, n_sets, n_resamples=self.config["n_resamples"], seed=self.config["seed"]
            )
        return SetMean(value=value, low=low, high=high, n_sets=len(values), n_families=len(families))


def _set_scores(body: Mapping[str, Any]) -> SetScores:
    scores = {method: {k: ProbeScore(**score) for k, score in by_k.items()} for method, by_k in body["scores"].items()}
    lists = {"classes": tuple(body["classes"]), "latents": tuple(body["latents"])}
    return SetScores(**{**body, **lists, "scores": scores})
