"""One environment for each peer, under .venv-peers: they disagree about versions, and about ours.

    python benchmarks/peers/install.py

torch comes first and pinned, the same build for everyone. dictionary_learning is installed without its dependencies' dependencies: nnsight 0.3
asks for torchvision and diffusers, which bring another torch (2.15 with CUDA when this was written); what it imports follows by name.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH = os.environ.get("TORCH", "torch==2.13.0")
_NNSIGHT_IMPORTS = (
    "transformers datasets einops wandb zstandard accelerate protobuf sentencepiece python-socketio[client] "
    "pydantic pyyaml requests pillow"
)
INSTALLS = {
    "sae-lens": ["sae-lens==6.54.12"],
    "dictionary-learning": ["--no-deps dictionary-learning==0.1.0 nnsight==0.3.7", _NNSIGHT_IMPORTS],
    "sparsify": ["eai-sparsify==1.3.3"],
}
# Not for training: benchmarks/peers/dashboards.py. torchvision comes along and breaks CPU torch; pyarrow 21 needs a numpy that it forbids.
DASHBOARD_INSTALLS = {"sae-dashboard": ["sae-dashboard==0.8.0 pyarrow<21"]}
_UNWANTED = {"sae-dashboard": "torchvision torchaudio"}


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return ROOT / ".venv-peers" / peer / "bin" / "python"


def install(peer: str) -> None:
    """Makes the environment, unless it is there."""
    done = ROOT / ".venv-peers" / peer / ".installed"
    if done.exists():
        return
    print(f"installing {peer} ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(done.parent)], check=True)
    pip = [str(python_of(peer)), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", TORCH], check=True)
    for requirements in (INSTALLS | DASHBOARD_INSTALLS)[peer]:
        pinned = [] if requirements.startswith("--no-deps") else [TORCH]
        subprocess.run([*pip, "install", *pinned, *requirements.split()], check=True)
    if peer in _UNWANTED:
        subprocess.run([*pip, "uninstall", "--yes", *_UNWANTED[peer].split()], check=True)
    done.touch()


if __name__ == "__main__":
    for name in INSTALLS:
        install(name)
