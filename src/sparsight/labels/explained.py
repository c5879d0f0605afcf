"""What explaining one latent gave: a label with its tests, or a retest of a label."""

from dataclasses import dataclass

from sparsight.features import Label, printable
from sparsight.labels.scoring import Score

__all__ = ["MODEL_FREE", "Explained", "Falsified"]

MODEL_FREE = "model-free"

# Passages printed of each kind that speak against a label.
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One latent's label with its tests; `label` is None where none could be made."""

    latent: int
    label: str | None
    source: str
    detection: Score | None = None
    """Of the label."""
    control: Score | None = None
    """Of another latent's label on the same passages."""
    control_label: str | None = None
    fuzzing: Score | None = None
    """Of the label on marked tokens; with a language model only."""
    why_not: str = ""
    """Why there is no label or no score."""

    def to_label(self) -> Label | None:
        """As it is kept in the notes."""
        if self.label is None:
            return None
        found, control = self.detection, self.control
        return Label(
            self.latent,
            self.label,
            self.source,
            score=found and found.value,
            low=found and found.low,
            high=found and found.high,
            control=control and control.value,
            n=found and found.n,
        )


@dataclass(frozen=True, kw_only=True)
class Falsified:
    """A retest of one label, with the passages that speak against it."""

    latent: int
    label: str
    by: str
    """rule: as the tokens that it names; llm:NAME: as that model reads it."""
    score: Score
    control: Score | None
    """Of another latent's rule on the same passages; None where no other has one."""
    fresh: bool
    """Whether the passages are about tokens that no passage of the first test shows."""
    misses: tuple[str, ...]
    """Passages in which the latent is active and the label says not."""
    false_alarms: tuple[str, ...]
    """Passages in which it is not active and the label says so."""

    def text(self) -> str:
        """For people, printable: the score with its control, and some of what speaks against the label."""
        documents = (
            "documents of the scoring half that the first test did not draw" if self.fresh else "the scoring half"
        )
        lines = [f"{printable(self.label)}: read by {printable(self.by)}, on {documents}"]
        for name, score in (("balanced accuracy", self.score), ("another latent's rule", self.control)):
            if score is None or score.value is None:
                lines.append(f"  {name}: {'none to compare with' if score is None else 'too few passages'}")
                continue
            lines.append(
                f"  {name}: {score.value:.2f}, 95 % {score.low:.2f} to {score.high:.2f} ({score.n_active} passages with the latent, "
                f"{score.n_inactive} without; chance 0.5)"
            )
        for name, against in (
            ("the latent is active, the label says not", self.misses),
            ("the label says so, the latent is not active", self.false_alarms),
        ):
            lines += [f"  {name}, {len(against)} passages:", *(f"    {passage}" for passage in against[:SHOWN])]
        return "\n".join(lines)
