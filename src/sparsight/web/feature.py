"""One feature for JSON: its numbers, its label and notes, what is like it, and the passages it is active on.

Whatever the index lacks is null or an empty list: an index of an earlier version, or one built without a language model or a second seed,
has a page all the same.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsight.features import Context, TokenWeights, quantile_contexts, random_contexts, top_contexts
from sparsight.web.annotations import label_json
from sparsight.web.dictionary import Dictionary, Opened
from sparsight.web.replies import Refusal, number, numbers
from sparsight.web.table import column_json

__all__ = ["check_latent", "clusters_json", "contexts_json", "feature_json", "latents_json"]

_POSITION_BINS = ("0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127", "128-255")
_NAMED_BY = 3


def check_latent(opened: Opened, latent: int) -> None:
    """Raises Refusal when there is no such latent."""
    if not 0 <= latent < opened.index.n_latents:
        raise Refusal(404, f"There is no latent {latent}; there are 0 to {opened.index.n_latents - 1}.")


def feature_json(dictionary: Dictionary, opened: Opened, latent: int) -> dict[str, Any]:
    """Everything but the passages."""
    check_latent(opened, latent)
    index, notes, here = opened.index, opened.annotations.file, np.array([latent])
    labels = notes.labels(latent)
    lift = index.lift(latent)
    return {
        "latent": latent,
        "columns": {name: column_json(opened, name, here)[0] for name in opened.columns},
        "chance": _chance(opened, latent),
        "label": label_json(labels[0]) if labels else None,
        "labels": [label_json(label) for label in labels],
        "note": notes.note(latent),
        "lists": notes.lists_of(latent),
        "histogram": {"counts": numbers(index.histogram[latent]), "maximum": number(float(index.maximum[latent]))},
        "quantiles": [
            list(pair) for pair in zip(index.config["quantiles"], numbers(index.quantiles[latent]), strict=True)
        ],
        "promoted": _weights(opened, index.promoted(latent)) if index.has_logits else [],
        "suppressed": _weights(opened, index.suppressed(latent)) if index.has_logits else [],
        "lift": [] if lift is None else _weights(opened, lift, "value"),
        "neighbours": {side: _neighbours(opened, latent, side) for side in ("decoder", "encoder")},
        "coactive": _coactive(opened, latent),
        "position": _position(opened, latent),
        "partner": _partner(opened, latent),
        "map": numbers(index.arrays["map"][latent]) if "map" in index.arrays else None,
        "cluster": _cluster(opened, latent),
        "python": _snippet(dictionary, latent),
    }


def contexts_json(
    opened: Opened, latent: int, *, top: int = 12, per_band: int = 4, n_random: int = 8
) -> dict[str, Any]:
    """Passages: the strongest, some of each quarter by strength, and a random sample."""
    check_latent(opened, latent)
    index = opened.index
    bands = quantile_contexts(index, latent, per_band)
    return {
        "top": [_context(opened, context) for context in top_contexts(index, latent, top)],
        "bands": [
            {
                "low": number(band.low),
                "high": number(band.high),
                "n_active": band.n_active,
                "contexts": [_context(opened, context) for context in band.contexts],
            }
            for band in reversed(bands)
        ],
        "random": [_context(opened, context) for context in random_contexts(index, latent, n_random)],
    }


def latents_json(opened: Opened, latents: Sequence[int], *, named: bool = True) -> list[dict[str, Any]]:
    """Latents with their best label and promoted tokens; without `named` the tokens only of those that have no label, [] else."""
    labels = opened.annotations.labels
    wanted = [latent for latent in latents if named or latent not in labels]
    promoted = dict(zip(wanted, opened.promoted(wanted), strict=True))
    return [
        {
            "latent": int(latent),
            "label": label_json(labels[latent]) if latent in labels else None,
            "promoted": promoted.get(latent, []),
        }
        for latent in latents
    ]


def clusters_json(opened: Opened) -> list[dict[str, Any]]:
    """Every cluster, largest first, named by the tokens that its latents are active on and others are not."""
    found = []
    for cluster in opened.clusters:
        words = opened.cluster_words[cluster.number]
        found.append(
            {
                "id": cluster.number,
                "size": len(cluster.latents),
                "name": " · ".join(words[:_NAMED_BY]) or f"cluster {cluster.number}",
                "active_on": words,
                "latents": cluster.latents[:20].tolist(),
            }
        )
    return found


def _chance(opened: Opened, latent: int) -> dict[str, float | None]:
    """What chance gives in place of this latent's numbers, by column; the cosine of the nearest is the dictionary's."""
    index = opened.index
    found = {
        name.removeprefix("chance_"): number(float(array[latent]))
        for name, array in index.arrays.items()
        if name.startswith("chance_")
    }
    nearest, seed = index.about.get("chance_cosine") or {}, index.about.get("seed_chance_cosine")
    return found | {"decoder_cosine": number(nearest.get("decoder")), "seed_cosine": number(seed)}


def _context(opened: Opened, context: Context) -> dict[str, Any]:
    return {
        "tokens": opened.words(context.token_ids),
        "values": numbers(context.values),
        "measured": context.measured.tolist(),
        "peak": context.peak,
        "value": number(context.value),
        "document": f"{context.document_id:016x}",  # 63 bits: more than a number in JavaScript holds
        "position": context.position,
        "folded": context.n_folded,
    }


def _weights(opened: Opened, weights: TokenWeights, name: str = "weight") -> list[dict[str, Any]]:
    words = opened.words(weights.token_ids)
    rows = zip(words, weights.token_ids.tolist(), numbers(weights.weights), strict=True)
    return [{"token": word, "token_id": token_id, name: weight} for word, token_id, weight in rows]


def _neighbours(opened: Opened, latent: int, side: Any) -> list[dict[str, Any]]:
    found = opened.index.neighbours(latent, side)
    if found is None:
        return []
    latents, cosines = found
    return [
        row | {"value": value}
        for row, value in zip(latents_json(opened, latents.tolist()), numbers(cosines), strict=True)
    ]


def _coactive(opened: Opened, latent: int) -> list[dict[str, Any]]:
    found = opened.index.coactive(latent)
    if found is None:
        return []
    rows = zip(latents_json(opened, found.latents.tolist()), numbers(found.pmi), numbers(found.jaccard), strict=True)
    return [row | {"pmi": pmi, "jaccard": jaccard} for row, pmi, jaccard in rows]


def _position(opened: Opened, latent: int) -> dict[str, Any] | None:
    found = opened.index.position(latent)
    if found is None:
        return None
    bins, baseline = found
    names = [*_POSITION_BINS[: len(bins) - 1], f"{_POSITION_BINS[len(bins) - 1].partition('-')[0]}+"]
    return {"bins": bins.tolist(), "baseline": baseline.tolist(), "names": names}


def _partner(opened: Opened, latent: int) -> dict[str, Any] | None:
    partner = opened.index.partner(latent)
    if partner is None:
        return None
    return {
        "cosine": number(partner.cosine),
        "cosine_latent": partner.cosine_latent,
        "chance_cosine": number(partner.chance_cosine),
        "correlation": number(partner.correlation),
        "correlation_latent": partner.correlation_latent,
    }


def _cluster(opened: Opened, latent: int) -> dict[str, Any] | None:
    of_latent = opened.index.arrays.get("cluster")
    if of_latent is None or of_latent[latent] < 0:
        return None
    cluster = opened.clusters[int(of_latent[latent])]
    words = opened.cluster_words[cluster.number]
    name = " · ".join(words[:_NAMED_BY]) or f"cluster {cluster.number}"
    return {"id": cluster.number, "size": len(cluster.latents), "name": name}


def _snippet(dictionary: Dictionary, latent: int) -> str:
    """Python that reaches the same latent. JSON's quoting is Python's as well."""
    run, sae = str(dictionary.run.path), dictionary.sae.id
    return "\n".join(
        [
            "import sparsight as ss",
            "",
            f"run, latent = {json.dumps(run)}, {latent}",
            f"index = ss.FeatureIndex.open(run + {json.dumps(f'/features/{sae}')})",
            "tokens, values = index.activations(latent)  # where in index.piece_tokens, and how strongly",
            f"sae = ss.load_sae(run + {json.dumps(f'/saes/{sae}')})",
            "direction = sae.W_dec[latent]",
        ]
    )
