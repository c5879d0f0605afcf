"""Findings: what a comparison found, as tables, in words and as a page."""

from sparsight.findings.given import check_given, given_findings
from sparsight.findings.latents import LatentFindings
from sparsight.findings.models import closure_findings, dense_findings, layer_findings
from sparsight.findings.passages import side_by_side
from sparsight.findings.report import write_report
from sparsight.findings.results import Findings
from sparsight.findings.rows import PairedRows
from sparsight.findings.summaries import as_text, naive_table
from sparsight.findings.telling import TellingLatents
from sparsight.findings.texts import traced_json
from sparsight.findings.words import headline

__all__ = [
    "Findings",
    "LatentFindings",
    "PairedRows",
    "TellingLatents",
    "as_text",
    "check_given",
    "closure_findings",
    "dense_findings",
    "given_findings",
    "headline",
    "layer_findings",
    "naive_table",
    "side_by_side",
    "traced_json",
    "write_report",
]
