"""What one SAE costs in FLOPs and bytes to train, from arithmetic alone. d: width, F: latents, n: tokens in a step.

    SAE step      FLOPs a token, by its form (sae/forms.py)
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

Triton on CUDA and a compiler on a CPU are taken to be there.
"""

from dataclasses import dataclass

from sparsight.sae import SAEConfig
from sparsight.sae.dense import DenseStep
from sparsight.sae.step import has_closed_form

__all__ = ["DTYPE_BYTES", "SAECost", "sae_cost"]

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1}
_UNKNOWN_L0_SHARE = 0.1

# fused: times that [n, F] is read or written
_PASSES = {"topk": 2, "batchtopk": 4, "relu": 11}
_SPARSE_SHARE = 1 / 20  # of latents active, below which relu's fused step is sparse: sae/fused.py


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


def sae_cost(sae: SAEConfig, d_in: int, d_out: int, *, batch_tokens: int, kind: str) -> SAECost:
    """The cost of one SAE of these widths, or of a crosscoder, whose widths are those of all its models together."""
    form, n = _form(sae, kind), batch_tokens
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


def _form(sae: SAEConfig, kind: str) -> str:
    if not has_closed_form(sae, kind) or sae.precision != "bfloat16":
        return "autograd"
    return "dense" if kind == "cuda" else "fused"
