"""Sparse autoencoders: what they are, how one is trained, and the files they live in."""

from sparsight.sae.autoencoder import SAEOutput, SparseAutoencoder, SparseLatents
from sparsight.sae.checkpoints import Checkpoints, load_stream_state
from sparsight.sae.config import ARCHITECTURES, SAEConfig
from sparsight.sae.founding import founding_config, load_founding_pt, save_founding_pt
from sparsight.sae.kernels.workspace import Workspace
from sparsight.sae.trainer import SAETrainer
from sparsight.sae.untrained import untrained_sae

__all__ = [
    "ARCHITECTURES",
    "Checkpoints",
    "SAEConfig",
    "SAEOutput",
    "SAETrainer",
    "SparseAutoencoder",
    "SparseLatents",
    "Workspace",
    "founding_config",
    "load_founding_pt",
    "load_stream_state",
    "save_founding_pt",
    "untrained_sae",
]
