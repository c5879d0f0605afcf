"""What a recipe costs in FLOPs and bytes, from arithmetic alone. d: width, F: latents, n: tokens in a step.

    forward       ModelGeometry.forward_flops a token, and 3 % padding (rows are bucketed by length)
    SAEs          recipe/sae_cost.py
    one forward   a token: residual, norm, queries, output (4 d), hook points, three of the widest inner activation
    controls      a second seed and a frozen decoder are SAEs like those of the recipe, in time, memory and on disk
    evaluate      the whole model; three sets of logits and float32 logits of 128 rows four times; the SAE and its
                  dictionaries in float32; three [n, F]; four d x d in float64 for PCA. A downstream token: a forward of the
                  untouched model, one for each of two ablations, PCA, the SAE and each other dictionary
    index         a second seed: its encoder as well; 4 F^2 bytes of products, each active pair of a token 64 bytes moved, or
                  2 F^2 FLOPs a token where pairs are many (metrics/stability.py). Neighbours: 2 F^2 d FLOPs on each side. Output scores:
                  8 tokens of the whole model a latent. Latents active together: 200 bytes moved for each pair of a token's, on a CPU
    store         a token: sum over hook points of d * bytes, 20 bytes of ids, 4 of text
    checkpoint    12 bytes a parameter, two of them for the moment between writing one and removing the last
    features      12 bytes an activation, twice while they are sorted; where no k says how many there are, nobody knows
                  before training, and a tenth of the latents are taken to fire

The cut model is taken to be gone when the whole one is loaded. On a CPU, device memory is the host's. Left out: fetching and
loading weights, tokenising, self-checks, PCA's eigenvectors (a minute at d = 4096 on a CPU), matching two seeds one to one (twice 5 s
for 4,608 latents), AuxK on a CPU, the two columns for
the bias and their padding in a fused encoder, the map of an index (UMAP: 11 s for 4,608 latents, minutes for 131,072).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sparsight.activations import CaptureConfig
from sparsight.features.statistics import MOST_PRODUCTS, OUTPUT_TOKENS
from sparsight.lm import ModelConfig
from sparsight.lm.geometry import ModelGeometry
from sparsight.metrics.stability import adds_pairs, fits_memory
from sparsight.recipe.sae_cost import DTYPE_BYTES, SAECost, sae_cost
from sparsight.recipe.schema import Recipe
from sparsight.sae import SAEConfig, is_screened

__all__ = [
    "Cost",
    "Work",
    "add_products",
    "forward_bytes",
    "loading_bytes",
    "logit_bytes",
    "model_bytes",
    "recipe_cost",
    "token_bytes",
    "window_bytes",
]

PADDING = 1.03
_ID_BYTES, _TEXT_BYTES, _SCALE_BYTES = 20, 4, 4
_FORWARDS_BESIDE = 3  # clean, zero, mean
_PAIR_BYTES = 64  # a product is added to a line of memory that no cache holds
_COMPANY_BYTES = 200
PROGRAM_BYTES = 1e9  # Python, torch and Transformers in memory: 0.6-0.9 GB seen

Stages = dict[str, dict[str, float]]
"""Stage of a study -> what lies in a memory -> bytes."""


@dataclass(kw_only=True)
class Work:
    """What a stage computes and moves."""

    flops: dict[tuple[str, str], float] = field(default_factory=dict)
    """(what computes: forward, or the form of a training step; dtype) -> FLOPs."""
    bytes_moved: float = 0.0
    """In memory, apart from what efficiencies stand for."""
    bytes_written: float = 0.0
    """To disk."""
    call_seconds: float = 0.0
    """Of what computes nothing and moves little, and has to be called."""

    def compute(self, what: str, dtype: str, flops: float) -> None:
        """Adds FLOPs."""
        self.flops[what, dtype] = self.flops.get((what, dtype), 0.0) + flops


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A whole recipe."""

    saes: tuple[SAECost, ...]
    forward_flops: float
    """Per token, cut model; of a comparison all its models."""
    work: dict[str, Work]
    """Stage -> what it computes and moves."""
    disk: dict[str, float]
    """Part of the run directory -> bytes."""
    device: Stages
    """Device memory."""
    host: Stages
    """Host memory beside a GPU; empty on a CPU, where it is the device's."""

    def peak(self, place: str) -> tuple[str, float]:
        """The stage that needs most of `device` or `host`, and its bytes; ("", 0) when there is none."""
        stages = {stage: sum(parts.values()) for stage, parts in getattr(self, place).items()}
        stage = max(stages, key=lambda name: stages[name], default="")
        return stage, stages.get(stage, 0.0)


def recipe_cost(recipe: Recipe, geometry: ModelGeometry, kind: str) -> Cost:
    """The cost of a recipe on a `kind` of device, cuda or cpu."""
    saes = tuple(
        sae_cost(sae, *_sae_widths(sae, geometry), batch_tokens=recipe.train.batch_tokens, kind=kind)
        for sae in recipe.trained
    )
    return Cost(
        saes=saes,
        forward_flops=geometry.forward_flops(recipe.text.context_tokens),
        work=_work(recipe, geometry, saes, kind),
        disk=_disk(recipe, geometry, saes),
        device=_device_memory(recipe, geometry, saes, kind),
        host=_host_memory(recipe, geometry) if kind == "cuda" else {},
    )


def _sae_widths(sae: SAEConfig, geometry: ModelGeometry) -> tuple[int, int]:
    return geometry.widths[sae.hook_point], geometry.widths[sae.target_hook_point or sae.hook_point]


def _work(recipe: Recipe, geometry: ModelGeometry, saes: tuple[SAECost, ...], kind: str) -> dict[str, Work]:
    text, capture, train, evaluate = recipe.text, recipe.activations, recipe.train, recipe.evaluate
    n_train, heldout = capture.n_tokens, capture.heldout_tokens
    forward = geometry.forward_flops(text.context_tokens) * PADDING
    model = recipe.model.dtype
    collection, training, evaluation, index = Work(), Work(), Work(), Work()
    for sae in saes:
        training.compute(sae.form, sae.precision, sae.flops_done * n_train * train.epochs)
        training.bytes_moved += sae.bytes_moved * (n_train * train.epochs // train.batch_tokens)
    n_collected = n_train + heldout
    if capture.mode == "stream":
        n_collected = heldout
        training.compute("forward", model, forward * n_train)
    collection.compute("forward", model, forward * n_collected)
    collection.bytes_written = n_collected * token_bytes(capture, _captured(recipe, geometry))
    whole = geometry.forward_flops(text.context_tokens, whole=True)
    measured = min(evaluate.heldout_tokens or heldout, heldout)
    indexed = min(recipe.index.heldout_tokens or heldout, heldout)
    n_dictionaries, with_pca = _n_dictionaries(recipe), "pca" in recipe.controls
    for cost, sae in zip(saes, recipe.sae, strict=False):  # the controls behind them are measured with theirs
        d_in, d_out = _sae_widths(sae, geometry)
        downstream = min(evaluate.downstream_tokens, heldout)
        evaluation.compute("forward", model, (_FORWARDS_BESIDE + with_pca + n_dictionaries) * downstream * whole)
        fit = min(evaluate.pca_fit_tokens, n_train if capture.mode == "store" else 0)
        per_fitted = 2 * d_in * d_out + cost.flops_inference / 2
        encoded = n_dictionaries * measured * cost.flops_inference
        evaluation.compute("forward", "float32", encoded + fit * per_fitted * with_pca)
        logits = 2.0 * sae.n_latents * d_out * geometry.vocab_size
        index.compute("forward", "float32", 2.0 * indexed * d_in * sae.n_latents + logits)
        index.compute("forward", "float32", 2.0 * sae.n_latents**2 * (d_in + d_out))
        scored = min(recipe.index.output_latents, sae.n_latents) * OUTPUT_TOKENS
        index.compute("forward", model, scored * geometry.forward_flops(OUTPUT_TOKENS, whole=True))
        if kind == "cpu":
            index.bytes_moved += min(indexed * cost.l0**2, MOST_PRODUCTS) * _COMPANY_BYTES
        if "seed" in recipe.controls:
            _compare_seeds(index, cost, sae, indexed, d_in, kind)
    return {"collect": collection, "train": training, "evaluate": evaluation, "index": index}


def _compare_seeds(index: Work, cost: SAECost, sae: SAEConfig, n_tokens: int, d_in: int, kind: str) -> None:
    """Encoding by the second seed, and the products of its latents with the SAE's."""
    index.compute("forward", "float32", 2.0 * n_tokens * d_in * sae.n_latents)
    if fits_memory(sae.n_latents, sae.n_latents):
        add_products(index, cost.l0, sae.n_latents, n_tokens, kind)


def add_products(work: Work, l0: float, n_latents: int, n_tokens: float, kind: str) -> None:
    """Of all latents of one dictionary with those of another of its size, as correlations need them."""
    if adds_pairs(l0, l0, n_latents, n_latents, kind):
        work.bytes_moved += n_tokens * l0**2 * _PAIR_BYTES
    else:
        work.compute("forward", "float32", 2.0 * n_tokens * n_latents**2)


def _n_dictionaries(recipe: Recipe) -> int:
    """The SAE and its controls, PCA apart."""
    return 1 + sum(name != "pca" for name in recipe.controls)


def token_bytes(capture: CaptureConfig, widths: Iterable[int]) -> float:
    """On disk; `widths` of the hook points."""
    scale = _SCALE_BYTES if capture.dtype == "int8" else 0
    return sum(width * DTYPE_BYTES[capture.dtype] + scale for width in widths) + _ID_BYTES + _TEXT_BYTES


def _disk(recipe: Recipe, geometry: ModelGeometry, saes: tuple[SAECost, ...]) -> dict[str, float]:
    capture, each = recipe.activations, token_bytes(recipe.activations, _captured(recipe, geometry))
    heldout = min(recipe.index.heldout_tokens or capture.heldout_tokens, capture.heldout_tokens)
    return {
        "activations": each * ((capture.n_tokens if capture.mode == "store" else 0) + capture.heldout_tokens),
        "saes": sum(4.0 * sae.parameters for sae in saes),
        "checkpoints": sum(2 * 12.0 * sae.parameters for sae in saes),
        "features": sum(2 * 12.0 * heldout * sae.l0 for sae in saes[: len(recipe.sae)]),
    }


def model_bytes(model: ModelConfig, parameters: int) -> float:
    """Of so many weights."""
    return float(parameters * DTYPE_BYTES[model.dtype])


def forward_bytes(model: ModelConfig, geometry: ModelGeometry, n_tokens: int, n_hook_points: int) -> float:
    """Of one forward pass."""
    numbers = (4 + n_hook_points) * geometry.d_model + 3 * geometry.widest
    return float(n_tokens * numbers * DTYPE_BYTES[model.dtype])


def logit_bytes(model: ModelConfig, vocabulary: int, forward_tokens: int) -> float:
    """Three sets, and 128 rows in float32 four times."""
    return float(3 * forward_tokens * vocabulary * DTYPE_BYTES[model.dtype] + 4 * 128 * vocabulary * 4)


def window_bytes(capture: CaptureConfig, context_tokens: int, widths: Iterable[int], dtype: str) -> float:
    """Of one window of every hook point; `widths` of these."""
    return float((capture.window_tokens + context_tokens) * sum(widths) * DTYPE_BYTES[dtype])


def loading_bytes(model: ModelConfig, geometry: ModelGeometry, *, whole: bool) -> dict[str, float]:
    """In the host's memory while weights pass through it to a GPU."""
    parameters, name = (geometry.parameters, "whole") if whole else (geometry.parameters_read, "cut")
    return {"program": PROGRAM_BYTES, f"{name} model while loading": model_bytes(model, parameters)}


def _captured(recipe: Recipe, geometry: ModelGeometry) -> list[int]:
    """Widths of what is captured."""
    return [geometry.widths[name] for name in recipe.activations.hook_points]


def _window(recipe: Recipe, geometry: ModelGeometry, dtype: str) -> float:
    return window_bytes(recipe.activations, recipe.text.context_tokens, _captured(recipe, geometry), dtype)


def _read_dtype(recipe: Recipe) -> str:
    """Rows of an int8 store are handed out in float32."""
    return "float32" if recipe.activations.dtype == "int8" else recipe.activations.dtype


def _device_memory(recipe: Recipe, geometry: ModelGeometry, saes: tuple[SAECost, ...], kind: str) -> Stages:
    n_hook_points = len(recipe.activations.hook_points)
    cut = {
        "cut model": model_bytes(recipe.model, geometry.parameters_read),
        "one forward": forward_bytes(recipe.model, geometry, recipe.text.batch_tokens, n_hook_points),
    }
    window = _window(recipe, geometry, recipe.model.dtype)
    collect, train = dict(cut), {}
    if recipe.activations.mode == "stream":
        train = cut | {"ring of two windows": 2 * window}
    elif kind == "cpu":
        train = {"two windows": 2 * _window(recipe, geometry, _read_dtype(recipe))}
    train |= {"SAEs": sum(sae.state_bytes for sae in saes), "one step": max(sae.step_bytes for sae in saes)}
    stages = {"collect": collect, "train": train, **_inspection_memory(recipe, geometry, kind)}
    if kind == "cpu":
        collect["a window"] = window
        for parts in stages.values():
            parts["program"] = PROGRAM_BYTES
    return stages


def _inspection_memory(recipe: Recipe, geometry: ModelGeometry, kind: str) -> Stages:
    """Evaluate and index: the whole model, one SAE at a time."""
    evaluate, vocabulary = recipe.evaluate, geometry.vocab_size
    whole = model_bytes(recipe.model, geometry.parameters)
    forward = forward_bytes(recipe.model, geometry, evaluate.forward_tokens, 1)
    logits = logit_bytes(recipe.model, vocabulary, evaluate.forward_tokens)
    widest = max(recipe.sae, key=lambda sae: sae.n_latents * sum(_sae_widths(sae, geometry)))
    d_in, d_out = _sae_widths(widest, geometry)
    weights = 4.0 * widest.n_latents * (d_in + d_out)
    latents = 4.0 * widest.n_latents
    compared = "seed" in recipe.controls
    return {
        "evaluate": {
            "whole model": whole,
            "one forward": forward,
            "logits": logits if evaluate.downstream_tokens else 0.0,
            "SAE and controls": _n_dictionaries(recipe) * weights,
            "latents": 3 * evaluate.batch_tokens * latents,
            "PCA": 4 * 8.0 * max(d_in, d_out) ** 2,
        },
        "index": {
            "whole model": whole,
            "logit weights": 3 * 128.0 * vocabulary * 4,
            "SAE": weights * (1 + compared),
            "encoders to screen with": 6.0 * widest.n_latents * d_in * (1 + compared) * is_screened(widest, kind),
            "latents": (3 + compared) * recipe.index.batch_tokens * latents,
            "seed partners": 4.0 * widest.n_latents**2 * (compared and fits_memory(widest.n_latents, widest.n_latents)),
        },
    }


def _host_memory(recipe: Recipe, geometry: ModelGeometry) -> Stages:
    """Beside a GPU: weights pass through the host when loaded, and a store's windows are written and read there."""
    window = _window(recipe, geometry, recipe.model.dtype)
    cut, whole = (loading_bytes(recipe.model, geometry, whole=each) for each in (False, True))
    if recipe.activations.mode == "stream":
        return {"collect": cut | {"a window": window}, "train": cut, "evaluate": whole}
    read = 2 * _window(recipe, geometry, _read_dtype(recipe))
    train = {"program": PROGRAM_BYTES, "two windows": read}
    return {"collect": cut | {"a window": window}, "train": train, "evaluate": whole}
