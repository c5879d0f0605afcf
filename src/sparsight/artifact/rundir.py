"""The folder of one study: where each part lies, and who may write to it now.

    runs/NAME/
      recipe.toml      the resolved recipe
      manifest.json    see manifest.py
      activations/     an ActivationStore
      saes/ID/         cfg.json, sae_weights.safetensors, training.jsonl, evaluation.json, probing.json
      features/ID/     a FeatureIndex
      notes/ID.sqlite  what people and explainers say of its latents
      report.md        what a person reads
      compare/         of a comparison: what each step found, tables, report.md and report.html

One process writes at a time: an flock on `.lock`, which the system releases however the process ends.
"""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsight.artifact.files import remove_leftovers, told_in_one_line
from sparsight.errors import RunError

__all__ = ["Interrupted", "RunDir", "StopFlag", "locked", "stop_signals"]


class RunDir:
    """Names the parts of a run directory. Making one touches nothing on disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """A run that exists. Raises RunError when `path` holds none."""
        run = cls(path)
        if not run.recipe.is_file():
            raise RunError(
                f"{path} is not a run directory: it has no recipe.toml. Make one with `sparsight run RECIPE`."
            )
        return run

    @property
    def recipe(self) -> Path:
        """recipe.toml: the resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def manifest(self) -> Path:
        """manifest.json: see manifest.py."""
        return self.path / "manifest.json"

    @property
    def activations(self) -> Path:
        """The ActivationStore."""
        return self.path / "activations"

    @property
    def saes(self) -> Path:
        """Holds one folder an SAE."""
        return self.path / "saes"

    @property
    def report(self) -> Path:
        """report.md: what a person reads."""
        return self.path / "report.md"

    @property
    def comparison(self) -> Path:
        """compare/: what a comparison found; report.md and report.html there come last."""
        return self.path / "compare"

    def sae(self, sae_id: str) -> Path:
        """The folder of one SAE."""
        return self.saes / sae_id

    def evaluation(self, sae_id: str) -> Path:
        """The EvalReport of one SAE."""
        return self.sae(sae_id) / "evaluation.json"

    def probing(self, sae_id: str, which: str = "") -> Path:
        """The ProbingReport of one SAE; `which`: of other sets than the built-in selection."""
        return self.sae(sae_id) / f"probing{which and '-'}{which}.json"

    def probings(self, sae_id: str) -> list[Path]:
        """Every ProbingReport of one SAE, by name."""
        return sorted(self.sae(sae_id).glob("probing*.json"))

    def features(self, sae_id: str) -> Path:
        """The FeatureIndex of one SAE."""
        return self.path / "features" / sae_id

    def notes(self, sae_id: str) -> Path:
        """The Notes of one SAE: labels, notes, lists."""
        return self.path / "notes" / f"{sae_id}.sqlite"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for writing and clears what a killed process left half-written in it.

    Raises RunError at once when another process holds it.
    """
    with told_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}. "
                "Wait for it, stop it, or choose another directory with --out."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        remove_leftovers(folder)
        yield


class Interrupted(BaseException):
    """A stop signal arrived and the work was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, signal_number: int):
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


@contextmanager
def stop_signals() -> Iterator["StopFlag"]:
    """SIGINT and SIGTERM raise Interrupted at once; inside `flag.save_first()` they only set the flag, for a loop that saves, then leaves.

    A second signal always stops at once. Outside the main thread signals stay as they are.
    """
    flag = StopFlag()
    try:
        previous = {number: signal.signal(number, flag.receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        previous = {}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopFlag:
    """True once a stop signal came."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._saves_first = False

    @contextmanager
    def save_first(self) -> Iterator[None]:
        """While inside, a first signal waits for `leave`."""
        self._saves_first = True
        try:
            yield
        finally:
            self._saves_first = False

    def receive(self, number: int, _frame: object) -> None:
        """The signal handler."""
        repeated, self.signal_number = self.signal_number is not None, number
        if repeated or not self._saves_first:
            raise Interrupted(number)

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def leave(self) -> None:
        """Raises Interrupted when a stop signal came; call it once everything is saved."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)
