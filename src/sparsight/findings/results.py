"""What a comparison has found so far: one JSON file a step, and the tables and pages made of them.

RUN/compare/
  STEP.json                                         what the step found; a step with a file is not made again
  features.parquet  pairs.parquet  nulls.parquet    every latent of every SAE, mutual pairs, the null's values
  closure.csv
  report.md  report.html                            written last; with them and every step's file the comparison is complete
"""

from pathlib import Path
from typing import Any

from sparsight.artifact import read_json, write_json
from sparsight.errors import RunError

__all__ = ["Findings"]


class Findings:
    """The folder of one comparison's findings. Making one touches nothing on disk."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def has(self, step: str) -> bool:
        """Whether a step is done."""
        return self._file(step).exists()

    def get(self, step: str) -> dict[str, Any]:
        """What a step found. Raises RunError when it is not done."""
        if not self.has(step):
            raise RunError(
                f"{self.folder} has no {step}.json: the comparison is not that far. Run it to its end: sparsight compare RECIPE."
            )
        return read_json(self._file(step))

    def put(self, step: str, found: dict[str, Any]) -> None:
        """Keeps what a step found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file(step), found)

    def _file(self, step: str) -> Path:
        return self.folder / f"{step}.json"
