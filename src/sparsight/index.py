"""SAE + store -> FeatureIndex: one pass over the held-out rows, each encoded once.

What is kept is every activation of every latent, so density, quantiles and any kind of passage follow without the SAE; and, counted from these
active pairs alone, what each latent is about: its tokens, what follows them, its neighbours, the latents active with it, a map of all.
With a second seed of the same SAE, each latent's nearest direction there and its most alike activation are kept too.
Held-out text only: the evidence that people and explainers see is text that training did not.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations import ActivationStore, PieceTable
from sparsight.errors import ActivationError, MetricError, SAEError
from sparsight.features import FeatureIndex, FeatureIndexWriter, IndexConfig
from sparsight.features.evidence import Evidence, PairEvidence, of_directions, of_embeddings, of_outputs
from sparsight.features.statistics import MapProcess
from sparsight.lm import LanguageModel
from sparsight.metrics import CrossMoments, SeedPartners, flat_tokens, seed_partners
from sparsight.sae import SparseAutoencoder, SparseLatents, screened, untrained_directions
from sparsight.steering import NORM_TOKENS

__all__ = ["build_index"]

_DEFAULTS = IndexConfig()


@torch.inference_mode()
def build_index(
    sae: SparseAutoencoder,
    store: ActivationStore,
    model: LanguageModel | None = None,
    *,
    second: SparseAutoencoder | None = None,
    path: str | Path,
    config: IndexConfig = _DEFAULTS,
    hook_point: str,
    target_hook_point: str = "",
) -> FeatureIndex:
    """Build features/ID at `path`, whole or not at all; with `model` also promoted and suppressed tokens, with `second` (the
    SAE from another seed) also each latent's partners there.

    Raises SAEError when an SAE does not fit the store, RunError when `path` is taken, MetricError when nothing is held
    out.
    """
    _check(sae, store, hook_point)
    comparison = None if second is None else _SeedComparison(sae, second)
    encoder = screened(sae)
    pieces, target = store.pieces("heldout"), target_hook_point or hook_point
    with FeatureIndexWriter.create(Path(path), pieces, sae.n_latents, config) as writer:
        with MapProcess(sae.n_latents if config.map else 0, writer.scratch) as process:
            mean_norm = _encode(encoder, store, pieces, config, hook_point, writer, comparison)
            grouped = writer.group()
            about: dict[str, Any] = {
                "architecture": sae.cfg.architecture,
                "n_latents": sae.n_latents,
                "hook_point": hook_point,
                "target_hook_point": target,
                "model": store.model,
                "split": "heldout",
                "mean_norm": mean_norm if hook_point == target else _mean_norm(store, target),
                "position_tokens": grouped.text.position_tokens().tolist(),
            }
            pairs = PairEvidence(sae, grouped, config, process)
            for arrays, facts in (
                pairs.found,
                of_directions(sae, grouped),
                of_embeddings(model, grouped),
                of_outputs(sae, model, grouped, pieces, config, target),
                _of_partners(comparison),
                pairs.map(),
            ):
                writer.set_arrays(arrays)
                about |= facts
        return writer.finish(about)


def _encode(
    sae: SparseAutoencoder,
    store: ActivationStore,
    pieces: PieceTable,
    config: IndexConfig,
    hook_point: str,
    writer: FeatureIndexWriter,
    comparison: "_SeedComparison | None",
) -> float:
    """The one pass: every row's latents go to the writer and the comparison. Returns the mean length of a row."""
    n_rows = min(config.heldout_tokens or store.n_tokens("heldout"), store.n_tokens("heldout"))
    n_done, lengths = 0, 0.0
    for batch in store.batches("heldout", config.batch_tokens, hook_points=[hook_point]):
        n = min(len(batch), n_rows - n_done)
        if not n:
            break
        n_done += n
        x = batch[hook_point][:n].to(sae.W_enc.device).float()
        latents = sae.encode_sparse(x)
        lengths += float(x.norm(dim=1).sum())
        if comparison is not None:
            comparison.add(x, latents)
        tokens = flat_tokens(pieces, batch.piece_ids[:n], batch.positions[:n])
        writer.add(tokens, latents.indices.cpu().numpy(), latents.values.float().cpu().numpy())
    return lengths / n_done


def _of_partners(comparison: "_SeedComparison | None") -> Evidence:
    """Each latent's partners in the second seed."""
    partners = None if comparison is None else comparison.partners()
    if partners is None:
        return {}, {"seed_chance_cosine": None}
    return _columns(partners), {"seed_chance_cosine": partners.chance_cosine}


def _mean_norm(store: ActivationStore, hook_point: str) -> float | None:
    """Mean length of the activations that edits act on, over the first held-out rows; None where the store lacks them."""
    if hook_point not in store.hook_points:
        return None
    batch = next(iter(store.batches("heldout", NORM_TOKENS, hook_points=[hook_point])))
    return float(batch[hook_point].float().norm(dim=1).mean())


class _SeedComparison:
    """The SAE and its second seed on the same rows."""

    def __init__(self, sae: SparseAutoencoder, second: SparseAutoencoder) -> None:
        widths = [(each.d_in, each.d_out) for each in (sae, second)]
        if widths[0] != widths[1]:
            raise SAEError(
                f"The SAE maps {widths[0]}, its second seed {widths[1]}: give the same SAE from another seed."
            )
        self.sae, self.second, self.encoder = sae, second, screened(second)
        self.moments = CrossMoments(sae.n_latents, second.n_latents, sae.W_enc.device)

    def add(self, x: Float[Tensor, "n d_in"], latents: SparseLatents) -> None:
        """Count rows and the SAE's latents of them."""
        self.moments.add(latents, self.encoder.encode_sparse(x))

    def partners(self) -> SeedPartners | None:
        """Of all rows so far."""
        drawn = untrained_directions(self.second)
        return seed_partners(self.sae.W_dec, self.second.W_dec, drawn, self.moments)


def _columns(partners: SeedPartners) -> dict[str, np.ndarray]:
    """The arrays of the index that hold them."""
    columns = {"seed_cosine": partners.cosine, "seed_cosine_latent": partners.cosine_latent}
    if partners.correlation is not None and partners.correlation_latent is not None:
        columns |= {
            "seed_correlation": partners.correlation,
            "seed_correlation_latent": partners.correlation_latent,
        }
    return columns


def _check(sae: SparseAutoencoder, store: ActivationStore, hook_point: str) -> None:
    width = store.hook_points.get(hook_point)
    if width is None:
        held = ", ".join(store.hook_points)
        raise ActivationError(
            f"The store holds no hook point `{hook_point}`, but {held}. Name one of these, or collect at it."
        )
    if width != sae.d_in:
        raise SAEError(
            f"The store's `{hook_point}` is {width} wide; this SAE expects d_in={sae.d_in}. "
            "Index it at the hook point it was trained on, or collect that one."
        )
    if not store.n_tokens("heldout"):
        raise MetricError("The store has no held-out rows to index. Collect with heldout_tokens above 0.")
