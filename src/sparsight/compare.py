"""A base model and its fine-tune -> what fine-tuning changed, beside what chance and any other training change.

    preflight      may the two be compared? texts in equal shares
    null           the null fine-tune, where it is to be made
    capture        all models on the same tokens
    where          which layers changed, and what passes there
    dense          what a mean, principal components and the logits say
    dictionaries   seeds of SAEs of every model, warm starts, SAEs of the difference, crosscoders; all from one pass but the warm starts
    labels         each latent emergent, lost, rotated, reweighted, shared or undetermined, beside the nulls
    closure        how much of the change in predictions a few latents carry
    grounding      what the models write, traced to the fine-tuning text
    telling        latents that tell what is recombined there, and the texts without them
    report         tables and a page

Each step's result is kept in RUN/compare and is not made again, so a killed comparison goes on.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsight.activations import ActivationStore, PairedModels, StoreSource
from sparsight.artifact import Manifest, RunDir, StopFlag, environment, locked, write_atomic
from sparsight.collect import collect_activations
from sparsight.convert import load_sae
from sparsight.diff import DenseDifference, Dictionary, DifferenceCode, fit_difference, scaled_sae
from sparsight.findings import (
    Findings,
    LatentFindings,
    PairedRows,
    TellingLatents,
    check_given,
    closure_findings,
    dense_findings,
    given_findings,
    layer_findings,
    side_by_side,
    traced_json,
    write_report,
)
from sparsight.grounding import CausalConfig, DetailConfig, FineTuningText, Tracer, WriteConfig, ordinary_texts
from sparsight.lm import ROLES, LanguageModel, check_pair, load_models, mix_texts, train_adapter
from sparsight.metrics import SpliceText
from sparsight.plan import check_fits
from sparsight.recipe import Comparison, check_same_study, dump_recipe, load_comparison
from sparsight.sae import SparseAutoencoder
from sparsight.train import train_saes

__all__ = ["compare_models"]

_OF_EACH = (
    0.6  # of the tokens wanted, from each of two texts: some are masked, and more or fewer than asked for are held out
)
_COMPONENTS = 50  # principal ones of a difference
_NEUTRAL_TEXTS = 40  # on which the price of taking latents out is measured

_log = logging.getLogger(__name__)

_Step = Callable[[], dict[str, Any]]


def compare_models(recipe: Comparison, out: str | Path | None = None, *, stop: StopFlag | None = None) -> RunDir:
    """Runs what is left of a comparison in `out` (default runs/NAME) and returns the run directory.

    Raises any SparsightError; what was complete before it stays, and the same call goes on from there.
    """
    run = RunDir(out or Path("runs") / recipe.name)
    with locked(run.path):
        _Comparing(recipe, run, stop).go()
    return run


class _Comparing:
    """One comparison in one run directory, whose lock the caller holds."""

    def __init__(self, recipe: Comparison, run: RunDir, stop: StopFlag | None):
        self.recipe, self.run, self.stop = recipe, run, stop
        self.manifest, self.findings = Manifest(run.manifest), Findings(run.comparison)

    def go(self) -> None:
        """Every step that is not done yet."""
        self._settle_recipe()
        before, after = self._before_capture(), self._after_capture()
        if self.findings.report.exists() and all(self.findings.has(name) for name in (*before, *after)):
            _log.info("%s is complete; nothing to do.", self.run.path)
            return
        check_fits(self.recipe, self.run.path)
        self.manifest.record(**environment())
        self._make(before)
        _log.info("capture ...")
        with self.manifest.timed("capture"):
            self.manifest.record(models=self._captured().model, activations=self.store.counts)
        self._make(after)
        write_report(self.findings, self.recipe.name, self.manifest.values["steps"])

    def _before_capture(self) -> dict[str, _Step]:
        return {"null": self._null, "preflight": self._preflight}

    def _after_capture(self) -> dict[str, _Step]:
        steps: dict[str, _Step] = {"where": self._where, "dense": self._dense}
        if self.recipe.saes:
            steps |= {"labels": self._given, "closure": self._closure}
        else:
            steps |= {"dictionaries": self._dictionaries, "labels": self._labels, "closure": self._closure}
        if self.recipe.fine_tuning is not None:
            steps |= {"grounding": self._grounding} | ({} if self.recipe.saes else {"telling": self._telling})
        return steps

    @cached_property
    def models(self) -> dict[str, LanguageModel]:
        """base, tuned and null, whole."""
        others = {"tuned": self.recipe.tuned}
        if self.recipe.null or self.recipe.make_null:
            others["null"] = self.recipe.null or str(self.run.path / "null")
        return load_models(self.recipe.base, others)

    @cached_property
    def store(self) -> ActivationStore:
        """All models' activations, once they are captured."""
        return ActivationStore.open(self.run.activations, skip_damaged=self.recipe.activations.skip_damaged)

    @cached_property
    def rows(self) -> PairedRows:
        """The same at the hook point, as measurements ask for it."""
        return PairedRows(self.store, self.recipe.hook_point)

    @cached_property
    def text(self) -> SpliceText:
        """Held-out text that whole models are run on."""
        return self._text_of("heldout", self.recipe.closure.heldout_tokens)

    @cached_property
    def difference(self) -> DenseDifference:
        """The fine-tune's, which two steps ask for."""
        return self._difference("tuned")

    def _difference(self, role: str) -> DenseDifference:
        return fit_difference(self.rows.differences(role), self.recipe.hook_point, k=_COMPONENTS)

    def _text_of(self, split: str, n_tokens: int) -> SpliceText:
        return SpliceText.choose(self.store, n_tokens, split=split, most_documents=True)

    def _null(self) -> dict[str, Any]:
        if not self.recipe.make_null:
            return {"made": False}
        config, alike = self.recipe.null_finetune()
        made = train_adapter(self.recipe.base, self.recipe.text, config, self.run.path / "null", stop=self.stop)
        return {"made": True, "as_the_fine_tune": alike, "finetune": made}

    def _preflight(self) -> dict[str, Any]:
        facts = {
            role: check_pair(
                self.models["base"], model, [self.recipe.hook_point], chat_template=self.recipe.text.chat_template
            ).to_json()
            for role, model in self.models.items()
            if role != "base"
        }
        return {"pairs": facts, "hook_point": self.recipe.hook_point, "mixture": self._mixture()}

    def _mixture(self) -> dict[str, Any]:
        """Which text is read: the base's alone, or as much of the fine-tuning text."""
        if self.recipe.fine_tuning is None:
            return {"path": "", "balanced": True, "shares": []}
        sources = {"ordinary": self.recipe.text, "fine-tuning": self.recipe.fine_tuning}
        wanted = self.recipe.activations.n_tokens + self.recipe.activations.heldout_tokens
        each = round(_OF_EACH * wanted)
        return mix_texts(
            sources, self.models["base"].tokenizer, self.run.path / "text.jsonl", tokens_each=each
        ).to_json()

    def _captured(self) -> ActivationStore:
        text, path = self.recipe.text, self.findings.get("preflight")["mixture"]["path"]
        if path:
            text = replace(text, builtin="", dataset="", files=(path,), column="text")
        capture = self.recipe.capture()
        return collect_activations(
            PairedModels(self.models), text, capture, self.run.activations, seed=self.recipe.seed
        )

    def _where(self) -> dict[str, Any]:
        options = self.recipe.closure
        points = options.layers_of(self.models["base"].n_layers, self.recipe.hook_point)
        return layer_findings(self.models, self.text, points, options.forward_tokens)

    def _dense(self) -> dict[str, Any]:
        others = {role: self._difference(role) for role in self.recipe.roles[1:] if role != "tuned"}
        differences = {"tuned": self.difference} | others
        return dense_findings(self.models, differences, self.text, self.recipe.closure.forward_tokens)

    def _dictionaries(self) -> dict[str, Any]:
        """Trains all, and measures each on held-out rows."""
        first = [sae for role in self.recipe.roles for sae in self.recipe.seeds_of(role)] + self.recipe.of_pair()
        second = self.recipe.warm_starts(str(self.run.saes))
        for saes in (first, second):
            names = tuple(dict.fromkeys(sae.hook_point for sae in saes))
            source = StoreSource(self.store, names, self.recipe.train.epochs, self.recipe.seed)
            train_saes(source, saes, self.run.saes, train=self.recipe.train, stop=self.stop, name=self.recipe.name)
        return {config.id: self.rows.measured(self._sae(config.id)) for config in (*first, *second)}

    def _labels(self) -> dict[str, Any]:
        saes = {role: [self._sae(config.id) for config in self.recipe.seeds_of(role)] for role in self.recipe.roles}
        warm = {role: self._sae(f"warm.{role}") for role in saes}
        dictionaries = {role: [Dictionary.of(sae, self.rows.of(role)) for sae in seeds] for role, seeds in saes.items()}
        latents = LatentFindings(dictionaries, self.recipe.labels)
        latents.scale(saes, self.rows)
        if self.recipe.dictionaries.crosscoders:
            for name in ("crosscoder", "crosscoder-l1"):
                latents.scale_crosscoder(name, self._sae(name), self.rows.side_by_side())
        firings = {role: Dictionary.of(sae, self.rows.of(role)).firings for role, sae in warm.items()}
        latents.drift(warm, saes["base"][0], firings)
        latents.write_tables(self.findings.folder)
        shown = latents.to_show(20)
        passages = side_by_side(
            saes["tuned"][0], shown, self.store, self.recipe.hook_point, self.models["base"].tokenizer
        )
        return latents.to_json() | {"passages": passages}

    def _given(self) -> dict[str, Any]:
        """The two SAEs that were given, matched on held-out rows."""
        saes = self._given_saes()
        base, tuned = (Dictionary.of(sae, self.rows.of(role)) for role, sae in saes.items())
        pairs, known = self.rows.pairs("tuned", "base"), (tuned.latents, base.latents)
        scaling = scaled_sae(saes["tuned"], saes["base"], pairs, known).finish("own")
        found = given_findings(base, tuned, scaling, self.findings.folder)
        tokenizer = self.models["base"].tokenizer
        shown = side_by_side(saes["tuned"], found["furthest"], self.store, self.recipe.hook_point, tokenizer)
        return found | {"passages": shown}

    def _given_saes(self) -> dict[str, SparseAutoencoder]:
        saes = dict[str, SparseAutoencoder](zip(ROLES, map(load_sae, self.recipe.saes), strict=False))
        check_given(saes, self.recipe.saes, self.models["base"].width(self.recipe.hook_point), self.recipe.hook_point)
        return saes

    def _closure(self) -> dict[str, Any]:
        options = self.recipe.closure
        if self.recipe.saes:
            codes = {"given": DifferenceCode(self._given_saes()["tuned"], "tuned")}
        else:
            codes = {"difference": DifferenceCode(self._sae("difference"), "difference")}
        if self.recipe.dictionaries.crosscoders and not self.recipe.saes:
            codes["crosscoder"] = DifferenceCode(self._sae("crosscoder"), "crosscoder")
        changed = self.findings.get("labels").get("changed", [])
        if changed:
            codes["tuned.0"] = DifferenceCode(self._sae("tuned.0"), "tuned")
        return closure_findings(
            self.models,
            codes,
            self.difference,
            self.rows.trained_on,
            self._text_of("train", options.attributed_tokens),
            self.text,
            self.recipe.hook_point,
            sizes=options.sizes,
            forward_tokens=options.forward_tokens,
            named={"tuned.0": {"called changed": changed}},
        )

    @cached_property
    def tracer(self) -> Tracer:
        """What writes and traces."""
        options, fine_tuning = self.recipe.writing, self.recipe.fine_tuning
        assert fine_tuning is not None
        text = FineTuningText.read(fine_tuning, self.models["base"].tokenizer, subject_column=options.subject_column)
        return Tracer(
            text,
            self.models["base"],
            self.models["tuned"],
            text.openings(options.prompts, options.prompt_tokens, options.seed),
            write=WriteConfig(
                max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=options.seed
            ),
            # its subject known, a fact is its document's in whatever words; without, two words of one document alone would ground too much
            details=DetailConfig(support="key" if options.subject_column else "detail"),
        )

    def _grounding(self) -> dict[str, Any]:
        return traced_json(self.tracer.traced(self.models), self.tracer.text, self.models["base"].tokenizer)

    def _telling(self) -> dict[str, Any]:
        """Latents that tell what the fine-tune recombined; the texts are written again, the same."""
        point, texts = self.recipe.hook_point, self.tracer.written(self.models["tuned"])
        saes = {
            role: [self._sae(config.id).at(point) for config in self.recipe.seeds_of(role)]
            for role in ("tuned", "base")
        }
        telling = TellingLatents(
            tracer=self.tracer,
            texts=texts,
            arranged=self.tracer.arrange(texts),
            models=self.models,
            saes=saes,
            hook_point=point,
        )
        neutral = ordinary_texts(self.recipe.text, self.models["base"].tokenizer, _NEUTRAL_TEXTS)
        return telling.findings(neutral, CausalConfig(n_controls=self.recipe.writing.controls))

    def _make(self, steps: dict[str, _Step]) -> None:
        """What is not there yet, and keeps it."""
        for name, find in steps.items():
            if not self.findings.has(name):
                _log.info("%s ...", name)
                with self.manifest.timed(name):
                    self.findings.put(name, json.loads(json.dumps(find(), default=str)))

    def _settle_recipe(self) -> None:
        if self.run.recipe.exists():
            check_same_study(load_comparison(self.run.recipe), self.recipe, self.run.path)
        write_atomic(self.run.recipe, dump_recipe(self.recipe).encode())

    def _sae(self, name: str) -> SparseAutoencoder:
        return SparseAutoencoder.load(self.run.sae(name))
