"""What to read and with which model: the recipe's [model] and [text] tables.

Both are plain values, checked when made, so that a mistake costs a second and not a download. Ids are not looked up
here: that needs a network, and a recipe must be readable without one.
"""

from dataclasses import dataclass

from sparsight.errors import ModelError, TextError

__all__ = ["ModelConfig", "TextConfig"]

_DTYPES = ("bfloat16", "float16", "float32")
_ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
_BOS_POLICIES = ("auto", "always", "never")
_ISOLATIONS = ("documents", "packed")
_COMPILATIONS = ("auto", "off", "layers")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which language model, and how its forward pass is computed."""

    id: str
    """Hub id, local folder, .gguf file, or the built-in name `smollm2-135m-instruct`."""

    revision: str = "main"
    """Branch, tag or commit on the Hub. The commit it resolved to is recorded."""

    dtype: str = "bfloat16"
    """Of the weights and the activations read: bfloat16, float16 or float32."""

    device: str = "auto"
    """`auto` (CUDA when there is a GPU, else the CPU, said aloud), or a torch device such as `cuda:1`."""

    attention: str = "sdpa"
    """sdpa, eager or flash_attention_2."""

    compile: str = "auto"
    """Of decoder blocks, for reading activations: layers (torch.compile, checked against the plain blocks), off, or auto,
    which is off everywhere for now: compiled blocks have not run on a GPU yet, and on a CPU they gain nothing."""

    def __post_init__(self) -> None:
        if not self.id:
            raise ModelError("model.id is empty. Give a Hub id, a folder, a .gguf file or `smollm2-135m-instruct`.")
        _check_choice(ModelError, "model.dtype", self.dtype, _DTYPES)
        _check_choice(ModelError, "model.attention", self.attention, _ATTENTIONS)
        _check_choice(ModelError, "model.compile", self.compile, _COMPILATIONS)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which text, and how it is cut into rows of tokens. Exactly one of `builtin`, `dataset` and `files` is given."""

    builtin: str = ""
    """`probe-text`: 298 thousand documents (107 MB) of code, essays, news, papers, reviews and facts."""

    dataset: str = ""
    """Hub dataset id, streamed."""

    config: str = ""
    """The dataset's configuration; empty for its only one."""

    split: str = "train"
    """The dataset's split."""

    revision: str = "main"
    """The dataset's branch, tag or commit."""

    files: tuple[str, ...] = ()
    """Paths or globs of .txt (one document a file), .jsonl and .parquet (one document a row)."""

    column: str = "text"
    """The column, or JSON key, that holds the text."""

    context_tokens: int = 256
    """Tokens in the longest row. A longer document is read in pieces of this length, each without the ones before."""

    min_document_tokens: int = 8
    """Tokens below which a document is skipped and counted."""

    bos: str = "auto"
    """A beginning-of-sequence token before each document: auto (what the tokenizer does itself), always or never."""

    chat_template: bool = False
    """Wrap each document as one user message by the tokenizer's chat template."""

    isolation: str = "documents"
    """documents (a piece of one document a row) or packed (as in pretraining: documents in a stream, eos between)."""

    batch_tokens: int = 4096
    """Tokens in one forward pass, padding included: rows * padded length."""

    heldout_fraction: float = 0.05
    """Share of documents, by the hash of their text, that training never sees."""

    def __post_init__(self) -> None:
        given = [name for name in ("builtin", "dataset", "files") if getattr(self, name)]
        if len(given) != 1:
            raise TextError(
                f"text gives {' and '.join(given) or 'no source'}. Give exactly one of builtin, dataset and files."
            )
        if isinstance(self.files, str):
            raise TextError(f"text.files is the string {self.files!r}. Expected a list of paths or globs.")
        _check_choice(TextError, "text.bos", self.bos, _BOS_POLICIES)
        _check_choice(TextError, "text.isolation", self.isolation, _ISOLATIONS)
        for name in ("context_tokens", "min_document_tokens", "batch_tokens"):
            if getattr(self, name) < 1:
                raise TextError(f"text.{name} is {getattr(self, name)}. Expected at least 1 token.")
        if not 0 <= self.heldout_fraction < 1:
            raise TextError(f"text.heldout_fraction is {self.heldout_fraction}. Expected a share from 0 to below 1.")


def _check_choice(error: type[ModelError] | type[TextError], name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise error(f"{name} is {value!r}. Expected one of {', '.join(choices)}.")
