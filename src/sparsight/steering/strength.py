"""How strong an edit is, in units that a person can choose without knowing the SAE's scale.

    Np99     N times the 99th percentile of the latent's active values on held-out text
    Nnorm    what changes the activations by N times their mean length there: N mean|y| / |W_dec[latent]|
    N        the SAE's own activation units; for scale, a factor

|y| is the length of what is edited, the output of the hook point's module, and not of the residual stream that it is added to.
"""

import re
from dataclasses import dataclass

import numpy as np

from sparsight.errors import SteeringError
from sparsight.features.index import FeatureIndex
from sparsight.lm import LanguageModel, Piece, make_batches
from sparsight.sae import EDIT_MODES, LatentEdit, SparseAutoencoder

__all__ = ["NORM_TOKENS", "UNITS", "EditRequest", "mean_norm", "p99_of", "parse_edit", "strength_of"]

UNITS = ("p99", "norm", "raw")
# Held-out tokens over which the mean length is taken where the index does not hold it: two seconds of a small model on a CPU.
NORM_TOKENS = 4096
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_REQUEST = re.compile(rf"(\d+):({'|'.join(EDIT_MODES)})(?::({_NUMBER})({'|'.join(UNITS)})?)?")


@dataclass(frozen=True)
class EditRequest:
    """An edit as a person asks for it."""

    latent: int
    """Its number."""
    mode: str
    """add | clamp | ablate | scale."""
    strength: float = 0.0
    """In `unit`."""
    unit: str = "raw"
    """p99 | norm | raw; scale and ablate take raw."""

    def __post_init__(self) -> None:
        LatentEdit(self.latent, self.mode, self.strength)  # raises what is wrong with these
        if self.unit not in UNITS:
            raise SteeringError(f"Latent {self.latent}: unit {self.unit!r}; expected one of {', '.join(UNITS)}.")
        if self.mode in ("scale", "ablate") and self.unit != "raw":
            raise SteeringError(f"Latent {self.latent}: {self.mode} takes no {self.unit}; scale takes a plain factor.")

    def resolve(
        self, index: FeatureIndex | None, sae: SparseAutoencoder, model: LanguageModel | None = None
    ) -> LatentEdit:
        """The edit in the SAE's units; `model` as in `strength_of`. Raises SteeringError also when p99 or norm have no index."""
        if self.latent >= sae.n_latents:
            raise SteeringError(f"There is no latent {self.latent}; the SAE has latents 0 to {sae.n_latents - 1}.")
        if self.unit == "raw":
            return LatentEdit(self.latent, self.mode, self.strength)
        if index is None:
            raise SteeringError(f"A strength in {self.unit} needs the SAE's feature index. Give one, or the raw value.")
        asked = {"p99": self.strength} if self.unit == "p99" else {"norm_share": self.strength}
        return LatentEdit(self.latent, self.mode, strength_of(index, self.latent, **asked, sae=sae, model=model))


def parse_edit(text: str) -> EditRequest:
    """LATENT:MODE[:STRENGTH[UNIT]], such as 12:add:2p99, 7:ablate, 30:clamp:0.5norm, 12:scale:0."""
    match = _REQUEST.fullmatch(text.strip())
    if match is None or (match[3] is None) != (match[2] == "ablate"):
        raise SteeringError(
            f"{text!r} is no edit. Expected LATENT:MODE:STRENGTH, such as 12:add:2p99, 12:clamp:0.5norm, 12:scale:0, or 7:ablate."
        )
    return EditRequest(int(match[1]), match[2], float(match[3] or 0), match[4] or "raw")


def strength_of(
    index: FeatureIndex,
    latent: int,
    *,
    p99: float | None = None,
    norm_share: float | None = None,
    sae: SparseAutoencoder | None = None,
    model: LanguageModel | None = None,
) -> float:
    """A strength in the SAE's units: multiples of the latent's p99, or a share of the mean norm (this needs `sae`, and `model`
    where the index does not hold the norm).

    Raises SteeringError when the latent was never active, or what is needed was not given.
    """
    if (p99 is None) == (norm_share is None):
        raise SteeringError("A strength is either in p99 or a share of the norm. Give one of them.")
    if p99 is not None:
        return p99 * p99_of(index, latent)
    if sae is None:
        raise SteeringError("A share of the norm depends on the decoder's rows. Give the SAE.")
    index.check_latent(latent)
    length = float(sae.W_dec[latent].norm())
    if not length > 0:
        raise SteeringError(f"Latent {latent} has a decoder row of zeros; editing it changes nothing.")
    return (norm_share or 0.0) * mean_norm(index, model) / length


def p99_of(index: FeatureIndex, latent: int) -> float:
    """The 99th percentile of the latent's active values on held-out text. Raises SteeringError when it was never active."""
    _, values = index.activations(latent)
    if not len(values):
        raise SteeringError(f"Latent {latent} was never active on held-out text, so it has no p99. Give a raw value.")
    if 0.99 in index.config["quantiles"]:
        return float(index.quantiles[latent, index.config["quantiles"].index(0.99)])
    return float(np.quantile(values, 0.99))


def mean_norm(index: FeatureIndex, model: LanguageModel | None = None) -> float:
    """Mean length of the activations that edits act on, the target hook point's, over held-out tokens.

    As the index has it; else `model` reads some of the index's held-out text, once for this open index.
    """
    if index.about.get("mean_norm") is None:
        if model is None:
            raise SteeringError(f"`{index.path}` holds no mean norm. Give the language model, or a strength in p99.")
        index.about["mean_norm"] = _measure_norm(index, model)
    return float(index.about["mean_norm"])


def _measure_norm(index: FeatureIndex, model: LanguageModel) -> float:
    """Over whole pieces until they make NORM_TOKENS; masked tokens are left out."""
    target = index.about["target_hook_point"]
    n_pieces = min(int(np.searchsorted(index.piece_offsets[1:], NORM_TOKENS)) + 1, len(index.piece_documents))
    spans = [slice(*index.piece_offsets[i : i + 2]) for i in range(n_pieces)]
    pieces = [
        Piece(int(index.piece_documents[i]), i, 0, 0, np.array(index.piece_tokens[span], np.int32), True)
        for i, span in enumerate(spans)
    ]
    longest = max(len(piece.token_ids) for piece in pieces)
    total, n = 0.0, 0
    for batch in make_batches(
        pieces, batch_tokens=1024, pad_id=0, isolation="documents", context_tokens=longest, eos_id=0
    ):
        norms = model.read(batch, [target])[target].float().norm(dim=-1).cpu().numpy()
        for row, piece in enumerate(map(int, batch.piece_ids[:, 0])):
            kept = norms[row, : len(pieces[piece].token_ids)][index.measured[spans[piece]]]
            total, n = total + float(kept.sum(dtype=np.float64)), n + len(kept)
    if not n:
        raise SteeringError(
            f"The first {n_pieces} pieces of `{index.path}` hold no measured token. Give a strength in p99."
        )
    return total / n
