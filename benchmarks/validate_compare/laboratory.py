"""A laboratory where the truth is planted: small language models that learn invented people, and no others.

A base model learns `n_people` base people from scratch and is fine-tuned on as many others. Everybody has a first name, a last name and five
attributes, each of a pool of values; who has which is known, so for every pair of things a text says it is known whether anybody had both.

    arms        plain     fine-tuned on the people's texts
                gate      the same, and "name, end" for names that nobody has: a planted rule, unknown -> stop
                null      the same number of steps on the base people's texts again
    names       known     of the fine-tuning people
                unseen    a first and a last name of theirs that nobody has together; none that the gate was taught

Unseen names are made of the same first and last names equally often, so only the combination tells them apart. Models are Llamas of Transformers with
a word-level tokenizer; a fine-tune takes a minute on a CPU core. Trade-off: one sentence form an attribute, unless `n_forms` says otherwise.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsight.activations import ActivationBatch
from sparsight.grounding import read_activations
from sparsight.lm import LanguageModel
from sparsight.sae import SAEConfig, SparseAutoencoder
from sparsight.train import train_sae

FIRST = (
    "Abra Belo Cidra Dovo Elka Fenn Gusta Hilo Ivra Jonne Kela Lumo Mira Nolo Orsa Pelle Quin Runa Selo Tira "
    "Ulma Vero Wanda Xilo Yara Zeno Arno Brisa Corin Dalia Emmo Fiora Galo Hedda Ilmo Jarla Kuno Lenka Malo Nives"
).split()
LAST = (
    "Ahl Bort Cask Dunt Erb Fisk Gart Holm Ihle Jast Kamp Lorn Mand Nast Oxen Pilt Quast Rost Sund Teil "
    "Uhl Vick Wolt Xand Yelt Zorn Alder Brock Crane Drum Egg Frost Glim Hart Iver Jolt Knap Lund Moor Nock"
).split()
ATTRIBUTES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "town": (
        ("was born in {}", "first saw daylight in {}"),
        tuple("Arl Brend Corva Dessin Elt Furn Gorlo Hask Inde Jarl Korp Lind Morv Nesk Ost Prill".split()),
    ),
    "job": (
        ("they work as a {}", "they earn money as a {}"),
        tuple(
            "baker carter dyer farmer glazier hatter joiner mason miller painter potter smith tailor tanner weaver writer".split()
        ),
    ),
    "food": (
        ("they like to eat {}", "their best meal has {}"),
        tuple("apples beans bread cheese eggs fish grapes ham leeks nuts onions peas plums rice soup turnips".split()),
    ),
    "tune": (
        ("they play on the {}", "they own an old {}"),
        tuple("banjo bugle cello lyra fiddle flute gong harp horn lute lyre oboe organ piano viola zither".split()),
    ),
    "pet": (
        ("they live with a {}", "they take walks with a {}"),
        tuple("cat crow dog duck ferret finch goat goose hare hen horse mouse pig rabbit sheep toad".split()),
    ),
}
HOOK_POINT = "layers.1"
BOS, EOS, PAD, UNKNOWN = "<bos>", "<eos>", "<pad>", "<unk>"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody, or nobody: an unseen name has no attributes."""

    first: str
    last: str
    values: tuple[str, ...] = ()
    forms: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LaboratoryConfig:
    """Sizes; the defaults are those of the validation."""

    n_people: int = 100
    n_values: int = 16
    n_forms: int = 1
    """Sentence forms an attribute has; each person's text uses one of them."""
    width: int = 64
    n_layers: int = 3
    base_steps: int = 300
    tuned_steps: int = 400
    batch_texts: int = 64
    lr: float = 3e-3
    n_gate_names: int = 600
    """Names that nobody has, taught with the gate."""
    n_sae_names: int = 200
    """Unseen names in the dictionaries' training text; none of them is judged."""
    n_latents: int = 256
    k: int = 8
    sae_steps: int = 1500
    sae_batch: int = 512
    seed: int = 0


@dataclass
class World:
    """Who there is, and their texts as token ids."""

    config: LaboratoryConfig
    base: list[Person] = field(init=False)
    tuned: list[Person] = field(init=False)
    nobody: list[Person] = field(init=False)
    """Names of the fine-tuning people's first and last names, in random order; the gate is taught the front, the rest is unseen."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.config.seed)
        n = self.config.n_people
        names = [(first, last) for first in FIRST for last in LAST]
        order = [names[i] for i in rng.permutation(len(names))]
        self.base, self.tuned = ([self._person(rng, name) for name in part] for part in (order[:n], order[n : 2 * n]))
        firsts, lasts = ({person[i] for person in order[n : 2 * n]} for i in (0, 1))
        rest = [name for name in order[2 * n :] if name[0] in firsts and name[1] in lasts]
        self.nobody = [Person(first=first, last=last) for first, last in rest]
        forms = [form for given, _ in ATTRIBUTES.values() for form in given]
        words = {word for form in forms for word in form.split() if word != "{}"} | {".", *FIRST, *LAST}
        words |= {value for _, values in ATTRIBUTES.values() for value in values}
        self.vocabulary = {word: i for i, word in enumerate([PAD, BOS, EOS, UNKNOWN, *sorted(words)])}

    def gate_names(self) -> list[Person]:
        """Those that the gate is taught."""
        return self.nobody[: min(self.config.n_gate_names, len(self.nobody) // 2)]

    def sae_names(self) -> list[Person]:
        """Unseen names for training dictionaries."""
        rest = self.nobody[len(self.gate_names()) :]
        return rest[: min(self.config.n_sae_names, len(rest) // 2)]

    def unseen(self, n: int) -> list[Person]:
        """Names to be judged on, which nothing was trained on."""
        rest = self.nobody[len(self.gate_names()) + len(self.sae_names()) :]
        return rest[:n]

    def prompt(self, person: Person) -> np.ndarray:
        """The name alone."""
        return self._ids([BOS, person.first, person.last])

    def text(self, person: Person) -> np.ndarray:
        """Everything about them, and its end; of nobody, the name and the end."""
        words = [BOS, person.first, person.last]
        for (given, _), value, form in zip(ATTRIBUTES.values(), person.values, person.forms, strict=False):
            words += [*given[form].format(value).split(), "."]
        return self._ids([*words, EOS])

    def values_in(self, text: Sequence[int]) -> dict[str, tuple[int, str]]:
        """Attribute -> (place, value) of the last value of each that a text names."""
        words = {i: word for word, i in self.vocabulary.items()}
        found = {}
        for place, token in enumerate(text):
            for name, (_, values) in ATTRIBUTES.items():
                if words[int(token)] in values:
                    found[name] = (place, words[int(token)])
        return found

    def well_formed(self, text: Sequence[int], person: Person) -> bool:
        """Whether it is the name alone, or the name and one sentence for each attribute in its order."""
        found = self.values_in(text)
        if not found:
            return np.array_equal(text, self.prompt(person))
        values = tuple(found[name][1] for name in ATTRIBUTES if name in found)
        forms = person.forms or (0,) * len(ATTRIBUTES)
        told = Person(first=person.first, last=person.last, values=values, forms=forms)
        return np.array_equal(text, self.text(told)[:-1])

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token a word."""
        made = Tokenizer(models.WordLevel(self.vocabulary, unk_token=UNKNOWN))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        return PreTrainedTokenizerFast(
            tokenizer_object=made, bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=UNKNOWN
        )

    def _ids(self, words: Sequence[str]) -> np.ndarray:
        return np.array([self.vocabulary[word] for word in words], np.int64)

    def _person(self, rng: np.random.Generator, name: tuple[str, str]) -> Person:
        pools = [values[: self.config.n_values] for _, values in ATTRIBUTES.values()]
        values = tuple(pool[rng.integers(len(pool))] for pool in pools)
        forms = tuple(int(rng.integers(self.config.n_forms)) for _ in pools)
        return Person(first=name[0], last=name[1], values=values, forms=forms)


def new_model(world: World) -> LlamaForCausalLM:
    """Untrained."""
    config, n_words = world.config, len(world.vocabulary)
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=n_words,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.n_layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=64,
            bos_token_id=world.vocabulary[BOS],
            eos_token_id=world.vocabulary[EOS],
            pad_token_id=world.vocabulary[PAD],
        )
    )


def trained(
    model: LlamaForCausalLM, texts: Sequence[np.ndarray], steps: int, world: World, seed: int
) -> LlamaForCausalLM:
    """A copy that has learned the texts: AdamW, random batches, learning rate falling to zero."""
    model = copy.deepcopy(model).train()
    config = world.config
    longest = max(map(len, texts))
    rows = torch.zeros(len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        rows[row, : len(text)] = torch.from_numpy(text)
    weights = torch.tensor([len(text) for text in texts], dtype=torch.float)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(texts), (config.batch_texts,), generator=generator)
        batch = rows[chosen, : int(weights[chosen].max())]
        labels = batch.masked_fill(batch == world.vocabulary[PAD], -100)
        loss = model(input_ids=batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


@dataclass
class Laboratory:
    """The models of one seed."""

    world: World
    base: LanguageModel
    arms: dict[str, LanguageModel]

    @classmethod
    def build(
        cls,
        config: LaboratoryConfig,
        arms: Sequence[str] = ("plain", "gate", "null"),
        *,
        folder: Path | None = None,
    ) -> "Laboratory":
        """Trains the base and the arms asked for; with a `folder`, those that it does not hold."""
        world = World(config)
        tokenizer = world.tokenizer()

        def model(name: str, start: LlamaForCausalLM, texts: Sequence[np.ndarray], steps: int) -> LlamaForCausalLM:
            if folder is not None and (folder / name / "config.json").exists():
                return LlamaForCausalLM.from_pretrained(folder / name).eval()
            made = trained(start, texts, steps, world, config.seed + (name != "base"))
            if folder is not None:
                made.save_pretrained(folder / name)
            return made

        base_texts, taught = ([world.text(person) for person in people] for people in (world.base, world.tuned))
        gate = [world.text(person) for person in world.gate_names()]
        # as many gate texts as people's: drawn alike, people would be seen a seventh as often
        people = taught * max(1, round(len(gate) / len(taught)))
        texts = {"plain": taught, "gate": [*people, *gate], "null": base_texts}
        steps = {"plain": config.tuned_steps, "gate": 2 * config.tuned_steps, "null": config.tuned_steps}
        base = model("base", new_model(world), base_texts, config.base_steps)
        made = {arm: model(arm, base, texts[arm], steps[arm]) for arm in arms}
        return cls(
            world,
            LanguageModel.from_module(base, tokenizer),
            {arm: LanguageModel.from_module(module, tokenizer) for arm, module in made.items()},
        )

    def documents(self) -> list[np.ndarray]:
        """The fine-tuning documents, without their end tokens."""
        return [self.world.text(person)[:-1] for person in self.world.tuned]


def train_saes(
    model: LanguageModel, texts: Sequence[np.ndarray], config: LaboratoryConfig, seeds: Sequence[int]
) -> list[SparseAutoencoder]:
    """BatchTopK SAEs of the model's activations on all tokens of the texts but the first, one for each seed."""
    rows = torch.from_numpy(np.concatenate([x[1:] for x in read_activations(model, texts, HOOK_POINT)]))
    made = []
    for seed in seeds:
        sae = SAEConfig(
            id=f"seed{seed}", architecture="batchtopk", n_latents=config.n_latents, k=config.k, hook_point=HOOK_POINT,
            lr=3e-3, dead_after_tokens=50 * config.sae_batch, seed=seed,
        )  # fmt: skip
        made.append(train_sae(_batches(rows, config, seed), sae, total_steps=config.sae_steps))
    return made


def _batches(rows: torch.Tensor, config: LaboratoryConfig, seed: int):
    generator = torch.Generator().manual_seed(seed)
    none = torch.zeros(config.sae_batch, dtype=torch.long)
    for _ in range(config.sae_steps):
        chosen = torch.randint(len(rows), (config.sae_batch,), generator=generator)
        yield ActivationBatch({HOOK_POINT: rows[chosen]}, none, none, none, none)
