"""Licences of what a publication stands on: of the base model, and of the text whose passages a card may quote.

Known from the built-in table, from what the user says, or from the repository on the Hub where that can be asked; otherwise unknown, which is
said in the card and in a warning. Nothing here is legal advice: identifiers are compared, terms are not read.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from huggingface_hub import DatasetInfo, HfApi, ModelInfo

from sparsight.lm import BUILTIN_MODELS, BUILTIN_TEXTS
from sparsight.publication.config import PublishConfig
from sparsight.publication.facts import RunFacts

__all__ = ["Licences", "find_licences"]

# Identifiers of the Hub under which a derived work may carry a licence of its own.
_PERMISSIVE = (
    "apache-2.0",
    "mit",
    "bsd",
    "cc0",
    "unlicense",
    "pddl",
    "cc-by-2",
    "cc-by-3",
    "cc-by-4",
    "cdla-permissive",
)
# Under these a passage may be quoted with its source named. Not among them: odc-by and odbl, which are of a database and not of the texts in it,
# and all non-commercial and no-derivatives ones.
_QUOTABLE = (*_PERMISSIVE, "cc-by-sa")
_TIMEOUT_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class Licences:
    """Identifiers as the Hub has them; empty where unknown."""

    own: str
    model: str
    text: str

    @property
    def text_is_quotable(self) -> bool:
        """Whether passages of the text may be quoted, as far as an identifier can tell."""
        return self.text.startswith(_QUOTABLE)

    def warnings(self) -> Iterator[str]:
        """What to look at before publishing under `own`."""
        for what, licence, option in (
            ("base model", self.model, "--model-license"),
            ("text", self.text, "--text-license"),
        ):
            if not licence:
                yield f"The licence of the {what} is not known; see whether it allows {self.own}, and say it by {option}."
            elif not licence.startswith(_PERMISSIVE) and licence != self.own:
                yield f"The {what}'s licence is {licence}; see whether it allows to publish this as {self.own} (--license)."


def find_licences(facts: RunFacts, config: PublishConfig) -> Licences:
    """What is known; asks the Hub about a Hub id that nothing else is known of, and takes no answer for an answer."""
    model_builtin = BUILTIN_MODELS.get(facts.recipe.model.id)
    text_builtin = BUILTIN_TEXTS.get(facts.recipe.text.builtin)
    model = config.model_license or (model_builtin.licence if model_builtin else "")
    text = config.text_license or (text_builtin.licence if text_builtin else "")
    if not model and facts.model_hub_id:
        model = _on_the_hub(facts.model_hub_id, HfApi.model_info)
    if not text and facts.dataset_hub_id:
        text = _on_the_hub(facts.dataset_hub_id, HfApi.dataset_info)
    return Licences(own=config.license, model=model.lower(), text=text.lower())


def _on_the_hub(repo_id: str, info: Callable[..., ModelInfo | DatasetInfo]) -> str:
    try:
        card = info(HfApi(), repo_id, timeout=_TIMEOUT_SECONDS).card_data
        found = card.get("license") if card else None
    except (
        Exception
    ):  # offline, gated, renamed, no such repository: each its own exception, and all of them mean unknown
        return ""
    first = found[0] if isinstance(found, list) and found else found
    return first if isinstance(first, str) else ""
