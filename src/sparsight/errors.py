"""Every error a user can cause, in one hierarchy.

    SparsightError                the command line prints one line and exits 2
    +-- RecipeError               a recipe: unknown key, wrong value, changed under a half-done run
    +-- PlanError                 the job cannot fit the machine
    +-- ModelError                a language model: unknown, unreadable, not supported
    |   +-- HookPointError        a hook point that the model lacks
    +-- TextError                 a text: unknown dataset or column, empty, too short
    +-- ActivationError           activations that cannot be used: NaN, infinity, wrong width
    +-- StoreError                an activation store: missing, truncated or altered shard
    +-- SAEError                  a sparse autoencoder: impossible configuration
    |   +-- FormatError           a file of weights: wrong shapes, missing tensors, code inside
    +-- SteeringError             an edit of latents, or a steering, that cannot be done as asked
    +-- MetricError               a metric without a meaning on these numbers
    +-- RunError                  a run directory: in use, incomplete, disk full
    +-- HubError                  the Hugging Face Hub: no token, a name it refuses, an upload cut off
    +-- NotesError                labels, notes, lists: text that is refused, a file that is not ours
    +-- EndpointError             a language model behind an address: no key, no answer, the budget spent

A message says what happened with the values, what was expected, and the remedy. `assert` is for our own bugs.
"""

__all__ = [
    "ActivationError",
    "EndpointError",
    "FormatError",
    "HookPointError",
    "HubError",
    "MetricError",
    "ModelError",
    "NotesError",
    "PlanError",
    "RecipeError",
    "RunError",
    "SAEError",
    "SparsightError",
    "SteeringError",
    "StoreError",
    "TextError",
]


class SparsightError(Exception):
    """A mistake or misfortune that the user can act on."""


class RecipeError(SparsightError):
    """A recipe that cannot be followed."""


class PlanError(SparsightError):
    """A job that cannot fit the machine."""


class ModelError(SparsightError):
    """A language model that cannot be found, read or used."""


class HookPointError(ModelError):
    """A hook point that the model lacks; the message lists the nearest names."""


class TextError(SparsightError):
    """A text that cannot be found or does not suffice."""


class ActivationError(SparsightError):
    """Activations that cannot be used; the message names hook point and document."""


class StoreError(SparsightError):
    """An activation store with a missing, truncated or altered shard."""


class SAEError(SparsightError):
    """A sparse autoencoder that cannot be made as asked."""


class FormatError(SAEError):
    """A file of weights that is not what it should be."""


class SteeringError(SparsightError):
    """An edit of latents, or a steering, that cannot be done as asked."""


class MetricError(SparsightError):
    """A metric that has no meaning on the numbers given."""


class RunError(SparsightError):
    """A run directory that cannot be used as it is."""


class HubError(SparsightError):
    """The Hugging Face Hub could not be written to."""


class NotesError(SparsightError):
    """Labels, notes or lists that cannot be kept or read."""


class EndpointError(SparsightError):
    """A language model behind an address that cannot be asked."""
