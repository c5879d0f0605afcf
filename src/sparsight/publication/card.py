"""The model card: what a stranger needs to judge and use these SAEs, all of it read from the run.

Numbers stand with their 95 % intervals over held-out documents and with every control that was measured beside them; where the SAE loses or ties,
"Limits" says so first. All text that comes from models, texts or recipes goes through markdown.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sparsight.metrics import Estimate, EvalReport, MethodReport, Verdict
from sparsight.metrics.tables import HEADINGS, stability_table
from sparsight.publication.facts import RunFacts, SAEFacts
from sparsight.publication.featured import choose_latents, feature_lines
from sparsight.publication.licences import Licences
from sparsight.publication.markdown import fenced, plain, table
from sparsight.publication.metadata import front_matter
from sparsight.publication.training import training_rows
from sparsight.publication.usage import usage_lines

__all__ = ["Card", "model_card"]

_HEADINGS = HEADINGS | {"dead_share": "never active"}
_RECONSTRUCTION = ("fvu", "cosine", "l0", "dead_share")
_DOWNSTREAM = ("ce", "kl", "recovered_zero", "recovered_mean")
_READING = (
    "FVU is the fraction of variance unexplained (0 is perfect, 1 no better than the mean), L0 the active latents per token; CE and KL are nats per "
    "token of the model with the method in place; recovered is the share of what an ablation costs in CE that the method does not, and depends on "
    "the ablation. [95 % interval, documents resampled.]"
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card, and how much of the text it quotes."""

    text: str
    n_passage_tokens: int
    n_passages: int


def model_card(
    facts: RunFacts,
    licences: Licences,
    tokenizer: Any,
    repo_id: str,
    *,
    with_contexts: bool,
    rows_are_real: bool,
    hashes: Mapping[str, str],
) -> Card:
    """README.md. `rows_are_real`: of the example files; `hashes`: file in the repository -> sha256."""
    lines = [
        front_matter(facts, licences, repo_id),
        "",
        f"# {plain(repo_id.split('/')[1])}",
        "",
        *_introduction(facts),
        "",
    ]
    lines += ["## Use", "", *usage_lines(facts, facts.saes[0], repo_id, rows_are_real=rows_are_real), ""]
    lines += ["## Training", "", *table(["", ""], training_rows(facts)), ""]
    lines += ["## Held-out evaluation", "", _READING, ""]
    for sae in facts.saes:
        lines += [*_evaluation(sae), ""]
    features, n_passages, n_tokens = _features(facts, tokenizer, with_contexts)
    lines += ["## Features", "", *_about_features(facts, with_contexts), "", *features]
    lines += ["## Limits and notes", "", *(f"- {limit}" for limit in _limits(facts)), ""]
    lines += ["## Licence", "", *_licence(facts, licences), "", "## Files", "", *_files(hashes)]
    text = "\n".join(lines).rstrip() + "\n"
    return Card(text=text, n_passage_tokens=n_tokens, n_passages=n_passages)


def _introduction(facts: RunFacts) -> list[str]:
    rows = [
        [
            plain(sae.cfg.id),
            plain(sae.cfg.architecture),
            plain(" to ".join(sae.hook_points)),
            f"{sae.described['d_in']:,}",
            f"{sae.cfg.n_latents:,}",
            *(_cell(sae.report.method("sae"), metric) for metric in ("fvu", "l0", "dead_share")),
        ]
        for sae in facts.saes
    ]
    return [
        f"{_kind(facts)} on {_model_link(facts)}, trained and measured with Sparsight, in "
        "SAELens' layout: a folder for each, with `cfg.json` and `sae_weights.safetensors`.",
        "",
        *table(
            ["folder", "architecture", "hook point", "width", "latents", "FVU, held out", "L0", "never active"], rows
        ),
    ]


def _kind(facts: RunFacts) -> str:
    kinds = sorted({"transcoder" if sae.cfg.is_transcoder else "sparse autoencoder" for sae in facts.saes})
    if len(facts.saes) == 1:
        return f"A {kinds[0]}"
    return " and ".join(f"{kind}s" for kind in kinds).capitalize()


def _model_link(facts: RunFacts) -> str:
    if not facts.model_hub_id:
        return f"a local model, {plain(facts.model_name)}"
    return f"[{plain(facts.model_hub_id)}](https://huggingface.co/{facts.model_hub_id})"


def _evaluation(sae: SAEFacts) -> Iterator[str]:
    report, measured_on = sae.report, sae.report.measured_on
    yield f"### {plain(sae.cfg.id)}"
    for metrics, part in ((_RECONSTRUCTION, "reconstruction"), (_DOWNSTREAM, "downstream")):
        shown = [method for method in report.methods if any(metric in method.metrics for metric in metrics)]
        if not shown or not measured_on.get(part):
            continue
        where = "Reconstruction" if part == "reconstruction" else "In place in the language model"
        yield from (
            "",
            f"{where}, on {measured_on[part]['tokens']:,} tokens of {measured_on[part]['documents']:,} held-out documents:",
            "",
        )
        rows = [[plain(method.label), *(_cell(method, metric) for metric in metrics)] for method in shown]
        yield from table(["", *(_HEADINGS[metric] for metric in metrics)], rows)
    if report.verdicts:
        yield from (
            "",
            "What each rival has more of than the SAE; positive is in the SAE's favour. A difference within that of two seeds is a tie:",
            "",
        )
        yield from table(
            ["", "by", "difference", "second seed minus SAE", ""],
            (_verdict(verdict, report) for verdict in report.verdicts),
        )
    if (shared := stability_table(report)).rows:
        yield from ("", f"{shared.title}. {shared.caption}:", "", *table(shared.header, shared.rows))
    for probing in sae.probing:
        yield from ("", *fenced(probing.text().splitlines()))
    dead = report.method("sae").density
    if dead is not None:
        n_latents = dead.n_dead + sum(dead.n_latents)
        fewer = "; a rare latent looks dead on few tokens, so more would find fewer." if dead.n_dead else "."
        yield from (
            "",
            f"{dead.n_dead:,} of {n_latents:,} latents were never active on {dead.n_tokens:,} held-out tokens{fewer}",
        )
        yield from ("", f"![Latents by density]({sae.cfg.id}/density.svg)")
    if sae.training:
        yield from ("", f"![FVU while training]({sae.cfg.id}/training.svg)")


def _verdict(verdict: Verdict, report: EvalReport) -> list[str]:
    noise = "" if verdict.seed_difference is None else f"{verdict.seed_difference:+.4f}"
    label = plain(report.method(verdict.baseline).label)
    return [
        label,
        _HEADINGS[verdict.metric],
        _interval(verdict.difference, signed=True),
        noise,
        f"SAE {verdict.outcome}",
    ]


def _cell(method: MethodReport, metric: str) -> str:
    estimate = method.metrics.get(metric)
    if estimate is None:
        return ""
    if metric == "dead_share" and estimate.value is not None:
        return f"{estimate.value:.2%}"
    return _interval(estimate)


def _interval(estimate: Estimate, *, signed: bool = False) -> str:
    if estimate.value is None:
        return "undefined"
    digits = ("+" if signed else "") + (".4f" if abs(estimate.value) < 10 else ".2f")
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{digits}}"
    return f"{estimate.value:{digits}} [{estimate.low:{digits}}, {estimate.high:{digits}}]"


def _about_features(facts: RunFacts, with_contexts: bool) -> list[str]:
    lines = [
        "Numbers name latents, in the order of the weights. Ten are drawn at random, which is what the dictionary is like; ten are chosen by a rule."
    ]
    if with_contexts:
        lines.append(
            f"Passages are of held-out documents of {plain(facts.text_name)}, with the tokens ⟦marked⟧ on which the latent is active: its two "
            "strongest, of different documents, and one drawn from all of its activations."
        )
    else:
        lines.append(f"Passages of {plain(facts.text_name)} are left out; the run has them.")
    return [" ".join(lines)]


def _features(facts: RunFacts, tokenizer: Any, with_contexts: bool) -> tuple[list[str], int, int]:
    """Lines, passages quoted, tokens quoted."""
    lines, n_passages, n_tokens = [], 0, 0
    for sae in facts.saes:
        for featured in choose_latents(sae.index):
            lines += [f"<details><summary>{plain(sae.cfg.id)}: {featured.title}, {featured.rule}</summary>", ""]
            for latent in featured.latents:
                body, passages, tokens = feature_lines(sae.index, tokenizer, latent, with_contexts=with_contexts)
                lines, n_passages, n_tokens = lines + body, n_passages + passages, n_tokens + tokens
            lines += ["" if featured.latents else "None qualifies.", "</details>", ""]
    return lines, n_passages, n_tokens


def _limits(facts: RunFacts) -> Iterator[str]:
    for sae in facts.saes:
        labels = {method.name: method.label for method in sae.report.methods}
        if (fvu := sae.report.value("fvu")) is not None and fvu >= 1:
            yield f"{plain(sae.cfg.id)} reconstructs no better than the mean of all activations does: its FVU is {fvu:.2f}."
        for verdict in sae.report.verdicts:
            if verdict.outcome != "better":
                said = "is worse than" if verdict.outcome == "worse" else "does not differ from"
                yield (
                    f"{plain(sae.cfg.id)} {said} the {plain(labels[verdict.baseline])} by {_HEADINGS[verdict.metric]}: the difference is "
                    f"{_interval(verdict.difference, signed=True)} (positive is in the SAE's favour), n = {verdict.difference.n_tokens:,} tokens of "
                    f"{verdict.difference.n_documents:,} documents."
                )
        measured = {method.name for method in sae.report.methods}
        if lacking := [name for name in ("seed", "frozen-decoder", "random", "pca") if name not in measured]:
            yield f"{plain(sae.cfg.id)}: not measured were the controls {', '.join(lacking)}."
        yield from (f"{plain(sae.cfg.id)}: {plain(note)}" for note in facts.public(list(sae.report.notes)))
    yield from (f"Left out as damaged: {plain(what)}" for what in facts.public(facts.manifest.get("damaged", [])))
    yield "Measured on held-out documents of the text that it was trained on, and on no other text, language or model."
    yield "That a latent is active on a kind of text does not say that the model uses it so; no explanation was scored for this card."
    yield "Two seeds of one configuration share only part of their latents (arXiv:2501.16615): one dictionary is not the list of what a model has."


def _licence(facts: RunFacts, licences: Licences) -> list[str]:
    rows = [
        ["these files", plain(licences.own)],
        ["base model", f"{plain(facts.model_name)}: {plain(licences.model or 'unknown')}"],
        ["text", f"{plain(facts.text_name)}: {plain(licences.text or 'unknown')}"],
    ]
    lines = table(["of", "licence"], rows)
    if facts.recipe.text.builtin:
        lines += [
            "",
            "The text's is that of the package that carries it; the sets inside come from many places, which may have terms of their own.",
        ]
    return lines


def _files(hashes: Mapping[str, str]) -> list[str]:
    return [
        "sha256 of every file but this one, which `SHA256SUMS` adds:",
        "",
        "```text",
        *(f"{digest}  {name}" for name, digest in hashes.items()),
        "```",
    ]
