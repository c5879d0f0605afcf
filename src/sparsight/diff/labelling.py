"""One label for each latent of a model: what the other model has of it.

    undetermined   some other seed of its own model did not find it, or it fired too rarely, or the tests say neither one thing nor the other
    emergent       nothing in the other model points like it (direction) and nothing fires like it (activation), and latent scaling, where it was
                   measured, finds it in neither the other's error nor its reconstruction. Of the base's latents the same is called lost
    rotated        something in the other model fires like it, and nothing points like it
    reweighted     something fires and points like it, and adds more or less to the activations; or only scaling finds it in the other model
    shared         something in the other model fires and points like it, as strongly

The three tests are those of `emergence`, each with its own q; beside q each needs an effect that matters, since with many seeds any drift is
significant. A label speaks of these dictionaries: "emergent" is short for "no linear analogue was found in the other model's dictionaries".

Trade-off: q is controlled for each test over the latents of one SAE, not for all labels of a report together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from sparsight.diff.emergence import MEASURES, Gaps, GapTest, gap_null, gap_test, latent_gaps
from sparsight.diff.matching import Dictionary, Partners, matched
from sparsight.errors import MetricError

__all__ = ["LABELS", "ComparedSeeds", "LabelConfig", "Labelled", "compare_seeds", "label_latents"]

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

    n_strata: int = 4
    """Strata of firing frequency in which a latent is ranked among null values."""

    def __post_init__(self) -> None:
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
    config: LabelConfig | None = None,
) -> ComparedSeeds:
    """Labels the latents of both models' seeds. `null`: seeds of a null fine-tune, which then is the null of either direction.

    All dictionaries on the same tokens. Raises MetricError with fewer than 3 seeds of a model, or fewer than 2 of the null fine-tune.
    """
    config = config or LabelConfig()
    if len(null) == 1:
        raise MetricError(
            "A null fine-tune with 1 seed cannot say what its own seeds differ by; 2 at least are expected."
        )
    tables = {name: _within(seeds) for name, seeds in (("base", base), ("tuned", tuned), ("null", null))}
    there, back = _between(tuned, base)
    null_there, null_back = _between(null, base)
    of_tuned = _all_gaps(tuned, tables["tuned"], there)
    of_base = _all_gaps(base, tables["base"], back)
    itself = {
        name: gap_null(tables[name], [each.firings for each in seeds])
        for name, seeds in (("base", base), ("tuned", tuned))
    }
    if null:
        nulls = [
            Gaps.joined(_all_gaps(null, tables["null"], null_there)),
            Gaps.joined(_all_gaps(base, tables["base"], null_back)),
        ]
    else:
        nulls = [itself["base"], itself["tuned"]]
    control = [_held_out_null(tables["base"], [each.firings for each in base], seed) for seed in range(len(base))]
    return ComparedSeeds(
        tuned=_labelled_all(of_tuned, [nulls[0]] * len(tuned), tables["tuned"], config),
        base=_labelled_all(of_base, [nulls[1]] * len(base), tables["base"], config),
        null=_labelled_all([one for one, _ in control], [rest for _, rest in control], tables["base"], config),
    )


def label_latents(
    gaps: Gaps, null: Gaps, config: LabelConfig, *, exclusive: Bool[np.ndarray, " F"] | None = None
) -> tuple[Int[np.ndarray, " F"], dict[str, GapTest]]:
    """Labels (places in LABELS) of one SAE's latents, and the tests. `exclusive`: what latent scaling says, where it was measured."""
    limits = {"least_own": config.least_own, "least_firings": config.least_firings, "n_strata": config.n_strata}
    tests = {measure: gap_test(gaps, null, measure=measure, **limits) for measure in MEASURES}
    significant = {measure: np.nan_to_num(test.q, nan=1.0) <= config.q for measure, test in tests.items()}
    with np.errstate(invalid="ignore"):
        moved = significant["direction"] & (gaps.direction >= config.least_gap)
        alone = significant["activation"] & (gaps.activation >= config.least_activation_gap)
        weighted = significant["strength"] & (np.abs(gaps.strength) >= np.log(config.least_ratio))
        has_partner = gaps.partner >= config.least_own
        close = np.isfinite(tests["direction"].p) & ~moved & (gaps.direction < config.least_gap) & has_partner
    present = np.zeros(len(moved), bool) if exclusive is None else ~exclusive
    label = np.full(len(moved), _UNDETERMINED)
    label[moved & alone & ~present] = _EMERGENT
    label[moved & alone & present] = _REWEIGHTED
    label[moved & ~alone & has_partner] = _ROTATED
    label[close] = _SHARED
    label[close & weighted] = _REWEIGHTED
    return label, tests


def _within(seeds: Sequence[Dictionary]) -> list[list[Partners | None]]:
    tables: list[list[Partners | None]] = [[None] * len(seeds) for _ in seeds]
    for i in range(len(seeds)):
        for j in range(i + 1, len(seeds)):
            tables[i][j], tables[j][i] = matched(seeds[i], seeds[j])
    return tables


def _between(
    ours: Sequence[Dictionary], theirs: Sequence[Dictionary]
) -> tuple[list[list[Partners]], list[list[Partners]]]:
    both = [[matched(one, other) for other in theirs] for one in ours]
    there = [[pair[0] for pair in row] for row in both]
    return there, [[row[index][1] for row in both] for index in range(len(theirs))]


def _all_gaps(
    seeds: Sequence[Dictionary], own: Sequence[Sequence[Partners | None]], other: Sequence[Sequence[Partners]]
) -> list[Gaps]:
    return [
        latent_gaps([each for each in own[index] if each is not None], other[index], seed.firings)
        for index, seed in enumerate(seeds)
    ]


def _held_out_null(
    tables: Sequence[Sequence[Partners | None]], firings: Sequence[np.ndarray], seed: int
) -> tuple[Gaps, Gaps]:
    """One split of one base seed as if it were fine-tuned, and the null of the others without it."""
    others = [index for index in range(len(tables)) if index != seed]
    sides = others[: len(others) // 2], others[len(others) // 2 :]
    near, far = ([each for index in side if (each := tables[seed][index]) is not None] for side in sides)
    rest = [[tables[i][j] for j in others] for i in others]
    if len(others) < 3:  # 3 seeds leave 2, which have no null of their own
        return latent_gaps(near, far, firings[seed]), gap_null(tables, firings)
    return latent_gaps(near, far, firings[seed]), gap_null(rest, [firings[index] for index in others])


def _labelled_all(
    gaps: Sequence[Gaps], nulls: Sequence[Gaps], own: Sequence[Sequence[Partners | None]], config: LabelConfig
) -> tuple[Labelled, ...]:
    found = [label_latents(each, null, config) for each, null in zip(gaps, nulls, strict=True)]
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
