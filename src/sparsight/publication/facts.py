"""What a run can say of itself, read from its files: the one source of everything that a card states.

Local paths are private: what is published has their last component alone, in every file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsight.artifact import RunDir, read_json, read_jsonl
from sparsight.errors import RunError
from sparsight.features import FeatureIndex
from sparsight.lm import BUILTIN_MODELS
from sparsight.metrics import EvalReport, ProbingReport
from sparsight.recipe import Recipe, TrainedSAEs, load_recipe
from sparsight.sae import SAEConfig

__all__ = ["RunFacts", "SAEFacts", "read_facts"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class SAEFacts:
    """One finished SAE of the run."""

    cfg: SAEConfig
    folder: Path
    described: dict[str, Any]
    """cfg.json."""
    report: EvalReport
    index: FeatureIndex
    probing: list[ProbingReport]
    """What `sparsight probe` measured, on each selection of sets."""
    training: list[dict[str, Any]]
    """training.jsonl."""

    @property
    def opens_in_saelens(self) -> bool:
        """SAELens has no topk or gated transcoder."""
        return self.described["architecture"] not in ("topk_transcoder", "gated_transcoder")

    @property
    def hook_points(self) -> list[str]:
        """Where it reads, then where its target was read if that is elsewhere."""
        return [self.cfg.hook_point, *filter(None, [self.cfg.target_hook_point])]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The run and its SAEs."""

    recipe: Recipe
    """As it was run, local paths included."""
    manifest: dict[str, Any]
    saes: tuple[SAEFacts, ...]
    local_names: dict[str, str] = field(default_factory=dict)
    """Local path -> the name it is published under."""

    @property
    def model_hub_id(self) -> str | None:
        """The base model on the Hub; None for a local one."""
        builtin = BUILTIN_MODELS.get(self.recipe.model.id)
        if builtin:
            return builtin.hub_id
        return None if self.recipe.model.id in self.local_names else self.recipe.model.id

    @property
    def dataset_hub_id(self) -> str | None:
        """The dataset on the Hub; None for files and the built-in text, which are none."""
        dataset = self.recipe.text.dataset
        return dataset if dataset and dataset not in self.local_names else None

    @property
    def model_name(self) -> str:
        """The base model for people."""
        return self.local_names.get(self.recipe.model.id, self.recipe.model.id)

    @property
    def text_name(self) -> str:
        """The text for people."""
        text = self.recipe.text
        sources = [text.dataset or text.builtin] if text.dataset or text.builtin else list(text.files)
        return ", ".join(self.local_names.get(source, source) for source in sources)

    @property
    def training_counts(self) -> dict[str, int]:
        """Training tokens read and left out, by reason."""
        if self.recipe.activations.mode == "store":
            return self.manifest["activations"]["train"]
        return self.saes[0].described["metadata"]["sparsight_training"]["activations"]

    @property
    def public_recipe(self) -> Recipe:
        """The recipe without local folders."""
        names, recipe = self.local_names, self.recipe
        files = tuple(names.get(path, path) for path in recipe.text.files)
        text = replace(recipe.text, files=files, dataset=names.get(recipe.text.dataset, recipe.text.dataset))
        return replace(recipe, model=replace(recipe.model, id=self.model_name), text=text)

    def public(self, values: Any) -> Any:
        """Plain values with local paths cut to their last component, wherever in a string they stand."""
        if isinstance(values, str):
            for path, name in self.local_names.items():
                values = values.replace(path, name)
            return values
        if isinstance(values, Mapping):
            return {key: self.public(value) for key, value in values.items()}
        return [self.public(value) for value in values] if isinstance(values, list) else values


def read_facts(run: RunDir, sae_id: str | None = None) -> RunFacts:
    """The run's facts, of one SAE or all. Raises RunError naming what is not there yet."""
    recipe = load_recipe(run.recipe)
    chosen = TrainedSAEs(recipe, run).named(sae_id)
    for sae in chosen:
        needed = (run.sae(sae.id) / "cfg.json", run.evaluation(sae.id), run.features(sae.id) / "index.json")
        missing = [str(path.relative_to(run.path)) for path in needed if not path.exists()]
        if missing:
            raise RunError(
                f"{run.path} lacks {', '.join(missing)}. Run the recipe to its end first: sparsight run RECIPE."
            )
    manifest = read_json(run.manifest) if run.manifest.exists() else {}
    if unknown := [part for part in ("model", "text", "activations") if part not in manifest]:
        raise RunError(
            f"{run.manifest} does not say what the {', '.join(unknown)} were. Run the recipe again: sparsight run RECIPE."
        )
    return RunFacts(
        recipe=recipe,
        manifest=manifest,
        saes=tuple(_sae_facts(run, sae) for sae in chosen),
        local_names=_local_names(recipe, manifest),
    )


def _sae_facts(run: RunDir, sae: SAEConfig) -> SAEFacts:
    log = run.sae(sae.id) / "training.jsonl"
    return SAEFacts(
        cfg=sae,
        folder=run.sae(sae.id),
        described=read_json(run.sae(sae.id) / "cfg.json"),
        report=EvalReport.load(run.evaluation(sae.id)),
        index=FeatureIndex.open(run.features(sae.id)),
        probing=[ProbingReport.load(path) for path in run.probings(sae.id)],
        training=read_jsonl(log) if log.exists() else [],
    )


def _local_names(recipe: Recipe, manifest: Mapping[str, Any]) -> dict[str, str]:
    """What has no commit came from a disk, whether or not it is still there. Longest first, so that no path is cut inside a longer one.

    A dataset's commit is unknown when the Hub could not be asked; its id then decides.
    """
    given = [*recipe.text.files]
    if recipe.model.id not in BUILTIN_MODELS and not manifest["model"].get("commit"):
        given.append(recipe.model.id)
    dataset = recipe.text.dataset
    if dataset and not manifest["text"].get("commit") and (Path(dataset).exists() or not _HUB_ID.fullmatch(dataset)):
        given.append(dataset)
    return {path: Path(path).name or path for path in sorted(given, key=len, reverse=True)}
