"""Two ways to write one encoder: with b_dec subtracted from the input, as here, or without.

    (x - b_dec) W_enc + b_enc  =  x W_enc + (b_enc - b_dec W_enc)

Sums in float64, rounded once: over a few thousand dimensions float32's would differ from the source's own output by more than they need.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["centred_bias", "plain_bias"]


@torch.no_grad()
def centred_bias(
    bias: Float[Tensor, " F"], b_dec: Float[Tensor, " d"], W_enc: Float[Tensor, "d F"]
) -> Float[Tensor, " F"]:
    """The bias of an encoder that subtracts b_dec, from that of one that does not."""
    return (bias.double() + b_dec.double() @ W_enc.double()).float()


@torch.no_grad()
def plain_bias(
    bias: Float[Tensor, " F"], b_dec: Float[Tensor, " d"], W_enc: Float[Tensor, "d F"]
) -> Float[Tensor, " F"]:
    """The bias of an encoder that takes its input as it is, from that of one that subtracts b_dec."""
    return (bias.double() - b_dec.double() @ W_enc.double()).float()
