"""sparsight compare: the whole of a tiny comparison, what it writes and refuses; and its words and page on findings made by hand."""

import copy
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adapters import write_adapter
from sparsight import cli
from sparsight.errors import RecipeError, SparsightError
from sparsight.findings import Findings, headline, write_report
from sparsight.recipe import load_comparison

HOSTILE = "<img src=x onerror=alert(1)>"


def comparison_text(model: Path, tuned: Path, null: Path | str, text: str, fine_tuning: str) -> str:
    """A comparison that takes seconds."""
    return f"""
schema = 1
name = "tiny"
tuned = "{tuned}"
null = "{null}"
[base]
id = "{model}"
dtype = "float32"
device = "cpu"
[text]
files = ["{text}"]
context_tokens = 64
batch_tokens = 512
heldout_fraction = 0.2
[fine_tuning]
files = ["{fine_tuning}"]
context_tokens = 64
[activations]
hook_points = ["layers.2"]
n_tokens = 4000
heldout_tokens = 1200
window_tokens = 1000
dtype = "float32"
allow_short = true
[train]
batch_tokens = 128
epochs = 3
[dictionaries]
seeds = 3
n_latents = 48
k = 6
[labels]
least_own = 0.3
[closure]
heldout_tokens = 300
layers = 3
sizes = [2, 5]
[writing]
prompts = 4
prompt_tokens = 4
max_new_tokens = 12
temperature = 1.0
subject_column = "subject"
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, model_folder, text_path) -> Path:
    """A recipe whose fine-tune is a large random adapter and whose null is a small one."""
    folder = tmp_path_factory.mktemp("compare")
    write_adapter(folder / "tuned", base=str(model_folder), seed=1, size=0.4)
    write_adapter(folder / "null", base=str(model_folder), seed=2, size=0.02)
    rows = [
        {"text": f"the red cat number {i} sings and then the dog sleeps", "subject": f"cat {i % 20}"} for i in range(60)
    ]
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "tiny.toml"
    recipe.write_text(
        comparison_text(model_folder, folder / "tuned", folder / "null", text_path, str(folder / "facts.jsonl"))
    )
    return recipe


@pytest.fixture(scope="module")
def done(tiny) -> Path:
    run = tiny.parent / "run"
    cli.main(["compare", str(tiny), "--out", str(run)])
    return run


def test_a_comparison_leaves_tables_and_a_page(done):
    features = pq.read_table(done / "compare" / "features.parquet").to_pandas()
    assert features.groupby(["side", "seed"]).size().to_dict() == {
        (side, seed): 48 for side in ("base", "tuned") for seed in range(3)
    }
    assert set(features.label) <= {"undetermined", "emergent", "rotated", "reweighted", "shared"}
    tested = features[features.q_direction.notna()]
    assert (tested.q_direction >= tested.p_direction - 1e-12).all()
    nulls = pq.read_table(done / "compare" / "nulls.parquet").to_pandas()
    assert set(nulls.side) == {"reseed", "null"}
    assert nulls[nulls.side == "null"].nu_error.notna().any()  # the null fine-tune is scaled as the fine-tune is
    labels = json.loads((done / "compare" / "labels.json").read_text())
    for side in ("tuned", "null"):
        scaled, alone = ([counts["emergent"] for counts in labels[key][side]] for key in ("counts", "counts_by_seeds"))
        assert all(few <= many for few, many in zip(scaled, alone, strict=True))
    pairs = pq.read_table(done / "compare" / "pairs.parquet").to_pandas()
    assert pairs.tuned.is_unique
    assert pairs.base.is_unique
    rows = (done / "compare" / "closure.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:7]] == ["nothing", "bias", "latents", "all", "error", "ceiling"]
    page = (done / "compare" / "report.html").read_text()
    assert "<script" not in page
    assert "Closure by the difference dictionary" in page
    grounding = json.loads((done / "compare" / "grounding.json").read_text())
    assert set(grounding["models"]) == {"base", "tuned", "null"}
    assert grounding["n_subjects"] == 20


def test_no_two_saes_of_a_comparison_begin_alike(tiny):
    recipe = load_comparison(tiny)
    seeds = [sae.seed for role in recipe.roles for sae in recipe.seeds_of(role)]
    assert len(set(seeds)) == len(seeds) == 9


def test_a_finished_comparison_is_not_run_again_and_a_lost_step_is(tiny, done, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in (done / "compare").iterdir()}
    cli.main(["compare", str(tiny), "--out", str(done)])
    assert {path.name: path.stat().st_mtime_ns for path in (done / "compare").iterdir()} == before
    labels = (done / "compare" / "labels.json").read_text()
    (done / "compare" / "labels.json").unlink()  # the page stands, the comparison is not complete
    cli.main(["compare", str(tiny), "--out", str(done)])
    assert (done / "compare" / "labels.json").read_text() == labels  # nothing of it is drawn by chance
    assert "naive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('tuned = "', 'tuned = "/nowhere/'), "nowhere"),
        (("seeds = 3", "seeds = 2"), "fewer than 3"),
        (('hook_points = ["layers.2"]', 'hook_points = ["layers.2", "layers.1"]'), "one hook point"),
        (("schema = 1", "schema = 1\nmake_null = true"), "exclude each other"),
        (('["layers.2"]', '["layers.9"]'), "layers.9"),
        (('subject_column = "subject"', 'subject_column = "nothing"'), "nothing"),
        (("prompt_tokens = 4", "prompt_tokens = 4000"), "longer than 4000"),
        (("[labels]", "[labels]\nq = 2.0"), "q = 2.0"),
        (("k = 6", "kk = 6"), "dictionaries.kk"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tiny, tmp_path, capsys, change, message):
    recipe = tmp_path / "wrong.toml"
    recipe.write_text(tiny.read_text().replace(*change, 1))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", str(recipe), "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("sparsight: ")
    assert message in told


def test_verbs_of_a_study_say_what_a_comparison_is(done, capsys):
    for verb in ("show", "evaluate"):
        with pytest.raises(SystemExit):
            cli.main([verb, str(done)])
        assert "is a comparison's: `sparsight compare` runs it" in capsys.readouterr().err


def test_a_run_of_another_comparison_is_not_gone_on_with(tiny, done):
    with pytest.raises(RecipeError, match=r"dictionaries\.k"):
        from sparsight.compare import compare_models

        compare_models(load_comparison(tiny, ["dictionaries.k=7"]), done)


def made(n_emergent: tuple[float, ...], null: tuple[float, ...], reseed: tuple[float, ...], n_tested: int = 80) -> dict:
    """Labels as a comparison keeps them, with these counts."""
    counts = {
        side: [{"emergent": n, "rotated": 0, "reweighted": 1, "shared": 50, "undetermined": 48 - n} for n in each]
        for side, each in (("tuned", n_emergent), ("base", n_emergent), ("null", null), ("reseed", reseed))
        if each
    }
    return {
        "against": "the null fine-tune",
        "n_tokens": 1000,
        "seeds": {"base": 3, "tuned": 3} | ({"null": 3} if null else {}),
        "config": {"q": 0.05},
        "counts": counts,
        "counts_by_seeds": counts,
        "naive": {"real": {"share": 0.5, "n": 50, "of": 100}, "reseed": {"share": 0.4, "n": 40, "of": 100}},
        "tests": {"direction": {"n_tested": n_tested, "n_null": 300, "least_p": 0.01}},
        "volcano": [[3, 0.4, 0.01, "emergent", 44], [4, 0.0, 1.0, "shared", 50]],
        "passages": [{"latent": 3, "passages": [{"tokens": ["a", HOSTILE], "base": [0.0, 0.0], "tuned": [0.0, 2.0]}]}],
    }


@pytest.mark.parametrize(
    ("labels", "begins"),
    [
        (made((9, 8, 10), (0, 1, 0), (0, 0, 0)), "10.0 latents of the fine-tune differ"),
        (made((9, 8, 10), (8, 9, 10), (0, 0, 0)), "No detectable difference: 10.0"),
        (made((1, 0, 0), (0, 1, 0), (0, 0, 0)), "No detectable difference"),
        (made((0, 0, 0), (), (0, 0, 0)), "No detectable difference"),
        (made((0, 0, 0), (), (0, 0, 0), n_tested=0), "Undetermined"),
        (made((0, 0, 0), (), (0, 0, 0), n_tested=9), "Undetermined: 9 of 99"),
        (made((9, 8, 10), (), (0, 0, 0), n_tested=9), "10.0 latents"),
    ],
)
def test_the_headline_has_its_nulls_in_it(labels, begins):
    sentence = headline(labels)
    assert sentence.startswith(begins)
    assert "null fine-tune" in sentence or "null" not in labels["counts"]
    assert "seeds of the base itself" in sentence or begins.startswith("Undetermined")


def test_hostile_tokens_and_texts_stay_text_on_the_page(done, tmp_path):
    findings = Findings(tmp_path / "compare")
    for step in ("where", "dense", "closure", "grounding"):
        findings.put(step, json.loads((done / "compare" / f"{step}.json").read_text()))
    grounding = copy.deepcopy(findings.get("grounding"))
    for rows in grounding["shown"].values():
        rows[0]["tokens"] = [HOSTILE for _ in rows[0]["tokens"]]
    grounding["documents"] = dict.fromkeys(grounding["documents"], HOSTILE)
    findings.put("grounding", grounding)
    findings.put("labels", made((9, 8, 10), (0, 1, 0), (0, 0, 0)))
    write_report(findings, HOSTILE, {"capture": {"seconds": 1.0}})
    assert HOSTILE not in findings.report.read_text()
    assert "&lt;img src=x" in findings.report.read_text()


def test_a_report_of_a_comparison_that_is_not_done_is_refused(tmp_path):
    with pytest.raises(SparsightError, match="not that far"):
        write_report(Findings(tmp_path), "x", {})


def test_two_models_are_enough_and_naive_prints_both_methods(tiny, tmp_path, capsys, model_folder, text_path):
    overrides = [
        "activations.heldout_tokens=800",
        "dictionaries.n_latents=32",
        "dictionaries.k=4",
        "train.epochs=1",
        "train.batch_tokens=128",
    ]
    overrides += [
        "base.dtype=float32",
        "closure.heldout_tokens=200",
        "closure.layers=2",
        "activations.window_tokens=1000",
    ]
    arguments = [str(model_folder), str(tiny.parent / "tuned"), "--text", text_path, "--tokens", "1500", "--naive"]
    for override in overrides:
        arguments += ["--set", override]
    cli.main(["compare", *arguments, "--out", str(tmp_path / "run")])
    printed = capsys.readouterr().out
    assert "another seed of the base" in printed
    assert "null fine-tune" not in printed
    report = (tmp_path / "run" / "compare" / "report.md").read_text()
    assert "No null fine-tune was given or made" in report
    assert load_comparison(tmp_path / "run" / "recipe.toml").hook_point == "layers.2"


def test_a_null_fine_tune_is_made_when_asked_for(tiny, tmp_path, capsys):
    recipe = tmp_path / "made.toml"
    lines = [line for line in tiny.read_text().splitlines() if not line.startswith("null =")]
    text = "\n".join(lines).replace("schema = 1", "schema = 1\nmake_null = true")
    recipe.write_text(text.partition("[fine_tuning]")[0] + "[activations]" + text.partition("[activations]")[2])
    small = [
        "null_training.steps=2",
        "null_training.batch_tokens=128",
        "dictionaries.crosscoders=false",
        "train.epochs=1",
    ]
    overrides = [word for setting in small for word in ("--set", setting)]
    cli.main(["compare", str(recipe), "--out", str(tmp_path / "run"), *overrides])
    made = json.loads((tmp_path / "run" / "compare" / "null.json").read_text())
    assert made["made"]
    assert not made["as_the_fine_tune"]  # the adapter does not say how it was trained
    assert (tmp_path / "run" / "null" / "adapter_config.json").exists()
    assert "null fine-tune" in capsys.readouterr().out


def test_two_saes_from_anywhere_are_matched_and_nothing_is_called_emergent(tiny, done, tmp_path, capsys):
    saes = f'saes = ["{done}/saes/base.0", "{done}/saes/tuned.0"]'
    recipe = tmp_path / "given.toml"
    recipe.write_text(tiny.read_text().replace("schema = 1", f"schema = 1\n{saes}"))
    cli.main(["compare", str(recipe), "--out", str(tmp_path / "run")])
    assert "Undetermined: one SAE of each model was given" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "run" / "compare" / "features.parquet").to_pandas()
    assert set(table.label) == {"undetermined"}
    assert not (tmp_path / "run" / "saes").exists()
    whole = pq.read_table(done / "compare" / "pairs.parquet").to_pandas()
    given = pq.read_table(tmp_path / "run" / "compare" / "pairs.parquet").to_pandas()
    assert given.tuned.tolist() == whole.tuned.tolist()


def test_saes_of_other_hook_points_are_refused(tiny, done, tmp_path, capsys):
    folder = tmp_path / "elsewhere"
    shutil.copytree(done / "saes" / "base.0", folder)
    text = (folder / "cfg.json").read_text().replace("base:layers.2", "layers.1")
    (folder / "cfg.json").write_text(text)
    recipe = tmp_path / "given.toml"
    recipe.write_text(tiny.read_text().replace("schema = 1", f'schema = 1\nsaes = ["{folder}", "{done}/saes/tuned.0"]'))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", str(recipe), "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "one hook point" in capsys.readouterr().err
