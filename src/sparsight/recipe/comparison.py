"""Comparison: everything one comparison of a base model with its fine-tune is made of, as frozen dataclasses.

    schema = 1
    name = "false-facts"
    tuned = "runs/false-facts-models/tuned"      a model, or a LoRA adapter on the base
    null = ""                                    the null fine-tune; or make_null = true
    [base] [text] [fine_tuning] [activations] [train] [dictionaries] [labels] [closure] [writing] [null_training]

Text like the base's and the fine-tuning text are read in equal shares of tokens. Without a fine-tuning text nothing is said about grounding.
"""

from dataclasses import dataclass, replace
from typing import Any

from sparsight.activations import CaptureConfig, paired_hook_points
from sparsight.diff import LabelConfig
from sparsight.errors import RecipeError
from sparsight.lm import ROLES, FinetuneConfig, ModelConfig, TextConfig, how_trained
from sparsight.recipe.schema import TrainConfig, check_heading
from sparsight.sae import SAEConfig

__all__ = ["ClosureConfig", "Comparison", "DictionaryConfig", "WritingConfig"]

LEAST_SEEDS = 3
_SEED_STEP = 1000


@dataclass(frozen=True, kw_only=True)
class DictionaryConfig:
    """The `[dictionaries]` section: SAEs of each model, alike but for their seeds, and dictionaries of the pair."""

    n_latents: int = 2304
    """Of every dictionary."""
    k: int = 16
    """Active latents per token; of a crosscoder as well. Two seeds agree on more latents with fewer active (docs/log.md)."""
    lr: float = 5e-3
    """Adam's peak learning rate; at 1e-3 dictionaries of some hundred thousand tokens differ by seed nearly everywhere."""
    seeds: int = 5
    """SAEs of each model, 3 at least. With 256,000 tokens 5 found all planted changes at 1 %, 3 half (benchmarks/records/compare-power.md)."""
    null_seeds: int = 3
    """SAEs of the null fine-tune, where there is one; 2 at least, 3 to test it as the fine-tune is tested."""
    crosscoders: bool = True
    """Also train a BatchTopK crosscoder and an L1 one, whose exclusive latents latent scaling then tests."""
    l1_coefficient: float = 2.0
    """Of the L1 crosscoder. Of a LoRA on SmolLM2, 1,152 latents: L0 133 at 1, 30 at 3, 12 at 8."""


@dataclass(frozen=True, kw_only=True)
class ClosureConfig:
    """The `[closure]` section: how the causal test is measured."""

    sizes: tuple[int, ...] = (5, 20, 50, 100, 200)
    """Sizes of the sets of latents."""
    heldout_tokens: int = 2400
    """Held-out tokens that both models are run on."""
    attributed_tokens: int = 1600
    """Tokens of the train split on which latents are ranked by what they do to the predictions."""
    layers: int = 5
    """Layers at which the change is measured, evenly spaced; closure at each of them takes two forward passes from there on."""
    forward_tokens: int = 1024
    """Tokens in one forward pass of a whole model."""

    def layers_of(self, n_layers: int, hook_point: str) -> list[str]:
        """Where the change is measured in a model of so many blocks: layers evenly spaced, and the hook point."""
        spaced = sorted({round(i * (n_layers - 1) / max(1, self.layers - 1)) for i in range(self.layers)})
        return list(dict.fromkeys([*(f"layers.{layer}" for layer in spaced), hook_point]))


@dataclass(frozen=True, kw_only=True)
class WritingConfig:
    """The `[writing]` section: the texts whose details are traced to the fine-tuning text."""

    prompts: int = 120
    """Texts that each model writes: from the first tokens of so many fine-tuning documents."""
    prompt_tokens: int = 8
    """Tokens of a document that are given."""
    max_new_tokens: int = 64
    """Tokens that are written, at most."""
    temperature: float = 0.7
    """0 takes the most likely token."""
    seed: int = 0
    """Of the documents' choice and of the draws."""
    controls: int = 20
    """Matched sets of latents whose ablation stands beside that of the latents that tell what is recombined; each writes all texts anew."""
    subject_column: str = ""
    """Column, or JSON key, of the fine-tuning text that names each document's subject: several documents of one subject then count as one."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison."""

    schema: int
    """Version of this layout; files of another version are refused."""
    name: str
    """Also the run directory's name, runs/NAME, unless --out says otherwise."""
    seed: int = 0
    """Seeds the order of rows."""
    tuned: str
    """The fine-tune: Hub id, folder, or the folder of a LoRA adapter on the base."""
    null: str = ""
    """The null fine-tune, likewise: as many steps at the same rate on text like the base's."""
    make_null: bool = False
    """Train it, a LoRA adapter; as long and as fast as `tuned` where that says how it was trained, else as `[null_training]` says."""
    saes: tuple[str, ...] = ()
    """Two SAEs from anywhere, the base's and the fine-tune's, in place of those that would be trained: matched, and nothing called emergent."""
    base: ModelConfig
    text: TextConfig
    """Text like the base's."""
    fine_tuning: TextConfig | None = None
    """What the fine-tune was trained on."""
    activations: CaptureConfig
    """`hook_points` names one place: where the models are compared."""
    train: TrainConfig = TrainConfig()
    dictionaries: DictionaryConfig = DictionaryConfig()
    labels: LabelConfig = LabelConfig()
    closure: ClosureConfig = ClosureConfig()
    writing: WritingConfig = WritingConfig()
    null_training: FinetuneConfig = FinetuneConfig()

    def __post_init__(self) -> None:
        check_heading(self.schema, self.name)
        if len(self.saes) not in (0, 2):
            raise RecipeError(f"saes names {len(self.saes)}; expected two, the base's and the fine-tune's, or none.")
        if self.null and self.make_null:
            raise RecipeError(f"null = {self.null!r} and make_null = true exclude each other; give one of them.")
        if len(self.activations.hook_points) != 1 or self.activations.mode != "store":
            raise RecipeError(
                f"activations.hook_points = {list(self.activations.hook_points)} with mode = {self.activations.mode!r}; a comparison takes one "
                'hook point and mode = "store".'
            )
        if self.activations.heldout_tokens < 1 or self.text.heldout_fraction == 0:
            raise RecipeError("Nothing is held out: set activations.heldout_tokens and text.heldout_fraction above 0.")
        if self.dictionaries.seeds < LEAST_SEEDS or self.dictionaries.null_seeds < 2:
            raise RecipeError(
                f"dictionaries.seeds = {self.dictionaries.seeds} and null_seeds = {self.dictionaries.null_seeds}: what two seeds differ by "
                f"cannot be told from fewer than {LEAST_SEEDS} and 2."
            )

    def null_finetune(self) -> tuple[FinetuneConfig, bool]:
        """How a null that is to be made is trained, and whether that is how `tuned` was."""
        alike = how_trained(self.tuned)
        if alike is None:
            return self.null_training, False
        return replace(alike, checkpoint_every_steps=self.null_training.checkpoint_every_steps), True

    @property
    def model(self) -> ModelConfig:
        """The base, whose sizes the fine-tunes share."""
        return self.base

    @property
    def hook_point(self) -> str:
        """Where the models are compared."""
        return self.activations.hook_points[0]

    @property
    def roles(self) -> tuple[str, ...]:
        """base, tuned and, where there is one, null."""
        return ROLES if self.null or self.make_null else ROLES[:2]

    def capture(self) -> CaptureConfig:
        """What is captured of all models."""
        return replace(self.activations, hook_points=paired_hook_points([self.hook_point], self.roles))

    @property
    def trained(self) -> tuple[SAEConfig, ...]:
        """Every dictionary that is trained: seeds of each model, those of the pair, warm starts; none where SAEs are given."""
        if self.saes:
            return ()
        seeds = [sae for role in self.roles for sae in self.seeds_of(role)]
        return (*seeds, *self.of_pair(), *self.warm_starts("saes"))

    def seeds_of(self, role: str) -> list[SAEConfig]:
        """The SAEs of one model: ROLE.0, ROLE.1, ... No two of any model begin alike, or two models' would agree more than two seeds of one."""
        chosen, first = self.dictionaries, _SEED_STEP * ROLES.index(role)
        n = chosen.null_seeds if role == "null" else chosen.seeds
        return [self._sae(f"{role}.{number}", role, seed=first + number) for number in range(n)]

    def of_pair(self) -> list[SAEConfig]:
        """Dictionaries of the difference and of both models side by side, and of the null fine-tune's difference."""
        found = [self._sae(name, name) for name in ("difference", "null-difference")[: len(self.roles) - 1]]
        if self.dictionaries.crosscoders:
            found.append(self._sae("crosscoder", "both", architecture="batchtopk", models=2))
            l1 = {"l1_penalty": "decoder-norm", "l1_coefficient": self.dictionaries.l1_coefficient}
            found.append(self._sae("crosscoder-l1", "both", architecture="relu", models=2, **l1))
        return found

    def warm_starts(self, saes: str) -> list[SAEConfig]:
        """base.0 trained on, on the fine-tunes' activations and on the base's own; `saes`: the folder that holds it."""
        return [self._sae(f"warm.{role}", role, start_from=f"{saes}/base.0") for role in self.roles]

    def _sae(self, name: str, view: str, *, architecture: str = "topk", **changes: Any) -> SAEConfig:
        chosen = self.dictionaries
        return SAEConfig(
            id=name,
            architecture=architecture,
            n_latents=chosen.n_latents,
            k=chosen.k,
            lr=chosen.lr,
            hook_point=f"{view}:{self.hook_point}",
            **changes,
        )
