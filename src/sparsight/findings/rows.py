"""A paired store at one hook point, as the rows that each measurement asks for; read anew each time."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, cat, inference_mode

from sparsight.activations import ActivationBatch, ActivationStore
from sparsight.errors import MetricError
from sparsight.metrics import ReconstructionSums
from sparsight.sae import SparseAutoencoder

__all__ = ["PairedRows"]

_BATCH = 1024


class PairedRows:
    """What the models of a comparison did at its hook point."""

    def __init__(self, store: ActivationStore, hook_point: str):
        self.store, self.hook_point = store, hook_point

    def of(self, view: str, split: str = "heldout") -> Iterator[Float[Tensor, "n width"]]:
        """Rows of one view: a role, or difference, both and their like."""
        name = f"{view}:{self.hook_point}"
        for batch in self.store.batches(split, _BATCH, hook_points=[name]):
            yield batch[name].float()

    def differences(self, role: str) -> Iterator[ActivationBatch]:
        """Train rows of a fine-tune's difference, by the name that fits look for."""
        name, asked = ("difference" if role == "tuned" else f"{role}-difference"), f"difference:{self.hook_point}"
        for batch in self.store.batches("train", _BATCH, hook_points=[f"{name}:{self.hook_point}"]):
            yield replace(batch, activations={asked: batch[f"{name}:{self.hook_point}"]})

    def trained_on(self, at_least: int = 200_000) -> Iterator[ActivationBatch]:
        """Train rows of base and tuned; of a store with twice `at_least` rows or more every n-th batch, as many batches as give that."""
        names = [f"{role}:{self.hook_point}" for role in ("base", "tuned")]
        every = max(1, self.store.n_tokens("train") // at_least)
        return islice(self.store.batches("train", _BATCH, hook_points=names), 0, None, every)

    def pairs(
        self, first: str = "base", second: str = "tuned"
    ) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n d"], Float[Tensor, "n d"]]]:
        """Document ids and two models' rows, held out."""
        names = [f"{role}:{self.hook_point}" for role in (first, second)]
        for batch in self.store.batches("heldout", _BATCH, hook_points=names):
            one, two = (batch[name].float() for name in names)
            yield batch.document_ids, one, two

    @inference_mode()
    def measured(self, sae: SparseAutoencoder) -> dict[str, Any]:
        """FVU and L0 on the held-out rows of the view that an SAE was trained on."""
        name, sums = sae.cfg.hook_point, None
        for batch in self.store.batches("heldout", _BATCH, hook_points=[name]):
            x = batch[name].float()
            latents = sae.encode_sparse(x)
            sums = sums or ReconstructionSums(["rebuilt"], x.mean(0), extra=["l0"])
            l0 = (latents.values > 0).sum(1).float()
            sums.add(x, {"rebuilt": sae.decode_sparse(latents)}, batch.document_ids, extra={"l0": l0})
        if sums is None:
            raise MetricError(f"{name} has no held-out rows to measure {sae.cfg.id} on.")
        found = sums.finish()
        n_tokens = found.total("tokens")
        return {"fvu": sums.fvu("rebuilt"), "l0": found.total("l0") / n_tokens, "n_tokens": int(n_tokens)}

    def side_by_side(self) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n width"]]]:
        """Document ids, and both models' rows as a crosscoder reads them."""
        return ((ids, cat([base, tuned], 1)) for ids, base, tuned in self.pairs())
