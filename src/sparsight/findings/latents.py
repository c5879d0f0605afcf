"""Every latent of both models' SAEs, labelled beside its nulls: the numbers of a comparison that are about latents.

    real      the fine-tune's seeds against the base's
    null      the null fine-tune's seeds against the base's: what any training changes
    reseed    the base's seeds against each other: what chance changes

    naive         latents of one SAE without a partner above cosine 0.7 in one SAE of the other model, of those that fired
    calibrated    latents labelled emergent (see diff.labelling), a mean over the SAEs of a side

The null that p-values are taken from is the null fine-tune, where there is one, else the seeds. The null fine-tune itself is tested against
the seeds. Latent scaling decides beside the seeds, of the null fine-tune's latents as of the fine-tune's. Between seeds of one model it has nothing
to compare, their activations being the same: reseed is what the seeds alone say, to be held against what they alone say of the fine-tune
(`counts_by_seeds`).
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int
from torch import Tensor

from sparsight.diff import (
    CHANGES,
    LABELS,
    ComparedSeeds,
    Dictionary,
    LabelConfig,
    Labelled,
    LatentScaling,
    Partners,
    SeedTables,
    decoder_drift,
    drift_test,
    label_seeds,
    matched,
    mutual_pairs,
    naive_emergent,
    pw_mcc,
    scaled_crosscoder,
    scaled_sae,
)
from sparsight.findings.rows import PairedRows
from sparsight.findings.tables import write_table
from sparsight.sae import SparseAutoencoder, relative_norm

__all__ = ["LatentFindings"]

_LEAST_SEEDS = 3
_EXCLUSIVE = (0.1, 0.9)  # of the relative norm: what a crosscoder alone calls one model's own


class LatentFindings:
    """The labels, the tests behind them, and what was asked of the latents besides."""

    def __init__(self, dictionaries: Mapping[str, Sequence[Dictionary]], config: LabelConfig):
        self.dictionaries, self.config = dictionaries, config
        self.scaling: dict[str, LatentScaling] = {}
        self._found: dict[str, Any] = {}

    @cached_property
    def compared(self) -> ComparedSeeds:
        """Every SAE of base and tuned, labelled; after `scale`, whose word is taken into account."""
        return label_seeds(self._tables, scaling=self._scaling_of("tuned", "base"), config=self.config)

    @cached_property
    def by_seeds(self) -> ComparedSeeds:
        """The same without latent scaling."""
        return label_seeds(self._tables, config=self.config)

    @cached_property
    def of_null(self) -> ComparedSeeds | None:
        """The null fine-tune in the fine-tune's place, where it has 3 seeds."""
        if self._null_tables is None:
            return None
        scaling = self._scaling_of("null")
        return label_seeds(self._null_tables, scaling=scaling and {"tuned": scaling["null"]}, config=self.config)

    @cached_property
    def null_by_seeds(self) -> ComparedSeeds | None:
        """The same without latent scaling."""
        return self._null_tables and label_seeds(self._null_tables, config=self.config)

    @cached_property
    def _tables(self) -> SeedTables:
        return SeedTables.of(*(self.dictionaries.get(role, ()) for role in ("base", "tuned", "null")))

    @cached_property
    def _null_tables(self) -> SeedTables | None:
        null = self.dictionaries.get("null", ())
        return SeedTables.of(self.dictionaries["base"], null) if len(null) >= _LEAST_SEEDS else None

    def _scaling_of(self, *roles: str) -> dict[str, list[LatentScaling]]:
        found = {
            role: [self.scaling[f"{role}.{seed}"] for seed in range(len(self.dictionaries[role]))] for role in roles
        }
        return found if self.scaling else {}

    @cached_property
    def first_pair(self) -> tuple[Partners, Partners]:
        """Partners of tuned.0 in base.0, and back."""
        return matched(self.dictionaries["tuned"][0], self.dictionaries["base"][0])

    def scale(self, saes: Mapping[str, Sequence[SparseAutoencoder]], rows: PairedRows) -> None:
        """Latent scaling of every SAE against another model's first, which decides beside the seeds: of the base against the fine-tune, of either
        fine-tune against the base."""
        for role, seeds in saes.items():
            other = "tuned" if role == "base" else "base"
            for seed, sae in enumerate(seeds):
                known = self.dictionaries[role][seed].latents, self.dictionaries[other][0].latents
                sums = scaled_sae(sae, saes[other][0], rows.pairs(role, other), known)
                self.scaling[f"{role}.{seed}"] = sums.finish("own")

    def scale_crosscoder(self, name: str, crosscoder: SparseAutoencoder, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """How many latents a crosscoder's norms call one model's own, and how many of them latent scaling leaves."""
        sums = scaled_crosscoder(crosscoder, rows)
        delta = relative_norm(crosscoder.W_dec).detach().numpy()
        found = {"latents": len(delta)}
        for model, claimed in (("base", delta < _EXCLUSIVE[0]), ("tuned", delta > _EXCLUSIVE[1])):
            scaling = sums.finish(model)
            measured = np.isfinite(scaling.nu[0, 0])
            found |= {
                f"{model}_by_norm": int((claimed & measured).sum()),
                f"{model}_by_scaling": int(scaling.exclusive().sum()),
                f"{model}_both": int((claimed & scaling.exclusive()).sum()),
            }
        self._found.setdefault("crosscoders", {})[name] = found

    def drift(
        self,
        warm: Mapping[str, SparseAutoencoder],
        start: SparseAutoencoder,
        firings: Mapping[str, Int[np.ndarray, " F"]],
    ) -> None:
        """How far a warm start's latents turned, in each model, of those that fire there; the fine-tune's beside the null fine-tune's."""
        found: dict[str, Any] = {}
        for role, sae in warm.items():
            alive = firings[role] > 0
            turned = decoder_drift(start.W_dec.detach(), sae.W_dec.detach())[alive]
            found[role] = {"mean": float(turned.mean()), "p95": float(np.quantile(turned, 0.95)), "n": int(alive.sum())}
        if "null" in warm:
            test = drift_test(
                start.W_dec.detach(),
                warm["tuned"].W_dec.detach(),
                warm["null"].W_dec.detach(),
                firings["tuned"],
                firings["null"],
                least_firings=self.config.least_firings,
            )
            found["beyond_null"] = int((test.test.q <= self.config.q).sum())
            found["n_tested"] = test.test.n_tested
        self._found["drift"] = found

    @property
    def changed(self) -> list[int]:
        """Latents of tuned.0 called emergent, rotated or reweighted, most different first."""
        labelled = self.compared.tuned[0]
        return self._most_different(np.isin(labelled.label, [LABELS.index(label) for label in CHANGES]))

    def to_show(self, n: int) -> list[int]:
        """Latents of tuned.0 to look at: those called changed; without any, the most different of those tested."""
        return (self.changed or self._most_different(np.isfinite(self.compared.tuned[0].tests["direction"].p)))[:n]

    def _most_different(self, chosen: Bool[np.ndarray, " F"]) -> list[int]:
        pool = np.flatnonzero(chosen)
        return pool[np.argsort(-self.compared.tuned[0].gaps.direction[pool], kind="stable")].tolist()

    def to_json(self) -> dict[str, Any]:
        """Counts of every side, both methods, the tests, the drift, the crosscoders and the points of a volcano."""
        dictionaries, first = self.dictionaries, self.compared.tuned[0]
        counts, by_seeds = self._counts(self.compared, self.of_null), self._counts(self.by_seeds, self.null_by_seeds)
        naive, similar = self._naive()
        q = first.tests["direction"].q
        return {
            "against": "the null fine-tune" if dictionaries.get("null") else "seeds of the base",
            "n_tokens": dictionaries["base"][0].n_tokens,
            "seeds": {role: len(each) for role, each in dictionaries.items()},
            "config": vars(self.config),
            "changed": self.changed,
            "counts": counts,
            "counts_by_seeds": by_seeds,
            "naive": naive,
            "pw_mcc": similar,
            "tests": {
                measure: {"n_tested": test.n_tested, "n_null": test.n_null, "least_p": test.least_p}
                for measure, test in first.tests.items()
            },
            "volcano": [
                [
                    latent,
                    float(first.gaps.direction[latent]),
                    float(q[latent]),
                    LABELS[first.label[latent]],
                    int(first.gaps.firings[latent]),
                ]
                for latent in np.flatnonzero(np.isfinite(q)).tolist()
            ],
            **self._found,
        }

    @staticmethod
    def _counts(compared: ComparedSeeds, of_null: ComparedSeeds | None) -> dict[str, list[dict[str, int]]]:
        """Latents of each label, of every SAE of a side."""
        sides = {"tuned": compared.tuned, "base": compared.base, "reseed": compared.null}
        sides |= {} if of_null is None else {"null": of_null.tuned}
        return {side: [each.counts() for each in labelled] for side, labelled in sides.items()}

    def _naive(self) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
        """What matching alone says of the fine-tune, another seed and the null fine-tune: latents without a partner, and PW-MCC."""
        dictionaries, counts, similar = self.dictionaries, {}, {}
        pairs = {"real": ("tuned", "base"), "reseed": ("base", "base"), "null": ("null", "base")}
        for name, (ours, theirs) in pairs.items():
            if dictionaries.get(ours):
                one, other = dictionaries[ours][0], dictionaries[theirs][1 if ours == theirs else 0]
                cosine = (self.first_pair if name == "real" else matched(one, other))[0].cosine
                share, alive = naive_emergent(cosine), int(np.isfinite(cosine).sum())
                counts[name] = {"share": share, "n": round(share * alive), "of": alive}
                similar[name] = pw_mcc(one, other)
        return counts, similar

    def write_tables(self, folder: Path) -> None:
        """features.parquet, pairs.parquet and nulls.parquet."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            self._table(side, seed, each)
            for side in ("tuned", "base")
            for seed, each in enumerate(getattr(self.compared, side))
        ]
        write_table(folder / "features.parquet", pa.concat_tables(rows))
        there, back = self.first_pair
        pairs = mutual_pairs(there, back)
        write_table(
            folder / "pairs.parquet",
            pa.table(
                {
                    "tuned": pairs[:, 0],
                    "base": pairs[:, 1],
                    "cosine": there.cosine[pairs[:, 0]],
                    "correlation": there.correlation[pairs[:, 0]],
                }
            ),
        )
        nulls = [("reseed", self.compared.null)] + ([("null", self.of_null.tuned)] if self.of_null else [])
        write_table(
            folder / "nulls.parquet",
            pa.concat_tables(
                [self._table(name, seed, each) for name, sides in nulls for seed, each in enumerate(sides)]
            ),
        )

    def _table(self, side: str, seed: int, labelled: Labelled) -> pa.Table:
        gaps, n = labelled.gaps, len(labelled.label)
        columns = {
            "side": np.full(n, side),
            "seed": np.full(n, seed),
            "latent": np.arange(n),
            "label": np.array(LABELS)[labelled.label],
            "firings": gaps.firings,
            "own": gaps.own,
            "partner": gaps.partner,
            "replicated": labelled.replicated,
            "other_seeds": np.full(n, labelled.n_seeds),
        }
        for measure, test in labelled.tests.items():
            columns |= {f"E_{measure}": getattr(gaps, measure), f"p_{measure}": test.p, f"q_{measure}": test.q}
        scaling = self.scaling.get(f"{side}.{seed}")
        for place, name in enumerate(("error", "reconstruction")):
            for part in ("nu", "low", "high"):
                values = np.full(n, np.nan) if scaling is None else getattr(scaling, part)[place, 0]
                columns[f"nu_{name}" if part == "nu" else f"nu_{name}_{part}"] = values
        return pa.table(columns)
