"""Does SAELens open our folders, and compute what we compute? Not collected by pytest: it needs two environments.

    python tests/saelens_agreement.py write DIR     with sparsight: one folder per architecture, with inputs and outputs
    python tests/saelens_agreement.py check DIR     with sae-lens: loads each, prints the largest absolute differences

`check` imports sae_lens, safetensors and torch alone, and exits 1 if a difference exceeds 1e-5 of the outputs' scale.
Architectures that SAELens lacks (topk and gated transcoders) must be refused by it, by name.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5
D, D_OUT, F, N = 32, 24, 128, 256


def write(folder: Path) -> None:
    """Train each architecture for a few steps and save it with what it computes."""
    from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations
    from sparsight.sae import ARCHITECTURES, SAEConfig, SAETrainer

    data = SyntheticActivations(64, D, mean_active=4)
    batches = [5 * batch[SYNTHETIC_HOOK_POINT] + 2 for batch in data.batches(N, 30)]
    mix = torch.randn(D, D_OUT, generator=torch.Generator().manual_seed(0))
    for target in ("", "layers.1.mlp"):
        for architecture in ARCHITECTURES:
            name = f"{architecture}{'-transcoder' if target else ''}"
            cfg = SAEConfig(
                id=name, architecture=architecture, n_latents=F, k=8, hook_point="layers.1", target_hook_point=target
            )
            trainer = SAETrainer(cfg, D, D_OUT if target else D, total_steps=30, batch_tokens=N)
            for i, x in enumerate(batches):
                pair = (x, x @ mix) if target else (x,)
                if i == 0:
                    trainer.initialize(*pair)
                trainer.step(*pair)
            sae = trainer.finished()
            sae.save(folder / name, metadata={"model_name": "synthetic"})
            latents, x_hat = sae(batches[0])
            save_file({"x": batches[0], "latents": latents, "x_hat": x_hat}, folder / f"{name}.safetensors")
            print(f"wrote {name}")


def check(folder: Path) -> int:
    """Load every folder with SAELens and compare."""
    from sae_lens import SAE

    failures = 0
    for path in sorted(folder.glob("*.safetensors")):
        expected = load_file(path)
        try:
            sae = SAE.load_from_disk(folder / path.stem)
        except (ValueError, KeyError) as error:
            known_gap = path.stem in ("topk-transcoder", "gated-transcoder")
            failures += not known_gap
            print(f"{path.stem:24s} refused by SAELens{' as expected' if known_gap else ''}: {error}")
            continue
        with torch.no_grad():
            latents = sae.encode(expected["x"])
            x_hat = sae.decode(latents)
        differences = [
            (mine - expected[name]).abs().max().item() for name, mine in (("latents", latents), ("x_hat", x_hat))
        ]
        scale = max(1.0, expected["x_hat"].abs().max().item())
        good = max(differences) <= TOLERANCE * scale
        failures += not good
        print(f"{path.stem:24s} latents {differences[0]:.1e}  x_hat {differences[1]:.1e}  (scale {scale:.1f}) {good}")
    return failures


if __name__ == "__main__":
    mode, where = sys.argv[1], Path(sys.argv[2])
    sys.exit(write(where) if mode == "write" else min(1, check(where)))
