"""SparseAutoencoder: the finished dictionary, on raw activations, in float32.

    z     = activation((x - centre) W_enc + b_enc)      centre = b_dec for an autoencoder, 0 for a transcoder
    x_hat = z W_dec + b_dec

A transcoder's input is not centred because b_dec lives in the output's space; whatever centring its training used sits
in b_enc. This is what SAELens' layout can represent, and why it is so. `activation` is relu, topk, jumprelu (also the
inference form of batchtopk and matryoshka) or gated; see `activation.py`.

Dense latents of n tokens cost 4 n F bytes: `encode_sparse` and `reconstruct` work in chunks of rows instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from sparsight.errors import ActivationError, FormatError
from sparsight.sae.activation import gated_magnitude, jumprelu, keep_topk, topk
from sparsight.sae.config import SAEConfig
from sparsight.sae.exchange import saelens

__all__ = ["SAEOutput", "SparseAutoencoder", "SparseLatents"]

# dense latents of one chunk: 2^24 float32 are 64 MiB
_CHUNK_ELEMENTS = 2**24


class SAEOutput(NamedTuple):
    """Latents and reconstruction of a batch."""

    latents: Float[Tensor, "n F"]
    x_hat: Float[Tensor, "n d_out"]


class SparseLatents(NamedTuple):
    """The active latents of each token; rows with fewer than m of them are padded with index 0, value 0."""

    indices: Int[Tensor, "n m"]
    values: Float[Tensor, "n m"]


class SparseAutoencoder(nn.Module):
    """A finished sparse autoencoder or transcoder: raw activations in, raw activations out.

    `tensors`: W_enc [d_in, F], W_dec [F, d_out], b_dec [d_out], b_enc [F]; jumprelu also threshold [F]; gated b_gate,
    r_mag, b_mag [F] in place of b_enc. Raises FormatError when names or shapes do not fit `cfg`.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, cfg: SAEConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.cfg = cfg
        self.d_in, self.d_out = _widths(cfg, tensors)
        self.n_latents = cfg.n_latents
        expected = saelens.tensor_shapes(cfg.inference, self.d_in, self.n_latents, self.d_out)
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if given != expected:
            raise FormatError(f"SAE {cfg.id} ({cfg.architecture}) has tensors {given}, expected {expected}.")
        for name in expected:
            self.register_parameter(name, nn.Parameter(tensors[name].detach().float().clone(), requires_grad=False))

    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n F"]:
        """Dense latents."""
        pre = self._pre(x)
        if self.cfg.inference == "topk":
            return keep_topk(pre, self.cfg.k)
        if self.cfg.inference == "jumprelu":
            return jumprelu(pre, self.get_parameter("threshold"))
        if self.cfg.inference == "gated":
            return gated_magnitude(pre, *(self.get_parameter(name) for name in ("b_gate", "r_mag", "b_mag")))
        return pre.relu()

    def encode_sparse(self, x: Float[Tensor, "n d_in"]) -> SparseLatents:
        """Active latents only, m being the most that any of these tokens has."""
        chunks = [self._encode_sparse_chunk(rows) for rows in self._chunks(x)]
        width = max((chunk.indices.shape[1] for chunk in chunks), default=0)
        padded = [[functional.pad(part, (0, width - part.shape[1])) for part in chunk] for chunk in chunks]
        return SparseLatents(*(torch.cat(parts) for parts in zip(*padded, strict=True)))

    def encode_latents(self, x: Float[Tensor, "n d_in"], latents: Sequence[int]) -> Float[Tensor, "n m"]:
        """Activations of these latents alone, as all together give them; never all latents of all tokens at once."""
        return torch.cat([self.encode(rows)[:, list(latents)] for rows in self._chunks(x)])

    def decode(self, latents: Float[Tensor, "n F"]) -> Float[Tensor, "n d_out"]:
        """Reconstruction from dense latents."""
        return latents @ self.W_dec + self.b_dec

    def decode_sparse(self, latents: SparseLatents) -> Float[Tensor, "n d_out"]:
        """Reconstruction from active latents: their rows of W_dec alone are read."""
        indices, values = latents
        return functional.embedding_bag(indices, self.W_dec, per_sample_weights=values, mode="sum") + self.b_dec

    def forward(self, x: Float[Tensor, "n d_in"]) -> SAEOutput:
        """Dense latents and reconstruction."""
        latents = self.encode(x)
        return SAEOutput(latents, self.decode(latents))

    def reconstruct(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_out"]:
        """Reconstruction alone, in float32, never holding the latents of all tokens at once."""
        return torch.cat([self._reconstruct_chunk(rows) for rows in self._chunks(x)])

    def at(self, hook_point: str) -> "SparseAutoencoder":
        """A copy said to be of another place: of one model alone what was trained on one of a pair."""
        return SparseAutoencoder(replace(self.cfg, hook_point=hook_point), self.state_dict())

    def save(self, folder: Path, *, metadata: Mapping[str, Any]) -> None:
        """Write SAELens' layout (cfg.json, sae_weights.safetensors); see `exchange.saelens`."""
        saelens.write(folder, self.cfg, self.state_dict(), metadata=metadata)

    @classmethod
    def load(cls, folder: Path) -> "SparseAutoencoder":
        """Read a folder that `save` or SAELens wrote; FormatError when it is not one. See `exchange.saelens`."""
        return cls(*saelens.read(folder))

    def _pre(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_in:
            raise ActivationError(f"SAE {self.cfg.id} reads activations of width {self.d_in}, got {x.shape[-1]}.")
        bias = self.get_parameter("b_gate" if self.cfg.inference == "gated" else "b_enc")
        centred = x.to(self.W_enc.dtype) if self.cfg.is_transcoder else x.to(self.W_enc.dtype) - self.b_dec
        return torch.addmm(bias, centred, self.W_enc)

    def _chunks(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(max(1, _CHUNK_ELEMENTS // self.n_latents))

    def _encode_sparse_chunk(self, x: Tensor) -> SparseLatents:
        if self.cfg.inference == "topk":
            indices, values = topk(self._pre(x), self.cfg.k)
        else:
            latents = self.encode(x)
            most = int((latents > 0).sum(1).max()) if len(latents) else 0
            values, indices = latents.topk(most, dim=1, sorted=False)
        return SparseLatents(indices.masked_fill(values == 0, 0), values)

    def _reconstruct_chunk(self, x: Tensor) -> Tensor:
        if self.cfg.inference == "topk":
            return self.decode_sparse(SparseLatents(*topk(self._pre(x), self.cfg.k)))
        return self.decode(self.encode(x))


def _widths(cfg: SAEConfig, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    try:
        return tensors["W_enc"].shape[0], tensors["b_dec"].shape[0]
    except (KeyError, IndexError):
        raise FormatError(f"SAE {cfg.id} lacks W_enc or b_dec, or they are scalars; got {sorted(tensors)}.") from None
