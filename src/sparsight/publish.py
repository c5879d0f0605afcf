"""publish: a finished run -> a repository on the Hugging Face Hub, or the files that another tool takes.

    sparsight publish runs/demo --to user/name --dry-run     # builds runs/demo/publish/name, uploads nothing
    sparsight publish runs/demo --to user/name               # the same, then uploads

    saelens (a model repository)             parquet, neuronpedia (a dataset repository)
      README.md, recipe.toml, SHA256SUMS       README.md, SHA256SUMS
      ID/cfg.json, sae_weights.safetensors     ID.parquet or ID/batch-NNNN.json
      ID/example.safetensors, metrics.json, density.svg, training.svg

The folder is built anew from the run each time, in a place beside it, and takes the old one's place when it is whole; the same run gives the same
bytes, so that an upload cut off goes on with what is missing. A folder that was edited since, or is not ours, is never overwritten. Nothing of the
user's machine is published: local paths are cut to their last component.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sparsight.artifact import RunDir, atomic_path, read_json, sha256_file, write_atomic, write_json
from sparsight.errors import RunError
from sparsight.features import PASSAGES_PER_LATENT, neuronpedia_batches, write_feature_table
from sparsight.lm import resolve_checkpoint
from sparsight.publication import (
    EXAMPLE_FILE,
    Licences,
    PublishConfig,
    RunFacts,
    SAEFacts,
    check_repo_id,
    dataset_front_matter,
    density_svg,
    example_tensors,
    find_licences,
    hub_token,
    model_card,
    plain,
    read_facts,
    training_svg,
    upload,
)
from sparsight.recipe import dump_recipe

__all__ = ["Published", "publish_run"]

_SUMS = "SHA256SUMS"
_TABLE_CONTEXTS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was built, and where it went."""

    folder: Path
    url: str | None
    """Of the commit on the Hub; None after a dry run."""
    warnings: tuple[str, ...]
    """What a person should look at before others do."""


def publish_run(run: RunDir, config: PublishConfig) -> Published:
    """Builds the folder and, unless it is a dry run, uploads it. Warnings are logged before anything is sent.

    Raises RunError when the run is not finished or the folder was edited, HubError when the name is refused, there is no token or
    the upload stopped.
    """
    check_repo_id(config.to)
    token = None if config.dry_run else hub_token()  # before the work, not after it
    facts = read_facts(run, config.sae)
    licences = find_licences(facts, config)
    quotes = licences.text_is_quotable if config.contexts is None else config.contexts
    tokenizer = resolve_checkpoint(facts.recipe.model).tokenizer()
    folder = config.out or run.path / "publish" / config.to.split("/")[1]
    with _replacing(folder) as fresh:
        if config.format == "saelens":
            warnings = [
                *licences.warnings(),
                *_build_model_repository(run, facts, licences, tokenizer, fresh, config, quotes),
            ]
        else:
            warnings = [
                *licences.warnings(),
                *_build_dataset_repository(facts, licences, tokenizer, fresh, config, quotes),
            ]
        sums = "".join(f"{digest}  {name}\n" for name, digest in _hashes(fresh).items())
        write_atomic(fresh / _SUMS, sums.encode())
    for warning in warnings:
        _log.warning("%s", warning)
    url = None
    if token is not None:
        repo_type = "model" if config.format == "saelens" else "dataset"
        url = upload(folder, config.to, token, private=config.private, repo_type=repo_type)
    return Published(folder=folder, url=url, warnings=tuple(warnings))


def _build_model_repository(
    run: RunDir, facts: RunFacts, licences: Licences, tokenizer: Any, folder: Path, config: PublishConfig, quotes: bool
) -> Iterator[str]:
    """SAEs, their numbers and plots, and the card that says what they are; yields warnings."""
    rows_are_real = True
    for sae in facts.saes:
        target = folder / sae.cfg.id
        target.mkdir()
        shutil.copyfile(sae.folder / "sae_weights.safetensors", target / "sae_weights.safetensors")
        write_json(target / "cfg.json", facts.public(sae.described))
        write_json(target / "metrics.json", facts.public(read_json(run.evaluation(sae.cfg.id))))
        example, is_real = example_tensors(run, sae)
        rows_are_real &= is_real
        with atomic_path(target / EXAMPLE_FILE) as temp:
            save_file(example, temp)
        for name, svg in _plots(sae):
            write_atomic(target / name, svg.encode())
    write_atomic(folder / "recipe.toml", dump_recipe(facts.public_recipe).encode())
    card = model_card(
        facts,
        licences,
        tokenizer,
        config.to,
        with_contexts=quotes,
        rows_are_real=rows_are_real,
        hashes=_hashes(folder),
    )
    write_atomic(folder / "README.md", card.text.encode())
    if quotes:
        yield _quoting(
            facts, licences, f"The card quotes {card.n_passages:,} passages, {card.n_passage_tokens:,} tokens,"
        )
    else:
        yield _not_quoting(facts, licences)


def _build_dataset_repository(
    facts: RunFacts, licences: Licences, tokenizer: Any, folder: Path, config: PublishConfig, quotes: bool
) -> Iterator[str]:
    """Features in another tool's form, with a card that says of what; yields warnings."""
    lines = [dataset_front_matter(licences), "", f"# {plain(config.to.split('/')[1])}", ""]
    for sae in facts.saes:
        about = f"{plain(sae.cfg.id)}: {sae.index.n_latents:,} latents at {plain(' to '.join(sae.hook_points))} of {plain(facts.model_name)}, on "
        about += f"{sae.index.n_tokens:,} held-out tokens of {plain(facts.text_name)}"
        if config.format == "parquet":
            n_contexts = _TABLE_CONTEXTS if quotes else 0
            write_feature_table(folder / f"{sae.cfg.id}.parquet", sae.index, tokenizer, n_contexts=n_contexts)
        else:
            names = {"model_id": facts.model_name.rsplit("/", 1)[-1], "source": sae.cfg.id}
            batches = neuronpedia_batches(sae.index, tokenizer, with_contexts=quotes, **names)
            (folder / sae.cfg.id).mkdir()
            for number, batch in enumerate(batches):
                body = json.dumps(batch, ensure_ascii=False, allow_nan=False)
                write_atomic(folder / sae.cfg.id / f"batch-{number:04d}.json", body.encode())
        lines += [f"- {about}", ""]
    lines += ["Made with Sparsight, whose docs/formats.md describes these files."]
    write_atomic(folder / "README.md", ("\n".join(lines) + "\n").encode())
    n_each = _TABLE_CONTEXTS if config.format == "parquet" else PASSAGES_PER_LATENT
    what = f"These files quote up to {n_each} passages of each of {sum(sae.index.n_latents for sae in facts.saes):,} latents,"
    yield _quoting(facts, licences, what) if quotes else _not_quoting(facts, licences)


def _plots(sae: SAEFacts) -> Iterator[tuple[str, str]]:
    densities = {method.label: method.density for method in sae.report.methods if method.density is not None}
    if densities:
        yield "density.svg", density_svg(densities, f"How often latents of {sae.cfg.id} are active")
    curve = [(line["tokens"], line["fvu"]) for line in sae.training if "fvu" in line]
    if curve:
        yield "training.svg", training_svg(curve, sae.report.value("fvu"), f"FVU of {sae.cfg.id} while training")


def _quoting(facts: RunFacts, licences: Licences, what: str) -> str:
    licence = f"whose licence is {licences.text}" if licences.text else "whose licence is not known"
    licence += " (the package's; the sets inside may have others)" if facts.recipe.text.builtin else ""
    return f"{what} of held-out text of {facts.text_name}, {licence}; --no-contexts leaves them out."


def _not_quoting(facts: RunFacts, licences: Licences) -> str:
    known = f"under {licences.text}" if licences.text else "under an unknown licence"
    return f"No passages of {facts.text_name} ({known}) are quoted; --contexts quotes them."


def _hashes(folder: Path) -> dict[str, str]:
    """File -> sha256, of all that is there but the sums."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder that takes this one's place when the block ends well. Raises RunError when that would lose someone's work."""
    if folder.exists():
        _check_ours(folder)
    fresh, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_ours(folder: Path) -> None:
    try:
        lines = (folder / _SUMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise RunError(
            f"{folder} exists and was not built by `sparsight publish`; choose another place with --out."
        ) from None
    said = {name: digest for digest, name in (line.split("  ", 1) for line in lines if "  " in line)}
    if changed := sorted(name for name, _ in said.items() ^ _hashes(folder).items()):
        raise RunError(
            f"{folder} was edited since it was built ({', '.join(dict.fromkeys(changed))}), and building it again would lose that. Upload it "
            "yourself (`hf upload`), or move it away."
        )
