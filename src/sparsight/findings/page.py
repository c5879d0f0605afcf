"""The comparison's page: one HTML file without a script, that opens offline and on a phone. Whatever models or files wrote is text on it."""

from html import escape
from typing import Any

from sparsight.findings.plots import closure_svg, volcano_svg
from sparsight.findings.results import Findings
from sparsight.findings.summaries import (
    Table,
    closure_table,
    counts_table,
    grounding_table,
    layers_table,
    naive_table,
    telling_tables,
)
from sparsight.findings.words import dense_lines, headline, telling_lines

__all__ = ["page"]

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.55 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .4rem}h3{font-size:1rem;margin:1.2rem 0 .3rem}
.lead{font-size:1.1rem;border-left:4px solid #d9480f;padding:.2rem 0 .2rem .9rem;margin:1rem 0}
.quiet{opacity:.7}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.25rem .6rem;border-bottom:1px solid #8884;white-space:nowrap}
th{white-space:normal;vertical-align:bottom}th:first-child,td:first-child{text-align:left}
svg{max-width:42rem;width:100%;height:auto;font-size:11px}svg text{fill:currentColor}
.axis{stroke:currentColor}.limit{stroke:currentColor;stroke-dasharray:3 4;opacity:.45}
.pair{display:grid;grid-template-columns:5.5rem 1fr;gap:.1rem .6rem;border-top:1px solid #8883;padding:.3rem 0}
.pair b{text-align:right;font-weight:600;opacity:.75}.text{white-space:pre-wrap;overflow-wrap:anywhere}
mark{background:rgb(253 126 20/var(--v));color:inherit;border-radius:2px}.base mark{background:rgb(34 139 230/var(--v))}
.traced{border-top:1px solid #8884;padding:.7rem 0}.traced .prompt{opacity:.6}
.span{border-bottom:2px solid var(--c);padding-bottom:1px}.span sup{color:var(--c);font-weight:600;padding:0 .1rem}
.bad{color:#c92a2a}.tag{border:1px solid #8886;border-radius:1rem;padding:0 .5rem;font-size:.85rem}
details{margin:.2rem 0}summary{cursor:pointer}
a{color:inherit}
"""
_SPAN_COLOURS = ("#d9480f", "#1971c2", "#2f9e44", "#7048e8", "#c2255c", "#0c8599", "#e67700", "#5c940d")


def page(findings: Findings, name: str) -> str:
    """The whole page."""
    labels = findings.get("labels")
    closure = findings.get("closure")
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="lead">{escape(headline(labels))}</p>',
        '<p class="quiet">Emergent is short for: no linear analogue was found in the base\'s dictionaries. Naive: one SAE of each model, a latent '
        f"without a partner above cosine 0.7. p-values against {escape(labels['against'])}, on {labels['n_tokens']:,} held-out tokens.</p>",
        _section("What changed among the latents", _table(naive_table(labels)) + _table(counts_table(labels))),
        _section("Emergence of each latent", volcano_svg(labels["volcano"], labels["config"]["q"])),
        _section("The latents that differ most, on both models", _passages(labels["passages"])),
        _section("Where it changed", _table(layers_table(findings.get("where")))),
        *(
            _section(
                f"Closure by the {code} dictionary",
                _closure(found["rows"]),
            )
            for code, found in closure.items()
        ),
    ]
    if findings.has("grounding"):
        grounding = findings.get("grounding")
        parts.append(
            _section(
                "What the models write, traced to the fine-tuning text",
                _table(grounding_table(grounding)) + _provenance(grounding),
            )
        )
    if findings.has("telling"):
        telling = findings.get("telling")
        told = "".join(f"<p>{escape(line)}</p>" for line in telling_lines(telling))
        parts.append(
            _section("Latents that tell what is recombined", told + "".join(map(_table, telling_tables(telling))))
        )
    dense = findings.get("dense")
    lines = "".join(f"<li>{escape(line)}</li>" for line in dense_lines(dense["tuned"]))
    parts.append(_section("Without any dictionary", f"<ul>{lines}</ul>"))
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{escape(name)}</title><style>{_STYLE}</style>"
    policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    return f'<!doctype html><html lang="en"><head>{policy}{head}</head><body>{"".join(parts)}</body></html>\n'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _table(table: Table) -> str:
    header, rows = table
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _closure(rows: list[dict[str, Any]]) -> str:
    curve, table = closure_svg(rows), _table(closure_table(rows))
    return curve + _details("Every row", table) if curve else table


def _passages(shown: list[dict[str, Any]]) -> str:
    if not shown:
        return "<p>None could be tested.</p>"
    blocks = []
    for each in shown:
        strongest = max((max(*row["base"], *row["tuned"], 1e-9) for row in each["passages"]), default=1.0)
        rows = "".join(
            f'<div class="pair"><b>base</b><span class="text base">{_marked(row["tokens"], row["base"], strongest)}</span>'
            f'<b>fine-tune</b><span class="text">{_marked(row["tokens"], row["tuned"], strongest)}</span></div>'
            for row in each["passages"]
        )
        blocks.append(f"<h3>Latent {each['latent']} of tuned.0</h3>{rows}")
    return blocks[0] + _details(f"{len(blocks) - 1} more", "".join(blocks[1:])) if len(blocks) > 1 else blocks[0]


def _marked(tokens: list[str], values: list[float], strongest: float) -> str:
    return "".join(
        f'<mark style="--v:{min(1.0, value / strongest):.2f}" title="{value:g}">{escape(token)}</mark>'
        if value > 0
        else escape(token)
        for token, value in zip(tokens, values, strict=True)
    )


def _provenance(grounding: dict[str, Any]) -> str:
    blocks = []
    for name, rows in grounding["shown"].items():
        texts = "".join(_traced(row, grounding["documents"]) for row in rows)
        blocks.append(_details(f"Texts of {name}", texts))
    return (
        "<p>A coloured line under a span: it stands word for word in fine-tuning documents. A pair of spans that no document holds together is "
        "ungrounded; that is not the same as false.</p>" + "".join(blocks)
    )


def _traced(row: dict[str, Any], documents: dict[str, str]) -> str:
    starts = {span["start"]: place for place, span in enumerate(row["spans"])}
    ends = {span["end"]: place for place, span in enumerate(row["spans"])}
    parts = []
    for place, token in enumerate(row["tokens"]):
        if (place in ends and place not in starts) or (place in ends and place in starts):
            parts.append("</span>")
        if place in starts:
            span = row["spans"][starts[place]]
            colour = _SPAN_COLOURS[starts[place] % len(_SPAN_COLOURS)]
            parts.append(
                f'<span class="span" style="--c:{colour}" title="{span["bits"]:g} bits, in {span["n_documents"]} documents">'
                f"<sup>{starts[place] + 1}</sup>"
            )
        text = escape(token)
        parts.append(f'<span class="prompt">{text}</span>' if place < row["n_prompt"] else text)
    if len(row["tokens"]) in ends:
        parts.append("</span>")
    pairs = "".join(
        f'<li class="bad">{one + 1} and {other + 1}: no document holds both</li>' for one, other in row["ungrounded"]
    )
    sources = "".join(
        f"<li>{place + 1}: {span['n_documents']:,} documents, such as "
        + "; ".join(f"<em>{escape(documents[str(number)][:300])}</em>" for number in span["documents"][:1])
        + "</li>"
        for place, span in enumerate(row["spans"])
    )
    return (
        f'<div class="traced"><span class="tag">{escape(row["outcome"])}</span> <span class="text">{"".join(parts)}</span>'
        f"<ul>{pairs}</ul>{_details('Where each span stands', f'<ul>{sources}</ul>') if sources else ''}</div>"
    )
