"""Sparse autoencoders: what they are, how one is trained, and the files they live in."""

from sparsight.sae.autoencoder import SAEOutput, SparseAutoencoder, SparseLatents
from sparsight.sae.checkpoints import Checkpoints, load_stream_state
from sparsight.sae.config import ARCHITECTURES, SAEConfig
from sparsight.sae.crosscoder import model_decoders, relative_norm
from sparsight.sae.edits import EDIT_MODES, LatentEdit, edit_change, edited
from sparsight.sae.exchange.founding import founding_config
from sparsight.sae.kernels.workspace import Workspace
from sparsight.sae.screening import is_screened, screened
from sparsight.sae.trainer import SAETrainer
from sparsight.sae.untrained import load_untrained, untrained_directions, untrained_sae

__all__ = [
    "ARCHITECTURES",
    "EDIT_MODES",
    "Checkpoints",
    "LatentEdit",
    "SAEConfig",
    "SAEOutput",
    "SAETrainer",
    "SparseAutoencoder",
    "SparseLatents",
    "Workspace",
    "edit_change",
    "edited",
    "founding_config",
    "is_screened",
    "load_stream_state",
    "load_untrained",
    "model_decoders",
    "relative_norm",
    "screened",
    "untrained_directions",
    "untrained_sae",
]
