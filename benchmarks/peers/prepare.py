"""Makes what every tool is given: texts, training rows and held-out rows, once, by Sparsight in float32.

    texts.jsonl              documents of the built-in probe text, those that the held-out rows do not come from, in their order
    train.safetensors        rows [n, 576] at layers.15.mlp of SmolLM2-135M, shuffled
    heldout.safetensors      rows [n, 576] of other documents
    store/                   the store they come from
    inputs.json              where they are, and where the model's folder is

Arguments: FOLDER N_TEXT_TOKENS N_TRAIN_ROWS N_HELDOUT_ROWS CONTEXT_TOKENS.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparsight import CaptureConfig, LanguageModel, ModelConfig, TextConfig
from sparsight.activations import ActivationStore
from sparsight.collect import collect_activations
from sparsight.lm import resolve_checkpoint
from sparsight.lm.documents import is_heldout, iter_documents

MODEL, HOOK = "smollm2-135m-instruct", "layers.15.mlp"
HELDOUT_FRACTION = 0.13
# dictionary_learning reads only the first tokens of a document and one buffer ahead, others drop the last chunk of a call
TEXT_TO_SPARE = 1.5
BUFFER_TO_SPARE = 16_384


def main(folder: Path, n_text_tokens: int, n_train: int, n_heldout: int, context_tokens: int) -> None:
    """Skips what an earlier call with the same sizes made."""
    asked = {"text": n_text_tokens, "train": n_train, "heldout": n_heldout, "context": context_tokens}
    inputs = folder / "inputs.json"
    if inputs.exists() and json.loads(inputs.read_text())["asked"] == asked:
        return
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = resolve_checkpoint(ModelConfig(id=MODEL))
    text = TextConfig(builtin="probe-text", context_tokens=context_tokens, heldout_fraction=HELDOUT_FRACTION)
    wanted = int(n_text_tokens * TEXT_TO_SPARE) + BUFFER_TO_SPARE
    n_documents = write_texts(folder / "texts.jsonl", text, checkpoint.tokenizer(), wanted)
    reader = LanguageModel.load(ModelConfig(id=MODEL, dtype="float32"), hook_points=[HOOK])
    capture = CaptureConfig(hook_points=(HOOK,), n_tokens=n_train, heldout_tokens=n_heldout, dtype="float32")
    store = collect_activations(reader, text, capture, folder / f"store-{n_train}-{n_heldout}-{context_tokens}")
    for split in ("train", "heldout"):
        save_file({"rows": rows_of(store, split)}, folder / f"{split}.safetensors")
    names = {"texts": "texts.jsonl", "train": "train.safetensors", "heldout": "heldout.safetensors"}
    files = {key: str(folder / name) for key, name in names.items()}
    files |= {"model": checkpoint.source, "store": str(store.path)}
    inputs.write_text(json.dumps({"asked": asked, "files": files, "n_documents": n_documents}, indent=2))


def write_texts(path: Path, text: TextConfig, tokenizer, wanted: int) -> int:
    """Documents until their first `context_tokens` tokens are `wanted`; returns how many documents."""
    n_documents = n_tokens = 0
    with path.open("w", encoding="utf-8") as file:
        for document in iter_documents(text):
            length = len(tokenizer(document.text)["input_ids"])
            if is_heldout(document.id, HELDOUT_FRACTION) or length < text.min_document_tokens:
                continue
            file.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
            n_documents, n_tokens = n_documents + 1, n_tokens + min(length, text.context_tokens)
            if n_tokens >= wanted:
                break
    return n_documents


def rows_of(store: ActivationStore, split: str) -> torch.Tensor:
    """A split's rows, in the order in which they are trained on."""
    return torch.cat([chunk[HOOK] for chunk in store.batches(split, min(1024, store.n_tokens(split)))])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *(int(each) for each in sys.argv[2:]))
