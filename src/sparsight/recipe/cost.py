"""What a recipe costs in FLOPs and bytes, from arithmetic alone. d: width, F: latents, n: tokens in a step.

    forward       ModelGeometry.forward_flops a token, and 3 % padding (rows are bucketed by length)
    SAE step      FLOPs a token, by its form (sae/forms.py; Triton on CUDA and a compiler on a CPU are taken to be there)
      dense       10 d F: encode, decode, the gradients of z, W_enc and W_dec. AuxK 6 d c more, for c = max(F / 8, 2 k_aux)
                  columns
      autograd    the same. gated 6 d F more: a second decode and both its gradients, though its decoder is frozen. AuxK on
                  CUDA 6 d F more (a masked product); next to nothing on a CPU (the dead columns alone), where topk gathers
                  its decoder rows: 2 d F less
      fused       topk, batchtopk: 2 d F for the encoder, 8 d k for decode and gradients of the active entries. relu: 10 d F,
                  as long as more than a twentieth of its latents is active, which is taken to last
    bytes a step  what is moved beside products. dense, autograd: 40 a parameter, 28 of them Adam's, 12 for decoder norms and
                  compute copies; passes over [n, F] count with the products (plan.py). fused, in bfloat16 unless said:
                    update        30 a parameter: weight, two moments read and written in float32, gradient written and
                                  read, copy written
                    [n, F]        topk 2 passes (written, selected), batchtopk 4 (threshold, count, fill), relu 11: pre-
                                  activations written, counted, rectified in place; d_z written, masked in place beside z;
                                  three products read z and d_z
                    [n, d]        x read, centred written; target read, d_x_hat written
                    active entry  the row of W_dec, read again from a core's cache for d_z; of x for W_enc, of d_x_hat for
                                  W_dec: fetched in no order, and what a sparse step waits for in place of its FLOPs
    SAE state     16 bytes a parameter (float32 master, two moments, gradient), 2 more with bfloat16 products. fused: 14, its
                  gradients being scratch
    step memory   8 buffers [n, F] in the compute dtype (pre-activations, latents, AuxK's two, a gradient of each) and 6
                  [n, d] in float32. fused: one [n, F] in bfloat16, two for relu (d_z); 2 bytes a parameter for gradients; 22
                  an active entry (latent, row and place in int32, gradient in float32, value, both sorted in bfloat16), for
                  relu at a twentieth of F, where it turns sparse; 20 an element of [n, d]: centred, d_x_hat, the
                  residual in float32, three more for metrics
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
the bias and their padding in a fused encoder, the map of an index (UMAP: 20 s for 4,608 latents, minutes for 131,072).
"""

from dataclasses import dataclass, field

from sparsight.features.statistics import MOST_PRODUCTS, OUTPUT_TOKENS
from sparsight.lm import ModelConfig
from sparsight.lm.geometry import ModelGeometry
from sparsight.metrics.stability import adds_pairs, fits_memory
from sparsight.recipe.schema import Recipe
from sparsight.sae import SAEConfig
from sparsight.sae.dense import DenseStep
from sparsight.sae.step import has_closed_form

__all__ = ["Cost", "SAECost", "Work", "recipe_cost"]

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}
_PADDING = 1.03
_ID_BYTES, _TEXT_BYTES, _SCALE_BYTES = 20, 4, 4
_FORWARDS_BESIDE = 3  # clean, zero, mean
_PAIR_BYTES = 64  # a product is added to a line of memory that no cache holds
_COMPANY_BYTES = 200
_UNKNOWN_L0_SHARE = 0.1
_PROGRAM_BYTES = 1e9  # Python, torch and Transformers in memory: 0.6-0.9 GB seen

# fused: times that [n, F] is read or written
_PASSES = {"topk": 2, "batchtopk": 4, "relu": 11}
_SPARSE_SHARE = 1 / 20  # of latents active, below which relu's fused step is sparse: sae/fused.py

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

    def compute(self, what: str, dtype: str, flops: float) -> None:
        """Adds FLOPs."""
        self.flops[what, dtype] = self.flops.get((what, dtype), 0.0) + flops


@dataclass(frozen=True, kw_only=True)
class SAECost:
    """One SAE. FLOPs are per token of training."""

    id: str
    parameters: int
    precision: str
    form: str
    """Of its training step: dense | fused | autograd."""
    flops_dense: float
    """If every product were dense: the worst case."""
    flops_done: float
    """What this package computes on this kind of device."""
    flops_least: float
    """What a fully sparse step would need; equals dense where sparsity is not known beforehand."""
    flops_inference: float
    """Encode and decode once."""
    bytes_moved: float
    """By one step, beside its products."""
    state_bytes: float
    """Master weights, Adam's moments, copies in the compute dtype, gradients unless they are scratch."""
    step_bytes: float
    """Rows of one step, what is computed from them, scratch."""
    l0: float
    """Active latents per token, assumed where there is no k."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A whole recipe."""

    saes: tuple[SAECost, ...]
    forward_flops: float
    """Per token, cut model."""
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
    saes = tuple(_sae_cost(sae, recipe, geometry, kind) for sae in recipe.trained)
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


def _form(sae: SAEConfig, kind: str) -> str:
    if not has_closed_form(sae) or sae.precision != "bfloat16":
        return "autograd"
    return "dense" if kind == "cuda" else "fused"


def _sae_cost(sae: SAEConfig, recipe: Recipe, geometry: ModelGeometry, kind: str) -> SAECost:
    d_in, d_out = _sae_widths(sae, geometry)
    form, n = _form(sae, kind), recipe.train.batch_tokens
    parameters = (d_in + d_out) * sae.n_latents + sae.n_latents + d_out
    flops_dense, flops_done, flops_least = _sae_flops(sae, d_in, d_out, form, kind)
    if form == "fused":
        moved, state = _fused_traffic(sae, n, d_in, d_out, parameters), 14.0 * parameters
        step = _fused_scratch(sae, n, d_in, d_out, parameters)
    else:
        width = DTYPE_BYTES[sae.precision]
        moved, state = 40.0 * parameters, parameters * (16.0 + (2 if sae.precision == "bfloat16" else 0))
        step = n * (8.0 * sae.n_latents * width + 6 * 4 * max(d_in, d_out))
    return SAECost(
        id=sae.id,
        parameters=parameters,
        precision=sae.precision,
        form=form,
        flops_dense=flops_dense,
        flops_done=flops_done,
        flops_least=flops_least,
        flops_inference=2.0 * (d_in + d_out) * sae.n_latents,
        bytes_moved=moved,
        state_bytes=state,
        step_bytes=step,
        l0=sae.k if sae.selects_k else _UNKNOWN_L0_SHARE * sae.n_latents,
    )


def _sae_flops(sae: SAEConfig, d_in: int, d_out: int, form: str, kind: str) -> tuple[float, float, float]:
    """flops_dense, flops_done, flops_least of `SAECost`."""
    n_latents = sae.n_latents
    dense = 4.0 * d_in * n_latents + 6.0 * d_out * n_latents
    if sae.architecture == "gated":
        dense += 6.0 * d_out * n_latents
    if not sae.selects_k:
        return dense, dense, dense
    least = 2.0 * d_in * n_latents + 2.0 * d_in * sae.k + 6.0 * d_out * sae.k
    auxk = 6.0 * d_out * n_latents if sae.auxk_coefficient else 0.0
    if form == "fused":
        return dense + auxk, least, least
    columns = 0 if kind == "cpu" else DenseStep.aux_columns(sae, d_in) if form == "dense" else n_latents
    done = dense + auxk * columns / n_latents
    if sae.architecture == "topk" and kind == "cpu":
        done -= 2.0 * d_out * (n_latents - sae.k)
    return dense + auxk, done, least


def _fused_traffic(sae: SAEConfig, n: int, d_in: int, d_out: int, parameters: int) -> float:
    """Bytes that a fused step moves beside its products."""
    update = 30.0 * parameters
    passes = _PASSES[sae.architecture] * 2.0 * n * sae.n_latents
    rows = n * (4.0 * d_in + 4.0 * d_out)
    gathered = n * sae.k * (2.0 * d_in + 4.0 * d_out) if sae.selects_k else 0.0
    return update + passes + rows + gathered


def _fused_scratch(sae: SAEConfig, n: int, d_in: int, d_out: int, parameters: int) -> float:
    """Bytes of a fused step's scratch, which SAEs that step in turn share."""
    entries = sae.k if sae.selects_k else _SPARSE_SHARE * sae.n_latents
    buffers = 1 if sae.selects_k else 2
    return n * (2.0 * buffers * sae.n_latents + 22.0 * entries + 20.0 * max(d_in, d_out)) + 2.0 * parameters


def _work(recipe: Recipe, geometry: ModelGeometry, saes: tuple[SAECost, ...], kind: str) -> dict[str, Work]:
    text, capture, train, evaluate = recipe.text, recipe.activations, recipe.train, recipe.evaluate
    n_train, heldout = capture.n_tokens, capture.heldout_tokens
    forward = geometry.forward_flops(text.context_tokens) * _PADDING
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
    collection.bytes_written = n_collected * _token_bytes(recipe, geometry)
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
    if not fits_memory(sae.n_latents, sae.n_latents):
        return
    if adds_pairs(cost.l0, cost.l0, sae.n_latents, sae.n_latents, kind):
        index.bytes_moved += n_tokens * cost.l0**2 * _PAIR_BYTES
    else:
        index.compute("forward", "float32", 2.0 * n_tokens * sae.n_latents**2)


def _n_dictionaries(recipe: Recipe) -> int:
    """The SAE and its controls, PCA apart."""
    return 1 + sum(name != "pca" for name in recipe.controls)


def _token_bytes(recipe: Recipe, geometry: ModelGeometry) -> float:
    capture = recipe.activations
    scale = _SCALE_BYTES if capture.dtype == "int8" else 0
    rows = sum(geometry.widths[name] * DTYPE_BYTES[capture.dtype] + scale for name in capture.hook_points)
    return rows + _ID_BYTES + _TEXT_BYTES


def _disk(recipe: Recipe, geometry: ModelGeometry, saes: tuple[SAECost, ...]) -> dict[str, float]:
    capture, each = recipe.activations, _token_bytes(recipe, geometry)
    heldout = min(recipe.index.heldout_tokens or capture.heldout_tokens, capture.heldout_tokens)
    return {
        "activations": each * ((capture.n_tokens if capture.mode == "store" else 0) + capture.heldout_tokens),
        "saes": sum(4.0 * sae.parameters for sae in saes),
        "checkpoints": sum(2 * 12.0 * sae.parameters for sae in saes),
        "features": sum(2 * 12.0 * heldout * sae.l0 for sae in saes[: len(recipe.sae)]),
    }


def _model_bytes(model: ModelConfig, parameters: int) -> float:
    return float(parameters * DTYPE_BYTES[model.dtype])


def _forward_bytes(recipe: Recipe, geometry: ModelGeometry, n_tokens: int, n_hook_points: int) -> float:
    numbers = (4 + n_hook_points) * geometry.d_model + 3 * geometry.widest
    return float(n_tokens * numbers * DTYPE_BYTES[recipe.model.dtype])


def _window_bytes(recipe: Recipe, geometry: ModelGeometry, dtype: str) -> float:
    rows = recipe.activations.window_tokens + recipe.text.context_tokens
    return float(rows * sum(geometry.widths[name] for name in recipe.activations.hook_points) * DTYPE_BYTES[dtype])


def _read_dtype(recipe: Recipe) -> str:
    """Rows of an int8 store are handed out in float32."""
    return "float32" if recipe.activations.dtype == "int8" else recipe.activations.dtype


def _device_memory(recipe: Recipe, geometry: ModelGeometry, saes: tuple[SAECost, ...], kind: str) -> Stages:
    n_hook_points = len(recipe.activations.hook_points)
    cut = {
        "cut model": _model_bytes(recipe.model, geometry.parameters_read),
        "one forward": _forward_bytes(recipe, geometry, recipe.text.batch_tokens, n_hook_points),
    }
    window = _window_bytes(recipe, geometry, recipe.model.dtype)
    collect, train = dict(cut), {}
    if recipe.activations.mode == "stream":
        train = cut | {"ring of two windows": 2 * window}
    elif kind == "cpu":
        train = {"two windows": 2 * _window_bytes(recipe, geometry, _read_dtype(recipe))}
    train |= {"SAEs": sum(sae.state_bytes for sae in saes), "one step": max(sae.step_bytes for sae in saes)}
    stages = {"collect": collect, "train": train, **_inspection_memory(recipe, geometry)}
    if kind == "cpu":
        collect["a window"] = window
        for parts in stages.values():
            parts["program"] = _PROGRAM_BYTES
    return stages


def _inspection_memory(recipe: Recipe, geometry: ModelGeometry) -> Stages:
    """Evaluate and index: the whole model, one SAE at a time."""
    evaluate, vocabulary = recipe.evaluate, geometry.vocab_size
    whole = _model_bytes(recipe.model, geometry.parameters)
    forward = _forward_bytes(recipe, geometry, evaluate.forward_tokens, 1)
    logits = 3 * evaluate.forward_tokens * vocabulary * DTYPE_BYTES[recipe.model.dtype] + 4 * 128 * vocabulary * 4
    widest = max(recipe.sae, key=lambda sae: sae.n_latents * sum(_sae_widths(sae, geometry)))
    d_in, d_out = _sae_widths(widest, geometry)
    weights = 4.0 * widest.n_latents * (d_in + d_out)
    latents = 4.0 * widest.n_latents
    compared = "seed" in recipe.controls
    return {
        "evaluate": {
            "whole model": whole,
            "one forward": forward,
            "logits": float(logits if evaluate.downstream_tokens else 0),
            "SAE and controls": _n_dictionaries(recipe) * weights,
            "latents": 3 * evaluate.batch_tokens * latents,
            "PCA": 4 * 8.0 * max(d_in, d_out) ** 2,
        },
        "index": {
            "whole model": whole,
            "logit weights": 3 * 128.0 * vocabulary * 4,
            "SAE": weights * (1 + compared),
            "latents": (3 + compared) * recipe.index.batch_tokens * latents,
            "seed partners": 4.0 * widest.n_latents**2 * (compared and fits_memory(widest.n_latents, widest.n_latents)),
        },
    }


def _host_memory(recipe: Recipe, geometry: ModelGeometry) -> Stages:
    """Beside a GPU: weights pass through the host when loaded, and a store's windows are written and read there."""
    window = _window_bytes(recipe, geometry, recipe.model.dtype)
    cut = {"program": _PROGRAM_BYTES, "cut model while loading": _model_bytes(recipe.model, geometry.parameters_read)}
    whole = {"program": _PROGRAM_BYTES, "whole model while loading": _model_bytes(recipe.model, geometry.parameters)}
    if recipe.activations.mode == "stream":
        return {"collect": cut | {"a window": window}, "train": cut, "evaluate": whole}
    read = 2 * _window_bytes(recipe, geometry, _read_dtype(recipe))
    train = {"program": _PROGRAM_BYTES, "two windows": read}
    return {"collect": cut | {"a window": window}, "train": train, "evaluate": whole}
