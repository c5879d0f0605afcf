"""Recipe: everything one study is made of, as frozen dataclasses. Its sections are the options of the rooms they name.

    schema = 1
    name = "demo"
    controls = ["seed", "frozen-decoder", "random", "pca"]
    [model] [text] [activations] [train] [[sae]] ... [evaluate] [index]

Controls stand beside every SAE in its evaluation. Two of them are SAEs of their own, trained from the same pass: `seed` is
the same configuration from another seed, so that what differs between the two is chance; `frozen-decoder` keeps its random
directions, so that what it explains needs no learned dictionary. `random` is the SAE before its first step, `pca` linear
components at equal L0; neither is trained.

A value stands in one place: what a room needs is in the room's own dataclass (`lm.ModelConfig`, `sae.SAEConfig`, ...), with its unit.
"""

import difflib
from dataclasses import dataclass, replace
from typing import Any

from sparsight.activations import CaptureConfig
from sparsight.errors import RecipeError
from sparsight.features import IndexConfig
from sparsight.lm import ModelConfig, TextConfig
from sparsight.metrics import EvaluateConfig
from sparsight.sae import SAEConfig

__all__ = ["SCHEMA_VERSION", "Recipe", "TrainConfig", "check_heading"]

SCHEMA_VERSION = 1
LOGGERS = ("tensorboard", "wandb")
CONTROLS = ("seed", "frozen-decoder", "random", "pca")
_SEED_STEP = 1_000_003  # far from the seeds that people give to SAEs of one recipe


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The `[train]` section: what all SAEs of a run share."""

    batch_tokens: int = 1024
    """Rows in one optimiser step."""
    epochs: int = 1
    """Passes over the training rows; more than one needs a store."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints: the most that a kill can cost."""
    log_every_steps: int = 20
    """Steps between lines of training.jsonl; each line waits for the device once."""
    loggers: tuple[str, ...] = ()
    """Also send metrics to: tensorboard | wandb. A logger that fails is dropped, loudly; training goes on."""

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "epochs", "checkpoint_every_steps", "log_every_steps"):
            if getattr(self, name) < 1:
                raise RecipeError(f"train.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in self.loggers:
            if name not in LOGGERS:
                raise RecipeError(f"train.loggers names {name!r}; there are {' and '.join(LOGGERS)}.")


def check_heading(schema: int, name: str) -> None:
    """Raises RecipeError unless a recipe of this version reads the layout, and the name can name a directory."""
    if schema != SCHEMA_VERSION:
        raise RecipeError(
            f"The recipe has schema = {schema}; this version of Sparsight reads schema = {SCHEMA_VERSION}."
        )
    if not name or "/" in name or name.startswith("."):
        raise RecipeError(f"name = {name!r} cannot name a directory; use letters, digits, dots and dashes.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One study."""

    schema: int
    """Version of this layout; files of another version are refused."""
    name: str
    """Also the run directory's name, runs/NAME, unless --out says otherwise."""
    seed: int = 0
    """Seeds the order of rows; each SAE has a seed of its own besides."""
    model: ModelConfig
    text: TextConfig
    activations: CaptureConfig
    train: TrainConfig = TrainConfig()
    controls: tuple[str, ...] = CONTROLS
    """What stands beside each SAE: seed | frozen-decoder | random | pca; [] for none. The first two are trained as well, at an
    SAE's cost each."""
    sae: tuple[SAEConfig, ...]
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()

    def __post_init__(self) -> None:
        check_heading(self.schema, self.name)
        if not self.sae:
            raise RecipeError("The recipe has no [[sae]] section: name at least one SAE to train.")
        if self.activations.heldout_tokens < 1 or self.text.heldout_fraction == 0:
            raise RecipeError(
                f"activations.heldout_tokens = {self.activations.heldout_tokens} and text.heldout_fraction = "
                f"{self.text.heldout_fraction} hold nothing out; a study measures on what training never saw. Set both above 0."
            )
        if self.activations.mode == "stream" and self.train.epochs > 1:
            raise RecipeError(
                f'train.epochs = {self.train.epochs} needs activations.mode = "store": a live stream passes once.'
            )
        object.__setattr__(self, "sae", tuple(self._with_hook_points(sae) for sae in self.sae))
        self._check_controls()
        ids = [sae.id for sae in self.sae]
        if len(set(ids)) < len(ids):
            raise RecipeError(f"Two [[sae]] sections share an id: {', '.join(ids)}.")
        for sae in self.sae:
            for name, control in self.trained_controls(sae).items():
                if control.id in ids:
                    raise RecipeError(
                        f"SAE {control.id} has the name of {sae.id}'s control {name!r}; call it otherwise."
                    )

    def _check_controls(self) -> None:
        for name in self.controls:
            if name not in CONTROLS:
                near = difflib.get_close_matches(name.lower(), CONTROLS, n=1, cutoff=0.5)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise RecipeError(f"controls names {name!r}; there are {', '.join(CONTROLS)}.{hint}")
        if len(set(self.controls)) < len(self.controls):
            raise RecipeError(f"controls names one twice: {', '.join(self.controls)}.")

    @property
    def trained(self) -> tuple[SAEConfig, ...]:
        """Every SAE of the pass: those of the recipe, then their controls."""
        return self.sae + tuple(control for sae in self.sae for control in self.trained_controls(sae).values())

    def trained_controls(self, sae: SAEConfig) -> dict[str, SAEConfig]:
        """Control -> the SAE that is trained for it beside `sae`, in ID.CONTROL. One frozen already needs no frozen one."""
        changes: dict[str, dict[str, Any]] = {"seed": {"seed": sae.seed + _SEED_STEP}}
        if not sae.freeze_decoder:
            changes["frozen-decoder"] = {"freeze_decoder": True}
        return {name: replace(sae, id=f"{sae.id}.{name}", **changes[name]) for name in self.controls if name in changes}

    def _with_hook_points(self, sae: SAEConfig) -> SAEConfig:
        """The SAE with its hook points spelled out; they must be among those captured."""
        hook_point = sae.hook_point or self.activations.hook_points[0]
        target = "" if sae.target_hook_point == hook_point else sae.target_hook_point
        for name in (hook_point, *filter(None, [target])):
            if name not in self.activations.hook_points:
                raise RecipeError(
                    f"SAE {sae.id} uses hook point {name}, which activations.hook_points lacks "
                    f"({', '.join(self.activations.hook_points)}). Add it there."
                )
        return replace(sae, hook_point=hook_point, target_hook_point=target)
