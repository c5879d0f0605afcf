"""The prompt-only control: asking for in words what an edit does to the activations; and prompts as token ids.

Prompting often steers better than an edit, so a steering is worth showing only beside it. The instruction names tokens that the edited
latents promote, to use them or, where the edit weakens the latent, to avoid them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sparsight.errors import SteeringError, TextError
from sparsight.features.index import FeatureIndex
from sparsight.features.tokens import readable_tokens
from sparsight.lm import LanguageModel
from sparsight.sae import LatentEdit
from sparsight.steering.effect import weakens

__all__ = ["instruct", "prompt_ids", "steering_instruction"]

# Words named for each latent: an instruction stays a sentence.
WORDS = 5


def steering_instruction(model: LanguageModel, index: FeatureIndex | None, edits: Sequence[LatentEdit]) -> str:
    """What to ask for, from the edited latents' promoted tokens. Raises SteeringError when these are not known."""
    if index is None or not index.has_logits:
        raise SteeringError(
            "The prompt control names promoted tokens, which are not known here. Give an instruction, or leave it out."
        )
    sentences = []
    for less, start in ((False, "Write with words like"), (True, "Write without words like")):
        words: list[str] = []
        for edit in edits:
            if weakens(edit) == less:
                words += _words(model, index, edit.latent)
        if words:
            sentences.append(f"{start} {', '.join(dict.fromkeys(words))}.")
    return " ".join(sentences)


def instruct(instruction: str, prompt: str) -> str:
    """The instruction, then the prompt as it was."""
    return f"{instruction}\n\n{prompt}"


def prompt_ids(model: LanguageModel, prompt: str, *, chat: bool) -> Int[Tensor, "1 positions"]:
    """The prompt's tokens; with `chat` as a user's message, up to where the answer begins. Raises TextError when there are none."""
    if not prompt.strip():
        raise TextError("The prompt is empty. Give at least one word.")
    tokenizer = model.tokenizer
    if chat:
        if not tokenizer.chat_template:
            raise SteeringError("The tokenizer has no chat template. Give the prompt as plain text.")
        message = [{"role": "user", "content": prompt}]
        prompt = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(prompt, add_special_tokens=not chat)["input_ids"]
    if not ids:
        raise TextError(f"The prompt {prompt!r} has no tokens. Give at least one word.")
    return torch.tensor([ids])


def _words(model: LanguageModel, index: FeatureIndex, latent: int) -> list[str]:
    """Promoted tokens that are words or parts of them, strongest first; any others only when there are no such."""
    tokens = [token.strip() for token in readable_tokens(model.tokenizer, index.promoted(latent).token_ids)]
    tokens = [token for token in tokens if token]
    spelled = [token for token in tokens if token.isalpha()]
    return [f'"{token}"' for token in (spelled or tokens)[:WORDS]]
