"""The details that a model wrote, as spans whose recombined ones can be told from the grounded ones.

A span is read where its new part is decided: at the token before it. Its entity is the text it stands in, so that spans of one text never
stand on both sides of a split. Its stratum is that token, which names what kind of detail comes next ("born in" -> a place), and whether more
documents than the median hold it. Details of the prompt, details at its very beginning, those that are neither recombined nor beyond doubt
(`detail_labels`), and strata that hold one kind alone, are left out.

Trade-off: the token before is a finer kind than "place" or "profession": two wordings are two strata, and spans in rare ones are lost.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from sparsight.errors import MetricError
from sparsight.grounding.arrangement import Arranged, detail_labels
from sparsight.grounding.scores import Spans
from sparsight.grounding.texts import Written

__all__ = ["detail_spans"]


def detail_spans(
    texts: Sequence[Written], arranged: Sequence[Arranged], log2_p: Sequence[Float[np.ndarray, " n"]]
) -> tuple[Spans, list[tuple[int, int]]]:
    """The spans, and for each its (text, token). `log2_p`: of every token of every text under the model that wrote it.

    Raises MetricError when too few texts have recombined spans, or grounded ones, in a stratum of both.
    """
    rows = []
    for number, (text, each, bits) in enumerate(zip(texts, arranged, log2_p, strict=True)):
        for detail, label in zip(each.details, detail_labels(each), strict=True):
            if detail.end > text.n_prompt and detail.core > 0 and not np.isnan(label):
                place, likely = detail.core - 1, float(bits[detail.core : detail.end].sum())
                rows.append((label, number, int(text.token_ids[place]), len(detail.documents), likely, place))
    if not rows:
        raise MetricError("No text has a detail whose pairs are known. Have more texts written.")
    label, number, before, documents, likely, place = (np.array(column) for column in zip(*rows, strict=True))
    _, stratum = np.unique(2 * before + (documents > np.median(documents)), return_inverse=True)
    recombined = label == 1
    both = np.isin(stratum, np.intersect1d(stratum[recombined], stratum[~recombined]))
    spans = Spans(
        recombined=recombined[both], entities=number[both], strata=stratum[both], log_probability=likely[both]
    )
    return spans, list(zip(number[both].tolist(), place[both].tolist(), strict=True))
