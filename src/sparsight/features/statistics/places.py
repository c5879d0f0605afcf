"""On which tokens a latent is active, what follows them, and where in a document: each beside the same half the text away.

    token_purity   share of its activations that are on its most frequent token
    token_entropy  -sum_t p_t log2 p_t in bits, p_t the share of its activations on token t; as counted, hence low where they are few
    lift           log2((seen + 1) / (expected + 1)) of each next token: seen after its activations, expected were they on any measured tokens.
                   Tokens seen fewer than 3 times are left out; the shrinkage keeps a rare token seen 3 times below a common one seen often
    position_bits  sum_b q_b log2(q_b / p_b) over bins of position, q its activations and p all measured tokens, less (bins - 1) / (2 n ln 2),
                   which is what chance adds with n activations (Miller 1955); at least 0

The control of each is the same number of the same activations moved half the text away (text.py): `chance_*`. A latent active once
has a purity of 1, and of chance as well.
"""

import numpy as np
from jaxtyping import Float, Int

from sparsight.features.statistics.grouped import count_items, log_ratio, strongest_of_each
from sparsight.features.statistics.text import N_POSITION_BINS, IndexedText
from sparsight.features.statistics.values import Bucket

__all__ = ["N_LIFT_TOKENS", "place_statistics"]

N_LIFT_TOKENS = 5
_LEAST_SEEN = 3


def place_statistics(bucket: Bucket, text: IndexedText) -> dict[str, np.ndarray]:
    """The index's arrays from `token_purity` to `chance_lift`; NaN and -1 where there is nothing to count."""
    moved = text.half_turn(bucket.places)
    arrays = _of_tokens(bucket, text.token_ids[bucket.places])
    by_chance = _of_tokens(bucket, text.token_ids[moved])
    for name in ("token_purity", "token_entropy"):
        arrays[f"chance_{name}"] = by_chance[name]
    arrays |= _lift(bucket, bucket.places, text)
    arrays["chance_lift"] = _lift(bucket, moved, text)["lift_values"][:, 0]
    arrays["position_bins"], arrays["position_bits"] = _positions(bucket, bucket.places, text)
    arrays["chance_position_bits"] = _positions(bucket, moved, text)[1]
    return arrays


def _of_tokens(bucket: Bucket, token_ids: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    n = bucket.n_latents
    latents, tokens, counts = count_items(bucket.latents, token_ids, int(token_ids.max(initial=0)) + 1)
    totals = np.bincount(bucket.latents, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        surprise = np.bincount(latents, counts * np.log2(counts), minlength=n)
        entropy = np.log2(totals) - surprise / totals
    best = strongest_of_each(latents, counts.astype(np.float64), 1)
    top = best.table(counts, (n, 1), 0)[:, 0]
    return {
        "token_purity": np.where(totals > 0, top / np.maximum(totals, 1), np.nan).astype(np.float32),
        "token_entropy": np.where(totals > 0, np.maximum(entropy, 0), np.nan).astype(np.float32),
        "top_token": best.table(tokens.astype(np.int32), (n, 1), -1)[:, 0],
    }


def _lift(bucket: Bucket, places: Int[np.ndarray, " n"], text: IndexedText) -> dict[str, np.ndarray]:
    """lift_tokens, lift_values, lift_counts of activations at these places."""
    shape = (bucket.n_latents, N_LIFT_TOKENS)
    following = text.next_ids[places]
    has_next = following >= 0
    latents, tokens, seen = count_items(bucket.latents[has_next], following[has_next], text.n_token_ids)
    n_active = np.bincount(bucket.latents[has_next], minlength=bucket.n_latents)
    often = seen >= _LEAST_SEEN
    latents, tokens, seen = latents[often], tokens[often], seen[often]
    of_any = text.next_tokens()
    values = log_ratio(seen, n_active[latents] * (of_any[tokens] / max(of_any.sum(), 1)))
    more = values > 0
    latents, tokens, seen, values = latents[more], tokens[more], seen[more], values[more]
    best = strongest_of_each(latents, values, N_LIFT_TOKENS)
    return {
        "lift_tokens": best.table(tokens.astype(np.int32), shape, -1),
        "lift_values": best.table(values.astype(np.float32), shape, np.nan),
        "lift_counts": best.table(seen.astype(np.int32), shape, 0),
    }


def _positions(
    bucket: Bucket, places: Int[np.ndarray, " n"], text: IndexedText
) -> tuple[Int[np.ndarray, "latents bins"], Float[np.ndarray, " latents"]]:
    shape = (bucket.n_latents, N_POSITION_BINS)
    keys = bucket.latents * N_POSITION_BINS + text.position_bins[places]
    bins = np.bincount(keys, minlength=shape[0] * shape[1]).reshape(shape)
    totals, of_any = bins.sum(1), text.position_tokens()
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = bins / totals[:, None]
        bits = np.where(bins > 0, shares * np.log2(shares / (of_any / of_any.sum())), 0).sum(1)
        by_chance = (np.count_nonzero(of_any) - 1) / (2 * totals * np.log(2))
    return bins, np.where(totals > 0, np.maximum(bits - by_chance, 0), np.nan).astype(np.float32)
