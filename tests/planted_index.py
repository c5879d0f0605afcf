"""A feature index of which everything is known: latents that fire on planted words in random text.

    0 .. 11     topic t: any of its four words
    12 .. 23    the first two words of topic t: what the topic is like, but narrower
    24 .. 27    any word after one of four triggers
    28          never
    29          on a fifth of all tokens, at random: no label is true of it

One in twenty activations is missing and one in two thousand tokens fires for nothing. Each document's passages all hold words of the
document's own (`d17`, every fifth word), so that a passage tells which document it is of. Document ids are hashes, as real ones are.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsight.activations import PieceTable
from sparsight.features import FeatureIndex, FeatureIndexWriter, IndexConfig

N_TOPICS, N_WORDS, N_TRIGGERS, N_FILLERS = 12, 4, 4, 40
N_LATENTS = 30
DOCUMENTS, LENGTH = 160, 150
TOPIC_WORDS = [f"t{topic}{'abcd'[word]}" for topic in range(N_TOPICS) for word in range(N_WORDS)]
TRIGGERS = [f"go{number}" for number in range(N_TRIGGERS)]
WORDS = [*TOPIC_WORDS, *TRIGGERS, *(f"f{number}" for number in range(N_FILLERS)), *(f"d{i}" for i in range(DOCUMENTS))]
FIRST_TRIGGER, FIRST_FILLER = len(TOPIC_WORDS), len(TOPIC_WORDS) + N_TRIGGERS
FIRST_DOCUMENT = FIRST_FILLER + N_FILLERS


class Tokenizer:
    """As much of one as readable tokens need."""

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [f" {WORDS[number]}" for number in ids]

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(self.convert_ids_to_tokens(ids))


def document_id(number: int) -> int:
    """The first 63 bits of a hash."""
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big") >> 1


def planted_index(path: Path, *, seed: int = 0) -> FeatureIndex:
    """Builds it at `path`."""
    rng = np.random.default_rng(seed)
    tokens = np.empty((DOCUMENTS, LENGTH), np.int32)
    for number, row in enumerate(tokens):
        topics = rng.choice(N_TOPICS, 4, replace=False)
        row[:] = np.where(
            rng.random(LENGTH) < 0.25,
            rng.choice(topics, LENGTH) * N_WORDS + rng.integers(0, N_WORDS, LENGTH),
            FIRST_FILLER + rng.integers(0, N_FILLERS, LENGTH),
        )
        triggered = rng.random(LENGTH) < 0.03
        row[triggered] = FIRST_TRIGGER + rng.integers(0, N_TRIGGERS, int(triggered.sum()))
        row[::5] = FIRST_DOCUMENT + number
    active = true_activations(tokens)
    active[:28] &= rng.random(active[:28].shape) > 0.05
    active[:28] |= rng.random(active[:28].shape) < 0.0005
    active[29] = rng.random(tokens.shape) < 0.2
    flat = active.reshape(N_LATENTS, -1)
    pieces = PieceTable(
        token_ids=tokens.reshape(-1),
        offsets=np.arange(DOCUMENTS + 1, dtype=np.int64) * LENGTH,
        document_ids=np.array([document_id(number) for number in range(DOCUMENTS)], np.int64),
        starts=np.zeros(DOCUMENTS, np.int32),
        rows=np.arange(DOCUMENTS, dtype=np.int64),
    )
    with FeatureIndexWriter.create(path, pieces, N_LATENTS, IndexConfig()) as writer:
        values = np.where(flat.T, rng.uniform(0.5, 2.0, flat.T.shape), 0.0).astype(np.float32)
        indices = np.broadcast_to(np.arange(N_LATENTS), values.shape).copy()
        writer.add(np.arange(len(values)), indices, values)
        writer.group()
        return writer.finish(
            {"n_latents": N_LATENTS, "hook_point": "layers.1", "split": "heldout", "why_no_logits": "none"}
        )


def true_activations(tokens: np.ndarray) -> np.ndarray:
    """Without noise, [latents, documents, tokens]."""
    active = np.zeros((N_LATENTS, *tokens.shape), bool)
    for topic in range(N_TOPICS):
        active[topic] = (tokens // N_WORDS == topic) & (tokens < FIRST_TRIGGER)
        active[N_TOPICS + topic] = (tokens >= topic * N_WORDS) & (tokens < topic * N_WORDS + 2)
    for trigger in range(N_TRIGGERS):
        active[2 * N_TOPICS + trigger, :, 1:] = tokens[:, :-1] == FIRST_TRIGGER + trigger
    return active
