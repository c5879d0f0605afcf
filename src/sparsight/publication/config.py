"""What to publish of a run, where, and under which terms."""

from dataclasses import dataclass
from pathlib import Path

from sparsight.errors import RunError

__all__ = ["FORMATS", "PublishConfig"]

FORMATS = ("saelens", "neuronpedia", "parquet")


@dataclass(frozen=True, kw_only=True)
class PublishConfig:
    """Options of `publish`."""

    to: str
    """Repository on the Hub, user/name."""

    format: str = "saelens"
    """saelens (a model repository: SAEs and their card) | parquet (a dataset repository: a table of features) | neuronpedia (the
    same with the batches that its upload takes)."""

    sae: str | None = None
    """One SAE's id; None publishes all of the run."""

    out: Path | None = None
    """Where the folder is built; None: RUN/publish/NAME."""

    dry_run: bool = False
    """Build the folder and upload nothing."""

    private: bool = False
    """Make a new repository private; an existing one stays as it is."""

    license: str = "apache-2.0"
    """Licence of what is published, by its identifier on the Hub."""

    model_license: str = ""
    """The base model's licence, where the Hub or the built-in table does not say or cannot be asked."""

    text_license: str = ""
    """The text's licence, likewise."""

    contexts: bool | None = None
    """Quote passages of the text: None where its licence is known to permit it, else always or never."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise RunError(f"--format is {self.format!r}; expected one of {', '.join(FORMATS)}.")
