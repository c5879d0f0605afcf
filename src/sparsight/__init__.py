"""Sparsight: a language model's features, and what fine-tuning changed in them.

The names below are the package's public face. They load on first use: importing `sparsight` itself imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ActivationBatch": "sparsight.activations",
    "ActivationStore": "sparsight.activations",
    "ActivationStream": "sparsight.activations",
    "CaptureConfig": "sparsight.activations",
    "EvalReport": "sparsight.metrics",
    "EndpointConfig": "sparsight.labels",
    "EvaluateConfig": "sparsight.metrics",
    "ExplainConfig": "sparsight.labels",
    "FeatureIndex": "sparsight.features",
    "IndexConfig": "sparsight.features",
    "LanguageModel": "sparsight.lm",
    "LatentEdit": "sparsight.sae",
    "ModelConfig": "sparsight.lm",
    "Notes": "sparsight.features",
    "ProbingConfig": "sparsight.metrics",
    "ProbingReport": "sparsight.metrics",
    "PublishConfig": "sparsight.publication",
    "Recipe": "sparsight.recipe",
    "SAEConfig": "sparsight.sae",
    "SparseAutoencoder": "sparsight.sae",
    "SparsightError": "sparsight.errors",
    "SteerConfig": "sparsight.steering",
    "StoreSource": "sparsight.activations",
    "TextConfig": "sparsight.lm",
    "TrainConfig": "sparsight.recipe",
    "build_index": "sparsight.index",
    "collect_activations": "sparsight.collect",
    "convert_sae": "sparsight.convert",
    "evaluate_sae": "sparsight.evaluate",
    "explain_index": "sparsight.explain",
    "explain_run": "sparsight.explain",
    "falsify_label": "sparsight.explain",
    "load_recipe": "sparsight.recipe",
    "load_sae": "sparsight.convert",
    "make_plan": "sparsight.plan",
    "probe_saes": "sparsight.probe",
    "publish_run": "sparsight.publish",
    "read_text": "sparsight.features",
    "serve_runs": "sparsight.serve",
    "run_study": "sparsight.study",
    "show_latent": "sparsight.features",
    "show_overview": "sparsight.features",
    "show_text": "sparsight.features",
    "steer_text": "sparsight.steer",
    "sweep_text": "sparsight.steer",
    "train_sae": "sparsight.train",
    "train_saes": "sparsight.train",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from sparsight.activations import ActivationBatch, ActivationStore, ActivationStream, CaptureConfig, StoreSource
    from sparsight.collect import collect_activations
    from sparsight.convert import convert_sae, load_sae
    from sparsight.errors import SparsightError
    from sparsight.evaluate import evaluate_sae
    from sparsight.explain import explain_index, explain_run, falsify_label
    from sparsight.features import FeatureIndex, IndexConfig, Notes, read_text, show_latent, show_overview, show_text
    from sparsight.index import build_index
    from sparsight.labels import EndpointConfig, ExplainConfig
    from sparsight.lm import LanguageModel, ModelConfig, TextConfig
    from sparsight.metrics import EvalReport, EvaluateConfig, ProbingConfig, ProbingReport
    from sparsight.plan import make_plan
    from sparsight.probe import probe_saes
    from sparsight.publication import PublishConfig
    from sparsight.publish import publish_run
    from sparsight.recipe import Recipe, TrainConfig, load_recipe
    from sparsight.sae import LatentEdit, SAEConfig, SparseAutoencoder
    from sparsight.serve import serve_runs
    from sparsight.steer import steer_text, sweep_text
    from sparsight.steering import SteerConfig
    from sparsight.study import run_study
    from sparsight.train import train_sae, train_saes


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sparsight' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
