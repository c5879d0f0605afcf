"""Language models and the text they read: the only room that knows Transformers."""

from sparsight.lm.adapter import Adapter, combined_identity, identity_of, is_adapter
from sparsight.lm.batches import TokenBatch, make_batches
from sparsight.lm.builtin import BUILTIN_MODELS, BUILTIN_TEXTS
from sparsight.lm.checkpoint import Checkpoint, resolve_checkpoint
from sparsight.lm.config import ModelConfig, TextConfig
from sparsight.lm.documents import Document, document_id, is_heldout, iter_documents, text_fingerprint
from sparsight.lm.finetune import FinetuneConfig, how_trained, train_adapter
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
from sparsight.lm.mixture import Mixture, MixtureShare, mix_texts
from sparsight.lm.model import LanguageModel
from sparsight.lm.pair import ROLES, ActivationReader, PairFacts, check_pair, load_models
from sparsight.lm.tokens import Piece, TextCounts, TextCursor, iter_pieces, text_encoder

__all__ = [
    "BUILTIN_MODELS",
    "BUILTIN_TEXTS",
    "ROLES",
    "ActivationReader",
    "Adapter",
    "Checkpoint",
    "Decoding",
    "Document",
    "FinetuneConfig",
    "HookPoint",
    "LabelledPrompts",
    "LabelledSet",
    "LanguageModel",
    "Mixture",
    "MixtureShare",
    "ModelConfig",
    "PairFacts",
    "Piece",
    "Sampler",
    "TextConfig",
    "TextCounts",
    "TextCursor",
    "TokenBatch",
    "builtin_sets",
    "check_pair",
    "choose_device",
    "combined_identity",
    "document_id",
    "folder_sets",
    "how_trained",
    "identity_of",
    "is_adapter",
    "is_heldout",
    "iter_documents",
    "iter_pieces",
    "load_models",
    "make_batches",
    "mix_texts",
    "resolve_checkpoint",
    "sample_prompts",
    "sets_fingerprint",
    "text_encoder",
    "text_fingerprint",
    "train_adapter",
]
