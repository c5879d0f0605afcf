"""What a recipe's SAEs and their baselines are trained on: rows from disk, or live from the model; and what is written down about them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sparsight.activations import ActivationBatch, ActivationStore, ActivationStream, StoreSource
from sparsight.lm import LanguageModel, resolve_checkpoint
from sparsight.recipe.schema import Recipe
from sparsight.sae import SAEConfig, load_stream_state

__all__ = ["baseline_batches", "training_metadata", "training_source"]


def training_source(
    recipe: Recipe,
    saes: Sequence[SAEConfig],
    *,
    store: Callable[[], ActivationStore],
    model: Callable[[], LanguageModel],
    saved: Path,
) -> StoreSource | ActivationStream:
    """Where the training batches come from; of `store` and `model` the one that is needed is asked for. `saved`: the run's SAEs."""
    if recipe.activations.mode == "store":
        names = dict.fromkeys(name for sae in saes for name in (sae.hook_point, sae.target_hook_point) if name)
        return StoreSource(store(), tuple(names), recipe.train.epochs, recipe.seed)
    return ActivationStream(model(), recipe.text, recipe.activations, seed=recipe.seed, state=load_stream_state(saved))


def baseline_batches(recipe: Recipe, sae: SAEConfig, model: LanguageModel) -> Iterator[ActivationBatch] | None:
    """Training rows for the baselines where the store keeps none: captured anew, in a ring no larger than they need."""
    if recipe.activations.mode == "store":
        return None
    n_tokens = min(recipe.evaluate.pca_fit_tokens, recipe.activations.n_tokens)
    capture = replace(
        recipe.activations,
        hook_points=(sae.hook_point, *filter(None, [sae.target_hook_point])),
        n_tokens=n_tokens,
        window_tokens=min(n_tokens, recipe.activations.window_tokens),
        allow_short=True,
    )
    stream = ActivationStream(model, recipe.text, capture, seed=recipe.seed)
    return stream.batches(min(n_tokens, recipe.evaluate.batch_tokens))


def training_metadata(recipe: Recipe, store: ActivationStore) -> dict[str, object]:
    """What the SAEs were trained on, in the words that other tools look for."""
    text = recipe.text
    return {
        "model_name": recipe.model.id,
        "model_provenance": store.model,
        "dataset_path": text.dataset or text.builtin or " ".join(text.files),
        "text_provenance": store.text,
        "context_size": text.context_tokens,
        "prepend_bos": text.bos == "always" or (text.bos == "auto" and _adds_bos(recipe)),
        "n_training_tokens": recipe.activations.n_tokens * recipe.train.epochs,
    }


def _adds_bos(recipe: Recipe) -> bool:
    """Whether the tokenizer, left to itself, puts a beginning-of-sequence token before a text."""
    tokenizer = resolve_checkpoint(recipe.model).tokenizer()
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
