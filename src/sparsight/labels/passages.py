"""Evidence: which documents a label is made from and which test it, and the passages drawn from each half.

    explaining half   documents whose hash, mixed with the seed, is even: all that rules and explainers ever see
    scoring half      the others: all that a label is tested on

The halves are of documents and the same for every latent, so that no passage of a scored document can reach an explainer by way of
another latent. A passage is a window of tokens within one piece of a document, about a token:

    active      the latent is active in it: of each quarter of its activations by strength, one a document
    neighbour   a near latent is active in it and this one nowhere: tells what this latent is from what it is like
    random      this one is nowhere active, about a token drawn at random

Near latents are those most often active on the same tokens and those nearest in direction, where the index holds them, by turns: directions
alone are hardly nearer than chance in a small dictionary (docs/log.md). A masked token's activation is unknown: of a passage without the
latent at most a tenth may be masked.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from sparsight.features import FeatureIndex

__all__ = ["ACTIVE", "KINDS", "NEIGHBOUR", "RANDOM", "Evidence", "Passages", "spans"]

KINDS = ACTIVE, NEIGHBOUR, RANDOM = ("active", "neighbour", "random")
N_NEAR = 10
# Candidates looked at for each passage wanted: those in which the latent is active fall away.
CANDIDATES = 20
MOST_MASKED = 0.1
# A near latent must share this many tokens: one shared token says nothing.
LEAST_SHARED = 3
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Passages:
    """Windows of `piece_tokens`: passage i is tokens starts[i]:ends[i], about token peaks[i]."""

    starts: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " n"]
    peaks: Int[np.ndarray, " n"]
    kinds: tuple[str, ...]
    """active | neighbour | random, of each."""
    documents: Int[np.ndarray, " n"]
    """Document ids."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def active(self) -> Bool[np.ndarray, " n"]:
        """Whether the latent is active in each."""
        return np.array([kind == ACTIVE for kind in self.kinds], bool)


class Evidence:
    """A feature index with its documents halved."""

    def __init__(self, index: FeatureIndex, *, seed: int = 0, before: int = 20, after: int = 10):
        self.index, self.seed, self.before, self.after = index, seed, before, after
        lengths = np.diff(index.piece_offsets)
        self.piece_of = np.repeat(np.arange(len(lengths)), lengths)
        self.document_of = np.asarray(index.piece_documents)[self.piece_of]
        explaining = is_explaining(np.asarray(index.piece_documents), seed)[self.piece_of]
        measured = np.asarray(index.measured)
        self.halves = {"explain": explaining & measured, "score": ~explaining & measured}
        self._masked = np.concatenate([[0], np.cumsum(~measured)])

    def activations(self, latent: int, half: str) -> tuple[Int[np.ndarray, " n"], np.ndarray]:
        """Where a latent is active in one half, ascending, and how strongly."""
        tokens, values = self.index.activations(latent)
        inside = self.halves[half][tokens]
        return np.asarray(tokens[inside]), values[inside]

    def strongest(self, latent: int, half: str, n: int) -> Passages:
        """The strongest activation of each document, strongest first."""
        tokens, values = self.activations(latent, half)
        tokens = tokens[np.argsort(-values, kind="stable")]
        return self._passages(tokens[self._one_a_document(tokens)][:n], ACTIVE)

    def draw(
        self,
        latent: int,
        half: str,
        *,
        n_active: int,
        n_inactive: int,
        seed: int = 0,
        avoid: Passages | None = None,
    ) -> Passages:
        """Active passages of every strength, and passages without the latent, half of them about near latents.

        Fewer where there are not so many; none about a token that a passage of `avoid` shows. Seeded by (`seed`, latent); each kind
        has one passage a document.
        """
        rng = np.random.default_rng((self.seed, seed, latent, half == "score"))
        shown = _NONE if avoid is None else spans(avoid.starts, avoid.ends)[1]
        mine = self.activations(latent, half)[0]
        active = self._active_tokens(latent, mine[~np.isin(mine, shown)], rng)
        near = self._neighbour_tokens(latent, half, rng, n_inactive - n_inactive // 2, shown)
        everywhere = self._tokens[half]
        picked = rng.choice(everywhere, size=min(len(everywhere), CANDIDATES * n_inactive), replace=False)
        random = self._inactive(latent, picked[~np.isin(picked, shown)])[: n_inactive - len(near)]
        kinds = ((active[:n_active], ACTIVE), (near, NEIGHBOUR), (random, RANDOM))
        return _joined([self._passages(tokens, kind) for tokens, kind in kinds])

    def near(self, latent: int) -> Int[np.ndarray, " n"]:
        """Up to ten latents most like this one: by turns the one most often active with it and the one nearest in direction."""
        found = self.index.neighbours(latent)
        kinds = (self._often_together(latent), _NONE if found is None else np.asarray(found[0], np.int64))
        merged = np.concatenate(kinds)
        turns = np.concatenate([np.arange(len(kind)) for kind in kinds])
        merged = merged[np.argsort(turns, kind="stable")]
        return merged[np.sort(np.unique(merged, return_index=True)[1])][:N_NEAR]

    def _often_together(self, latent: int) -> Int[np.ndarray, " n"]:
        """Those with the largest share of tokens on which both are active of those on which either is."""
        tokens, _ = self.index.activations(latent)
        offsets, latents = self._by_token
        _, places = spans(offsets[tokens], offsets[tokens + 1])
        together = np.bincount(latents[places], minlength=self.index.n_latents)
        together[latent] = 0
        either = np.diff(self.index.latent_offsets) + len(tokens) - together
        alike = np.where(together >= LEAST_SHARED, together / np.maximum(either, 1), 0.0)
        order = np.argsort(-alike, kind="stable")[:N_NEAR]
        return order[alike[order] > 0]

    def windows(self, tokens: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Start and end of the passage about each token, within its piece."""
        pieces, offsets = self.piece_of[tokens], np.asarray(self.index.piece_offsets)
        return np.maximum(offsets[pieces], tokens - self.before), np.minimum(
            offsets[pieces + 1], tokens + self.after + 1
        )

    @cached_property
    def _tokens(self) -> dict[str, Int[np.ndarray, " n"]]:
        return {half: np.flatnonzero(inside) for half, inside in self.halves.items()}

    @cached_property
    def _by_token(self) -> tuple[np.ndarray, np.ndarray]:
        """(offsets, latents): the latents active on token t are latents[offsets[t]:offsets[t+1]]."""
        tokens = np.asarray(self.index.activation_tokens)
        latents = np.repeat(np.arange(self.index.n_latents, dtype=np.int32), np.diff(self.index.latent_offsets))
        offsets = np.concatenate([[0], np.cumsum(np.bincount(tokens, minlength=len(self.piece_of)))])
        return offsets, latents[np.argsort(tokens, kind="stable")]

    def _active_tokens(
        self, latent: int, tokens: Int[np.ndarray, " n"], rng: np.random.Generator
    ) -> Int[np.ndarray, " m"]:
        """One of each document in random order, a quarter of the strengths after another as far as there are documents."""
        every, strengths = self.index.activations(latent)
        values = strengths[np.searchsorted(every, tokens)]
        quarter = np.empty(len(tokens), np.int64)
        quarter[np.argsort(values, kind="stable")] = np.arange(len(tokens)) * 4 // max(1, len(tokens))
        order = rng.permutation(len(tokens))
        order = order[self._one_a_document(tokens[order])]
        turn = np.empty(len(order), np.int64)  # the how manyth of its quarter each is
        for number in range(4):
            members = np.flatnonzero(quarter[order] == number)
            turn[members] = np.arange(len(members))
        return tokens[order[np.argsort(turn, kind="stable")]]

    def _neighbour_tokens(
        self, latent: int, half: str, rng: np.random.Generator, n: int, shown: Int[np.ndarray, " s"]
    ) -> Int[np.ndarray, " m"]:
        """Up to n tokens of near latents whose passage the latent is nowhere active in: three of each, nearest first, then three more."""
        tokens, turns = [_NONE], [_NONE]
        for near in self.near(latent):
            theirs = rng.permutation(self.activations(int(near), half)[0])[: CANDIDATES * n]
            tokens.append(self._inactive(latent, theirs[~np.isin(theirs, shown)]))
            turns.append(np.arange(len(tokens[-1])) // 3)
        merged = np.concatenate(tokens)[np.argsort(np.concatenate(turns), kind="stable")]
        return merged[self._one_a_document(merged)][:n]

    def _inactive(self, latent: int, tokens: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """Those in whose passage the latent is nowhere active and few tokens are masked, one a document."""
        active, _ = self.index.activations(latent)
        starts, ends = self.windows(tokens)
        free = np.searchsorted(active, starts) == np.searchsorted(active, ends)
        masked = self._masked[ends] - self._masked[starts]
        kept = tokens[free & (masked <= MOST_MASKED * (ends - starts))]
        return kept[self._one_a_document(kept)]

    def _one_a_document(self, tokens: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
        """Places of the first token of each document, in order."""
        return np.sort(np.unique(self.document_of[tokens], return_index=True)[1])

    def _passages(self, tokens: Int[np.ndarray, " n"], kind: str) -> Passages:
        starts, ends = self.windows(tokens)
        return Passages(
            starts=starts, ends=ends, peaks=tokens, kinds=(kind,) * len(tokens), documents=self.document_of[tokens]
        )


def spans(
    starts: Int[np.ndarray, " n"], ends: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """(which span, place) of every place of the spans starts[i]:ends[i]."""
    lengths = ends - starts
    which = np.repeat(np.arange(len(starts)), lengths)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths - starts, lengths)


def is_explaining(document_ids: Int[np.ndarray, " n"], seed: int) -> Bool[np.ndarray, " n"]:
    """Which documents are of the explaining half, by a bit of a mix of id and seed (the finaliser of splitmix64)."""
    mixed = document_ids.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed >> np.uint64(40)) & np.uint64(1) == 0


def _joined(parts: list[Passages]) -> Passages:
    return Passages(
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("starts", "ends", "peaks", "documents")
        },
        kinds=tuple(kind for part in parts for kind in part.kinds),
    )
