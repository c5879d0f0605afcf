"""How much of a planted dictionary a trained one found: by direction, by firing, by magnitude. Only where the truth is known.

    matching      each true feature i's latent j: the one-to-one assignment with the largest total cos(features_i, W_dec_j)          Kuhn 1955
    MCC           mean over the features of the matched cosine; 0 for a feature without a latent       Hyvarinen 2016, arXiv:1605.06336
    recovered     share of features whose matched cosine exceeds 0.9; also by thirds of the features, in order of their rate
    precision_i   tokens on which both fire / tokens on which the latent fires; 0 when it never does
    recall_i      tokens on which both fire / tokens on which the feature fires
    F1_i          2 both / (latent fires + feature fires)                                       the three: van Rijsbergen 1979
    shrinkage_i   sum z_j |W_dec_j| a_i / sum a_i^2 over tokens on which both fire: least squares through the origin; 1 is none,
                  below 1 shrunk                            the effect: Wright & Sharkey 2024; Rajamanoharan 2024, arXiv:2404.16014
    absorption_p  share of a parent's tokens on which its latent is silent and a child's active   after Chanin 2024, arXiv:2409.14507

`z` are latents, `a` true magnitudes, on held-out tokens. Cosines are signed, since latents and magnitudes are positive: a latent that points away
has found nothing. Precision, recall and F1 are means over features that fire at all, whatever their cosine, so a matching at chance costs; shrinkage
is a median over recovered features, since of a wrong latent it says nothing. Absorption is a mean over parents. A latent may be silent for another
reason, so two rates stand beside it: how often the parent's latent is silent when a child truly fires, and when none does.

Trade-off: the matching is by direction alone, so that dead latents take part in it and a feature that two latents share is marked on one of them; its
time grows with the cube of the number of features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sparsight.errors import MetricError

__all__ = ["RECOVERED_COSINE", "Absorption", "DictionaryRecovery", "Matching", "RecoverySums", "match_features"]

RECOVERED_COSINE = 0.9
_RATE_CLASSES = 3


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Each true feature's latent."""

    latent: Int[np.ndarray, " n_features"]
    """-1 for a feature that found none, when there are fewer latents than features."""
    cosine: Float[np.ndarray, " n_features"]
    """Signed; 0 for a feature without a latent."""

    @property
    def mcc(self) -> float:
        """Mean matched cosine."""
        return float(self.cosine.mean())

    @property
    def recovered(self) -> Bool[np.ndarray, " n_features"]:
        """Whether the matched cosine exceeds 0.9."""
        return self.cosine > RECOVERED_COSINE


@dataclass(frozen=True, kw_only=True)
class Absorption:
    """What parents' latents do on their parents' tokens; shares, means over parents."""

    rate: float
    """Parent's latent silent and a child's active, of all tokens of the parent."""
    silent_with_child: float
    """Parent's latent silent, of the parent's tokens on which a child truly fires."""
    silent_alone: float
    """Parent's latent silent, of the parent's tokens on which none does: the control."""
    n_parents: int
    """Parents with children that fired, with and without them."""


@dataclass(frozen=True, kw_only=True)
class DictionaryRecovery:
    """What one dictionary found of another, on `n_tokens` held-out tokens."""

    mcc: float
    recovered: float
    recovered_by_rate: tuple[float, ...]
    """Thirds of the features: those that fire most often, the middle, the rarest."""
    precision: float
    recall: float
    f1: float
    shrinkage: float
    """NaN when nothing was recovered."""
    n_shrinkage: int
    """Recovered features whose latent fired with them: over which shrinkage is a median."""
    absorption: Absorption | None
    """None without a hierarchy."""
    n_features: int
    n_tokens: int


def match_features(W_dec: Float[Tensor, "F d"], features: Float[Tensor, "n_features d"]) -> Matching:
    """The one-to-one matching of features with decoder rows that has the largest total cosine."""
    from scipy.optimize import linear_sum_assignment  # half a second to import

    cosines = functional.normalize(features, dim=1) @ functional.normalize(W_dec.to(features), dim=1).T
    table = cosines.double().cpu().numpy()
    rows, columns = linear_sum_assignment(table, maximize=True)
    latent, cosine = np.full(len(features), -1), np.zeros(len(features))
    latent[rows], cosine[rows] = columns, table[rows, columns]
    return Matching(latent=latent, cosine=cosine)


class RecoverySums:
    """Counts of who fires with whom, batch by batch; then a DictionaryRecovery."""

    def __init__(
        self,
        W_dec: Float[Tensor, "F d"],
        features: Float[Tensor, "n_features d"],
        parents: Int[Tensor, " n_features"] | None = None,
    ) -> None:
        """`parents`: each feature's parent, negative for none; None: no hierarchy."""
        self.matching = match_features(W_dec, features)
        self.n_tokens = 0
        has_latent = torch.from_numpy(self.matching.latent >= 0)
        self._latent = torch.from_numpy(self.matching.latent).clamp_min(0)
        self._norm = torch.linalg.vector_norm(W_dec, dim=1).cpu()[self._latent] * has_latent
        n = len(features)
        self._both, self._latents, self._truth, self._products, self._squares = torch.zeros(5, n, dtype=torch.float64)
        self._children = None if parents is None or (parents < 0).all() else _membership(parents)
        # of a parent's tokens: all, with a child, without; and of each how often its latent was silent; and absorbed
        self._tokens, self._silent = torch.zeros(2, 2, n, dtype=torch.float64)
        self._absorbed = torch.zeros(n, dtype=torch.float64)

    def add(self, latents: Float[Tensor, "n F"], magnitudes: Float[Tensor, "n n_features"]) -> None:
        """Count a batch of dense latents and the true magnitudes (0: does not fire) of the same tokens. Raises MetricError."""
        if len(latents) != len(magnitudes) or magnitudes.shape[1] != len(self._norm):
            raise MetricError(
                f"Latents of {len(latents)} tokens cannot be marked against the magnitudes of {magnitudes.shape[1]} features on "
                f"{len(magnitudes)} tokens; {len(self._norm)} features on the same tokens are expected."
            )
        self.n_tokens += len(latents)
        z = latents.cpu()[:, self._latent] * self._norm
        found, fires = z > 0, magnitudes > 0
        both = found & fires
        self._both += both.sum(0)
        self._latents += found.sum(0)
        self._truth += fires.sum(0)
        self._products += (z * magnitudes).sum(0, dtype=torch.float64)
        self._squares += (magnitudes.square() * both).sum(0, dtype=torch.float64)
        if self._children is not None:
            self._add_families(found, fires, self._children)

    def finish(self) -> DictionaryRecovery:
        """The metrics. Raises MetricError when no feature fired."""
        fired = self._truth > 0
        if not fired.any():
            raise MetricError(f"No true feature fired on {self.n_tokens} tokens; draw more of them.")
        both, latents, truth = self._both[fired], self._latents[fired], self._truth[fired]
        recovered = torch.from_numpy(self.matching.recovered)
        slopes = (self._products / self._squares)[recovered & (self._both > 0)]
        return DictionaryRecovery(
            mcc=self.matching.mcc,
            recovered=float(recovered.double().mean()),
            recovered_by_rate=tuple(
                float(recovered[part].double().mean())
                for part in self._truth.argsort(descending=True, stable=True).tensor_split(_RATE_CLASSES)
            ),
            precision=float((both / latents.clamp_min(1)).mean()),
            recall=float((both / truth).mean()),
            f1=float((2 * both / (latents + truth)).mean()),
            shrinkage=float(slopes.quantile(0.5)) if len(slopes) else float("nan"),
            n_shrinkage=len(slopes),
            absorption=self._absorption(),
            n_features=len(self._truth),
            n_tokens=self.n_tokens,
        )

    def _add_families(self, found: Tensor, fires: Tensor, children: Tensor) -> None:
        a_child_fires = (fires.float() @ children) > 0
        a_child_is_found = (found.float() @ children) > 0
        silent = fires & ~found
        for row, of_these in enumerate((a_child_fires, ~a_child_fires)):
            self._tokens[row] += (fires & of_these).sum(0)
            self._silent[row] += (silent & of_these).sum(0)
        self._absorbed += (silent & a_child_is_found).sum(0)

    def _absorption(self) -> Absorption | None:
        if self._children is None:
            return None
        counted = (self._children.sum(0) > 0) & (self._tokens > 0).all(0)
        tokens, silent = self._tokens[:, counted], self._silent[:, counted]
        with_child, alone = (silent / tokens).mean(1).tolist()
        return Absorption(
            rate=float((self._absorbed[counted] / tokens.sum(0)).mean()),
            silent_with_child=with_child,
            silent_alone=alone,
            n_parents=int(counted.sum()),
        )


def _membership(parents: Int[Tensor, " n"]) -> Float[Tensor, "n n"]:
    """[child, parent]: 1 where it is."""
    table = torch.zeros(len(parents), len(parents))
    (children,) = (parents >= 0).nonzero(as_tuple=True)
    table[children, parents[children]] = 1
    return table
