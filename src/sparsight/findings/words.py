"""What a comparison found, in sentences: the headline has its nulls in it; and the report as Markdown."""

from typing import Any

import numpy as np

from sparsight.diff import CHANGES
from sparsight.findings.results import Findings
from sparsight.findings.summaries import (
    as_text,
    changed_in,
    closure_table,
    counts_table,
    grounding_table,
    layers_table,
    naive_table,
    telling_tables,
)

__all__ = ["dense_lines", "headline", "markdown", "telling_lines"]


_LEAST_TESTED = 0.1  # of the latents: where fewer could be tested, that none is called changed says little


def headline(labels: dict[str, Any]) -> str:
    """One sentence. "No detectable difference" where the fine-tune's count is within the nulls'; "undetermined" where too little could be tested."""
    if labels["seeds"]["tuned"] == 1:
        return (
            f"Undetermined: one SAE of each model was given, so {', '.join(labels['missing'])} are missing. {labels['naive']['real']['n']:,} of "
            f"{labels['naive']['real']['of']:,} latents have no partner above cosine 0.7, as often is so between two seeds of one model."
        )
    tests, of = labels["tests"]["direction"], sum(labels["counts"]["tuned"][0].values())
    called, by_seeds = (
        {side: [changed_in(seed) for seed in seeds] for side, seeds in labels[key].items()}
        for key in ("counts", "counts_by_seeds")
    )
    real, alone, reseed = (float(np.mean(each)) for each in (called["tuned"], by_seeds["tuned"], by_seeds["reseed"]))
    nothing = real <= max(called.get("null", [0])) or alone <= max(by_seeds["reseed"])
    if nothing and tests["n_tested"] < _LEAST_TESTED * of:
        return (
            f"Undetermined: {tests['n_tested']:,} of {of:,} latents were found again by every seed of their own model and fired often enough on "
            f"{labels['n_tokens']:,} held-out tokens to be tested, which is too few to say that nothing changed. Read more tokens, train longer, or "
            "train fewer latents."
        )
    kinds = {kind: np.mean([seed[kind] for seed in labels["counts"]["tuned"]]) for kind in CHANGES}
    parts = [
        f"{real:.1f} latents of the fine-tune differ from all of the base's dictionaries (mean of {len(called['tuned'])} seeds, q <= "
        f"{labels['config']['q']:g}): {kinds['emergent']:.1f} have no linear analogue there, {kinds['rotated']:.1f} have turned, "
        f"{kinds['reweighted']:.1f} weigh more or less"
    ]
    parts += [f"the same tests find {np.mean(called['null']):.1f} in a null fine-tune"] if "null" in called else []
    parts.append(f"before latent scaling it is {alone:.1f}, and {reseed:.1f} between seeds of the base itself")
    return f"{'No detectable difference: ' if nothing else ''}{'; '.join(parts)}. {tests['n_tested']:,} of {of:,} latents could be tested."


def markdown(findings: Findings, name: str, steps: dict[str, Any]) -> str:
    """The report as Markdown."""
    labels = findings.get("labels")
    parts = [
        f"# {name}",
        headline(labels),
        "## Latents",
        _missing(labels),
        as_text(naive_table(labels)),
        as_text(counts_table(labels)),
    ]
    if "drift" in labels:
        parts.append(_drift(labels["drift"], labels["config"]["q"]))
    if "crosscoders" in labels:
        parts.append("\n".join(_crosscoder(each, found) for each, found in labels["crosscoders"].items()))
    parts += ["## Where it changed", as_text(layers_table(findings.get("where")))]
    for code, found in findings.get("closure").items():
        parts += [f"## Closure by the {code} dictionary", as_text(closure_table(found["rows"]))]
    if findings.has("grounding"):
        written = as_text(grounding_table(findings.get("grounding")))
        parts += ["## What the models write, traced to the fine-tuning text", written]
    if findings.has("telling"):
        telling = findings.get("telling")
        parts += ["## Latents that tell what is recombined", *telling_lines(telling)]
        parts += [as_text(table) for table in telling_tables(telling)]
    parts += ["## Without any dictionary", "- " + "\n- ".join(dense_lines(findings.get("dense")["tuned"]))]
    parts += ["## Time", "\n".join(f"- {step}: {each['seconds']:.0f} s" for step, each in steps.items())]
    return "\n\n".join(parts) + "\n"


def telling_lines(telling: dict[str, Any]) -> list[str]:
    """What the latents tell of recombined details, in a sentence or two."""
    if "undetermined" in telling:
        return [f"Undetermined: {telling['undetermined']}"]
    ceiling, n_found = telling["ceiling"], sum(len(seed["found"]) for seed in telling["seeds"])
    lines = [
        f"{telling['n_recombined']:,} recombined details beside {telling['n_spans'] - telling['n_recombined']:,} grounded ones of the same kind, in "
        f"{telling['n_texts']:,} texts, each read at the token before it. A linear probe on the activations tells them with AUC "
        f"{ceiling['auc']:.3f} (p {ceiling['p']:.3f}).",
        f"{n_found:,} latents of {len(telling['seeds'])} SAEs tell them better than the token's log-probability and the base's best latent."
        if n_found
        else "No latent tells them better than the token's log-probability and the base's best latent.",
    ]
    ablation = telling["ablation"]
    if ablation is None:
        return [*lines, "None tells them better than the best by luck either, so nothing is taken out."]
    chosen = f"{', '.join(map(str, ablation['latents']))} of tuned.{ablation['seed']}"
    if "undetermined" in ablation:
        return [*lines, f"Latents {chosen} are not taken out: {ablation['undetermined']}"]
    return [
        *lines,
        f"Taken out: latents {chosen}, over {ablation['n_texts']:,} texts, beside {ablation['n_controls']:,} matched sets.",
    ]


def dense_lines(dense: dict[str, Any]) -> list[str]:
    """The dense bars of one fine-tune."""
    rose = ", ".join(f"{word!r} {difference:+.4f}" for word, difference, _ in dense["tokens"]["rose"][:8])
    fell = ", ".join(f"{word!r} {difference:+.4f}" for word, difference, _ in dense["tokens"]["fell"][:8])
    first = next((name for name in dense["lens"] if name != "mean"), "mean")
    return [
        f"The mean difference is {dense['mean_share']:.1%} of the difference's square; its two halves agree with cosine {dense['agreement']:.2f}.",
        f"50 components hold {dense['variance_of_50']:.1%} of its variance.",
        f"Through the final norm and head the mean says {_listed(dense['lens']['mean'])}; at the first token {_listed(dense['lens'][first])}.",
        f"More probable on the held-out text (mean difference of p, {dense['tokens']['n_documents']} documents): {rose}. Less: {fell}.",
    ]


def _listed(words: list[str]) -> str:
    return ", ".join(map(repr, words[:8]))


def _missing(labels: dict[str, Any]) -> str:
    lines = f"p-values against {labels['against']}, on {labels['n_tokens']:,} held-out tokens; SAEs: " + ", ".join(
        f"{n} of {role}" for role, n in labels["seeds"].items()
    )
    return lines + (
        ". No null fine-tune was given or made, so what any training changes is not known."
        if "null" not in labels["seeds"]
        else "."
    )


def _drift(drift: dict[str, Any], q: float) -> str:
    names = {"tuned": "the fine-tune's activations", "null": "the null fine-tune's", "base": "the base's own"}
    parts = [
        f"{drift[role]['mean']:.4f} (95th percentile {drift[role]['p95']:.4f}) on {name}"
        for role, name in names.items()
        if role in drift
    ]
    line = f"A base SAE trained on turns by 1 - cosine = {'; '.join(parts)}."
    return line + (
        f" {drift['beyond_null']:,} of {drift['n_tested']:,} latents turn further than the null's, q <= {q:g}."
        if "beyond_null" in drift
        else ""
    )


def _crosscoder(name: str, found: dict[str, Any]) -> str:
    return (
        f"- {name}: by its norms {found['tuned_by_norm']:,} of {found['latents']:,} latents are the fine-tune's alone and "
        f"{found['base_by_norm']:,} the base's; latent scaling leaves {found['tuned_both']:,} and {found['base_both']:,} of them."
    )
