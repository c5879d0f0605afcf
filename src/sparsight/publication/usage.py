"""How to use a published SAE: three programs for the card, and a file of activations that shows whether they compute the same.

Each runs as printed, next to a copy of the repository in a folder of its name; those of Sparsight and SAELens fetch from the Hub what is not
there. `example.safetensors` holds 8 rows of input and what Sparsight reconstructs from them, so that anyone's reading of the
weights can be checked to the last digits, whatever the tool.
"""

import itertools

import torch
from jaxtyping import Float
from torch import Tensor

from sparsight.activations import ActivationStore
from sparsight.artifact import RunDir
from sparsight.errors import StoreError
from sparsight.publication.facts import RunFacts, SAEFacts
from sparsight.publication.markdown import fenced, plain
from sparsight.sae import SAEConfig, SparseAutoencoder

__all__ = ["EXAMPLE_FILE", "example_tensors", "saelens_program", "torch_program", "usage_lines"]

EXAMPLE_FILE = "example.safetensors"
_ROWS = 8
_TEXT = "The cat sat on the mat."


@torch.inference_mode()
def example_tensors(run: RunDir, sae: SAEFacts) -> tuple[dict[str, Tensor], bool]:
    """{x [8, d_in], x_hat [8, d_out]}, and whether x is held-out activations; random numbers about b_dec once the run has lost those."""
    dictionary = SparseAutoencoder.load(sae.folder)
    real = _heldout_rows(run, sae.cfg.hook_point)
    x = real
    if x is None:
        noise = torch.randn(_ROWS, dictionary.d_in, generator=torch.Generator().manual_seed(0))
        x = noise if sae.cfg.is_transcoder else noise + dictionary.b_dec
    return {"x": x, "x_hat": dictionary.reconstruct(x)}, real is not None


def usage_lines(facts: RunFacts, sae: SAEFacts, repo_id: str, *, rows_are_real: bool) -> list[str]:
    """The section of the card."""
    rows = "held-out activations" if rows_are_real else "rows of random numbers"
    name = repo_id.split("/")[1]
    others = [plain(each.cfg.id) for each in facts.saes if each is not sae]
    lines = [
        *([f"Shown for {plain(sae.cfg.id)}; {', '.join(others)} by their folders likewise.", ""] if others else []),
        f"All three take a copy of this repository in the folder `{name}` where there is one: `hf download {repo_id} --local-dir {name}`, "
        "or what `sparsight publish --dry-run` built. Without it the first two fetch from the Hub, the third needs it. "
        f"`{sae.cfg.id}/{EXAMPLE_FILE}` has {_ROWS} {rows} `x` and what Sparsight makes of them, `x_hat`, to compare with.",
        "",
        "**Sparsight** (`pip install sparsight`): the latents that your own text makes fire.",
        "",
        *fenced(_with_sparsight(facts, sae, repo_id, name), "python"),
        "",
    ]
    if sae.opens_in_saelens:
        lines += [
            "**SAELens** (`pip install sae-lens`):",
            "",
            *fenced(saelens_program(sae.cfg, repo_id, name), "python"),
            "",
        ]
    else:
        lines += [f"**SAELens** has no class for `{sae.described['architecture']}` and refuses this one by name.", ""]
    return [
        *lines,
        "**torch and safetensors alone**: all that this SAE computes.",
        "",
        *fenced(torch_program(sae.cfg, name), "python"),
    ]


def _heldout_rows(run: RunDir, hook_point: str) -> Float[Tensor, "n d"] | None:
    try:
        store = ActivationStore.open(run.activations, skip_damaged=True)
        batches = store.batches("heldout", _ROWS, hook_points=[hook_point])
        for batch in itertools.islice(batches, 1):
            return batch[hook_point].float().clone()
    except (StoreError, OSError, KeyError):
        return None
    return None


def _with_sparsight(facts: RunFacts, sae: SAEFacts, repo_id: str, name: str) -> list[str]:
    config = [f"id={facts.model_name!r}"]
    if facts.model_hub_id == facts.model_name and facts.manifest["model"].get("commit"):
        config.append(f"revision={facts.manifest['model']['commit']!r}")
    config.append(f"dtype={facts.recipe.model.dtype!r}")
    target = f", target_hook_point={sae.cfg.target_hook_point!r}" if sae.cfg.is_transcoder else ""
    needs_folder = [] if facts.model_hub_id else ["# the model's folder, in the current one"]
    return [
        "from pathlib import Path",
        "",
        "import sparsight as ss",
        "",
        f"folder = Path({f'{name}/{sae.cfg.id}'!r})",
        f"sae = ss.load_sae(folder if folder.exists() else {f'{repo_id}/{sae.cfg.id}'!r})",
        *needs_folder,
        f"config = ss.ModelConfig({', '.join(config)})",
        f"model = ss.LanguageModel.load(config, hook_points={sae.hook_points!r})",
        f"print(ss.show_text(sae, model, {_TEXT!r}, hook_point={sae.cfg.hook_point!r}{target}))",
    ]


def saelens_program(cfg: SAEConfig, repo_id: str, name: str) -> list[str]:
    """Lines of Python that compute it with SAELens, from `name`/ID or else from the Hub."""
    return [
        "from pathlib import Path",
        "",
        "from huggingface_hub import hf_hub_download",
        "from safetensors.torch import load_file",
        "from sae_lens import SAE",
        "",
        f"folder = Path({f'{name}/{cfg.id}'!r})",
        "if folder.exists():",
        "    sae = SAE.load_from_disk(folder)",
        "else:",
        f"    sae = SAE.from_pretrained({repo_id!r}, {cfg.id!r})",
        f"    folder = Path(hf_hub_download({repo_id!r}, {f'{cfg.id}/{EXAMPLE_FILE}'!r})).parent",
        f'example = load_file(folder / "{EXAMPLE_FILE}")',
        'latents = sae.encode(example["x"])',
        "x_hat = sae.decode(latents)",
        *_comparison(),
    ]


def torch_program(cfg: SAEConfig, name: str) -> list[str]:
    """Lines of Python that compute what the SAE in `name`/ID does, with torch and safetensors alone."""
    gated = cfg.inference == "gated"
    centred = 'x @ weights["W_enc"]' if cfg.is_transcoder else '(x - weights["b_dec"]) @ weights["W_enc"]'
    active = {
        "topk": [
            f"largest = pre.topk({min(cfg.k, cfg.n_latents)}, dim=1)",
            "latents = torch.zeros_like(pre).scatter(1, largest.indices, largest.values.relu())",
        ],
        "jumprelu": ['latents = pre.relu() * (pre > weights["threshold"])'],
        "gated": [
            'magnitude = weights["r_mag"].exp() * (pre - weights["b_gate"]) + weights["b_mag"]',
            "latents = magnitude.relu() * (pre > 0)",
        ],
    }.get(cfg.inference, ["latents = pre.relu()"])
    return [
        "import torch",
        "from safetensors.torch import load_file",
        "",
        f"folder = {f'{name}/{cfg.id}'!r}",
        'weights = load_file(f"{folder}/sae_weights.safetensors")',
        f'example = load_file(f"{{folder}}/{EXAMPLE_FILE}")',
        f'x = example["x"]  # read at {cfg.hook_point}, float32',
        f'pre = {centred} + weights["{"b_gate" if gated else "b_enc"}"]',
        *active,
        'x_hat = latents @ weights["W_dec"] + weights["b_dec"]',
        *_comparison(),
    ]


def _comparison() -> list[str]:
    return [
        'print("latents active per row:", (latents > 0).sum(1).tolist())',
        "print(f\"largest difference from Sparsight: {(x_hat - example['x_hat']).abs().max():.1e}\")",
    ]
