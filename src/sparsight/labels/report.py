"""What explaining found and what it cost: ExplainReport, kept as JSON beside the notes, and the estimate before anything is spent.

    notes/ID.SOURCE.json   {"format": "sparsight.explained", "version": 1, "source", "config": {ExplainConfig},
                            "measured_on": {hook_point, split, n_tokens, explaining_documents, scoring_documents},
                            "spending": null | {asked, kept, failed, retried, tokens_in, tokens_out}, of every command added up,
                            "latents": [{latent, label, detection, control, control_label, fuzzing, why_not}, ...]}
    detection, control, fuzzing = null | {value, low, high, sensitivity, specificity, n_active, n_inactive, n_unanswered}

SOURCE is the labels' source with every other character than letters, digits, dot and hyphen as a hyphen. A latent that is explained
again has its newest row. Text of passages is not in it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparsight.artifact import read_json, write_json
from sparsight.errors import NotesError
from sparsight.labels.config import EndpointConfig
from sparsight.labels.endpoint import Spending, estimate_tokens
from sparsight.labels.labeller import Explained, Labeller
from sparsight.labels.scoring import auc, auc_interval, mean_interval

__all__ = ["Cost", "ExplainReport", "estimate_cost"]

FORMAT, VERSION = "sparsight.explained", 1
# The estimate builds the questions of this many latents and takes the others to be like them.
SAMPLED = 8
LABEL_CHARACTERS, LABEL_TOKENS, VERDICT_TOKENS = 60, 25, 25


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What asking an endpoint would cost, before it is asked."""

    n_latents: int
    calls: int
    tokens_in: int
    tokens_out: int
    price: float | None
    """In the unit of the prices given; None where none was."""
    host: str
    is_local: bool

    @property
    def tokens(self) -> int:
        """Prompts and answers together."""
        return self.tokens_in + self.tokens_out

    def text(self) -> str:
        """For people, with what leaves this machine."""
        price = "" if self.price is None else f", {self.price:,.2f} at the prices given"
        where = f"this machine ({self.host})" if self.is_local else self.host
        return (
            f"Explaining {self.n_latents:,} latents would take about {self.calls:,} calls and {self.tokens:,} tokens "
            f"({self.tokens_in:,} in, {self.tokens_out:,} out){price}.\n"
            f"Passages of the run's held-out text are sent to {where}."
        )


def estimate_cost(labeller: Labeller, latents: Sequence[int], config: EndpointConfig) -> Cost:
    """From the real questions of a few of the latents; answers are taken to be short."""
    sample = [latents[place] for place in np.linspace(0, len(latents) - 1, min(SAMPLED, len(latents))).astype(int)]
    prompts = list(labeller.prompts_of(sample, LABEL_CHARACTERS))
    times = len(latents) / max(1, len(sample))
    tokens_in = round(times * sum(estimate_tokens(prompt) for prompt in prompts))
    tokens_out = round(times * (len(sample) * LABEL_TOKENS + (len(prompts) - len(sample)) * VERDICT_TOKENS))
    priced = config.price_in or config.price_out
    price = (tokens_in * config.price_in + tokens_out * config.price_out) / 1e6 if priced else None
    return Cost(
        n_latents=len(latents),
        calls=round(times * len(prompts)),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        price=price,
        host=config.host,
        is_local=config.is_local,
    )


@dataclass(kw_only=True)
class ExplainReport:
    """The labels of one source with their tests."""

    source: str
    config: dict[str, Any]
    measured_on: dict[str, Any]
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    spending: dict[str, int] | None = None

    @classmethod
    def begin(cls, labeller: Labeller, source: str) -> "ExplainReport":
        """An empty one."""
        index, evidence = labeller.index, labeller.evidence
        documents = {
            half: len(np.unique(evidence.document_of[inside])) for half, inside in sorted(evidence.halves.items())
        }
        measured_on = {
            "hook_point": index.about["hook_point"],
            "split": index.about["split"],
            "n_tokens": index.n_tokens,
            "explaining_documents": documents["explain"],
            "scoring_documents": documents["score"],
        }
        return cls(source=source, config=asdict(labeller.config), measured_on=measured_on)

    @classmethod
    def open(cls, path: Path) -> "ExplainReport":
        """Raises NotesError when it is damaged, RunError when there is none."""
        found = read_json(path)
        try:
            if (found["format"], found["version"]) != (FORMAT, VERSION):
                raise KeyError("format")
            rows = {int(row["latent"]): row for row in found["latents"]}
            parts = {name: found[name] for name in ("source", "config", "measured_on", "spending")}
            return cls(rows=rows, **parts)
        except (KeyError, TypeError, ValueError):
            raise NotesError(f"{path} is no report of labels of this version. Delete it and explain again.") from None

    @staticmethod
    def path(notes: Path, source: str) -> Path:
        """Where it lies, beside the file of notes."""
        return notes.with_name(f"{notes.stem}.{re.sub(r'[^A-Za-z0-9.-]', '-', source)}.json")

    def add(self, explained: Explained) -> None:
        """Takes one latent in, in place of its earlier row."""
        row = asdict(explained)
        del row["source"]
        self.rows[explained.latent] = row

    def spend(self, spending: Spending) -> None:
        """Adds what a command spent."""
        earlier = self.spending or {}
        self.spending = {name: earlier.get(name, 0) + n for name, n in spending.to_json().items()}

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        parts = {
            "source": self.source,
            "config": self.config,
            "measured_on": self.measured_on,
            "spending": self.spending,
        }
        latents = [self.rows[latent] for latent in sorted(self.rows)]
        write_json(path, {"format": FORMAT, "version": VERSION, **parts, "latents": latents})

    def text(self) -> str:
        """The numbers for people, each with its control."""
        labelled = [row for row in self.rows.values() if row["label"] is not None]
        tested = [row for row in labelled if _value(row, "detection") is not None]
        on = self.measured_on
        lines = [
            f"{self.source}: {len(labelled):,} labels of {len(self.rows):,} latents at {on['hook_point']}; made from "
            f"{on['explaining_documents']:,} documents, {len(tested):,} tested on {on['scoring_documents']:,} others.",
            _mean_line("balanced accuracy", tested, "detection"),
            _mean_line("with another latent's label", tested, "control"),
            _auc_line(tested),
        ]
        if any(_value(row, "fuzzing") is not None for row in tested):
            lines.append(_mean_line("which tokens (fuzzing)", tested, "fuzzing"))
        lines += [
            f"  {why}: {n:,} latents"
            for why, n in Counter(_reason(row) for row in self.rows.values()).most_common()
            if why
        ]
        unanswered = sum(
            row[part]["n_unanswered"] for row in tested for part in ("detection", "control", "fuzzing") if row[part]
        )
        if self.spending is not None:
            lines.append(
                "  endpoint: {asked:,} calls answered, {kept:,} known from before, {failed:,} failed, {retried:,} tried again; "
                "{tokens_in:,} tokens in, {tokens_out:,} out".format(**self.spending)
                + f"; {unanswered:,} passages without a verdict"
            )
        return "\n".join(lines)


def _value(row: dict[str, Any], part: str) -> float | None:
    return row[part] and row[part]["value"]


def _reason(row: dict[str, Any]) -> str:
    """Reasons without their numbers, so that they can be counted."""
    return re.sub(r"^\d+ active and \d+ inactive", "too few", row["why_not"])


def _values(rows: list[dict[str, Any]], part: str) -> np.ndarray:
    return np.array([value for row in rows if (value := _value(row, part)) is not None], float)


def _mean_line(name: str, rows: list[dict[str, Any]], part: str) -> str:
    values = _values(rows, part)
    if not len(values):
        return f"  {name}: not measured"
    mean, low, high = mean_interval(values)
    n_passages = sum(row[part]["n_active"] + row[part]["n_inactive"] for row in rows if _value(row, part) is not None)
    return f"  {name}: {mean:.3f}, 95 % {low:.3f} to {high:.3f} (mean of {len(values):,} latents, {n_passages:,} passages; chance 0.5)"


def _auc_line(rows: list[dict[str, Any]]) -> str:
    pairs = [
        (true, wrong)
        for row in rows
        if (true := _value(row, "detection")) is not None and (wrong := _value(row, "control")) is not None
    ]
    true, wrong = np.array(pairs, float).reshape(-1, 2).T
    value = auc(true, wrong)
    if value is None:
        return "  a label's score above another's: not measured"
    low, high = auc_interval(true, wrong)
    return f"  a label's score above another's (AUC): {value:.3f}, 95 % {low:.3f} to {high:.3f} ({len(true):,} latents)"
