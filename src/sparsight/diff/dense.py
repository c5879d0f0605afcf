"""The dense bars: what a mean, a few principal components and the predictions alone say of a fine-tune, without any dictionary.

    mean          of h_tuned - h_base over all tokens, and at each of a document's first tokens
    lens          a mean through the final norm and output matrix: which next tokens it promotes
    components    principal components of the difference, by covariance; with the mean, a code of k numbers a token
    top tokens    mean over tokens of p_tuned(v) - p_base(v), for each token v of the vocabulary

Narrow fine-tunes write themselves into the difference at the very first tokens of unrelated text, so that the lens names their subject:
a dictionary has to say more than that. Probabilities are compared, not their logarithms: a fine-tune that has grown sure of itself lowers
nearly all of these, rare tokens' most. A mean's control is that of the other half of the documents: `agreement` is the cosine between
the two, and near 0 for noise. Source: Minder et al. 2025, arXiv:2510.13900 (traces of narrow fine-tuning in the first tokens).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from sparsight.activations import ActivationBatch
from sparsight.diff.closure import Patches
from sparsight.errors import MetricError
from sparsight.features import logit_weights
from sparsight.lm import LanguageModel
from sparsight.metrics import LinearFit, SpliceText

__all__ = ["DenseDifference", "TokenDifference", "difference_lens", "fit_difference", "top_token_differences"]


@dataclass(frozen=True, kw_only=True)
class DenseDifference:
    """The mean difference and its principal components."""

    mean: Float[Tensor, " d"]
    """Over all tokens."""
    early: Float[Tensor, "positions d"]
    """At a document's first tokens, by position; NaN where no token was kept."""
    early_tokens: tuple[int, ...]
    """Tokens behind each."""
    agreement: float
    """Cosine between the means of two halves of the documents, over all tokens."""
    components: Float[Tensor, "d k"]
    """Orthonormal, most variance first."""
    variance: Float[Tensor, " k"]
    """Of the difference along each component."""
    total_variance: float
    mean_share: float
    """|mean|^2 over the mean of |difference|^2: how much of the difference is the same at every token."""
    n_tokens: int

    def patches(self, sizes: Sequence[int]) -> Patches:
        """The mean, and the mean with k components, as rows `mean` and `pca-K` beside a closure curve."""

        def patches(h_base: Tensor, h_tuned: Tensor) -> Iterator[tuple[str, Tensor]]:
            mean, components = self.mean.to(h_base), self.components.to(h_base)
            centred = h_tuned - h_base - mean
            yield "mean", h_base + mean
            for size in sizes:
                leading = components[:, :size]
                yield f"pca-{size}", h_base + mean + (centred @ leading) @ leading.T

        return patches


@torch.inference_mode()
def fit_difference(
    batches: Iterable[ActivationBatch], hook_point: str, *, k: int = 50, n_early: int = 8
) -> DenseDifference:
    """Fits on a paired store's batches, which hold difference:HOOK_POINT. Raises MetricError for fewer than two tokens."""
    fit, d = LinearFit(), 0
    early = early_n = halves = None
    squares = 0.0
    for batch in batches:
        rows = batch[f"difference:{hook_point}"].float()
        if early is None or early_n is None or halves is None:
            d = rows.shape[1]
            early, early_n = torch.zeros(n_early, d, dtype=torch.float64), torch.zeros(n_early, dtype=torch.int64)
            halves = torch.zeros(2, d, dtype=torch.float64)
        fit.add(rows)
        squares += float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2
        positions = batch.positions.long()
        first = positions < n_early
        early.index_add_(0, positions[first], rows[first].double())
        early_n += torch.bincount(positions[first], minlength=n_early)
        second = ((batch.document_ids >> 40) & 1).bool()
        for half, members in enumerate((~second, second)):
            halves[half] += rows[members].sum(0, dtype=torch.float64)
    if fit.n_tokens < 2 or early is None or early_n is None or halves is None:
        raise MetricError(
            f"The difference of two models needs at least 2 tokens; got {fit.n_tokens}. Collect more text."
        )
    components, variance, total = fit.spectrum(min(k, d))
    mean = fit.output_mean
    return DenseDifference(
        mean=mean,
        early=(early / early_n[:, None]).float(),
        early_tokens=tuple(early_n.tolist()),
        agreement=float(functional.cosine_similarity(halves[0], halves[1], dim=0)),
        components=components,
        variance=variance,
        total_variance=total,
        mean_share=float(mean.double().square().sum()) * fit.n_tokens / max(squares, 1e-300),
        n_tokens=fit.n_tokens,
    )


def difference_lens(
    model: LanguageModel, dense: DenseDifference, *, n: int = 20
) -> dict[str, Mapping[str, np.ndarray]]:
    """Tokens that each mean promotes and suppresses, as `logit_weights` gives them: `mean`, and `position-P` for the first tokens.

    `model` is the fine-tune, whole. Raises ModelError for one without its head, or a hook point off the residual stream.
    """
    names = ["mean"] + [f"position-{p}" for p, tokens in enumerate(dense.early_tokens) if tokens]
    rows = torch.stack(
        [dense.mean, *(row for row, tokens in zip(dense.early, dense.early_tokens, strict=True) if tokens)]
    )
    weights = logit_weights(model, rows.to(model.device), n)
    return {name: {key: values[i] for key, values in weights.items()} for i, name in enumerate(names)}


@dataclass(frozen=True, kw_only=True)
class TokenDifference:
    """One token of the vocabulary, and how much more probable the fine-tune finds it."""

    token_id: int
    difference: float
    """Mean over documents of a document's mean p_tuned - p_base."""
    standard_error: float | None
    """Over documents; None for fewer than two."""

    @property
    def z(self) -> float:
        """The difference in standard errors."""
        return self.difference / self.standard_error if self.standard_error else float("nan")


@torch.inference_mode()
def top_token_differences(
    base: LanguageModel, tuned: LanguageModel, text: SpliceText, *, n: int = 20, forward_tokens: int
) -> tuple[list[TokenDifference], list[TokenDifference], int]:
    """The n tokens whose probability rose most and the n that fell most, strongest first; and the number of documents."""
    left = Counter(piece.document_id for piece in text.pieces)  # a document's sum is dropped once all of it was seen
    sums: dict[int, Tensor] = {}
    n_tokens: Counter[int] = Counter()
    n_documents, total, squares = 0, torch.zeros(0), torch.zeros(0)
    for batch, _ in text.batches(forward_tokens):
        before, after = (model.logits(batch) for model in (base, tuned))
        for row, document in enumerate(batch.document_ids[:, 0].tolist()):
            real = batch.mask[row].to(before.device)
            change = (after[row][real].float().softmax(-1) - before[row][real].float().softmax(-1)).sum(0).cpu()
            sums[document] = sums.get(document, 0) + change
            n_tokens[document] += int(real.sum())
            left[document] -= 1
            if left[document] == 0:
                mean = sums.pop(document).double() / n_tokens[document]
                total = mean + (total if n_documents else 0)
                squares = mean.square() + (squares if n_documents else 0)
                n_documents += 1
    if n_documents == 0:
        raise MetricError("There is no text to compare logits on. Collect with heldout_tokens above 0.")
    mean = total / n_documents
    variance = (squares / n_documents - mean.square()).clamp_min(0) / max(1, n_documents - 1)

    def entries(order: Tensor) -> list[TokenDifference]:
        return [
            TokenDifference(
                token_id=int(i),
                difference=float(mean[i]),
                standard_error=float(variance[i].sqrt()) if n_documents > 1 else None,
            )
            for i in order
        ]

    return entries(mean.topk(n).indices), entries(mean.topk(n, largest=False).indices), n_documents
