"""The front matter of a card: what the Hub reads, made by huggingface_hub's own classes, so that it loads back as it was meant.

`model-index` has one result for the text, with the SAE's name in each metric's: held-out FVU, L0, share of dead latents, and CE and KL in place.
Datasets that the Hub does not have stand in `model-index`, which needs a name, and never in `datasets`, which makes links.
"""

from huggingface_hub import EvalResult, ModelCardData

from sparsight.metrics import Estimate
from sparsight.publication.facts import RunFacts, SAEFacts
from sparsight.publication.licences import Licences

__all__ = ["dataset_front_matter", "front_matter"]

_METRICS = {
    "fvu": "fraction of variance unexplained",
    "l0": "active latents per token",
    "dead_share": "share of latents never active",
    "ce": "cross-entropy with the SAE in place, nats per token",
    "kl": "KL divergence from the untouched model, nats per token",
}
_TAGS = ["sparse-autoencoder", "mechanistic-interpretability", "sparsight"]


def front_matter(facts: RunFacts, licences: Licences, repo_id: str) -> str:
    """YAML between its two lines."""
    opens = any(sae.opens_in_saelens for sae in facts.saes)
    data = ModelCardData(
        base_model=facts.model_hub_id,
        datasets=[facts.dataset_hub_id] if facts.dataset_hub_id else None,
        license=licences.own,
        library_name="saelens" if opens else "sparsight",
        tags=_TAGS + (["saelens"] if opens else []),
        model_name=repo_id.split("/")[1],
        eval_results=[result for sae in facts.saes for result in _results(facts, sae)],
    )
    return f"---\n{data.to_yaml()}\n---"


def dataset_front_matter(licences: Licences) -> str:
    """The same for tables of features."""
    from huggingface_hub import DatasetCardData

    return f"---\n{DatasetCardData(license=licences.own, tags=_TAGS).to_yaml()}\n---"


def _results(facts: RunFacts, sae: SAEFacts) -> list[EvalResult]:
    text, provenance = facts.recipe.text, facts.manifest["text"]
    measured = sae.report.method("sae").metrics
    return [
        EvalResult(
            task_type="feature-extraction",
            task_name="reconstruction of activations",
            dataset_type=facts.dataset_hub_id or text.builtin or "local-files",
            dataset_name=f"{facts.dataset_hub_id or text.builtin or 'local files'}, held-out documents",
            dataset_config=(text.config or None) if text.dataset else None,
            dataset_split=text.split if text.dataset else None,
            dataset_revision=provenance.get("commit") if text.dataset else None,
            metric_type=metric,
            metric_name=f"{what}, {sae.cfg.id}",
            metric_value=_value(measured[metric]),
        )
        for metric, what in _METRICS.items()
        if metric in measured and measured[metric].value is not None
    ]


def _value(estimate: Estimate) -> float:
    return float(f"{estimate.value:.6g}")
