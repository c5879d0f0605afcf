"""What becomes of grounding when latents are taken out, beside the same done to latents alike.

    effect(q)  = change of q by ablating the set S  -  mean change of q by the controls          q: URR, or the share of an outcome
    ratio(q)   = |change by S| / largest |change by a control|, that one taken as one text at least: n texts show no less
    p(q)       = (1 + controls that change q by at least as much) / (1 + controls)

A control takes out as much: for each latent of S others near it in (log frequency, log norm), one after the other, until the norms they take
out, the means of z |W_dec|, add up to the latent's; the last is scaled down as far as that needs. None is scaled below zero: that would inject
the opposite, which breaks texts (docs/log.md), and not ablate. All arms write on the same prompts with the same draws (texts.py), so the
interval of a change resamples prompts, in pairs. Where the mass goes: the shares of all outcomes; what it costs: NLL on neutral text.
Steering up has no place here: random features alone make a model recombine.

Source: matched random latents, as in `features.matched`. Trade-off: with n controls no p is below 1 / (n + 1): 20 give 0.048.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sparsight.errors import MetricError
from sparsight.grounding.arrangement import Arranged, Outcome
from sparsight.sae import LatentEdit

__all__ = ["CausalConfig", "CausalReport", "Change", "LatentTraits", "ablation_effects", "matched_controls"]

URR = "urr"
_SHORT = 1e-6  # of a latent's norm: what rounding leaves


@dataclass(frozen=True, kw_only=True)
class CausalConfig:
    """How an ablation is judged."""

    n_controls: int = 20
    """Matched sets."""
    nearest: int = 20
    """A control is drawn from so many latents that are most alike."""
    most_cosine: float = 0.5
    """Latents whose direction is nearer to one of the set are no controls."""
    n_resamples: int = 1000
    """Resampled sets of prompts behind each interval."""
    seed: int = 0
    """Of controls and resampling."""

    def __post_init__(self) -> None:
        if self.n_controls < 1 or self.nearest < 1 or not 0 < self.most_cosine <= 1 or self.n_resamples < 100:
            raise MetricError(
                f"causal: n_controls = {self.n_controls}, nearest = {self.nearest}, most_cosine = {self.most_cosine}, n_resamples = "
                f"{self.n_resamples}; expected at least 1 and 1, a cosine up to 1, and at least 100."
            )


@dataclass(frozen=True, kw_only=True)
class LatentTraits:
    """What makes two latents alike on these texts."""

    density: Float[np.ndarray, " F"]
    """Share of tokens on which it is active."""
    norm: Float[np.ndarray, " F"]
    """Mean over all tokens of z |W_dec|: what ablating it takes out."""
    W_dec: Float[np.ndarray, "F d"]

    @classmethod
    def of(cls, z: Float[np.ndarray, "n F"], W_dec: Float[np.ndarray, "F d"]) -> "LatentTraits":
        """Of the activations on n tokens."""
        lengths = np.linalg.norm(W_dec, axis=1)
        return cls(density=(z > 0).mean(0), norm=z.mean(0) * lengths, W_dec=W_dec)


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one quantity moved."""

    plain: float
    ablated: float
    low: float | None
    """2.5th percentile of the change by S, over resampled prompts; None where it has no meaning."""
    high: float | None
    controls: tuple[float, ...]
    """The change by each control."""
    resolution: float = 0.0
    """The smallest change that so many texts can show."""

    @property
    def change(self) -> float:
        """By ablating the set."""
        return self.ablated - self.plain

    @property
    def effect(self) -> float:
        """Beyond the controls' mean."""
        return self.change - float(np.mean(self.controls))

    @property
    def largest_control(self) -> float:
        """In absolute value."""
        return float(np.abs(self.controls).max())

    @property
    def ratio(self) -> float:
        """|change| / largest control, or the resolution where that is larger; infinite where both are 0."""
        least = max(self.largest_control, self.resolution)
        if not least:
            return float("inf") if self.change else 0.0
        return abs(self.change) / least

    @property
    def p(self) -> float:
        """Share of controls, the set among them, that change as much."""
        return float((1 + (np.abs(self.controls) >= abs(self.change) - 1e-12).sum()) / (1 + len(self.controls)))

    def to_json(self) -> dict[str, Any]:
        """As plain values; an infinite ratio is None."""
        kept = {
            key: getattr(self, key) for key in ("plain", "ablated", "low", "high", "effect", "largest_control", "p")
        }
        ratio = self.ratio if np.isfinite(self.ratio) else None
        return kept | {"ratio": ratio, "controls": sorted(self.controls)}


@dataclass(frozen=True, kw_only=True)
class CausalReport:
    """An ablation beside its controls."""

    latents: tuple[int, ...]
    n_texts: int
    changes: dict[str, Change]
    """`urr` (absent where an arm has no pairs) and every outcome's share."""
    nll: Change
    """Nats a token on neutral text; no interval."""


def matched_controls(
    latents: Sequence[int], traits: LatentTraits, config: CausalConfig
) -> list[tuple[LatentEdit, ...]]:
    """`n_controls` sets of edits, each alike the ablation of `latents`.

    Raises MetricError when a latent of the set was never active or too few are left to match it with.
    """
    chosen = list(latents)
    if not chosen or min(traits.norm[chosen]) <= 0:
        raise MetricError(f"Latents {chosen} cannot be matched: give at least one, each active on these texts.")
    rng = np.random.default_rng(config.seed)
    unit = traits.W_dec / np.linalg.norm(traits.W_dec, axis=1, keepdims=True).clip(1e-12)
    allowed = (traits.norm > 0) & (np.abs(unit @ unit[chosen].T).max(1) <= config.most_cosine)
    allowed[chosen] = False
    candidates = np.flatnonzero(allowed)
    if len(candidates) < max(2, len(chosen)) or traits.norm[candidates].sum() < traits.norm[chosen].sum():
        raise MetricError(
            f"{len(candidates)} latents are left to match {len(chosen)} with, and write {traits.norm[candidates].sum():.3g} where "
            f"these write {traits.norm[chosen].sum():.3g}. Ablate fewer."
        )
    kinds = np.log(np.stack([traits.density, traits.norm], 1).clip(1e-12))
    kinds /= kinds[traits.norm > 0].std(0).clip(1e-3)
    sets = []
    for _ in range(config.n_controls):
        edits: list[LatentEdit] = []
        left = candidates
        for latent in rng.permutation(chosen):
            missing = float(traits.norm[latent])
            while missing > 0 and len(left):
                order = np.argsort(np.square(kinds[left] - kinds[latent]).sum(1), kind="stable")
                other = int(rng.choice(left[order[: config.nearest]]))
                kept = max(0.0, 1 - missing / float(traits.norm[other]))
                edits.append(LatentEdit(other, "scale", kept))
                missing = 0.0 if kept else missing - float(traits.norm[other])
                left = left[left != other]
            if missing > _SHORT * traits.norm[latent]:
                raise MetricError(f"The latents left write too little to match {len(chosen)} with. Ablate fewer.")
        sets.append(tuple(edits))
    return sets


def ablation_effects(
    latents: Sequence[int],
    controls: Sequence[Sequence[LatentEdit]],
    label: Callable[[Sequence[LatentEdit]], Sequence[Arranged]],
    nll: Callable[[Sequence[LatentEdit]], float],
    config: CausalConfig,
) -> CausalReport:
    """Writes and labels the texts of every arm. `label`: the arranged texts under these edits, the same prompts in the same order.

    `nll`: nats a token on neutral text under these edits. Raises MetricError without controls.
    """
    if not controls:
        raise MetricError("An ablation without controls shows nothing. Give at least one, better 20.")
    edits = [LatentEdit(int(latent), "ablate") for latent in latents]
    plain, ablated = label(()), label(edits)
    others = [label(control) for control in controls]
    resampled = np.random.default_rng(config.seed).multinomial(
        len(plain), np.full(len(plain), 1 / len(plain)), size=config.n_resamples
    )
    changes = {}
    for name, counted in _quantities().items():
        sums = [counted(arm) for arm in (plain, ablated, *others)]
        if all(denominators.sum() > 0 for _, denominators in sums):
            changes[name] = _change(sums, resampled)
    before, after = nll(()), nll(edits)
    cost = Change(
        plain=before, ablated=after, low=None, high=None, controls=tuple(nll(control) - before for control in controls)
    )
    return CausalReport(latents=tuple(int(each) for each in latents), n_texts=len(plain), changes=changes, nll=cost)


_Sums = tuple[np.ndarray, np.ndarray]


def _quantities() -> dict[str, Callable[[Sequence[Arranged]], _Sums]]:
    """Numerators and denominators of each text."""

    def pairs(texts: Sequence[Arranged]) -> _Sums:
        return np.array([text.n_ungrounded for text in texts], float), np.array([text.n_pairs for text in texts], float)

    def share(outcome: Outcome) -> Callable[[Sequence[Arranged]], _Sums]:
        return lambda texts: (np.array([text.outcome == outcome for text in texts], float), np.ones(len(texts)))

    return {URR: pairs, **{outcome.value: share(outcome) for outcome in Outcome}}


def _change(sums: Sequence[_Sums], resampled: np.ndarray) -> Change:
    plain, ablated, *controls = [float(top.sum() / bottom.sum()) for top, bottom in sums]
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = [(resampled @ top) / (resampled @ bottom) for top, bottom in sums[:2]]
    moved = (rates[1] - rates[0])[np.isfinite(rates[1] - rates[0])]
    low, high = (float(bound) for bound in np.percentile(moved, (2.5, 97.5))) if len(moved) else (None, None)
    return Change(
        plain=plain,
        ablated=ablated,
        low=low,
        high=high,
        controls=tuple(rate - plain for rate in controls),
        resolution=1 / float(sums[0][1].sum()),
    )
