"""Language models and the text they read: the only room that knows Transformers."""

from sparsight.lm.batches import TokenBatch, make_batches
from sparsight.lm.builtin import BUILTIN_MODELS, BUILTIN_TEXTS
from sparsight.lm.checkpoint import Checkpoint, resolve_checkpoint
from sparsight.lm.config import ModelConfig, TextConfig
from sparsight.lm.documents import Document, document_id, is_heldout, iter_documents, text_fingerprint
from sparsight.lm.generate import Decoding, Sampler
from sparsight.lm.hookpoint import HookPoint
from sparsight.lm.labelled import (
    LabelledPrompts,
    LabelledSet,
    builtin_sets,
    folder_sets,
    sample_prompts,
    sets_fingerprint,
)
from sparsight.lm.load import choose_device
from sparsight.lm.model import LanguageModel
from sparsight.lm.tokens import Piece, TextCounts, TextCursor, iter_pieces

__all__ = [
    "BUILTIN_MODELS",
    "BUILTIN_TEXTS",
    "Checkpoint",
    "Decoding",
    "Document",
    "HookPoint",
    "LabelledPrompts",
    "LabelledSet",
    "LanguageModel",
    "ModelConfig",
    "Piece",
    "Sampler",
    "TextConfig",
    "TextCounts",
    "TextCursor",
    "TokenBatch",
    "builtin_sets",
    "choose_device",
    "document_id",
    "folder_sets",
    "is_heldout",
    "iter_documents",
    "iter_pieces",
    "make_batches",
    "resolve_checkpoint",
    "sample_prompts",
    "sets_fingerprint",
    "text_fingerprint",
]
