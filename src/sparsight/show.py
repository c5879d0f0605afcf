"""A run's features, for a person: on a terminal, or as one HTML file.

show_run      an overview of one SAE's features, one latent, or what texts make fire
export_run    chosen latents, or a list of the notes, as a page that opens offline
"""

from collections.abc import Sequence
from pathlib import Path

from sparsight.artifact import RunDir, write_atomic
from sparsight.features import FeatureIndex, Notes, show_latent, show_overview, show_text
from sparsight.lm import LanguageModel, choose_device, resolve_checkpoint
from sparsight.recipe import TrainedSAEs, load_recipe
from sparsight.web.export import features_html
from sparsight.web.words import Words

__all__ = ["export_run", "show_run"]


def show_run(
    run: RunDir, sae_id: str | None = None, *, latent: int | None = None, texts: Sequence[str] = (), color: bool = False
) -> str:
    """What to print about one SAE (default the first). Raises RunError when the run lacks it, TextError for a text without tokens."""
    recipe = load_recipe(run.recipe)
    saes = TrainedSAEs(recipe, run)
    sae = saes.chosen(sae_id)[0]
    index = FeatureIndex.open(run.features(sae.id))
    if texts:
        model = LanguageModel.load(recipe.model, hook_points=[sae.hook_point, *filter(None, [sae.target_hook_point])])
        return show_text(
            saes.load(sae, str(choose_device(recipe.model.device))),
            model,
            texts,
            hook_point=sae.hook_point,
            target_hook_point=sae.target_hook_point,
            index=index,
            color=color,
        )
    tokenizer = resolve_checkpoint(recipe.model).tokenizer()
    if latent is None:
        return show_overview(index, tokenizer, color=color)
    notes = Notes.open(run.notes(sae.id))
    return show_latent(index, tokenizer, latent, labels=notes.labels(latent), note=notes.note(latent), color=color)


def export_run(
    run: RunDir, out: Path, sae_id: str | None = None, *, latents: Sequence[int] = (), list_name: str = ""
) -> None:
    """Writes the page. Raises RunError when the run lacks the SAE or a latent, NotesError for a list that is not there."""
    recipe = load_recipe(run.recipe)
    sae = TrainedSAEs(recipe, run).chosen(sae_id)[0]
    index = FeatureIndex.open(run.features(sae.id))
    notes = Notes.open(run.notes(sae.id), index.n_latents)
    page = features_html(
        index,
        Words(lambda: resolve_checkpoint(recipe.model).tokenizer()),
        notes.latents_of(list_name) if list_name else latents,
        title=list_name or f"{recipe.name}: {sae.id}",
        labels=notes.best_labels(),
        notes=notes.notes(),
    )
    write_atomic(out, page.encode(errors="replace"))
