"""SAE + held-out activations + LanguageModel -> EvalReport.

One pass over the held-out rows measures the SAE, its controls (a second seed, a frozen decoder, the SAE before training:
`recipe.schema` says why these) and PCA at equal L0 on the same tokens; then the language model runs on held-out text
untouched, with each of them put in place of its activations, and with two ablations (zero, and the mean of the train
split). What PCA and the mean need is fitted on the train split; nothing fitted or trained ever sees a held-out document.

Trade-off: the number of PCA components is the SAE's L0 on the train tokens that PCA is fitted on, so that one pass
suffices; the L0 printed is the held-out one, and the two differ by less than one component as a rule.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from sparsight.activations import ActivationBatch, ActivationStore
from sparsight.errors import ActivationError, MetricError, SAEError
from sparsight.lm import LanguageModel
from sparsight.metrics import (
    CLASS_NAMES,
    DocumentSums,
    DownstreamSums,
    EvalReport,
    EvaluateConfig,
    LatentCounts,
    ReconstructionSums,
    SeedStability,
    SpliceText,
    TrainFit,
    fit_on_train,
    l0,
    measure_downstream,
    method_reports,
    seed_stability,
)
from sparsight.sae import SparseAutoencoder, untrained_directions

__all__ = ["evaluate_sae"]

_DEFAULTS = EvaluateConfig()
_CONTROL_LABELS = {"seed": "second seed", "frozen-decoder": "frozen decoder", "random": "untrained SAE"}


@torch.inference_mode()
def evaluate_sae(
    sae: SparseAutoencoder,
    store: ActivationStore,
    model: LanguageModel | None = None,
    *,
    controls: Mapping[str, SparseAutoencoder] | None = None,
    with_pca: bool = True,
    config: EvaluateConfig = _DEFAULTS,
    hook_point: str,
    target_hook_point: str = "",
    fit_batches: Iterable[ActivationBatch] | None = None,
) -> EvalReport:
    """Measure an SAE on the held-out split, beside its controls, PCA and two ablations.

    `controls`: seed, frozen-decoder, random -> the dictionary. Without `model` only the reconstruction is measured. What is
    missing stands in the report's notes. `fit_batches` stand in for the train split where the store keeps none (a run that
    trained from a stream). Raises SAEError when a width does not match the store, MetricError when there is nothing held
    out or a control has another name.
    """
    target = target_hook_point or hook_point
    dictionaries = {"sae": sae, **(controls or {})}
    if unknown := set(dictionaries) - {"sae", *_CONTROL_LABELS}:
        raise MetricError(f"No such control: {', '.join(sorted(unknown))}; known are {', '.join(_CONTROL_LABELS)}.")
    if model is not None and not config.downstream_tokens:
        model = None
    _check_widths(dictionaries, store, model, hook_point, target)
    if fit_batches is None:
        batch_tokens = max(1, min(config.batch_tokens, store.n_tokens("train")))
        fit_batches = store.batches("train", batch_tokens, hook_points=list({hook_point: 0, target: 0}))
    fit = fit_on_train(
        sae,
        fit_batches,
        token_ids=store.pieces("train").token_ids,
        config=config,
        hook_point=hook_point,
        target_hook_point=target,
        with_pca=with_pca,
    )
    if isinstance(fit_batches, Generator):
        fit_batches.close()  # a stream's ring need not stand beside the whole model
    reconstruction, counts = _measure_reconstruction(dictionaries, store, fit, config, hook_point, target)
    downstream = None
    if model is not None:
        downstream = _measure_downstream(model, dictionaries, store, fit, config, hook_point, target)
    methods, verdicts = method_reports(
        _labels(dictionaries, fit, downstream),
        reconstruction=reconstruction,
        downstream=None if downstream is None else downstream.sums,
        counts=counts,
        fixed_l0={} if fit.pca is None else {"pca": float(fit.pca.k)},
        n_resamples=config.n_resamples,
        seed=config.seed,
    )
    return EvalReport(
        subject=_subject(sae, fit, hook_point, target),
        measured_on=_measured_on(reconstruction, downstream, fit),
        config=asdict(config),
        methods=methods,
        verdicts=verdicts,
        stability=_stability(dictionaries, counts),
        notes=tuple(_notes(dictionaries, store, model, fit, downstream, target != hook_point)),
    )


def _check_widths(
    dictionaries: dict[str, SparseAutoencoder],
    store: ActivationStore,
    model: LanguageModel | None,
    hook_point: str,
    target: str,
) -> None:
    for side, name in (("d_in", hook_point), ("d_out", target)):
        width = store.hook_points.get(name)
        if width is None:
            held = ", ".join(store.hook_points)
            raise ActivationError(
                f"The store holds no hook point `{name}`, but {held}. Collect at `{name}`, or name one of these."
            )
        for dictionary in dictionaries.values():
            if width != getattr(dictionary, side):
                raise SAEError(
                    f"The store's `{name}` is {width} wide; this SAE expects {side}={getattr(dictionary, side)}. "
                    "Evaluate it at the hook point it was trained on, or collect that one."
                )
        if model is not None and model.width(name) != width:
            raise ActivationError(
                f"The model's `{name}` is {model.width(name)} wide; the store's is {width}. "
                "Give the model that the store was collected from."
            )


def _measure_reconstruction(
    dictionaries: dict[str, SparseAutoencoder],
    store: ActivationStore,
    fit: TrainFit,
    config: EvaluateConfig,
    hook_point: str,
    target: str,
) -> tuple[DocumentSums, dict[str, LatentCounts]]:
    """FVU, cosine and L0 of every method, and the dictionaries' densities, in one pass over held-out rows."""
    methods = [*dictionaries] if fit.pca is None else [*dictionaries, "pca"]
    counts = {name: LatentCounts(dictionary.n_latents) for name, dictionary in dictionaries.items()}
    device = dictionaries["sae"].W_dec.device
    sums, n_left = None, config.heldout_tokens or store.n_tokens("heldout")
    for batch in store.batches("heldout", config.batch_tokens, hook_points=list({hook_point: 0, target: 0})):
        n = min(len(batch), n_left)
        if not n:
            break
        n_left -= n
        x, y = (batch[name][:n].to(device).float() for name in (hook_point, target))
        if sums is None:
            centre = y.double().mean(0) if fit.mean is None else fit.mean
            n_groups = 1 if fit.classes is None else len(CLASS_NAMES)
            sums = ReconstructionSums(methods, centre, n_groups=n_groups, extra=[f"l0_{name}" for name in dictionaries])
        x_hats, active = {}, {}
        for name, dictionary in dictionaries.items():
            output = dictionary(x)
            counts[name].add(output.latents)
            x_hats[name], active[f"l0_{name}"] = output.x_hat, l0(output.latents)
        if fit.pca is not None:
            x_hats["pca"] = fit.pca.reconstruct(x)
        groups = fit.classes and fit.classes.classify(batch.token_ids[:n], batch.positions[:n])
        sums.add(y, x_hats, batch.document_ids[:n], groups, extra=active)
    if sums is None:
        raise MetricError("The store has no held-out rows to measure on. Collect with heldout_tokens above 0.")
    return sums.finish(), counts


def _measure_downstream(
    model: LanguageModel,
    dictionaries: dict[str, SparseAutoencoder],
    store: ActivationStore,
    fit: TrainFit,
    config: EvaluateConfig,
    hook_point: str,
    target: str,
) -> DownstreamSums:
    """CE and KL on held-out text with each method in place."""
    device = dictionaries["sae"].W_dec.device
    text = SpliceText.choose(store, config.downstream_tokens)
    methods: dict[str, Any] = {name: dictionary.reconstruct for name, dictionary in dictionaries.items()}
    methods["zero"] = lambda x: x.new_zeros(len(x), store.hook_points[target])
    if fit.pca is not None:
        methods["pca"] = fit.pca.reconstruct
    if fit.mean is not None:
        methods["mean"] = lambda x, mean=fit.mean: mean.expand(len(x), -1)
    return measure_downstream(
        model,
        text,
        methods,
        hook_point=hook_point,
        target_hook_point=target,
        classes=fit.classes,
        forward_tokens=config.forward_tokens,
        device=device,
    )


def _labels(dictionaries: dict[str, Any], fit: TrainFit, downstream: DownstreamSums | None) -> dict[str, str]:
    labels = {"sae": "SAE"} | {name: _CONTROL_LABELS[name] for name in dictionaries if name != "sae"}
    if fit.pca is not None:
        labels["pca"] = f"PCA (k = {fit.pca.k})"
    if downstream is not None:
        labels |= {"clean": "clean model", "zero": "zero ablation"}
        if fit.mean is not None:
            labels["mean"] = "mean ablation"
    return labels


def _stability(
    dictionaries: Mapping[str, SparseAutoencoder], counts: Mapping[str, LatentCounts]
) -> SeedStability | None:
    """What the second seed found again of the SAE, of the latents active in the pass that counted them."""
    if "seed" not in dictionaries:
        return None
    sae, second = dictionaries["sae"], dictionaries["seed"]
    alive, alive_second = ((counts[name].counts > 0).to(sae.W_dec.device) for name in ("sae", "seed"))
    return seed_stability(sae.W_dec, second.W_dec, untrained_directions(second), (alive, alive_second))


def _subject(sae: SparseAutoencoder, fit: TrainFit, hook_point: str, target: str) -> dict[str, Any]:
    return {
        "architecture": sae.cfg.architecture,
        "n_latents": sae.n_latents,
        "d_in": sae.d_in,
        "d_out": sae.d_out,
        "hook_point": hook_point,
        "target_hook_point": target,
        "pca_components": None if fit.pca is None else fit.pca.k,
    }


def _measured_on(sums: DocumentSums, downstream: DownstreamSums | None, fit: TrainFit) -> dict[str, Any]:
    measured: dict[str, Any] = {
        "split": "heldout",
        "reconstruction": {"tokens": round(sums.total("tokens")), "documents": len(sums.document_ids)},
        "downstream": None,
        "fitted_on_train_tokens": fit.n_tokens,
        "token_classes_on_train_tokens": 0 if fit.classes is None else fit.classes.n_tokens,
    }
    if downstream is not None:
        measured["downstream"] = {
            "tokens": round(downstream.sums.total("tokens")),
            "documents": len(downstream.sums.document_ids),
            "pieces": downstream.n_pieces,
            "positions_replaced": downstream.n_replaced,
            "positions_kept": downstream.n_kept,
        }
    return measured


def _notes(
    dictionaries: Mapping[str, SparseAutoencoder],
    store: ActivationStore,
    model: LanguageModel | None,
    fit: TrainFit,
    downstream: DownstreamSums | None,
    is_transcoder: bool,
) -> Iterator[str]:
    sae = dictionaries["sae"]
    if downstream is None or model is None:
        yield "CE, KL and recovered were not measured: no language model was given, or downstream_tokens is 0."
    else:
        yield (
            f"Downstream, {downstream.n_replaced:,} positions in {downstream.n_pieces:,} pieces were replaced; "
            f"{downstream.n_kept:,} kept their own activation, as collection left them out "
            "(special tokens, sinks, rows beyond those asked for)."
        )
        for key in ("id", "commit", "sha256", "sampled_sha256"):
            collected, spliced = store.model.get(key), model.provenance.get(key)
            if collected != spliced:
                yield f"Another model: activations were collected from {key} {collected}, spliced into {spliced}."
        if store.description.get("text_config", {}).get("isolation") == "packed":
            yield "Activations were collected with several documents a row; downstream, each piece runs in a row alone."
    missing = [label for name, label in _CONTROL_LABELS.items() if name not in dictionaries]
    if fit.pca is None and fit.mean is not None:
        missing.append("PCA")
    if missing:
        yield f"Controls that were not asked for, hence not measured: {', '.join(missing)}."
    if "seed" not in dictionaries:
        yield "Without a second seed it is not known how far chance alone moves these numbers, or what of the dictionary is stable."
    if fit.mean is None:
        yield "PCA, mean ablation and token classes were not measured: the store has no train rows."
    if fit.pca is None:
        return
    kind = "PCA here is linear regression of rank k from input to target. It" if is_transcoder else "PCA"
    yield (
        f"{kind} was fitted on {fit.n_tokens:,} train tokens with k = {fit.pca.k}, the SAE's L0 there. "
        "An SAE also says which latents are active, so equal L0 is not equal bits."
    )
    if fit.pca.k == min(sae.d_in, sae.d_out):
        yield f"The SAE's L0 reaches the width {fit.pca.k}, where PCA copies its input: nothing is compressed there."
    if fit.n_tokens < sae.d_in:
        yield f"PCA saw {fit.n_tokens:,} tokens for {sae.d_in:,} dimensions, so it is weaker than it could be."
