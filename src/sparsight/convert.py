"""convert: an SAE from one tool's format into another's, from a local path or the Hugging Face Hub.

    sparsight convert EleutherAI/sae-some-model/layers.10 runs/theirs            # the format is recognised; ours is SAELens' own layout
    sparsight convert runs/demo/saes/topk-8x out/layers.15.mlp --to sparsify

What was written is read again and must hold the same SAE before it gets its name. Nothing in a source is executed.
"""

import re
from dataclasses import replace
from glob import escape
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from torch import Tensor

from sparsight.artifact import atomic_place
from sparsight.errors import FormatError, RunError, SAEError
from sparsight.sae import SparseAutoencoder
from sparsight.sae.exchange import files_of, read_any, saes_among, write_as

__all__ = ["convert_sae", "load_sae"]

_TOLERANCE = 1e-6


def convert_sae(
    source: str | Path,
    target: Path,
    *,
    to: str = "saelens",
    format: str = "",
    k: int | None = None,
    hook_point: str = "",
    revision: str | None = None,
) -> SparseAutoencoder:
    """Reads the SAE at `source`, writes it to `target` in the format `to`, and returns it as read.

    `source`: a path, or user/repository[/folder] on the Hub, of `revision`; the folder may be left out where there is one SAE. `format`
    of the source: recognised when empty. `k` and `hook_point`: what the source does not say. Raises FormatError, SAEError, or RunError when
    `target` exists; none leaves a `target`.
    """
    target = Path(target)
    if target.exists():
        raise RunError(f"{target} exists already; choose another place, or remove it.")
    sae = load_sae(source, format=format, k=k, hook_point=hook_point, revision=revision)
    with atomic_place(target) as written:
        write_as(written, to, sae.cfg, sae.state_dict())
        _check_same(sae, SparseAutoencoder(*read_any(written, to, k=sae.cfg.k)), target)
    return sae


def load_sae(
    source: str | Path, *, format: str = "", k: int | None = None, hook_point: str = "", revision: str | None = None
) -> SparseAutoencoder:
    """An SAE in any of the known formats; see `convert_sae`."""
    cfg, tensors = read_any(_local(source, revision), format, k=k)
    if hook_point:
        cfg = replace(cfg, hook_point=hook_point)
    return SparseAutoencoder(cfg, tensors)


def _local(source: str | Path, revision: str | None) -> Path:
    """The path itself where it exists; otherwise what it names on the Hub, fetched."""
    path = Path(source)
    if path.exists() or not (named := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:/(.+))?", str(source))):
        return path
    repository, place = named[1], (named[2] or "").rstrip("/")
    try:
        names = HfApi().list_repo_files(repository, revision=revision)
        place = place or _only_sae(repository, names)
        wanted = files_of(place, names)
        if not wanted:
            raise FormatError(f"{repository} has nothing at {place}; it holds {_listed(saes_among(names))}.")
        root = Path(snapshot_download(repository, revision=revision, allow_patterns=[escape(name) for name in wanted]))
    except FormatError:
        raise
    except Exception as error:  # the Hub has a dozen ways to fail, and all of them mean that nothing came
        reason = str(error).strip().split("\n", 1)[0]
        raise FormatError(f"{source} is no local path, and fetching it from the Hub failed: {reason}") from None
    return root / place


def _only_sae(repository: str, names: list[str]) -> str:
    places = saes_among(names)
    if len(places) != 1:
        raise FormatError(f"{repository} holds {_listed(places)}.{' Name one of them.' if places else ''}")
    return places[0]


def _listed(places: list[str]) -> str:
    """`3 SAEs (a, b, c)`."""
    if not places:
        return "no SAE in a format that can be read"
    return f"{len(places)} SAE{'s'[: len(places) > 1]} ({', '.join(places[:8])}{', ...' if len(places) > 8 else ''})"


def _check_same(sae: SparseAutoencoder, again: SparseAutoencoder, target: Path) -> None:
    """What computes with the tensors, and the tensors, relative to each one's largest value."""
    for name in ("inference", "is_transcoder", "k") if sae.cfg.inference == "topk" else ("inference", "is_transcoder"):
        ours, theirs = getattr(sae.cfg, name), getattr(again.cfg, name)
        if ours != theirs:
            raise SAEError(f"{target} was not written: read again, it would have {name} {theirs} instead of {ours}.")
    before, after = sae.state_dict(), again.state_dict()
    for name, tensor in before.items():
        far = _distance(tensor, after[name]) if name in after else float("inf")
        if not far <= _TOLERANCE:
            raise SAEError(f"{target} was not written: read again, it would have another {name} (off by {far:.1e}).")


def _distance(a: Tensor, b: Tensor) -> float:
    scale = max(float(a.abs().max()), torch.finfo(torch.float32).tiny)
    return float((a - b).abs().max()) / scale
