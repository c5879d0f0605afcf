"""study: a recipe -> the whole chain, resumable: collect, train, evaluate, index, report.

Every step is skipped when what it makes is there, so a second run is a no-op, a killed one goes on, and a recipe that gained an SAE trains
that one alone. A recipe whose other values changed under a run is refused, key by key: two studies never mix in one directory.
"""

import gc
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path

import torch

from sparsight.activations import (
    ActivationStore,
    check_description,
    missing_shards,
    unfinished_parts,
)
from sparsight.artifact import Manifest, RunDir, StopFlag, environment, locked, write_atomic
from sparsight.collect import asked_for, collect_activations
from sparsight.errors import StoreError
from sparsight.evaluate import evaluate_sae
from sparsight.explain import choose_latents, explain_index
from sparsight.features import FeatureIndex, Notes, show_overview
from sparsight.index import build_index
from sparsight.labels import MODEL_FREE, ExplainReport
from sparsight.lm import LanguageModel, builtin_sets, choose_device, folder_sets, resolve_checkpoint, sets_fingerprint
from sparsight.metrics import ProbingConfig, ProbingReport
from sparsight.plan import check_fits
from sparsight.probe import probe_saes
from sparsight.recipe import (
    Recipe,
    TrainedSAEs,
    baseline_batches,
    check_same_study,
    dump_recipe,
    load_recipe,
    training_metadata,
    training_source,
)
from sparsight.report import write_report
from sparsight.sae import Checkpoints, SAEConfig
from sparsight.train import train_saes

__all__ = ["Study", "run_study"]

_log = logging.getLogger(__name__)
_SEEN = "The SAE was trained on a part of the text that these prompts are from, without their labels."


def run_study(recipe: Recipe, out: str | Path | None = None, *, stop: StopFlag | None = None) -> RunDir:
    """Runs what is left of a recipe's study in `out` (default runs/NAME) and returns the run directory.

    Raises any SparsightError; what was complete before it stays, and the same call goes on from there.
    """
    run = RunDir(out or Path("runs") / recipe.name)
    with locked(run.path):
        Study(recipe, run).go(stop)
    return run


class Study:
    """One recipe in one run directory, whose lock the caller holds."""

    def __init__(self, recipe: Recipe, run: RunDir):
        self.recipe, self.run = recipe, run
        self.manifest = Manifest(run.manifest)
        self.checkpoints = Checkpoints(run.saes)
        self.saes = TrainedSAEs(recipe, run)

    @classmethod
    def reopen(cls, run: RunDir) -> "Study":
        """The study that `run` was begun with."""
        return cls(load_recipe(run.recipe), run)

    def probe(
        self, sae_id: str | None, *, full: bool, folder: Path | None, config: ProbingConfig
    ) -> list[tuple[Path, ProbingReport]]:
        """Where each chosen SAE's probing lies, and what it found; measured where that is not done with these sets and settings."""
        sets = builtin_sets(full=full) if folder is None else folder_sets(folder)
        measured_on = {"model": self.recipe.model.id, **sets_fingerprint(sets, builtin=folder is None)}
        which = "full" if full else "" if folder is None else "sets-" + re.sub(r"[^\w.-]+", "_", folder.resolve().name)
        chosen = self.saes.chosen(sae_id)
        paths = {sae.id: self.run.probing(sae.id, which) for sae in chosen}
        todo = [sae for sae in chosen if not ProbingReport.is_at(paths[sae.id], config, measured_on)]
        if todo:
            hook_points = {sae.id: sae.hook_point for sae in todo}
            with self._step(f"probe {' '.join(hook_points)}", done=False):
                model = LanguageModel.load(self.recipe.model, hook_points=list(dict.fromkeys(hook_points.values())))
                reports = probe_saes(
                    {
                        sae.id: {
                            "sae": self.saes.load(sae, self._device()),
                            **self.saes.controls(sae, self._device(), absent_ok=True),
                        }
                        for sae in todo
                    },
                    model,
                    sets,
                    hook_points=hook_points,
                    text=self.recipe.text,
                    config=config,
                    measured_on=measured_on,
                    notes=[_SEEN] if folder is None and self.recipe.text.builtin else [],
                )
            for name, report in reports.items():
                report.save(paths[name])
            if self._is_done():
                self.report()  # with these
        return [(path, ProbingReport.load(path)) for path in paths.values()]

    def go(self, stop: StopFlag | None = None) -> None:
        """Every step that is not done yet."""
        self._settle_recipe()
        if self._is_done():
            _log.info("%s is complete; nothing to do.", self.run.path)
            return
        check_fits(self.recipe, self.run.path)
        self.run.report.unlink(missing_ok=True)  # written last: while it is there, the study is complete
        self.manifest.record(**environment())
        self.collect()
        store = self.store
        self.manifest.record(model=store.model, text=store.text, activations=store.counts, damaged=store.damaged)
        self.train(stop)
        for sae in self.recipe.sae:
            self.evaluate(sae)
            self.index(sae)
            self.explain(sae)
        self.report()

    def collect(self, part: tuple[int, int] = (0, 1)) -> None:
        """Captures what the recipe asks for: everything, or the held-out rows alone when training is live."""
        self._settle_recipe()
        splits = ("train", "heldout") if self.recipe.activations.mode == "store" else ("heldout",)
        with self._step("collect", done=part == (0, 1) and self._collected()) as needed:
            if needed:
                recipe = self.recipe
                collect_activations(
                    self.reader,
                    recipe.text,
                    recipe.activations,
                    self.run.activations,
                    seed=recipe.seed,
                    part=part,
                    splits=splits,
                )

    def train(self, stop: StopFlag | None = None) -> None:
        """Trains the SAEs that are not there yet and their controls, all from one pass."""
        todo = [sae for sae in self.recipe.trained if sae not in self.saes]
        with self._step("train", done=not todo) as needed:
            if needed:
                with nullcontext() if stop is None else stop.save_first():
                    train_saes(
                        training_source(
                            self.recipe, todo, store=lambda: self.store, model=lambda: self.reader, saved=self.run.saes
                        ),
                        todo,
                        self.run.saes,
                        train=self.recipe.train,
                        metadata=training_metadata(self.recipe, self.store),
                        device=self._device(),
                        stop=stop,
                        name=self.recipe.name,
                    )
                if stop is not None:
                    stop.leave()  # the signal may have come while the SAEs were saved
        self.checkpoints.remove([sae.id for sae in self.recipe.trained])  # a kill may have left some

    def evaluate(self, sae: SAEConfig) -> None:
        """Measures one SAE on held-out documents."""
        with self._step(f"evaluate {sae.id}", done=self.run.evaluation(sae.id).exists()) as needed:
            if needed:
                report = evaluate_sae(
                    self.saes.load(sae, self._device()),
                    self.store,
                    self.whole_model,
                    controls=self.saes.controls(sae, self._device()),
                    with_pca="pca" in self.recipe.controls,
                    config=self.recipe.evaluate,
                    hook_point=sae.hook_point,
                    target_hook_point=sae.target_hook_point,
                    fit_batches=baseline_batches(self.recipe, sae, self.whole_model),
                )
                report.save(self.run.evaluation(sae.id))

    def index(self, sae: SAEConfig) -> None:
        """Indexes one SAE's features on held-out documents."""
        path = self.run.features(sae.id)
        with self._step(f"index {sae.id}", done=(path / "index.json").exists()) as needed:
            if needed:
                build_index(
                    self.saes.load(sae, self._device()),
                    self.store,
                    self.whole_model,
                    second=self.saes.second_seed(sae, self._device()),
                    path=path,
                    config=self.recipe.index,
                    hook_point=sae.hook_point,
                    target_hook_point=sae.target_hook_point,
                )

    def explain(self, sae: SAEConfig) -> None:
        """Labels one SAE's features by counting: what needs no other model."""
        notes = Notes.open(self.run.notes(sae.id))
        made, of = ExplainReport.path(notes.path, MODEL_FREE), self.run.features(sae.id) / "index.json"
        done = (
            made.exists() and made.stat().st_mtime >= of.stat().st_mtime
        )  # notes outlive an index that is built again
        with self._step(f"explain {sae.id}", done=done) as needed:
            if needed:
                index = FeatureIndex.open(self.run.features(sae.id))
                tokenizer = resolve_checkpoint(self.recipe.model).tokenizer()
                explain_index(index, tokenizer, notes, latents=choose_latents(index, notes))

    def report(self) -> None:
        """Writes report.md."""
        tokenizer = resolve_checkpoint(self.recipe.model).tokenizer()
        overviews = {
            sae.id: show_overview(FeatureIndex.open(self.run.features(sae.id)), tokenizer) for sae in self.recipe.sae
        }
        write_report(self.run, self.recipe, self.store, self.manifest, overviews)

    @cached_property
    def reader(self) -> LanguageModel:
        """The model cut after the deepest hook point."""
        return LanguageModel.load(self.recipe.model, hook_points=self.recipe.activations.hook_points)

    @cached_property
    def whole_model(self) -> LanguageModel:
        """The model with its head; takes the reader's place, since two copies would not fit a small GPU."""
        self.__dict__.pop("reader", None)
        gc.collect()
        torch.cuda.empty_cache()
        return LanguageModel.load(self.recipe.model)

    @cached_property
    def store(self) -> ActivationStore:
        """The run's store, once it is collected."""
        return ActivationStore.open(self.run.activations, skip_damaged=self.recipe.activations.skip_damaged)

    def _settle_recipe(self) -> None:
        """Writes recipe.toml, or checks that the one there asks for the same."""
        if self.run.recipe.exists():
            old = load_recipe(self.run.recipe)
            check_same_study(old, self.recipe, self.run.path)
            if old == self.recipe:
                return
        write_atomic(self.run.recipe, dump_recipe(self.recipe).encode())

    def _is_done(self) -> bool:
        outputs = [self.run.report, *(self.run.sae(sae.id) / "cfg.json" for sae in self.recipe.trained)]
        for sae in self.recipe.sae:
            outputs += [
                self.run.evaluation(sae.id),
                self.run.features(sae.id) / "index.json",
            ]
        return all(path.exists() for path in outputs) and not (
            missing_shards(self.run.activations) and not self.recipe.activations.skip_damaged
        )

    def _collected(self) -> bool:
        """Whether the collection ended, here or in parts by `sparsight collect`. Raises StoreError when it is another recipe's."""
        recipe, path = self.recipe, self.run.activations
        if not (path / "store.json").exists():
            return False
        check_description(path, asked_for(recipe.model, recipe.text, recipe.activations, recipe.seed))
        unfinished = unfinished_parts(path)
        if unfinished and unfinished != ["0/1"]:
            raise StoreError(
                f"Store {path} lacks the parts {', '.join(unfinished)}. Collect each with `sparsight collect RECIPE --part`, "
                "or delete the store to collect it in one."
            )
        return not unfinished and (recipe.activations.skip_damaged or not missing_shards(path))

    def _device(self) -> str:
        return str(
            self.whole_model.device if "whole_model" in self.__dict__ else choose_device(self.recipe.model.device)
        )

    @contextmanager
    def _step(self, name: str, *, done: bool) -> Iterator[bool]:
        """Times a step into the manifest, whichever way it ends; yields whether there is anything to do."""
        if done:
            yield False
            return
        _log.info("%s ...", name)
        with self.manifest.timed(name):
            yield True
