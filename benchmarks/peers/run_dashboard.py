"""sae-dashboard 0.8.0 through its own runner, in its own environment: every latent's data for a page, from tokens, model and SAE.

Worked around, without touching its files: SmolLM2 is not among transformer_lens' models, so its weights go through transformer_lens' own
conversion for Llama; tokenizer and rope_theta of a folder that Transformers 5 wrote are read from its files; sae_lens refuses to fold
a TopK SAE's decoder norms, so they stay. `default`: its own batches (256 latents, 64 rows), the model read anew for each batch of
latents. `best`: activations cached on disk after the first batch (`cache_dir`).
"""

import json
from pathlib import Path
from typing import Any

import torch
from measure import Job, Work, run_job
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_llama_weights
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HOOK = "blocks.15.hook_mlp_out"


def dashboards(job: Job) -> dict[str, Any]:
    """The data of every latent's page, in memory; writing pages is not timed."""
    tokens = load_file(job["files"]["tokens"])["tokens"].long()
    model, sae = load_model(Path(job["files"]["model"]), Path(job["scratch"])), SAE.load_from_disk(job["files"]["sae"])
    sae.fold_W_dec_norm = lambda: None
    config = SaeVisConfig(
        hook_point=HOOK,
        features=list(range(job["n_latents"])),
        cache_dir=Path(job["scratch"]) / "cache" if job["setting"] == "best" else None,
    )
    with Work(job, tokens.numel()) as work:
        data = SaeVisRunner(config).run(encoder=sae, model=model, tokens=tokens)
    titles = [feature.acts_histogram_data.title or "= 0%" for feature in data.feature_data_dict.values()]
    shares = [float(title.split("= ")[1].rstrip("%")) / 100 for title in titles]
    save_file({"density": torch.tensor(shares)}, job["reconstruction"])
    return work.result | {"latents": len(shares)}


def load_model(folder: Path, scratch: Path) -> HookedSAETransformer:
    """SmolLM2 as transformer_lens has it, in float32, checked against Transformers' own logits."""
    written = json.loads((folder / "config.json").read_text())
    theta = written.get("rope_theta") or written["rope_parameters"]["rope_theta"]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, rope_theta=theta)
    c = reference.config
    config = HookedTransformerConfig(
        model_name="smollm2",
        original_architecture="LlamaForCausalLM",
        n_layers=c.num_hidden_layers,
        d_model=c.hidden_size,
        n_heads=c.num_attention_heads,
        n_key_value_heads=c.num_key_value_heads,
        d_head=c.hidden_size // c.num_attention_heads,
        d_mlp=c.intermediate_size,
        d_vocab=c.vocab_size,
        n_ctx=512,
        eps=c.rms_norm_eps,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_adjacent_pairs=False,
        rotary_dim=c.hidden_size // c.num_attention_heads,
        rotary_base=int(theta),
        default_prepend_bos=False,
        device="cpu",
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    tokenizer.save_pretrained(scratch / "tokenizer")  # transformer_lens loads it again by where it came from
    tokenizer = PreTrainedTokenizerFast.from_pretrained(scratch / "tokenizer")
    model = HookedSAETransformer(config, tokenizer)
    model.load_and_process_state_dict(
        convert_llama_weights(reference, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    ids = torch.arange(1000, 1064)[None]
    with torch.inference_mode():
        theirs = reference(ids).logits
        difference = float((model(ids) - theirs).norm() / theirs.norm())
    if not difference < 1e-3:
        raise ValueError(f"transformer_lens' SmolLM2 differs from Transformers' by {difference:.2g}")
    return model


if __name__ == "__main__":
    run_job({"dashboards": dashboards})
