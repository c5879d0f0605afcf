"""explain: FeatureIndex -> labels with scores, in the run's notes.

    explain_index   labels of chosen latents: rules found by counting, or an endpoint's, within a budget
    explain_run     the same of a run's SAE
    falsify_label   one label of a run, such as a hand-written one, put to passages drawn anew

Labels are made from one half of the index's documents and tested on the other; beside each score stands that of another latent's label.
Labels are kept as they come: what was done before an error or a stop signal stays, and what an endpoint was paid for is not asked again.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from sparsight.artifact import RunDir, write_atomic
from sparsight.errors import EndpointError, NotesError
from sparsight.features import FeatureIndex, Label, Notes, printable
from sparsight.labels import (
    MODEL_FREE,
    Answers,
    BudgetSpent,
    Cost,
    Endpoint,
    EndpointConfig,
    ExplainConfig,
    Explained,
    ExplainReport,
    Falsified,
    Labeller,
    estimate_cost,
)
from sparsight.lm import resolve_checkpoint
from sparsight.recipe import Recipe, TrainedSAEs, load_recipe

__all__ = ["annotate", "choose_latents", "explain_index", "explain_run", "falsify_label"]

_log = logging.getLogger(__name__)
_DEFAULTS = ExplainConfig()
# A write of labels is an fsync, so they are kept some at a time: rules come fast, an endpoint's in batches of 8.
KEPT_AT_ONCE = {False: 512, True: 8}


def explain_run(
    run: RunDir,
    sae_id: str | None = None,
    *,
    latents: Sequence[int] = (),
    named: str = "",
    sample: int = 0,
    config: ExplainConfig = _DEFAULTS,
    endpoint: EndpointConfig | None = None,
) -> ExplainReport | Cost:
    """Labels of one SAE's latents, into the run's notes: see `choose_latents` and `explain_index`."""
    index, tokenizer, notes = _opened(run, sae_id)
    if endpoint is not None and not (latents or named or sample):
        raise NotesError(
            "An endpoint is paid by the latent: name some latents, a list (--list) or a number (--sample)."
        )
    chosen = choose_latents(index, notes, latents=latents, named=named, sample=sample, seed=config.seed)
    return explain_index(index, tokenizer, notes, latents=chosen, config=config, endpoint=endpoint)


def explain_index(
    index: FeatureIndex,
    tokenizer: Any,
    notes: Notes,
    *,
    latents: Sequence[int],
    config: ExplainConfig = _DEFAULTS,
    endpoint: EndpointConfig | None = None,
) -> ExplainReport | Cost:
    """Labels latents into `notes`, the numbers into a report beside them; returns the report.

    With an endpoint whose budget is 0 nothing is asked, and the estimated cost is returned instead. Raises EndpointError when the
    endpoint cannot be asked or the budget is spent; the labels made until then are kept.
    """
    labeller = Labeller(index, tokenizer, config)
    if endpoint is None:
        return _keep(labeller, notes, MODEL_FREE, latents, labeller.model_free, at_once=KEPT_AT_ONCE[False])
    cost = estimate_cost(labeller, latents, endpoint)
    if not endpoint.budget_tokens:
        return cost
    _log.info("%s\nBudget: %s tokens.", cost.text(), f"{endpoint.budget_tokens:,}")
    client = Endpoint(endpoint, Answers(notes.path.with_name(f"{notes.path.stem}.answers.jsonl")))
    try:
        return _keep(
            labeller,
            notes,
            client.source,
            latents,
            lambda part: labeller.by_endpoint(part, client),
            at_once=KEPT_AT_ONCE[True],
            client=client,
        )
    finally:
        client.close()


def falsify_label(
    run: RunDir, latent: int, text: str, sae_id: str | None = None, *, endpoint: EndpointConfig | None = None
) -> Falsified:
    """Retests a label: by the tokens that it names in backticks, or as an endpoint reads it. See `Labeller.falsify`."""
    index, tokenizer, notes = _opened(run, sae_id)
    client = None
    if endpoint is not None:
        client = Endpoint(endpoint, Answers(notes.path.with_name(f"{notes.path.stem}.answers.jsonl")))
    try:
        return Labeller(index, tokenizer).falsify(latent, text, client)
    finally:
        if client is not None:
            client.close()


def annotate(
    run: RunDir,
    sae_id: str | None,
    latent: int | None,
    *,
    label: str = "",
    note: str = "",
    add: str = "",
    remove: str = "",
    test: bool = False,
    export: Path | None = None,
    take: Path | None = None,
) -> str:
    """Writes what is given into a run's notes; returns what then stands there of the latent, or of all.

    Raises NotesError when something is refused; what stands before it in this order is then written: import, label, note, lists.
    """
    sae = TrainedSAEs(load_recipe(run.recipe), run).named(sae_id)[0]
    notes = Notes.open(run.notes(sae.id), FeatureIndex.open(run.features(sae.id)).n_latents)
    if take is not None:
        with _readable(take) as file:
            notes.import_jsonl(file)
    if latent is None and (label or note or add or remove or test):
        raise NotesError("Say which latent: sparsight notes RUN LATENT ...")
    if latent is not None:
        _annotate_latent(notes, latent, label, note, add, remove)
    if export is not None:
        lines = (
            notes.export_markdown(sae.id)
            if export.suffix == ".md"
            else "".join(f"{line}\n" for line in notes.export_jsonl())
        )
        write_atomic(export, lines.encode())
    if test and latent is not None:
        tested = label or next((each.text for each in notes.labels(latent)), "")
        return falsify_label(run, latent, tested, sae.id).text()
    return _summary(notes) if latent is None else _about(notes, latent)


def choose_latents(
    index: FeatureIndex,
    notes: Notes,
    *,
    latents: Sequence[int] = (),
    named: str = "",
    sample: int = 0,
    seed: int = 0,
) -> list[int]:
    """The latents given, those of a list of the notes, or `sample` of those ever active, at random; without any of these, all that ever were.

    Raises NotesError when two are given, RunError when there is no such latent.
    """
    if sum([bool(latents), bool(named), sample > 0]) > 1:
        raise NotesError("Latents, a list and a sample exclude each other; give one of them.")
    if latents or named:
        chosen = list(dict.fromkeys(latents or notes.latents_of(named)))
        for latent in chosen:
            index.check_latent(latent)
        return chosen
    alive = np.flatnonzero(np.diff(index.latent_offsets))
    if not sample:
        return alive.tolist()
    return sorted(np.random.default_rng(seed).choice(alive, min(sample, len(alive)), replace=False).tolist())


def _keep(
    labeller: Labeller,
    notes: Notes,
    source: str,
    latents: Sequence[int],
    explain: Callable[[Sequence[int]], Any],
    *,
    at_once: int,
    client: Endpoint | None = None,
) -> ExplainReport:
    """Explains and keeps, `at_once` latents at a time; the report is saved however it ends."""
    path = ExplainReport.path(notes.path, source)
    report = _report(labeller, source, path)
    try:
        for start in range(0, len(latents), at_once):
            explained: list[Explained] = list(explain(latents[start : start + at_once]))
            notes.set_labels(label for each in explained if (label := each.to_label()) is not None)
            for each in explained:
                report.add(each)
            if client is not None:
                _log.info("%s of %s latents explained", f"{min(start + at_once, len(latents)):,}", f"{len(latents):,}")
    except BudgetSpent as error:
        raise EndpointError(
            f"{error} {len(report.rows):,} latents are explained and kept; run the same command with a larger budget to go on, and "
            "what was paid for is not paid again."
        ) from None
    finally:
        if client is not None:
            report.spend(client.spending)
        if report.rows or client is not None:
            report.save(path)
    return report


def _report(labeller: Labeller, source: str, path: Path) -> ExplainReport:
    """The one there is, where it was made with the same settings of the same index; else a new one."""
    fresh = ExplainReport.begin(labeller, source)
    if not path.exists():
        return fresh
    there = ExplainReport.open(path)
    same = (there.config, there.measured_on) == (fresh.config, fresh.measured_on)
    if not same:
        _log.info("%s was made with other settings or of another index; its numbers are replaced.", path)
    return there if same else fresh


def _annotate_latent(notes: Notes, latent: int, label: str, note: str, add: str, remove: str) -> None:
    if label:
        notes.set_label(Label(latent, label, "person"))
    if note:
        notes.set_note(latent, note)
    if add:
        notes.add_to_list(add, [latent])
    if remove:
        notes.remove_from_list(remove, [latent])


def _summary(notes: Notes) -> str:
    sources = Counter(label.source for label in notes.all_labels())
    lines = [f"{n:,} labels by {printable(source)}" for source, n in sorted(sources.items())]
    lines += [
        f"{len(notes.notes()):,} notes",
        *(f"list {printable(found.name)}: {found.size:,} latents" for found in notes.lists()),
    ]
    return "\n".join([*lines, f"in {notes.path}"])


def _about(notes: Notes, latent: int) -> str:
    """A latent's labels, note and lists, printable."""
    lines = [f"Latent {latent}"]
    lines += [f"  {printable(label.described())}" for label in notes.labels(latent)] or ["  no label"]
    lines += [f"  {printable(line)}" for line in notes.note(latent).splitlines()]
    lines += [f"  in list {printable(name)}" for name in notes.lists_of(latent)]
    return "\n".join(lines)


@contextmanager
def _readable(path: Path) -> Iterator[TextIO]:
    """A text file. Raises NotesError when it cannot be read as UTF-8."""
    try:
        with path.open(encoding="utf-8") as file:
            yield file
    except (OSError, UnicodeDecodeError) as error:
        raise NotesError(f"{path} cannot be read ({error}). Give a file that `--export` wrote.") from None


def _opened(run: RunDir, sae_id: str | None) -> tuple[FeatureIndex, Any, Notes]:
    recipe: Recipe = load_recipe(run.recipe)
    sae = TrainedSAEs(recipe, run).named(sae_id)[0]
    index = FeatureIndex.open(run.features(sae.id))
    return index, resolve_checkpoint(recipe.model).tokenizer(), Notes.open(run.notes(sae.id), index.n_latents)
