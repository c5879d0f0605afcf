"""report: a finished run -> report.md, what a person reads: what was studied, the numbers with their baselines, a look at the features, the time.

Everything in it is on disk already; the report only puts it side by side. It is written last, so its presence says that a study is complete.
"""

from collections.abc import Mapping

from sparsight.activations import ActivationStore
from sparsight.artifact import Manifest, RunDir, read_json, write_atomic
from sparsight.metrics import EvalReport, ProbingReport
from sparsight.recipe import Recipe
from sparsight.sae import SAEConfig

__all__ = ["write_report"]


def write_report(
    run: RunDir, recipe: Recipe, store: ActivationStore, manifest: Manifest, overviews: Mapping[str, str]
) -> None:
    """Writes report.md. `overviews`: SAE id -> its features as text. Raises RunError when an evaluation cannot be read."""
    lines = [f"# {recipe.name}", "", *_what_was_studied(run, recipe, store)]
    for sae in recipe.sae:
        lines += [EvalReport.load(run.evaluation(sae.id)).markdown(_title(sae)), ""]
        for path in run.probings(sae.id):
            lines += ["### Probing", "", "```text", ProbingReport.load(path).text(), "```", ""]
        lines += ["### Some of its features", "", "```text", overviews[sae.id], "```", ""]
    steps = manifest.values["steps"].items()
    lines += ["## Time", "", *(f"- {name}: {step['seconds']:.0f} s" for name, step in steps), ""]
    write_atomic(run.report, "\n".join(lines).encode())


def _title(sae: SAEConfig) -> str:
    target = f" -> {sae.target_hook_point}" if sae.target_hook_point else ""
    return f"{sae.id}: {sae.architecture}, {sae.n_latents:,} latents at {sae.hook_point}{target}"


def _what_was_studied(run: RunDir, recipe: Recipe, store: ActivationStore) -> list[str]:
    train, heldout = _training_counts(run, recipe, store), store.counts["heldout"]
    left_out = {name: train.get(name, 0) + heldout[name] for name in ("special", "sinks")}
    text = recipe.text.dataset or recipe.text.builtin or ", ".join(recipe.text.files)
    n_tokens = train.get("rows", recipe.activations.n_tokens)
    return [
        f"{recipe.model.id} ({store.model.get('commit') or 'local'}), {', '.join(recipe.activations.hook_points)}; text {text}. "
        f"{n_tokens:,} training tokens, passed {recipe.train.epochs} time(s); {heldout['rows']:,} held-out tokens of other "
        f"documents. Left out: {left_out['special']:,} special tokens and {left_out['sinks']:,} attention sinks.",
        "",
        *(f"Left out, damaged: {what}\n" for what in store.damaged),
    ]


def _training_counts(run: RunDir, recipe: Recipe, store: ActivationStore) -> dict[str, int]:
    """Training tokens read and left out, by reason: from the store, or as a live pass recorded them with its SAEs."""
    if recipe.activations.mode == "store":
        return store.counts["train"]
    described = read_json(run.sae(recipe.sae[0].id) / "cfg.json")
    return described["metadata"]["sparsight_training"]["activations"]
