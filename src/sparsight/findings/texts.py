"""What the models wrote, traced: each model's rate of ungrounded pairs, and some texts with every detail's documents and every ungrounded pair."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from sparsight.features import readable_tokens
from sparsight.grounding import FineTuningText, Outcome, TracedTexts

__all__ = ["traced_json"]

_SHOWN = 12
_DOCUMENTS_SHOWN = 3


def traced_json(traced: Mapping[str, TracedTexts], text: FineTuningText, tokenizer: Any) -> dict[str, Any]:
    """Each model's report, and for the page its first recombined texts, then others; with the documents that they name."""
    shown = {name: _shown(each, tokenizer) for name, each in traced.items()}
    named = sorted(
        {number for rows in shown.values() for row in rows for span in row["spans"] for number in span["documents"]}
    )
    subjects = text.subjects if text.subjects is not None else np.arange(len(text.documents))
    documents = {
        str(number): tokenizer.decode(text.documents[int(np.flatnonzero(subjects == number)[0])].tolist())
        for number in named
    }
    return {
        "n_documents": len(text.documents),
        "n_subjects": len(np.unique(subjects)),
        "models": {name: asdict(each.report) for name, each in traced.items()},
        "shown": shown,
        "documents": documents,
    }


def _shown(traced: TracedTexts, tokenizer: Any) -> list[dict[str, Any]]:
    order = sorted(range(len(traced.texts)), key=lambda row: traced.arranged[row].outcome != Outcome.RECOMBINED)
    rows = []
    for row in order[:_SHOWN]:
        text, arranged = traced.texts[row], traced.arranged[row]
        rows.append(
            {
                "tokens": readable_tokens(tokenizer, text.token_ids),
                "n_prompt": text.n_prompt,
                "outcome": str(arranged.outcome),
                "spans": [
                    {
                        "start": detail.start,
                        "end": detail.end,
                        "bits": round(detail.surprise_bits, 1),
                        "n_documents": len(detail.documents),
                        "documents": detail.documents[:_DOCUMENTS_SHOWN].tolist(),
                    }
                    for detail in arranged.details
                ],
                "ungrounded": arranged.pairs[arranged.grounded == 0].tolist(),
            }
        )
    return rows
