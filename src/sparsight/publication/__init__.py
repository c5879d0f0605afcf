"""Publication: a run made into a repository on the Hugging Face Hub: a model card and what stands beside it."""

from sparsight.publication.card import Card, model_card
from sparsight.publication.config import PublishConfig
from sparsight.publication.facts import RunFacts, SAEFacts, read_facts
from sparsight.publication.hub import check_repo_id, hub_token, upload
from sparsight.publication.licences import Licences, find_licences
from sparsight.publication.markdown import plain
from sparsight.publication.metadata import dataset_front_matter
from sparsight.publication.plots import density_svg, training_svg
from sparsight.publication.usage import EXAMPLE_FILE, example_tensors

__all__ = [
    "EXAMPLE_FILE",
    "Card",
    "Licences",
    "PublishConfig",
    "RunFacts",
    "SAEFacts",
    "check_repo_id",
    "dataset_front_matter",
    "density_svg",
    "example_tensors",
    "find_licences",
    "hub_token",
    "model_card",
    "plain",
    "read_facts",
    "training_svg",
    "upload",
]
