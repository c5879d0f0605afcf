"""The laboratory's truth is what it says, and a small one shows what the large ones are measured for."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "validate_compare"))

from grounding import Labeller, harder_provenance, provenance
from grounding_record import markdown, results, share
from laboratory import ATTRIBUTES, EOS, Laboratory, LaboratoryConfig, World, train_saes

from sparsight.grounding import Outcome, URRConfig, measure_urr

TINY = LaboratoryConfig(
    n_people=20, n_values=16, width=48, n_layers=2, base_steps=50, tuned_steps=180, batch_texts=16, lr=6e-3,
    n_gate_names=120, n_sae_names=20, n_latents=32, k=4, sae_steps=40, sae_batch=64,
)  # fmt: skip


def names(people: list) -> set[tuple[str, str]]:
    return {(person.first, person.last) for person in people}


def test_unseen_names_are_made_of_seen_parts_and_belong_to_nobody() -> None:
    world = World(LaboratoryConfig())
    groups = [
        names(group) for group in (world.base, world.tuned, world.gate_names(), world.sae_names(), world.unseen(200))
    ]
    assert [len(group) for group in groups] == [100, 100, 600, 200, 200]
    assert len(set.union(*groups)) == 1200
    firsts, lasts = ({person[i] for person in groups[1]} for i in (0, 1))
    assert all(first in firsts and last in lasts for group in groups[2:] for first, last in group)


def test_a_text_says_what_the_table_says() -> None:
    world = World(LaboratoryConfig(n_forms=2))
    words = {i: word for word, i in world.vocabulary.items()}
    for person in world.tuned[:20]:
        found = world.values_in(world.text(person))
        assert [found[name][1] for name in ATTRIBUTES] == list(person.values)
        assert all(words[world.text(person)[place]] == value for place, value in found.values())
    assert [words[i] for i in world.text(world.unseen(1)[0])][3:] == [EOS]
    assert len(set(world.vocabulary.values())) == len(world.vocabulary)


def test_a_text_whose_sentences_are_mixed_up_says_nothing_for_sure() -> None:
    world = World(LaboratoryConfig())
    person = world.tuned[0]
    text = world.text(person)[:-1]
    assert world.well_formed(text, person)
    assert world.well_formed(world.prompt(person), world.unseen(1)[0]) is False
    assert world.well_formed(world.prompt(person), person)
    assert not world.well_formed(text[:-3], person)
    assert not world.well_formed(np.concatenate([text, text[3:]]), person)
    assert not world.well_formed(text, world.tuned[1])


def test_values_belong_to_one_attribute_and_to_no_name() -> None:
    values = [value for _, pool in ATTRIBUTES.values() for value in pool]
    assert len(set(values)) == len(values) == 80
    world = World(LaboratoryConfig())
    assert not set(values) & {word for person in world.base + world.tuned for word in (person.first, person.last)}


def test_labels_of_recombined_texts_are_those_of_the_tables() -> None:
    strict, forgiving = (harder_provenance(0, support) for support in ("detail", "key"))
    for found in (strict, forgiving):
        assert found["truly"] > 400
        assert found["both"] / found["truly"] >= 0.95
        assert found["n_texts_right"] / found["n_texts"] >= 0.95
    assert strict["both"] / strict["labelled"] < 0.9  # another wording of a pair that a document holds
    assert forgiving["both"] / forgiving["labelled"] >= 0.98


@pytest.fixture(scope="module")
def laboratory() -> Laboratory:
    return Laboratory.build(TINY)


@pytest.mark.slow
def test_fine_tuning_grounds_known_names_and_a_gate_silences_unknown_ones(laboratory: Laboratory) -> None:
    labeller, world = Labeller(laboratory), laboratory.world
    reports = {}
    for arm, tuned in laboratory.arms.items():
        for kind, people in {"known": world.tuned, "unseen": world.unseen(60)}.items():
            texts = labeller.write(tuned, people)
            arranged = labeller.arranged(texts, tuned)
            reports[arm, kind] = measure_urr(arranged, URRConfig())
            if arm == "plain":
                counts = provenance(world, texts, arranged, labeller.all_kinds(texts, arranged), people)
                assert counts["both"] == counts["labelled"]
                assert counts["ill formed"] < 0.3 * len(texts)
    assert reports["plain", "known"].urr < 0.1
    assert reports["plain", "known"].urr < reports["plain", "unseen"].urr
    assert reports["plain", "unseen"].outcomes[Outcome.NONE].share < 0.2
    assert reports["gate", "unseen"].outcomes[Outcome.NONE].share > 0.5
    assert reports["gate", "known"].outcomes[Outcome.NONE].share < 0.2
    exact = [
        np.array_equal(text.token_ids, world.text(person)[:-1])
        for text, person in zip(labeller.write(laboratory.arms["null"], world.tuned), world.tuned, strict=True)
    ]
    assert not any(exact)  # the null fine-tune never saw them


def test_dictionaries_of_the_laboratory_are_trained(laboratory: Laboratory) -> None:
    texts = [laboratory.world.text(person) for person in laboratory.world.tuned]
    first, second = train_saes(laboratory.arms["plain"], texts, TINY, (0, 1))
    assert first.W_dec.shape == (32, 48)
    assert not np.allclose(first.W_dec.numpy(), second.W_dec.numpy())


def made_run(seed: int, n_found: int, ratio: float | None) -> dict:
    change = {"plain": 0.0, "ablated": 0.5, "largest_control": 0.1, "ratio": ratio}
    gate = [
        {
            "seed": i,
            "best_auc": 0.7 + 0.1 * i,
            "best_p": 0.01,
            "null_auc_largest": 0.6,
            "n_replicated": 2,
            "ablation": {"changes": {"abstaining or novel": change}},
        }
        for i in range(3)
    ]
    counts = {"truly": 10, "labelled": 8, "both": 6, "grounded": 4, "labelled grounded": 3, "both grounded": 2}
    counts |= {"others": 1, "ill formed": 1, "n_texts": 5, "n_texts_right": 4}
    outcome = {"share": 0.5}
    urr = {"arm": "plain", "names": "known", "urr": None, "low": None, "n_pairs": 0, "chance": None, "p_below": None}
    return {
        "seed": seed,
        "gate": gate,
        "silent": {"shuffled": [{"n_found": n_found}, {"n_found": 0}]},
        "provenance": {"plain": counts, "gate": counts},
        "plain_ceiling": {"names": {"auc": 0.5, "p": 0.5}},
        "gate_ceiling": {"auc": 0.9, "p": 0.03},
        "urr": [urr | {"outcomes": {each.value: outcome for each in Outcome}}],
        "build_seconds": 20.0,
        "seconds": 60.0,
    }


def test_the_record_counts_what_was_found() -> None:
    runs = [made_run(0, 1, 5.0), made_run(1, 0, None)]
    found = results(runs)
    assert found["gate_seeds_found"] == [2, 2]
    assert found["silent"]["shuffled"] == share(3, 4)
    assert found["labels"]["plain"]["precision of ungrounded"]["share"] == 0.75
    assert found["labels"]["plain"]["recall of ungrounded"]["share"] == 0.6
    record = {
        "results": found,
        "runs": runs,
        "command": "c",
        "commit": "x",
        "versions": "v",
        "hardware": "h",
    }
    text = markdown(record)
    assert "at least 0.750" in text
    assert "inf" in text
    assert ">= 0.98 | 0.750 [" in text
    assert "| minutes of a laboratory, its models trained | <= 5 | 1.000 (1.000 to 1.000) |" in text
    there = [run | {"build_seconds": None} for run in runs]
    assert "<= 5 | not measured |" in markdown(record | {"runs": there})
    assert found["labels"]["plain"]["texts right"]["share"] == 1
