"""Where an activation is read: a name that means the same module in every class of the same model.

    layers.16               the residual stream after decoder block 16 (the block's output)
    layers.16.mlp           the output of that module; any module below the block will do
    layers.16.mlp.input     what that module is given
    model.norm              anything else is a module path, from the root of the model or of its text trunk

One checkpoint has three paths to a module: `model.layers.16.mlp` (ForCausalLM), `model.language_model.layers.16.mlp`
(ForConditionalGeneration) and `language_model.layers.16.mlp` (AutoModel). The text trunk is found by walking down
known wrapper names, never into vision or audio; a decoder whose wrappers have other names is not found, and says so.
"""

import difflib
import re
from dataclasses import dataclass

from torch import nn

from sparsight.errors import HookPointError, ModelError

__all__ = ["HookPoint", "Trunk", "find_trunk"]

_WRAPPERS = ("language_model", "text_model", "model", "transformer", "gpt_neox", "decoder", "backbone", "base_model")
_BLOCK_LISTS = ("layers", "h", "blocks")
_IN_LAYER = re.compile(
    rf"^(?:(?:{'|'.join(_WRAPPERS)})\.)*(?:{'|'.join(_BLOCK_LISTS)})\.(?P<layer>\d+)(?:\.(?P<module>.+))?$"
)
_NEAREST = 5


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The module that owns the decoder blocks, and where they are."""

    path: str
    """Of the owning module in the whole model; empty when it is the model itself."""

    module: nn.Module
    """It holds the embedding, the blocks and the final norm."""

    block_list: str
    """The blocks' attribute: `layers`, `h` or `blocks`."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return getattr(self.module, self.block_list)


@dataclass(frozen=True, kw_only=True)
class HookPoint:
    """A parsed hook point; `resolve` finds its module in a model."""

    name: str
    """As the user wrote it; activations are filed under it."""

    layer: int | None
    """Decoder block, counted from 0; None for a module outside the blocks."""

    module: str
    """Path below the block (empty: the block itself), or below the model when `layer` is None."""

    reads_input: bool
    """Whether the module's input is read and not its output."""

    @classmethod
    def parse(cls, name: str) -> "HookPoint":
        """Raises HookPointError when `name` cannot be a module path."""
        path = name.removesuffix(".input")
        if not re.fullmatch(r"\w+(\.\w+)*", path):
            raise HookPointError(
                f"{name!r} is not a hook point. Expected e.g. layers.16, layers.16.mlp or layers.16.mlp.input."
            )
        match = _IN_LAYER.match(path)
        layer = int(match["layer"]) if match else None
        module = (match["module"] or "") if match else path
        return cls(name=name, layer=layer, module=module, reads_input=path != name)

    def resolve(self, model: nn.Module) -> nn.Module:
        """The module in `model`. Raises HookPointError with the legal layers and the nearest names."""
        trunk = find_trunk(model)
        if self.layer is None:
            return self._resolve_outside(model, trunk)
        self.check_layer(len(trunk.blocks))
        block = trunk.blocks[self.layer]
        names = dict(block.named_modules())
        if self.module not in names:
            near = [f"layers.{self.layer}.{near}" for near in _nearest(self.module, names)]
            raise self._unknown(near, len(trunk.blocks))
        return names[self.module]

    @property
    def first_needed(self) -> int:
        """The first block whose work still counts when the activation here is given: 0 within a block, where the rest of it goes on beside."""
        return 0 if self.layer is None or self.module else self.layer + (not self.reads_input)

    def check_layer(self, n_layers: int) -> None:
        """Raises HookPointError when the layer is not among `n_layers`."""
        if self.layer is not None and self.layer >= n_layers:
            raise HookPointError(f"{self.name}: the model has layers.0 to layers.{n_layers - 1}. Choose one of these.")

    def _resolve_outside(self, model: nn.Module, trunk: Trunk) -> nn.Module:
        named = dict(model.named_modules())
        path = self.module
        while path:
            for candidate in (path, f"{trunk.path}.{path}"):
                if candidate in named:
                    return named[candidate]
            wrapper, _, path = path.partition(".")
            path = path if wrapper in _WRAPPERS else ""
        raise self._unknown(_nearest(self.module, named), len(trunk.blocks))

    def _unknown(self, nearest: list[str], n_layers: int) -> HookPointError:
        suffix = ".input" if self.reads_input else ""
        names = ", ".join(name + suffix for name in nearest)
        return HookPointError(
            f"{self.name}: the model has no such module. Nearest: {names}. "
            f"Its layers are layers.0 to layers.{n_layers - 1}."
        )


def find_trunk(model: nn.Module) -> Trunk:
    """The text trunk of `model`, whatever class wraps it. Raises ModelError when no decoder blocks are found."""
    trunk = _walk(model, "")
    if trunk is None:
        raise ModelError(
            f"{type(model).__name__} has no list of decoder blocks ({', '.join(_BLOCK_LISTS)}) below "
            f"{', '.join(_WRAPPERS)}. Expected a decoder-only language model."
        )
    return trunk


def _walk(module: nn.Module, path: str) -> Trunk | None:
    children = dict(module.named_children())
    for block_list in _BLOCK_LISTS:
        if isinstance(children.get(block_list), nn.ModuleList):
            return Trunk(path=path, module=module, block_list=block_list)
    for wrapper in _WRAPPERS:
        if wrapper in children:
            trunk = _walk(children[wrapper], f"{path}.{wrapper}".removeprefix("."))
            if trunk is not None:
                return trunk
    return None


def _nearest(name: str, names: dict[str, nn.Module]) -> list[str]:
    """The known names closest in spelling; when none is close, the first few there are."""
    known = [known for known in names if known]
    return difflib.get_close_matches(name, known, n=_NEAREST, cutoff=0.4) or known[:_NEAREST]
