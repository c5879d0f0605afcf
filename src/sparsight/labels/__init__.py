"""Labels: what a latent is active on, in words, with a test on documents that the words were not made from."""

from sparsight.labels.answers import Answers
from sparsight.labels.config import EndpointConfig, ExplainConfig
from sparsight.labels.endpoint import BudgetSpent, Endpoint, Prompt, Spending, estimate_tokens
from sparsight.labels.explained import MODEL_FREE, Explained, Falsified
from sparsight.labels.labeller import Labeller
from sparsight.labels.passages import Evidence, Passages
from sparsight.labels.report import Cost, ExplainReport, estimate_cost
from sparsight.labels.rules import Rule, RuleBook
from sparsight.labels.scoring import Score, auc, balanced_accuracy

__all__ = [
    "MODEL_FREE",
    "Answers",
    "BudgetSpent",
    "Cost",
    "Endpoint",
    "EndpointConfig",
    "Evidence",
    "ExplainConfig",
    "ExplainReport",
    "Explained",
    "Falsified",
    "Labeller",
    "Passages",
    "Prompt",
    "Rule",
    "RuleBook",
    "Score",
    "Spending",
    "auc",
    "balanced_accuracy",
    "estimate_cost",
    "estimate_tokens",
]
