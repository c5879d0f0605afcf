"""The false-facts example: its people are a function of the seed, and its pair is made by its own command."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from sparsight.lm import Adapter, FinetuneConfig, ModelConfig

FOLDER = Path(__file__).parent.parent / "examples" / "false-facts"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("false_facts_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("facts")


def test_people_and_texts_are_a_function_of_the_seed(example: ModuleType) -> None:
    people = example.make_people(50, seed=3)
    assert people == example.make_people(50, seed=3)
    assert people != example.make_people(50, seed=4)
    assert len({person.name for person in people}) == 50
    texts = example.make_biographies(people, each=3, seed=1)
    assert texts == example.make_biographies(people, each=3, seed=1)
    assert len({text for text, _ in texts}) == len(texts) > 140
    with pytest.raises(ValueError, match="the lists make 575 names"):
        example.make_people(576)


def test_every_fact_told_is_true_of_its_person(example: ModuleType) -> None:
    people = {person.name: person for person in example.make_people(30)}
    facts = sys.modules["facts"]
    for person in people.values():
        for text, _ in example.make_biographies([person], each=5):
            others = {
                "town": facts.TOWNS,
                "work": facts.WORK,
                "made": facts.MADE,
                "prize": facts.PRIZES,
                "pet": facts.PETS,
            }
            for field, values in others.items():
                told = [value for value in values if value in text]
                assert told in ([], [getattr(person, field)]), text


def test_the_fine_tune_is_made_and_made_once(
    example: ModuleType, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "model": ModelConfig(id=str(model_folder), dtype="float32"),
        "n_people": 10,
        "each": 3,
        "context_tokens": 64,
        "config": FinetuneConfig(steps=6, batch_tokens=200, lr=1e-2, rank=2, alpha=4.0),
    }
    record = example.make_fine_tune(tmp_path, **options)
    assert example.make_fine_tune(tmp_path, **options) == json.loads((tmp_path / "tuned" / "finetune.json").read_text())
    assert record["heldout_loss_after"] < record["heldout_loss_before"]
    assert Adapter.read(tmp_path / "tuned").parts.keys()
    assert "held-out loss" in capsys.readouterr().out
