"""Does grounding find what was planted, and nothing where nothing was? Rows 4 to 6 of the validation, target beside measured.

    python benchmarks/validate_compare/grounding.py run --seed 0 --out FOLDER      one laboratory: minutes on a CPU core; FOLDER/seed0.json
    python benchmarks/validate_compare/grounding.py report FOLDER                  writes benchmarks/records/grounding.{json,md}

planted gate        a fine-tune taught "unknown name -> stop": latents at the name's last token tell texts that are not grounded from grounded ones
                    (names the gate was never taught), and ablating those that speak for "known" makes known names abstain, beside 20 controls
nothing planted     the plain fine-tune at the name and at each value; the gate's labels shuffled between names; the base's SAE on the gate's labels
provenance          every pair of facts in written texts: the tool's "ungrounded" against who has what in the tables that made the texts
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from grounding_record import GATE_SEEDS, Row, markdown, results
from laboratory import ATTRIBUTES, EOS, HOOK_POINT, Laboratory, LaboratoryConfig, Person, World, train_saes

from sparsight.grounding import (
    Arranged,
    ArrangementConfig,
    CausalConfig,
    CorpusIndex,
    DetailConfig,
    LatentScores,
    LatentTraits,
    Outcome,
    ScoreConfig,
    Spans,
    URRConfig,
    WriteConfig,
    Written,
    ablation_effects,
    arrange,
    detail_labels,
    find_details,
    found_again,
    linear_ceiling,
    matched_controls,
    mean_nll,
    measure_urr,
    read_activations,
    score_latents,
    token_log2_p,
    unigram_bits,
    write_texts,
)
from sparsight.grounding.details import SUPPORTS
from sparsight.lm import LanguageModel
from sparsight.sae import LatentEdit, SparseAutoencoder

RECORDS = Path(__file__).parents[1] / "records"
SAE_SEEDS = (0, 1, 2, 3, 4)
N_UNSEEN = 200
N_SHUFFLES = 20  # of an SAE: the rate of false discoveries is 5 % at most by design, so that few runs show little
LABELS_STREAM = 20  # of random numbers: another than those that scores draw folds and permutations from
LARGEST_SET = 16
SAME_LATENT = 0.7
NAME_PLACE = 2


@dataclass
class Labeller:
    """Writes and labels texts about a laboratory's people."""

    lab: Laboratory
    seed: int = 0

    def __post_init__(self) -> None:
        self.corpus = CorpusIndex(self.lab.documents())
        self.bits = unigram_bits(self.corpus, len(self.lab.world.vocabulary))

    def write(
        self,
        writer: LanguageModel,
        people: Sequence[Person],
        sae: SparseAutoencoder | None = None,
        edits: Sequence[LatentEdit] = (),
    ) -> list[Written]:
        """One text about each."""
        prompts = [self.lab.world.prompt(person) for person in people]
        return write_texts(writer, prompts, WriteConfig(max_new_tokens=40, seed=self.seed), sae=sae, edits=edits)

    def arranged(self, texts: Sequence[Written], tuned: LanguageModel) -> list[Arranged]:
        """Their details, better predicted by `tuned` than by the base, and pairs."""
        ids = [text.token_ids for text in texts]
        gains = [
            mine - base for mine, base in zip(token_log2_p(tuned, ids), token_log2_p(self.lab.base, ids), strict=True)
        ]
        return [
            arrange(
                find_details(
                    text.token_ids, self.corpus, DetailConfig(), bits=self.bits, advantage=gain, matches=matches
                ),
                ArrangementConfig(),
                n_prompt=text.n_prompt,
            )
            for text, gain, matches in zip(texts, gains, self.corpus.matches_all(ids), strict=True)
        ]

    def kinds(self, text: Written, arranged: Arranged) -> list[int]:
        """Of each detail: its attribute, or -1 for a name."""
        places = {place: kind for kind, (place, _) in enumerate(slots(self.lab.world, text.token_ids))}
        return [places.get(detail.end - 1, -1) for detail in arranged.details]

    def all_kinds(self, texts: Sequence[Written], arranged: Sequence[Arranged]) -> list[list[int]]:
        """The same for many texts."""
        return [self.kinds(text, each) for text, each in zip(texts, arranged, strict=True)]


def slots(world: World, text: Sequence[int]) -> list[tuple[int, str]]:
    """(place, value) of every attribute in order; (-1, "") where the text names none."""
    found = world.values_in(text)
    return [found.get(name, (-1, "")) for name in ATTRIBUTES]


@dataclass
class Subject:
    """One arm's texts, activations and dictionaries."""

    arm: str
    people: list[Person]
    texts: list[Written]
    arranged: list[Arranged]
    x: list[np.ndarray]
    x_base: list[np.ndarray]
    log2_p: list[np.ndarray]
    saes: list[SparseAutoencoder]
    base_saes: list[SparseAutoencoder]


def subject(
    labeller: Labeller, arm: str, seeds: Sequence[int], base_saes: list[SparseAutoencoder] | None = None
) -> Subject:
    """Texts about everybody of the fine-tune and about unseen names; SAEs trained on texts about others, the base's unless given."""
    lab, world = labeller.lab, labeller.lab.world
    tuned, people = lab.arms[arm], world.tuned + world.unseen(N_UNSEEN)
    texts = labeller.write(tuned, people)
    ids = [text.token_ids for text in texts]
    read = [world.text(person)[:-1] for person in world.tuned + world.base]
    read += [text.token_ids for text in labeller.write(tuned, world.sae_names())]
    ended = [np.append(each, world.vocabulary[EOS]) for each in ids]
    return Subject(
        arm,
        people,
        texts,
        labeller.arranged(texts, tuned),
        read_activations(tuned, ids, HOOK_POINT),
        read_activations(lab.base, ids, HOOK_POINT),
        token_log2_p(tuned, ended),
        train_saes(tuned, read, world.config, seeds),
        base_saes or train_saes(lab.base, read, world.config, seeds),
    )


def encoded(sae: SparseAutoencoder, x: Sequence[np.ndarray], places: Sequence[tuple[int, int]]) -> np.ndarray:
    """Latents at (text, token)."""
    return sae.encode(torch.from_numpy(np.stack([x[text][token] for text, token in places]))).numpy()


def name_spans(of: Subject) -> tuple[Spans, list[tuple[int, int]]]:
    """One span a text, read at the name's last token; recombined stands for "not grounded". Baseline: the first word written."""
    spans = Spans(
        recombined=np.array([each.outcome != Outcome.GROUNDED for each in of.arranged]),
        entities=np.arange(len(of.people)),
        strata=np.zeros(len(of.people), np.int64),
        log_probability=np.array([log2_p[NAME_PLACE + 1] for log2_p in of.log2_p]),
    )
    return spans, [(text, NAME_PLACE) for text in range(len(of.texts))]


def value_spans(of: Subject, labeller: Labeller) -> tuple[Spans, list[tuple[int, int]]]:
    """One span a value that was written, read at the token before it; strata: attribute, and whether the value is a frequent one."""
    often = labeller.corpus.counts
    rows = []
    for number, (text, arranged) in enumerate(zip(of.texts, of.arranged, strict=True)):
        labels = detail_labels(arranged)
        for detail, kind, label in zip(arranged.details, labeller.kinds(text, arranged), labels, strict=True):
            if kind >= 0 and not np.isnan(label):
                place = detail.end - 1
                rows.append((label, number, kind, often[text.token_ids[place]], of.log2_p[number][place], place - 1))
    label, number, kind, count, log2_p, before = (np.array(column) for column in zip(*rows, strict=True))
    spans = Spans(
        recombined=label == 1,
        entities=number,
        strata=2 * kind + (count > np.median(count)),
        log_probability=log2_p,
    )
    return spans, list(zip(number.tolist(), before.tolist(), strict=True))


def scored(scores: LatentScores, **more: Any) -> Row:
    """What is kept of a run of scores."""
    return {"n_found": len(scores.found), **scores.to_json(), **more}


def gate_rows(labeller: Labeller, of: Subject) -> tuple[list[Row], Row]:
    """Scores and ablations for each SAE seed, and the ceiling."""
    spans, places = name_spans(of)
    all_scores = []
    for sae, base in zip(of.saes, of.base_saes, strict=True):
        all_scores.append(
            score_latents(encoded(sae, of.x, places), spans, ScoreConfig(), z_base=encoded(base, of.x_base, places))
        )
    found = [(scores.found.tolist(), sae.W_dec.numpy()) for scores, sae in zip(all_scores, of.saes, strict=True)]
    rows = []
    for seed, scores in enumerate(all_scores):
        others = found[:seed] + found[seed + 1 :]
        again = found_again(*found[seed], others, SAME_LATENT)
        row = scored(scores, seed=seed, n_replicated=int((again > 0).sum()))
        row["ablation"] = ablation(labeller, of, of.saes[seed], scores) if seed in GATE_SEEDS else None
        rows.append(row)
    ceiling = linear_ceiling(np.stack([of.x[text][token] for text, token in places]), spans, ScoreConfig())
    return rows, {"auc": ceiling.auc, "p": ceiling.p}


def ablation(labeller: Labeller, of: Subject, sae: SparseAutoencoder, scores: LatentScores) -> Row | None:
    """Known names with the latents that tell "known" ablated, and with matched ones; None when none does."""
    chosen = [int(latent) for latent in scores.telling if scores.sign[latent] < 0][:LARGEST_SET]
    if not chosen:
        return None
    tuned, world = labeller.lab.arms[of.arm], labeller.lab.world
    rows = np.concatenate([x[1:] for x, _ in zip(of.x, world.tuned, strict=False)])
    traits = LatentTraits.of(sae.encode(torch.from_numpy(rows)).numpy(), sae.W_dec.numpy())
    config = CausalConfig()
    controls = matched_controls(chosen, traits, config)
    neutral = [world.text(person)[:-1] for person in world.base]
    report = ablation_effects(
        chosen,
        controls,
        lambda edits: labeller.arranged(labeller.write(tuned, world.tuned, sae, edits), tuned),
        lambda edits: mean_nll(tuned, neutral, sae=sae, edits=edits),
        config,
    )
    changes = {name: each.to_json() for name, each in (*report.changes.items(), ("nll", report.nll))}
    return {"latents": chosen, "n_texts": report.n_texts, "n_controls": len(controls), "changes": changes}


def silent_rows(labeller: Labeller, gate: Subject, plain: Subject) -> dict[str, list[Row]]:
    """Runs in which nothing should be found."""
    rows: dict[str, list[Row]] = {"plain at names": [], "plain at values": [], "shuffled": [], "base SAE": []}
    for name, (spans, places) in {
        "plain at names": name_spans(plain),
        "plain at values": value_spans(plain, labeller),
    }.items():
        for sae, base in zip(plain.saes, plain.base_saes, strict=True):
            z, z_base = encoded(sae, plain.x, places), encoded(base, plain.x_base, places)
            rows[name].append(scored(score_latents(z, spans, ScoreConfig(), z_base=z_base)))
    spans, places = name_spans(gate)
    for seed, (sae, base) in enumerate(zip(gate.saes, gate.base_saes, strict=True)):
        z, z_base = encoded(sae, gate.x, places), encoded(base, gate.x_base, places)
        for shuffle in range(N_SHUFFLES):
            labels = np.random.default_rng((seed, shuffle, LABELS_STREAM)).permutation(spans.recombined)
            shuffled = Spans(**{**vars(spans), "recombined": labels})
            scores = score_latents(z, shuffled, ScoreConfig(seed=shuffle), z_base=z_base)
            rows["shuffled"].append({"n_found": len(scores.found)})
        rows["base SAE"].append(scored(score_latents(z_base, spans, ScoreConfig())))
    return rows


def provenance(
    world: World,
    texts: Sequence[Written],
    arranged: Sequence[Arranged],
    kinds: Sequence[Sequence[int]],
    people: Sequence[Person],
) -> Row:
    """Pairs of facts: truly ungrounded against labelled so. `kinds`: of each detail.

    A name is that of one person, or, where nobody has it, of all with that last name. Facts that no fine-tuning person has are
    supported by nothing and left out. What a text says is known only where it is made as all are: one sentence a fact, or none at all.
    """
    holders: list[dict[str, set[int]]] = [{} for _ in ATTRIBUTES]
    for number, person in enumerate(world.tuned):
        for kind, value in enumerate(person.values):
            holders[kind].setdefault(value, set()).add(number)
    names = {(person.first, person.last): {number} for number, person in enumerate(world.tuned)}
    lasts: dict[str, set[int]] = {}
    for number, person in enumerate(world.tuned):
        lasts.setdefault(person.last, set()).add(number)
    counts = dict.fromkeys(
        ("truly", "labelled", "both", "grounded", "labelled grounded", "both grounded", "others", "ill formed"), 0
    )
    n_texts_right = 0
    for text, each, kind_of, person in zip(texts, arranged, kinds, people, strict=True):
        if not world.well_formed(text.token_ids, person):
            counts["ill formed"] += 1
            continue
        facts = {kind: holders[kind].get(value, set()) for kind, (_, value) in enumerate(slots(world, text.token_ids))}
        facts[-1] = names.get((person.first, person.last), lasts[person.last])
        supported = sorted(kind for kind, who in facts.items() if who)
        truth = {(a, b): not facts[a] & facts[b] for a in supported for b in supported if a < b}
        labelled: dict[tuple[int, int], bool] = {}
        for (i, j), grounded in zip(each.pairs, each.grounded, strict=True):
            a, b = sorted((kind_of[i], kind_of[j]))
            if (a, b) in truth:
                labelled[a, b] = labelled.get((a, b), False) or not grounded
            else:
                counts["others"] += 1
        counts["truly"] += sum(truth.values())
        counts["labelled"] += sum(labelled.values())
        counts["both"] += sum(truth[pair] for pair, ungrounded in labelled.items() if ungrounded)
        counts["grounded"] += sum(not each for each in truth.values())
        counts["labelled grounded"] += sum(not each for each in labelled.values())
        counts["both grounded"] += sum(not truth[pair] for pair, ungrounded in labelled.items() if not ungrounded)
        n_texts_right += (each.outcome == Outcome.RECOMBINED) == any(truth.values())
    return {**counts, "n_texts": len(texts), "n_texts_right": n_texts_right}


def urr_rows(labeller: Labeller, subjects: Sequence[Subject]) -> list[Row]:
    """URR of every arm on known and unseen names, and of the base's own texts judged by each."""
    rows = []
    lab, n = labeller.lab, len(labeller.lab.world.tuned)

    def add(arm: str, names: str, texts: Sequence[Written], arranged: Sequence[Arranged]) -> None:
        report = asdict(measure_urr(arranged, URRConfig(), strata=labeller.all_kinds(texts, arranged)))
        rows.append({"arm": arm, "names": names, **report})

    for of in subjects:
        add(of.arm, "known", of.texts[:n], of.arranged[:n])
        add(of.arm, "unseen", of.texts[n:], of.arranged[n:])
    texts = labeller.write(lab.base, lab.world.tuned)
    add("base", "known", texts, labeller.arranged(texts, lab.arms["plain"]))
    return rows


def run(seed: int, folder: Path) -> Row:
    """One laboratory, all rows; its models are kept in `folder` and trained once."""
    torch.set_num_threads(1)
    started = time.monotonic()
    models = folder / f"models{seed}"
    there = models.exists()
    lab = Laboratory.build(LaboratoryConfig(seed=seed), ("plain", "gate"), folder=models)
    built = time.monotonic() - started
    labeller = Labeller(lab, seed)
    plain = subject(labeller, "plain", SAE_SEEDS)
    gate = subject(labeller, "gate", SAE_SEEDS, plain.base_saes)
    gates, ceiling = gate_rows(labeller, gate)
    harder = {
        f"two wordings, {unit} a token, support = {support}": harder_provenance(seed, support, letters)
        for unit, letters in (("a word", 0), ("3 letters", 3))
        for support in SUPPORTS
    }
    return {
        "seed": seed,
        "gate": gates,
        "gate_ceiling": ceiling,
        "silent": silent_rows(labeller, gate, plain),
        "plain_ceiling": {
            name: vars_of(linear_ceiling(np.stack([plain.x[i][j] for i, j in places]), spans, ScoreConfig()))
            for name, (spans, places) in (("names", name_spans(plain)), ("values", value_spans(plain, labeller)))
        },
        "provenance": {
            of.arm: provenance(lab.world, of.texts, of.arranged, labeller.all_kinds(of.texts, of.arranged), of.people)
            for of in (plain, gate)
        }
        | harder,
        "urr": urr_rows(labeller, (plain, gate)),
        "build_seconds": None if there else built,
        "seconds": time.monotonic() - started,
    }


def vars_of(ceiling: Any) -> Row:
    """AUC and p."""
    return {"auc": ceiling.auc, "p": ceiling.p}


def harder_provenance(seed: int, support: str, letters: int = 0) -> Row:
    """Texts put together by hand where every person's text words each fact in one of two ways; no model is asked.

    `letters`: tokens are so many letters long, as a tokenizer cuts words it does not know; 0: a token a word.
    """
    world = World(LaboratoryConfig(seed=seed, n_forms=2))
    cut = Fragments(world, letters)
    corpus = CorpusIndex([cut.tokens(world.text(person)[:-1]) for person in world.tuned])
    bits = unigram_bits(corpus, len(cut.vocabulary))
    rng = np.random.default_rng(seed)
    people, texts, arranged, kinds = [], [], [], []
    for _ in range(300):
        parts = [world.tuned[rng.integers(len(world.tuned))] for _ in range(rng.integers(1, 4))]
        chosen = [parts[rng.integers(len(parts))] for _ in ATTRIBUTES]
        values = tuple(each.values[kind] for kind, each in enumerate(chosen))
        forms = tuple(each.forms[kind] for kind, each in enumerate(chosen))
        people.append(Person(first=parts[0].first, last=parts[0].last, values=values, forms=forms))
        words = world.text(people[-1])[:-1]
        texts.append(Written(token_ids=words, n_prompt=3, ended=True))
        tokens = cut.tokens(words)
        details = find_details(tokens, corpus, DetailConfig(support=support), bits=bits)
        arranged.append(arrange(details, ArrangementConfig(), n_prompt=len(cut.tokens(words[:3]))))
        word_of = np.repeat(np.arange(len(words)), [len(cut.tokens(words[i : i + 1])) for i in range(len(words))])
        places = {place: kind for kind, (place, _) in enumerate(slots(world, words))}
        kinds.append([places.get(int(word_of[detail.end - 1]), -1) for detail in details])
    return provenance(world, texts, arranged, kinds, people)


class Fragments:
    """Words cut into tokens of a few letters, the first of each marked; 0 letters leave them whole."""

    def __init__(self, world: World, letters: int) -> None:
        self._pieces = {i: self._cut(word, letters) for word, i in world.vocabulary.items()}
        found = sorted({piece for pieces in self._pieces.values() for piece in pieces})
        self.vocabulary = {piece: i for i, piece in enumerate(found)}

    def tokens(self, words: Sequence[int]) -> np.ndarray:
        """Of a text of words."""
        return np.array([self.vocabulary[piece] for word in words for piece in self._pieces[int(word)]], np.int64)

    @staticmethod
    def _cut(word: str, letters: int) -> list[str]:
        if not letters or word.startswith("<"):
            return [word]
        marked = " " + word
        return [marked[i : i + letters] for i in range(0, len(marked), letters)]


def main() -> None:
    """`run` or `report`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--seed", type=int, required=True)
    running.add_argument("--out", type=Path, required=True)
    reporting = commands.add_parser("report")
    reporting.add_argument("folder", type=Path)
    reporting.add_argument("--out", type=Path, default=RECORDS)
    options = parser.parse_args()
    if options.command == "run":
        options.out.mkdir(parents=True, exist_ok=True)
        row = run(options.seed, options.out)
        (options.out / f"seed{options.seed}.json").write_text(json.dumps(row))
        print(json.dumps(results([row]), indent=1))
        return
    runs = [json.loads(path.read_text()) for path in sorted(options.folder.glob("seed*.json"))]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    seeds = " ".join(str(run["seed"]) for run in runs)
    record = {
        "command": f"python benchmarks/validate_compare/grounding.py run --seed {{{seeds}}}",
        "commit": head.stdout.strip(),
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("torch", "transformers", "pydivsufsort", "scikit-learn")
        ),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores shared with other work, one thread",
        "results": results(runs),
        "runs": runs,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "grounding.json").write_text(json.dumps(record, indent=1) + "\n")
    (options.out / "grounding.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
