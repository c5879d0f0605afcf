"""LanguageModel + SAE + edits of latents -> text, beside its controls.

sparsight steer runs/demo --prompt "The weather today is" --feature 12:add:2p99 --feature 7:ablate
sparsight steer runs/demo --prompt "The weather today is" --feature 12:add:1p99 --sweep 1,2,4,8

steer_text    one prompt in every arm: plain, steered, random, prompt (see steering/arms.py)
sweep_text    one edit at several strengths (see steering/sweeping.py)
steer_run     either, for prompts and a run directory, as a terminal or another program reads it
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sparsight.artifact import RunDir
from sparsight.errors import SteeringError
from sparsight.features import FeatureIndex
from sparsight.lm import LanguageModel
from sparsight.recipe import TrainedSAEs, load_recipe
from sparsight.sae import LatentEdit, SparseAutoencoder
from sparsight.steering import (
    EditRequest,
    SteerConfig,
    Steered,
    Sweep,
    describe_edit,
    parse_edit,
    show_summary,
    show_sweep,
    steer,
    sweep,
)

__all__ = ["steer_run", "steer_text", "sweep_text"]

_DEFAULTS = SteerConfig()


def steer_text(
    model: LanguageModel,
    sae: SparseAutoencoder,
    prompt: str,
    edits: Sequence[str | LatentEdit],
    config: SteerConfig = _DEFAULTS,
    *,
    hook_point: str,
    target_hook_point: str = "",
    index: FeatureIndex | None = None,
    instruction: str = "",
) -> Steered:
    """Go on with a prompt in every arm. Edits are LatentEdits, or as `parse_edit` reads them: "12:add:2p99".

    Raises as `features.steer` does, which also gives the tokens one by one.
    """
    resolved = [parse_edit(edit).resolve(index, sae, model) if isinstance(edit, str) else edit for edit in edits]
    hooks: dict[str, Any] = {"hook_point": hook_point, "target_hook_point": target_hook_point}
    steering = steer(model, sae, prompt, resolved, config, **hooks, index=index, instruction=instruction)
    return Steered.of(steering, prompt, model, index)


def sweep_text(
    model: LanguageModel,
    sae: SparseAutoencoder,
    prompt: str,
    edit: str | EditRequest,
    strengths: Sequence[float],
    config: SteerConfig = _DEFAULTS,
    *,
    hook_point: str,
    target_hook_point: str = "",
    index: FeatureIndex,
) -> Sweep:
    """One edit at several strengths, in the unit that `edit` names; its own strength does not count."""
    request = parse_edit(edit) if isinstance(edit, str) else edit
    hooks: dict[str, Any] = {"hook_point": hook_point, "target_hook_point": target_hook_point}
    return sweep(model, sae, prompt, request, strengths, config, **hooks, index=index)


def steer_run(
    run: RunDir,
    prompts: Sequence[str],
    edits: Sequence[str],
    config: SteerConfig = _DEFAULTS,
    *,
    sae_id: str | None = None,
    strengths: Sequence[float] = (),
    instruction: str = "",
    as_json: bool = False,
) -> Iterator[str]:
    """What to print, prompt by prompt, steered by the whole model, one SAE (default the first) and its feature index.

    With `strengths` a sweep of the one edit; with `as_json` JSON lines. Raises RunError when the run lacks what it takes,
    SteeringError for no prompt, no edit, or several to sweep.
    """
    requests = [parse_edit(edit) for edit in edits]
    if not prompts or not requests:
        raise SteeringError(f"{len(prompts)} prompts and {len(requests)} edits were given. Give at least one of each.")
    if strengths and len(requests) > 1:
        raise SteeringError(f"A sweep is of one edit; {len(requests)} were given.")
    recipe = load_recipe(run.recipe)
    saes = TrainedSAEs(recipe, run)
    chosen = saes.chosen(sae_id)[0]
    index = FeatureIndex.open(run.features(chosen.id))
    model = LanguageModel.load(recipe.model)
    sae = saes.load(chosen, str(model.device))
    hooks: dict[str, Any] = {"hook_point": chosen.hook_point, "target_hook_point": chosen.target_hook_point}
    if strengths:
        for prompt in prompts:
            found = sweep_text(model, sae, prompt, requests[0], strengths, config, **hooks, index=index)
            record = {"prompt": prompt, **asdict(requests[0]), **asdict(found)}
            yield json.dumps(record) if as_json else show_sweep(found, prompt, requests[0])
        return
    resolved = [request.resolve(index, sae, model) for request in requests]
    described = [describe_edit(edit, sae, model, index) for edit in resolved]
    done = []
    for prompt in prompts:
        done.append(steer_text(model, sae, prompt, resolved, config, **hooks, index=index, instruction=instruction))
        yield "\n".join(map(json.dumps, done[-1].records())) if as_json else done[-1].text(described)
    if not as_json:
        yield show_summary(done)
