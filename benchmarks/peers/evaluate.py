"""Held-out FVU, L0 and dead share of a reconstruction that a runner wrote: one definition for every tool.

Arguments: HELDOUT.safetensors RECONSTRUCTION.safetensors.
"""

import json
import sys

from safetensors.torch import load_file

from sparsight.metrics import fvu


def main(heldout: str, reconstruction: str) -> None:
    """Prints one line of JSON."""
    x, made = load_file(heldout)["rows"], load_file(reconstruction)
    result = {
        "fvu": fvu(x, made["x_hat"]),
        "l0": made["l0"].double().mean().item(),
        "dead_share": (made["fired"] == 0).double().mean().item(),
        "heldout_tokens": len(x),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
