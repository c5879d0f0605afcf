"""Latent scaling: is what one model's latent writes in the other model after all?

A crosscoder's decoder norms call too many latents one model's own. An L1 penalty shrinks the weaker norm to nothing and leaves its part in the error
(shrinkage), or describes one shared feature by two latents, one for each model (decoupling). So the latent is fitted to what it did not explain:

    c(y, u) = sum z <y, u> / sum z^2       how strongly y holds the unit direction u when the latent fires: least squares through the origin
    y       = the model's error with the latent's own part added back,  h - h' + z d        (error)
              the model's reconstruction less its bias, the latent's part included             (reconstruction)
              the model's activation less that bias: h - h' and the line above together        (activation)
    nu      = c in the other model / c in the latent's own model, the latter along its own decoder
              the former along its own model's decoder, and along the other's

Where the error of the other model holds it, it was shrunk; where the other's reconstruction holds it, another latent carries it. It is exclusive when
neither does along either decoder: nu of the error below 0.2 and of the reconstruction below 0.5, by the upper ends of their intervals. A latent
counts as present when one lower end exceeds its limit; between the two, nothing is said. With c, which is beta |d|, nothing depends on how norms
are shared between a latent and its row. For an SAE of one model, whose latents the other's SAE does not have, the other decoder is absent.

nu of the activation says how much of the latent the other model has, whoever explains it: 0 of an exclusive one, the cosine of one that turned, the
ratio of one re-weighted, 1 of one that is shared, whether the other's dictionary found it or not.

Intervals are over documents, percentiles of resampled sums. Every latent is measured: none is preselected by its norms.
Sources: Wright & Sharkey 2024 (scaling), Minder 2025, arXiv:2504.02922 (both artefacts, nu, the limits; there with the fine-tune's decoder alone).
Trade-off: a table of documents x latents x 9 numbers in float64 (332 MB for 1,000 documents and 4,608 latents).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from sparsight.errors import MetricError
from sparsight.metrics import document_weights
from sparsight.sae import SparseAutoencoder, SparseLatents, model_decoders

__all__ = ["LatentScaling", "ScalingSums", "scaled_crosscoder", "scaled_sae"]

ERROR_LIMIT, RECONSTRUCTION_LIMIT = 0.2, 0.5
_LATENTS_AT_ONCE = 256
# of all latents active on all tokens, above which one product of matrices is faster than a dot product for each that is
_DENSE_SHARE = 1 / 100
# rows of targets and of directions that are fetched at once: more than these 4 MB of each fall out of a core's cache (three times slower)
_NUMBERS_AT_ONCE = 2**20
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class LatentScaling:
    """nu of every latent seen as the own model's, each with its interval: of error, reconstruction and activation, along own and other decoder.

    NaN where the latent never fired, has no decoder there, or is not written in its own model.
    """

    nu: Float[np.ndarray, "3 2 F"]
    low: Float[np.ndarray, "3 2 F"]
    high: Float[np.ndarray, "3 2 F"]
    n_documents: int
    n_tokens: int

    def exclusive(
        self, error_limit: float = ERROR_LIMIT, reconstruction_limit: float = RECONSTRUCTION_LIMIT
    ) -> Bool[np.ndarray, " F"]:
        """Latents that the other model is shown not to have."""
        limits = np.array([error_limit, reconstruction_limit])[:, None, None]
        measured = np.all(np.isfinite(self.nu[:2, 0]), axis=0)  # along its own decoder at least
        return measured & np.all(np.isnan(self.high[:2]) | (self.high[:2] < limits), axis=(0, 1))

    def present(
        self, error_limit: float = ERROR_LIMIT, reconstruction_limit: float = RECONSTRUCTION_LIMIT
    ) -> Bool[np.ndarray, " F"]:
        """Latents that the other model is shown to have."""
        limits = np.array([error_limit, reconstruction_limit])[:, None, None]
        return np.any(np.nan_to_num(self.low[:2], nan=-np.inf) > limits, axis=(0, 1))

    def changed(self, least_ratio: float = 1.25) -> Bool[np.ndarray, " F"]:
        """Latents of which the other model's activations hold, along its own decoder, another amount: the whole interval is off 1 by this ratio."""
        with np.errstate(invalid="ignore"):
            return (self.high[2, 0] < 1 / least_ratio) | (self.low[2, 0] > least_ratio)

    def same(self, least_ratio: float = 1.25) -> Bool[np.ndarray, " F"]:
        """Latents of which they hold the same amount: the whole interval is within this ratio of 1."""
        with np.errstate(invalid="ignore"):
            return (self.low[2, 0] > 1 / least_ratio) & (self.high[2, 0] < least_ratio)


class ScalingSums:
    """Sums per document from which nu and its interval follow; filled batch by batch."""

    def __init__(self, decoders: Mapping[str, Float[Tensor, "F d"] | None]) -> None:
        """`decoders`: the latents' rows in either model, by the models' names; None: not in the dictionary of that model."""
        given = [rows for rows in decoders.values() if rows is not None]
        if len(decoders) != 2 or not given or len({tuple(rows.shape) for rows in given}) != 1:
            raise MetricError(f"Latent scaling takes the decoders of two models, of one shape; got {sorted(decoders)}.")
        self.models = tuple(decoders)
        rows = [torch.zeros_like(given[0]) if decoder is None else decoder for decoder in decoders.values()]
        self._known = [decoder is not None for decoder in decoders.values()]
        self._rows = torch.stack(rows).double()
        self._units = functional.normalize(torch.stack(rows).float(), dim=2)
        self.n_tokens = 0
        self._places: dict[int, int] = {}
        """Document -> its row of the table."""
        self._table = torch.zeros(0, self._units.shape[1], 1 + 2**3, dtype=torch.float64)
        """Of each document and latent: squares of activations, then products with [error | reconstruction], of either model, along either decoder."""

    def add(
        self,
        document_ids: Int[Tensor, " n"],
        latents: SparseLatents,
        errors: Mapping[str, Float[Tensor, "n d"]],
        reconstructions: Mapping[str, Float[Tensor, "n d"]],
    ) -> None:
        """Count a batch: its active latents, what each model's reconstruction misses (h - h'), and that reconstruction less its bias."""
        self.n_tokens += len(latents.values)
        places = self._places_of(document_ids)
        n_latents = self._units.shape[1]
        targets = [rows[model].float() for rows in (errors, reconstructions) for model in self.models]
        active = latents.values > 0
        token, z, latent = active.nonzero()[:, 0], latents.values[active].float(), latents.indices[active].long()
        dense = len(z) > _DENSE_SHARE * len(active) * n_latents
        columns = [z.square()]
        columns += [
            z * _dots(target, units, token, latent, dense) if known else torch.zeros_like(z)
            for target in targets
            for units, known in zip(self._units, self._known, strict=True)
        ]
        cells = places[token.cpu()] * n_latents + latent.cpu()
        self._table.view(-1, self._table.shape[2]).index_add_(0, cells, torch.stack(columns, 1).cpu().double())

    def finish(self, own: str, *, n_resamples: int = 200, seed: int = 0) -> LatentScaling:
        """nu of every latent as one that the model `own` has and the other may lack. Raises MetricError with fewer than 2 documents."""
        if not self._places:
            raise MetricError("Latent scaling was given no activations.")
        ids = sorted(self._places)
        if len(ids) < 2:
            raise MetricError(f"Latent scaling needs at least 2 documents for its intervals; got {len(ids)}.")
        rows = torch.tensor([self._places[id] for id in ids])
        mine = self.models.index(own)
        draws = torch.from_numpy(document_weights(np.random.default_rng(seed), len(ids), n_resamples))
        n_latents = self._table.shape[1]
        found = torch.full((3, 3, 2, n_latents), torch.nan, dtype=torch.float64)
        for start in range(0, n_latents, _LATENTS_AT_ONCE):
            block = slice(start, start + _LATENTS_AT_ONCE)
            part = self._table[rows, block].transpose(1, 2).contiguous()
            drawn = (draws @ part.flatten(1)).view(n_resamples, *part.shape[1:])
            found[0, ..., block] = self._ratios(part.sum(0)[None], block, mine)[0]
            ratios = self._ratios(drawn, block, mine).numpy()
            with np.errstate(all="ignore"):
                found[1:, ..., block] = torch.from_numpy(np.percentile(ratios, _PERCENTILES, axis=0))
        nu, low, high = found.numpy()
        return LatentScaling(nu=nu, low=low, high=high, n_documents=len(ids), n_tokens=self.n_tokens)

    def _ratios(self, sums: Float[Tensor, "r 9 f"], block: slice, mine: int) -> Float[Tensor, "r 3 2 f"]:
        """nu of these latents from sums, [error | reconstruction | activation, own | other decoder]."""
        squares, rest = sums[:, :1], sums[:, 1:].unflatten(1, (2, 2, 2))  # kind, model, decoder
        own_part = torch.einsum("mfd,nfd->mnf", self._rows[:, block], self._units[:, block].double())
        error, rebuilt = (rest / squares[:, :, None, None]).unbind(1)
        strengths = torch.stack([error + own_part, rebuilt, error + rebuilt], 1)
        other = 1 - mine
        reference = strengths[:, :, mine, mine]
        ratios = strengths[:, :, other][:, :, [mine, other]] / reference[:, :, None]
        known = self._units[:, block].abs().sum(2)[[mine, other]] > 0
        return torch.where((reference > 0)[:, :, None] & known, ratios, torch.nan)

    def _places_of(self, document_ids: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The table's row of each token's document; new ones get the next, and the table grows by doubling."""
        ids, inverse = np.unique(document_ids.cpu().numpy(), return_inverse=True)
        places = torch.tensor([self._places.setdefault(int(id), len(self._places)) for id in ids])
        missing = len(self._places) - len(self._table)
        if missing > 0:
            more = torch.zeros(max(missing, len(self._table)), *self._table.shape[1:], dtype=torch.float64)
            self._table = torch.cat([self._table, more])
        return places[torch.from_numpy(inverse)]


@torch.no_grad()
def scaled_crosscoder(
    crosscoder: SparseAutoencoder,
    batches: Iterable[tuple[Int[Tensor, " n"], Float[Tensor, "n width"]]],
    models: tuple[str, str] = ("base", "tuned"),
) -> ScalingSums:
    """The sums of a crosscoder of two models. `batches`: document ids, and both models' activations side by side, in the order of `models`."""
    sums = ScalingSums(dict(zip(models, model_decoders(crosscoder.W_dec), strict=True)))
    for document_ids, x in batches:
        latents = crosscoder.encode_sparse(x)
        rebuilt = _written(latents, crosscoder)
        errors = (x - crosscoder.b_dec - rebuilt).chunk(2, 1)
        sums.add(
            document_ids,
            latents,
            dict(zip(models, errors, strict=True)),
            dict(zip(models, rebuilt.chunk(2, 1), strict=True)),
        )
    return sums


@torch.no_grad()
def scaled_sae(
    own: SparseAutoencoder,
    other: SparseAutoencoder,
    batches: Iterable[tuple[Int[Tensor, " n"], Float[Tensor, "n d"], Float[Tensor, "n d"]]],
    latents: tuple[SparseLatents, SparseLatents] | None = None,
) -> ScalingSums:
    """The sums of one model's SAE against the other model and its SAE, as models "own" and "other".

    `batches`: document ids, the own model's activations and the other's, on the same tokens. `latents`: both SAEs' on all these tokens in
    their order, where they are known, as in `Dictionary.latents`.
    """
    sums = ScalingSums({"own": own.W_dec, "other": None})
    for document_ids, x_own, x_other in batches:
        if latents is None:
            mine, theirs = own.encode_sparse(x_own), other.encode_sparse(x_other)
        else:
            here = slice(sums.n_tokens, sums.n_tokens + len(x_own))
            mine, theirs = (SparseLatents(*(each[here].to(x_own.device) for each in known)) for known in latents)
        rebuilt = {"own": _written(mine, own), "other": _written(theirs, other)}
        errors = {"own": x_own - own.b_dec - rebuilt["own"], "other": x_other - other.b_dec - rebuilt["other"]}
        sums.add(document_ids, mine, errors, rebuilt)
    if latents is not None and any(len(each.values) != sums.n_tokens for each in latents):
        given = " and ".join(f"{len(each.values):,}" for each in latents)
        raise MetricError(
            f"Latents on {given} tokens are not those of {sums.n_tokens:,} rows. Give those of the same rows."
        )
    return sums


def _dots(
    target: Float[Tensor, "n d"],
    units: Float[Tensor, "F d"],
    token: Int[Tensor, " a"],
    latent: Int[Tensor, " a"],
    dense: bool,
) -> Float[Tensor, " a"]:
    """<target[token], units[latent]> of each active latent."""
    if dense:
        return (target @ units.T)[token, latent]
    at_once = max(1, _NUMBERS_AT_ONCE // units.shape[1])
    parts = zip(token.split(at_once), latent.split(at_once), strict=True)
    return torch.cat([torch.linalg.vecdot(target[rows], units[columns]) for rows, columns in parts])


def _written(latents: SparseLatents, sae: SparseAutoencoder) -> Float[Tensor, "n d"]:
    """The reconstruction less its bias."""
    indices, values = latents
    return functional.embedding_bag(indices, sae.W_dec, per_sample_weights=values, mode="sum")
