"""Several models on the same tokens: their activations side by side, as hook points of one ordinary store.

    base:layers.15, tuned:layers.15, null:layers.15      captured: the role of the model, then its hook point
    difference:layers.15                                 tuned - base, float32
    both:layers.15                                       base and tuned side by side, [n, 2 d]
    null-difference:layers.15, null-both:layers.15       the same with the null fine-tune in the place of tuned

The first kind is written; the others are made when they are read, wherever a hook point can be named. One capture makes the
rows of all models, so that special tokens, sinks (a norm too large in any model masks the token for all), the split by document and
the shuffle are the same for all. A difference of two numbers kept in bfloat16 is no finer than their rounding, which is 0.2 % of
their size: a fine-tune that moves activations by less is to be read and kept in float32.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations.batch import ActivationBatch
from sparsight.errors import HookPointError
from sparsight.lm import ROLES, LanguageModel, TokenBatch, combined_identity, identity_of

__all__ = ["PairedModels", "derive", "derived_width", "paired_hook_points", "stored_names"]

_VIEWS = {
    "difference": ("base", "tuned"),
    "both": ("base", "tuned"),
    "null-difference": ("base", "null"),
    "null-both": ("base", "null"),
}


def paired_hook_points(hook_points: Sequence[str], roles: Sequence[str] = ROLES[:2]) -> tuple[str, ...]:
    """ROLE:HOOK_POINT for each model and hook point, as a capture's `hook_points`."""
    return tuple(f"{role}:{name}" for name in hook_points for role in roles)


class PairedModels:
    """Models that read the same tokens; a hook point is named with its model's role before it.

    Reads like one LanguageModel wherever activations are captured. The models are to have passed `check_pair`.
    """

    def __init__(self, models: Mapping[str, LanguageModel]):
        base = models["base"]
        self.models = dict(models)
        self.tokenizer, self.device, self.dtype = base.tokenizer, base.device, base.dtype
        self.special_ids = base.special_ids
        names = " and ".join(model.config.id for model in models.values())
        self.config = dataclasses.replace(base.config, id=names)
        # Its own hash, so that a store is not taken up with another fine-tune of the same name.
        self.provenance: dict[str, Any] = {
            "id": names,
            "class": base.provenance.get("class"),
            "dtype": self.config.dtype,
            "sha256": combined_identity(*(identity_of(model.provenance) for model in models.values())),
            "roles": {role: model.provenance for role, model in models.items()},
        }

    def width(self, hook_point: str) -> int:
        """Numbers in one activation at ROLE:HOOK_POINT."""
        role, name = self._split(hook_point)
        return self.models[role].width(name)

    def read(self, batch: TokenBatch, hook_points: Sequence[str]) -> dict[str, Float[Tensor, "rows positions d"]]:
        """Activations at each ROLE:HOOK_POINT, one forward pass a model, in the order asked for."""
        wanted: dict[str, list[str]] = {}
        for hook_point in hook_points:
            role, name = self._split(hook_point)
            wanted.setdefault(role, []).append(name)
        found = {}
        for role, names in wanted.items():
            found |= {f"{role}:{name}": value for name, value in self.models[role].read(batch, names).items()}
        return {name: found[name] for name in hook_points}

    def _split(self, hook_point: str) -> tuple[str, str]:
        role, _, name = hook_point.partition(":")
        if role not in self.models or not name:
            raise HookPointError(
                f"{hook_point!r} names no model and hook point. Expected one of {', '.join(self.models)}, a colon and a hook point, "
                f"such as base:layers.15."
            )
        return role, name


def stored_names(hook_point: str) -> tuple[str, ...]:
    """The hook points of a store that one is read from: itself, or for a derived one the two it is made of."""
    view, _, name = hook_point.partition(":")
    return tuple(f"{role}:{name}" for role in _VIEWS[view]) if view in _VIEWS else (hook_point,)


def derived_width(hook_point: str, widths: Mapping[str, int]) -> int | None:
    """Width of a stored or derived hook point; None where the store lacks what it is read from."""
    found = [widths.get(name) for name in stored_names(hook_point)]
    if any(width is None for width in found):
        return None
    return 2 * widths[stored_names(hook_point)[0]] if _is_both(hook_point) else found[0]


def derive(batch: ActivationBatch, hook_points: Sequence[str]) -> ActivationBatch:
    """The batch with exactly these hook points, made of the stored ones that it holds."""
    return dataclasses.replace(batch, activations={name: _made(batch, name) for name in hook_points})


def _made(batch: ActivationBatch, hook_point: str) -> Tensor:
    rows = [batch[name] for name in stored_names(hook_point)]
    if len(rows) == 1:
        return rows[0]
    before, after = rows
    return torch.cat([before, after], dim=1) if _is_both(hook_point) else after.float() - before.float()


def _is_both(hook_point: str) -> bool:
    return hook_point.partition(":")[0].endswith("both")
