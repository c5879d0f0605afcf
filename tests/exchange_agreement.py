"""Do the tools whose formats we write open our files, and compute what we compute; and do we compute what they do on theirs?

Not collected by pytest: each tool needs an environment of its own (make check-peers).

    python tests/exchange_agreement.py write DIR          with sparsight: every format and architecture, with inputs and outputs
    python tests/exchange_agreement.py check DIR TOOL     with the tool: loads each by its own loader, prints the largest differences
    python tests/exchange_agreement.py golden DIR TOOL    with the tool: SAEs of its own making, saved by itself, with inputs and outputs

TOOL: saelens, sparsify or dictionary-learning. `check` exits 1 if a difference exceeds 1e-5 of the outputs' scale, or if a tool opens what we
say that it lacks. `golden` made tests/golden/exchange, which tests/test_exchange.py reads. Only torch, safetensors and the tool are imported.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

TOLERANCE = 1e-5
D, D_OUT, F, N, K = 32, 24, 128, 256, 8
GOLDEN_D, GOLDEN_F, GOLDEN_N = 8, 24, 16
REFUSED = ("topk-transcoder", "gated-transcoder")  # by SAELens, which has no such class

Outputs = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x -> latents, x_hat, by the tool."""


def write(folder: Path) -> None:
    """Train each architecture for a few steps and save it in every format that can hold it, with what it computes."""
    from sparsight.errors import SAEError
    from sparsight.sae import ARCHITECTURES
    from sparsight.sae.exchange import FORMATS, write_as

    for target in ("", "layers.1.mlp"):
        for architecture in ARCHITECTURES:
            sae, x = _trained(architecture, target)
            latents, x_hat = sae(x)
            name = f"{architecture}{'-transcoder' if target else ''}"
            for format in FORMATS:
                suffix = {"qwen-scope": ".sae.pt", "founding": ".pt"}.get(format, "")
                try:
                    write_as(folder / format / f"{name}{suffix}", format, sae.cfg, sae.state_dict())
                except SAEError as error:
                    print(f"{format:20s} {name:24s} has no room for it: {error}")
                    continue
                save_file({"x": x, "latents": latents, "x_hat": x_hat}, folder / format / f"{name}.safetensors")
                if format == "saelens" and name not in REFUSED:
                    _write_program(folder, replace(sae.cfg, id=name), x, x_hat)
                print(f"{format:20s} {name:24s} written")


def _trained(architecture: str, target: str):
    from sparsight.activations.synthetic import SYNTHETIC_HOOK_POINT, SyntheticActivations
    from sparsight.sae import SAEConfig, SAETrainer

    data = SyntheticActivations(64, D, mean_active=4)
    batches = [5 * batch[SYNTHETIC_HOOK_POINT] + 2 for batch in data.batches(N, 30)]
    d_out = D_OUT if target and architecture != "topk" else D  # sparsify's transcoders have one width
    mix = torch.randn(D, d_out, generator=torch.Generator().manual_seed(0))
    options = {"n_latents": F, "k": K, "hook_point": "layers.1", "target_hook_point": target}
    cfg = SAEConfig(id=architecture, architecture=architecture, **options)
    trainer = SAETrainer(cfg, D, d_out if target else D, total_steps=30, batch_tokens=N)
    for i, x in enumerate(batches):
        pair = (x, x @ mix) if target else (x,)
        if i == 0:
            trainer.initialize(*pair)
        trainer.step(*pair)
    return trainer.finished(), batches[0]


def _write_program(folder: Path, cfg, x: Tensor, x_hat: Tensor) -> None:
    """What the card of a published SAE tells its reader to run, beside the file that it reads."""
    from sparsight.publication.usage import EXAMPLE_FILE, saelens_program

    save_file({"x": x, "x_hat": x_hat}, folder / "saelens" / cfg.id / EXAMPLE_FILE)
    program = saelens_program(cfg, "someone/saelens", str(folder / "saelens"))
    (folder / "saelens" / f"{cfg.id}.py").write_text("\n".join(program))


def check(folder: Path, tool: str) -> int:
    """Load everything of this tool's format with the tool and compare; returns how many differ."""
    failures = 0
    for file in sorted((folder / tool).glob("*.safetensors")):
        expected = load_file(file)
        try:
            with torch.no_grad():
                latents, x_hat = _LOADERS[tool](folder / tool / file.stem)(expected["x"])
        except (ValueError, KeyError) as error:
            known_gap = tool == "saelens" and file.stem in REFUSED
            failures += not known_gap
            print(f"{file.stem:24s} refused{' as expected' if known_gap else ''}: {error}")
            continue
        pairs = (("latents", latents), ("x_hat", x_hat))
        differences = [(mine - expected[name]).abs().max().item() for name, mine in pairs]
        scale = max(1.0, expected["x_hat"].abs().max().item())
        good = max(differences) <= TOLERANCE * scale
        failures += not good
        print(f"{file.stem:24s} latents {differences[0]:.1e}  x_hat {differences[1]:.1e}  (scale {scale:.1f}) {good}")
    for program in sorted((folder / tool).glob("*.py")):
        done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
        found = re.search(r"difference from Sparsight: (\S+)", done.stdout)
        good = done.returncode == 0 and found is not None and float(found[1]) <= 10 * TOLERANCE
        failures += not good
        print(f"{program.stem:24s} the card's program: {found[1] if found else done.stderr[-500:]} {good}")
    return failures


def golden(folder: Path, tool: str) -> None:
    """The tool's own SAEs with random weights, saved by the tool, and what they compute."""
    torch.manual_seed(0)
    for name, save, outputs in _MAKERS[tool]():
        where = folder / tool / name
        x = 2 * torch.randn(GOLDEN_N, GOLDEN_D) + 1
        with torch.no_grad():
            save(where)
            latents, x_hat = outputs(x)
        save_file(
            {"x": x, "latents": latents.contiguous(), "x_hat": x_hat.contiguous()}, where / "expected.safetensors"
        )
        print(f"{tool} {name}: {(latents > 0).float().sum(1).mean():.1f} latents active")


def _open_saelens(path: Path) -> Outputs:
    from sae_lens import SAE

    return _of_saelens(SAE.load_from_disk(path))


def _of_saelens(sae) -> Outputs:
    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = sae.encode(x)
        return latents, sae.decode(latents)

    return outputs


def _open_sparsify(path: Path) -> Outputs:
    from sparsify import SparseCoder

    return _of_sparsify(SparseCoder.load_from_disk(path))


def _of_sparsify(sae) -> Outputs:
    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        values, indices, _ = sae.encode(x)
        latents = torch.zeros(len(x), sae.num_latents).scatter_(1, indices, values)
        return latents, latents @ sae.W_dec + sae.b_dec

    return outputs


def _open_dictionary_learning(path: Path) -> Outputs:
    from dictionary_learning.dictionary import AutoEncoder
    from dictionary_learning.utils import load_dictionary

    sae, described = load_dictionary(str(path), "cpu")
    if described["trainer"]["dict_class"] == "AutoEncoder":  # whose loader would scale latents by decoder norms
        sae = AutoEncoder.from_pretrained(str(path / "ae.pt"), normalize_decoder=False)
    return _of_dictionary(sae)


def _of_dictionary(sae) -> Outputs:
    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = sae.encode(x)
        return latents, sae.decode(latents)

    return outputs


def _shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Random values in every parameter, so that no bias is 0 and no norm is 1; thresholds stay positive."""
    for name, tensor in module.named_parameters():
        noise = 0.5 * torch.rand(tensor.shape)
        tensor.data = noise if "threshold" in name else tensor.data + noise - 0.25
    return module


def _make_saelens() -> Iterator[tuple[str, Callable[[Path], None], Outputs]]:
    import sae_lens as lens

    shared = {"d_in": GOLDEN_D, "d_sae": GOLDEN_F, "dtype": "float32", "device": "cpu"}
    made = {
        "standard": (lens.StandardSAE, lens.StandardSAEConfig(**shared)),
        "standard-not-centred": (lens.StandardSAE, lens.StandardSAEConfig(**shared, apply_b_dec_to_input=False)),
        "topk": (lens.TopKSAE, lens.TopKSAEConfig(**shared, k=4)),
        "topk-rescaled": (lens.TopKSAE, lens.TopKSAEConfig(**shared, k=4, rescale_acts_by_decoder_norm=True)),
        "jumprelu": (lens.JumpReLUSAE, lens.JumpReLUSAEConfig(**shared)),
        "gated": (lens.GatedSAE, lens.GatedSAEConfig(**shared)),
        "transcoder": (
            lens.Transcoder,
            lens.TranscoderConfig(**shared, d_out=GOLDEN_D - 2, apply_b_dec_to_input=False),
        ),
        "jumprelu-transcoder": (
            lens.JumpReLUTranscoder,
            lens.JumpReLUTranscoderConfig(**shared, d_out=GOLDEN_D - 2, apply_b_dec_to_input=False),
        ),
    }
    for name, (cls, cfg) in made.items():
        sae = _shaken(cls(cfg))
        yield name, sae.save_model, _of_saelens(sae)


def _make_sparsify() -> Iterator[tuple[str, Callable[[Path], None], Outputs]]:
    from sparsify import SparseCoder, SparseCoderConfig

    for name, transcode in (("layers.3.mlp", False), ("layers.3.transcoder", True)):
        cfg = SparseCoderConfig(num_latents=GOLDEN_F, k=4, transcode=transcode)
        sae = _shaken(SparseCoder(GOLDEN_D, cfg))
        yield name, sae.save_to_disk, _of_sparsify(sae)


def _make_dictionary_learning() -> Iterator[tuple[str, Callable[[Path], None], Outputs]]:
    import json

    from dictionary_learning import dictionary as d
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    sizes = (GOLDEN_D, GOLDEN_F)
    made = [
        d.AutoEncoder(*sizes),
        d.AutoEncoderNew(*sizes),
        d.GatedAutoEncoder(*sizes),
        d.JumpReluAutoEncoder(*sizes),
        AutoEncoderTopK(*sizes, 4),
        BatchTopKSAE(*sizes, 4),
        MatryoshkaBatchTopKSAE(*sizes, 4, [GOLDEN_F // 2, GOLDEN_F // 2]),
    ]
    for sae in map(_shaken, made):
        name = type(sae).__name__
        if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            sae.threshold.fill_(0.7)

        def save(where: Path, sae=sae, name=name) -> None:
            where.mkdir(parents=True)
            torch.save(sae.state_dict(), where / "ae.pt")
            trainer = {"dict_class": name, "k": 4, "submodule_name": "layers.3"}
            (where / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))

        yield name, save, _of_dictionary(sae)


_LOADERS = {"saelens": _open_saelens, "sparsify": _open_sparsify, "dictionary-learning": _open_dictionary_learning}
_MAKERS = {"saelens": _make_saelens, "sparsify": _make_sparsify, "dictionary-learning": _make_dictionary_learning}


if __name__ == "__main__":
    mode, where = sys.argv[1], Path(sys.argv[2])
    if mode == "write":
        write(where)
    elif mode == "golden":
        golden(where, sys.argv[3])
    else:
        sys.exit(min(1, check(where, sys.argv[3])))
