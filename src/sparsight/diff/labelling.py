"""One label for each latent of a model: what the other model has of it.

    undetermined   some other seed of its own model did not find it, or it fired too rarely, or the tests say neither one thing nor the other
    emergent       nothing in the other model points like it (direction) and nothing fires like it (activation). Of the base's latents the same is
                   called lost
    rotated        something in the other model fires like it, and nothing points like it
    reweighted     something fires and points like it, and adds more or less to the activations
    shared         something in the other model fires and points like it, as strongly

Seeds say what the dictionaries of one model differ by. They cannot say that those of two models differ for another reason than the models' features:
which rare features a dictionary finds depends on all of its directions, and a fine-tune with nothing new, each direction drifted by a tenth, had
"emergent" latents that all of its seeds agreed on (docs/log.md). So latent scaling has to agree where it is given, and it should be given: what is
emergent must be exclusive by it, and of what is rotated or reweighted the other model's activations must hold another amount. Of what they hold as
much, the latent is shared, though no dictionary of the other model has it.

The three tests are those of `emergence`, each with its own q; beside q each needs an effect that matters, since with many seeds any drift is
significant. A label speaks of these dictionaries: "emergent" is short for "no linear analogue was found in the other model's dictionaries".

Trade-off: q is controlled for each test over the latents of one SAE, not for all labels of a report together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from sparsight.diff.emergence import MEASURES, Gaps, GapTest, gap_test
from sparsight.diff.matching import Dictionary, Partners
from sparsight.diff.scaling import LatentScaling
from sparsight.diff.seeds import SeedTables
from sparsight.errors import MetricError

__all__ = [
    "LABELS",
    "ComparedSeeds",
    "LabelConfig",
    "Labelled",
    "compare_seeds",
    "label_latents",
    "label_seeds",
]

LABELS = ("undetermined", "emergent", "rotated", "reweighted", "shared")
"""Numbers in `Labelled.label` are places here. Of a base latent, emergent is to be read as lost."""

_UNDETERMINED, _EMERGENT, _ROTATED, _REWEIGHTED, _SHARED = range(len(LABELS))


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """What counts as found, as changed and as significant."""

    q: float = 0.05
    """Largest false-discovery rate, of each of the three tests."""

    least_own: float = 0.7
    """Cosine and correlation, in every other seed of its own model, of a latent that can be tested; and what counts as a partner in the other."""

    least_firings: int = 20
    """Tokens, of those compared on, on which a latent must have fired to be tested."""

    least_gap: float = 0.1
    """Smallest E, in cosine, that counts as another direction."""

    least_activation_gap: float = 0.3
    """Smallest E, in correlation, that counts as nothing firing like it."""

    least_ratio: float = 1.25
    """Smallest ratio of strengths, either way, that counts as another weight."""

    null: str = "auto"
    """Which null of `emergence`, where there is no null fine-tune: permuted | seeds | auto, which is permuted from 5 seeds a model on."""

    n_strata: int = 4
    """Most strata of firing frequency in which a latent is ranked among null values; fewer where these would be fewer than 400 in each."""

    def __post_init__(self) -> None:
        if self.null not in ("auto", "permuted", "seeds"):
            raise MetricError(f"The null {self.null!r} is unknown; choose from auto, permuted, seeds.")
        if not 0 < self.q < 1 or self.least_ratio < 1 or self.n_strata < 1 or self.least_firings < 1:
            raise MetricError(
                f"Labels cannot be given with q = {self.q}, least_ratio = {self.least_ratio}, n_strata = {self.n_strata}, least_firings = "
                f"{self.least_firings}: q between 0 and 1 and the others at least 1 are expected."
            )


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The latents of one SAE with their labels and what these rest on."""

    label: Int[np.ndarray, " F"]
    """Places in LABELS."""
    gaps: Gaps
    tests: Mapping[str, GapTest]
    """By measure."""
    replicated: Int[np.ndarray, " F"]
    """Other seeds of its own model in which the latent nearest in direction has the same label."""
    n_seeds: int
    """Other seeds of its own model."""

    def is_label(self, label: str) -> Bool[np.ndarray, " F"]:
        """Which latents have this label."""
        return self.label == LABELS.index(label)

    def counts(self) -> dict[str, int]:
        """Latents of each label."""
        return {label: int(self.is_label(label).sum()) for label in LABELS}


@dataclass(frozen=True, kw_only=True)
class ComparedSeeds:
    """Every SAE of both models, labelled."""

    tuned: tuple[Labelled, ...]
    """One for each seed of the fine-tuned model."""
    base: tuple[Labelled, ...]
    """One for each seed of the base; emergent means lost."""
    null: tuple[Labelled, ...]
    """One for each seed of the base, labelled against the base's other seeds: what the same test finds where nothing changed."""


def compare_seeds(
    base: Sequence[Dictionary],
    tuned: Sequence[Dictionary],
    null: Sequence[Dictionary] = (),
    *,
    scaling: Mapping[str, Sequence[LatentScaling]] | None = None,
    config: LabelConfig | None = None,
) -> ComparedSeeds:
    """Labels the latents of both models' seeds, all of them read on the same tokens; see `SeedTables.of` and `label_seeds`."""
    return label_seeds(SeedTables.of(base, tuned, null), scaling=scaling, config=config)


def label_seeds(
    tables: SeedTables,
    *,
    scaling: Mapping[str, Sequence[LatentScaling]] | None = None,
    config: LabelConfig | None = None,
) -> ComparedSeeds:
    """Labels from what was matched. `scaling`: for "tuned" and "base" the latent scaling of each seed."""
    config = config or LabelConfig()
    labelled = {
        name: _labelled_all(
            tables.gaps(name), tables.nulls(name, config.null), tables.own[name], config, (scaling or {}).get(name)
        )
        for name in ("tuned", "base")
    }
    own = tables.own["base"]
    control = [tables.control(seed) for seed in range(len(own))]
    return ComparedSeeds(
        **labelled, null=_labelled_all([one for one, _ in control], [rest for _, rest in control], own, config)
    )


def label_latents(
    gaps: Gaps, null: Gaps, config: LabelConfig, scaling: LatentScaling | None = None
) -> tuple[Int[np.ndarray, " F"], dict[str, GapTest]]:
    """Labels (places in LABELS) of one SAE's latents, and the tests."""
    limits = {"least_own": config.least_own, "least_firings": config.least_firings, "n_strata": config.n_strata}
    tests = {measure: gap_test(gaps, null, measure=measure, **limits) for measure in MEASURES}
    significant = {measure: np.nan_to_num(test.q, nan=1.0) <= config.q for measure, test in tests.items()}
    with np.errstate(invalid="ignore"):
        moved = significant["direction"] & (gaps.direction >= config.least_gap)
        alone = significant["activation"] & (gaps.activation >= config.least_activation_gap)
        weighted = significant["strength"] & (np.abs(gaps.strength) >= np.log(config.least_ratio))
        has_partner = gaps.partner >= config.least_own
        close = np.isfinite(tests["direction"].p) & (gaps.direction < config.least_gap) & has_partner
    exclusive = changed = np.ones(len(moved), bool)
    same = np.zeros(len(moved), bool)
    if scaling is not None:
        exclusive, changed = scaling.exclusive(), scaling.changed(config.least_ratio)
        same = scaling.same(config.least_ratio)
    label = np.full(len(moved), _UNDETERMINED)
    label[moved & alone & exclusive] = _EMERGENT
    label[moved & ~alone & has_partner & changed] = _ROTATED
    label[close | (moved & same)] = _SHARED
    label[close & weighted & changed] = _REWEIGHTED
    return label, tests


def _labelled_all(
    gaps: Sequence[Gaps],
    nulls: Sequence[Gaps],
    own: Sequence[Sequence[Partners | None]],
    config: LabelConfig,
    scaling: Sequence[LatentScaling] | None = None,
) -> tuple[Labelled, ...]:
    scalings = [None] * len(gaps) if scaling is None else scaling
    found = [label_latents(*each[:2], config, each[2]) for each in zip(gaps, nulls, scalings, strict=True)]
    labels = [label for label, _ in found]
    return tuple(
        Labelled(
            label=labels[index],
            gaps=gaps[index],
            tests=found[index][1],
            replicated=_replicated(labels, own[index], index),
            n_seeds=len(labels) - 1,
        )
        for index in range(len(labels))
    )


def _replicated(labels: Sequence[np.ndarray], own: Sequence[Partners | None], index: int) -> Int[np.ndarray, " F"]:
    count = np.zeros(len(labels[index]), np.int64)
    for other, partners in zip(labels, own, strict=True):
        if partners is not None:
            count += (partners.cosine_latent >= 0) & (other[partners.cosine_latent] == labels[index])
    return count
