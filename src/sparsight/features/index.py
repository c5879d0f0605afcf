"""FeatureIndex: every activation of every latent on held-out text, grouped by latent, memory-mapped.

    features/ID/
      index.json              format, version 2, n_tokens (measured), config, arrays (dtype and shape of each), about (below)
      piece_tokens.npy        int32   [tokens]      the held-out pieces of text end to end, masked tokens included
      piece_offsets.npy       int64   [pieces + 1]  piece i is piece_tokens[offsets[i]:offsets[i+1]]
      piece_documents.npy     int64   [pieces]      document id
      piece_starts.npy        int32   [pieces]      offset of the piece's first token in its document
      measured.npy            bool    [tokens]      which tokens are rows of the store, hence encoded
      latent_offsets.npy      int64   [latents + 1] latent l owns activations offsets[l]:offsets[l+1]
      activation_tokens.npy   int32   [active]      place of the active token in piece_tokens, ascending per latent
      activation_values.npy   float32 or float16 [active]
      n_documents.npy         int64   [latents]     documents on which the latent is active
      maximum.npy, mean.npy   float32 [latents]     of the active values; 0 for a latent never active
      quantiles.npy           float32 [latents, quantiles]  of the active values
      histogram.npy           int64   [latents, bins]       of the active values, equal bins from 0 to the maximum
    Version 1 ends here, but for the logits and the second seed. Numbers are NaN and tokens, latents and clusters -1 where there are none.
      token_purity.npy, token_entropy.npy, position_bits.npy  float32 [latents]     statistics/places.py; and their controls,
      chance_token_purity.npy, chance_token_entropy.npy, chance_position_bits.npy, chance_lift.npy (the strongest)
                              float32 [latents]     of the same activations half the text away
      token_coherence.npy, chance_token_coherence.npy   float32 [latents]           statistics/coherence.py; absent without a language model
      top_token.npy           int32   [latents]     the token that it is most often active on
      lift_tokens.npy, lift_counts.npy   int32 [latents, 5]  next tokens, strongest lift first, and how often each followed
      lift_values.npy         float32 [latents, 5]  log2 of how many times as often as after any token, shrunk
      position_bins.npy       int64   [latents, 8]  activations by offset in the document: 0, 1, 2-3, ..., 32-63, 64 and beyond
      decoder_neighbours.npy, encoder_neighbours.npy  int32 [latents, 10]  nearest first, among latents that were active;
      decoder_cosines.npy, encoder_cosines.npy        float32 [latents, 10]
      coactive_latents.npy    int32   [latents, 10] active on the same tokens more often than chance, strongest first;
      coactive_pmi.npy, coactive_jaccard.npy  float32 [latents, 10]  see statistics/coactivation.py
      cluster.npy             int32   [latents]     community by co-activation, 0 the largest (statistics/communities.py)
      map.npy                 float32 [latents, 2]  a place on the plane (statistics/layout.py); absent: about.why_no_map
      output_score.npy        float32 [latents]     statistics/outputs.py; absent without a language model, NaN where not measured
      promoted_tokens.npy, suppressed_tokens.npy    int32   [latents, n]  largest and smallest logit weights first
      promoted_weights.npy, suppressed_weights.npy  float32 [latents, n]  (all four absent without a language model)
      seed_cosine.npy         float32 [latents]     the largest cosine of its direction with one of the second seed's
      seed_cosine_latent.npy  int32   [latents]     that latent of the second seed (both absent without a second seed)
      seed_correlation.npy    float32 [latents]     the largest correlation over the measured tokens; NaN if never active
      seed_correlation_latent.npy  int32 [latents]  with that latent (both absent also for very wide dictionaries)

`about`: architecture, n_latents, hook_point, target_hook_point, model, split; why_no_logits and why_no_map, empty when they are there;
seed_chance_cosine, null without a second seed; mean_norm, the mean length of an activation at the target hook point (null where that is not what is
read); position_tokens, the measured tokens by bin of position; chance_cosine {decoder, encoder}, what the nearest of as many random directions has;
coactive, clusters, map and output_score: what each was measured on, and its control.

A token's place in piece_tokens is its row number everywhere, so that its piece, document, position and token id need
no columns of their own. The arrays never change once written; a folder appears whole or not at all.
Trade-off: 8 bytes an activation (100,000 tokens at L0 = 32 take 26 MB), in return for any view of any latent in
milliseconds without the SAE or the language model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from sparsight.errors import RunError, StoreError
from sparsight.features.storage import ARRAYS, read_folder

__all__ = [
    "LOGIT_ARRAYS",
    "Cluster",
    "Coactive",
    "FeatureIndex",
    "Partner",
    "TokenWeights",
]

PARTNER_ARRAYS = ("seed_cosine", "seed_cosine_latent", "seed_correlation", "seed_correlation_latent")
_NOT_BY_LATENT = ARRAYS[: ARRAYS.index("n_documents")]
LOGIT_ARRAYS = ("promoted_tokens", "promoted_weights", "suppressed_tokens", "suppressed_weights")


@dataclass(frozen=True)
class TokenWeights:
    """Tokens and how much a latent's direction moves their logits."""

    token_ids: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Coactive:
    """Latents active on the same tokens as a latent, more often than chance: strongest association first."""

    latents: Int[np.ndarray, " n"]
    pmi: Float[np.ndarray, " n"]
    """log2 of how many times as often as by chance, from the corrected counts that order them."""
    jaccard: Float[np.ndarray, " n"]
    """Tokens on which both are active, over those on which either is."""


@dataclass(frozen=True)
class Cluster:
    """A community of latents that are active together."""

    number: int
    """0 is the largest; what the column `cluster` holds."""
    latents: Int[np.ndarray, " n"]
    """Its members, ascending."""


@dataclass(frozen=True)
class Partner:
    """What a second seed has that is like a latent: by direction, and by activation."""

    cosine: float
    cosine_latent: int
    chance_cosine: float
    """Mean over latents of the same with untrained directions."""
    correlation: float | None
    """None where it was not computed, or the latent was never active."""
    correlation_latent: int | None


class FeatureIndex:
    """A feature index opened for reading. Arrays are memory-mapped under the names of the module's docstring."""

    piece_tokens: Int[np.ndarray, " tokens"]
    piece_offsets: Int[np.ndarray, " pieces_plus_1"]
    piece_documents: Int[np.ndarray, " pieces"]
    piece_starts: Int[np.ndarray, " pieces"]
    measured: Bool[np.ndarray, " tokens"]
    latent_offsets: Int[np.ndarray, " latents_plus_1"]
    activation_tokens: Int[np.ndarray, " active"]
    activation_values: Float[np.ndarray, " active"]
    n_documents: Int[np.ndarray, " latents"]
    maximum: Float[np.ndarray, " latents"]
    mean: Float[np.ndarray, " latents"]
    quantiles: Float[np.ndarray, "latents quantiles"]
    histogram: Int[np.ndarray, "latents bins"]

    def __init__(self, path: Path, description: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.path = path
        self.about: dict[str, Any] = description["about"]
        self.config: dict[str, Any] = description["config"]
        self.n_tokens: int = description["n_tokens"]
        for name in ARRAYS:
            setattr(self, name, arrays[name])
        self.arrays: Mapping[str, np.ndarray] = arrays
        """Every array that the index has, by name; those that may be absent have to be looked up here."""
        self.n_latents = len(self.latent_offsets) - 1

    @classmethod
    def open(cls, path: str | Path) -> "FeatureIndex":
        """Memory-map an index. Raises RunError when there is none, StoreError when it is damaged."""
        index = cls(Path(path), *read_folder(Path(path)))
        index._check()
        return index

    @property
    def density(self) -> Float[np.ndarray, " latents"]:
        """Share of the `n_tokens` measured tokens on which each latent is active."""
        return np.diff(self.latent_offsets) / self.n_tokens

    @property
    def has_logits(self) -> bool:
        """Whether promoted and suppressed tokens were stored."""
        return all(name in self.arrays for name in LOGIT_ARRAYS)

    def activations(self, latent: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Where in `piece_tokens` a latent is active, ascending, and how strongly (float32)."""
        self.check_latent(latent)
        span = slice(self.latent_offsets[latent], self.latent_offsets[latent + 1])
        return self.activation_tokens[span], self.activation_values[span].astype(np.float32, copy=False)

    def pieces_of(self, tokens: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The piece each token lies in."""
        return np.searchsorted(self.piece_offsets, tokens, side="right") - 1

    def documents_of(self, tokens: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The id of the document each token lies in."""
        return self.piece_documents[self.pieces_of(tokens)]

    def promoted(self, latent: int) -> TokenWeights:
        """Tokens whose logits the latent's direction raises most, strongest first."""
        return self._weights("promoted", latent)

    def suppressed(self, latent: int) -> TokenWeights:
        """Tokens whose logits the latent's direction lowers most, strongest first."""
        return self._weights("suppressed", latent)

    def partner(self, latent: int) -> Partner | None:
        """A latent's partners in the second seed; None where the index was built without one."""
        self.check_latent(latent)
        if "seed_cosine" not in self.arrays:
            return None
        found = {name: self.arrays[name][latent] for name in PARTNER_ARRAYS if name in self.arrays}
        correlated = not np.isnan(found.get("seed_correlation", np.nan))
        return Partner(
            cosine=float(found["seed_cosine"]),
            cosine_latent=int(found["seed_cosine_latent"]),
            chance_cosine=float(self.about["seed_chance_cosine"]),
            correlation=float(found["seed_correlation"]) if correlated else None,
            correlation_latent=int(found["seed_correlation_latent"]) if correlated else None,
        )

    def neighbours(
        self, latent: int, side: Literal["decoder", "encoder"] = "decoder"
    ) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]] | None:
        """The latents whose directions (or inputs) are nearest, and their cosines; None where they were not computed."""
        self.check_latent(latent)
        found = self._ranked(latent, f"{side}_neighbours", f"{side}_cosines")
        return None if found is None else (found[0], found[1])

    def coactive(self, latent: int) -> Coactive | None:
        """The latents active on the same tokens more often than chance; None where they were not counted."""
        self.check_latent(latent)
        found = self._ranked(latent, "coactive_latents", "coactive_pmi", "coactive_jaccard")
        return None if found is None else Coactive(*found)

    def lift(self, latent: int) -> TokenWeights | None:
        """The next tokens that follow the latent more often than they follow any token: log2 of how many times."""
        self.check_latent(latent)
        found = self._ranked(latent, "lift_tokens", "lift_values")
        return None if found is None else TokenWeights(*found)

    def position(self, latent: int) -> tuple[Int[np.ndarray, " bins"], Int[np.ndarray, " bins"]] | None:
        """Activations by position in the document, bins 0, 1, 2-3, 4-7, ..., and the measured tokens by the same bins."""
        self.check_latent(latent)
        bins = self.arrays.get("position_bins")
        if bins is None:
            return None
        return np.asarray(bins[latent]), np.array(self.about["position_tokens"], np.int64)

    def clusters(self) -> list[Cluster] | None:
        """Communities by co-activation, largest first; latents in none are left out. None where there are none."""
        of_latent = self.arrays.get("cluster")
        if of_latent is None:
            return None
        order = np.argsort(of_latent, kind="stable")
        bounds = np.searchsorted(of_latent[order], np.arange(of_latent.max(initial=-1) + 2))
        return [Cluster(i, order[a:b]) for i, (a, b) in enumerate(pairwise(bounds))]

    def check_latent(self, latent: int) -> None:
        """Raises RunError when there is no such latent."""
        if not 0 <= latent < self.n_latents:
            raise RunError(f"There is no latent {latent}; `{self.path}` has latents 0 to {self.n_latents - 1}.")

    def _ranked(self, latent: int, *names: str) -> tuple[np.ndarray, ...] | None:
        """The latent's row of arrays that are padded at the end, by -1 in the first of them."""
        if names[0] not in self.arrays:
            return None
        n = int((self.arrays[names[0]][latent] >= 0).sum())
        return tuple(np.asarray(self.arrays[name][latent][:n]) for name in names)

    def _weights(self, kind: str, latent: int) -> TokenWeights:
        self.check_latent(latent)
        if not self.has_logits:
            raise RunError(
                f"`{self.path}` has no promoted tokens: it was built without a language model. Rebuild it with one."
            )
        return TokenWeights(
            token_ids=np.asarray(self.arrays[f"{kind}_tokens"][latent]),
            weights=np.asarray(self.arrays[f"{kind}_weights"][latent]),
        )

    def _check(self) -> None:
        """Raises StoreError when arrays do not fit together, which would show one latent's evidence as another's."""
        damaged = [
            name for name in self.arrays if name not in _NOT_BY_LATENT and len(self.arrays[name]) != self.n_latents
        ]
        for name, items in (("latent_offsets", self.activation_tokens), ("piece_offsets", self.piece_tokens)):
            offsets = getattr(self, name)
            if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
                damaged.append(name)
        if damaged:
            raise StoreError(
                f"`{self.path}/{damaged[0]}.npy` is damaged. Delete `{self.path}` and rebuild it with `sparsight index`."
            )
