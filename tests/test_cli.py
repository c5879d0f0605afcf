"""The command line as a user meets it: a whole study, a second run that finds nothing to do, and one clear line for every mistake."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import make_documents, write_texts
from sparsight import cli
from sparsight.artifact import read_json, read_jsonl
from sparsight.features import index as features_index


def sparsight(*arguments: object) -> int:
    """Runs the command line in this process; returns its exit code."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, text_path: str) -> tuple[Path, Path]:
    """(recipe, run directory) of a study that went to its end."""
    from conftest import recipe_text

    folder = tmp_path_factory.mktemp("finished")
    recipe = folder / "tiny.toml"
    recipe.write_text(recipe_text(model_folder, text_path))
    assert sparsight("run", recipe, "--out", folder / "run") == 0
    return recipe, folder / "run"


def test_a_study_leaves_all_its_parts_and_prints_its_report(
    finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = finished_run
    for part in (
        "recipe.toml",
        "manifest.json",
        "report.md",
        "activations/store.json",
        "saes/topk/cfg.json",
        "saes/topk/sae_weights.safetensors",
        "saes/relu/evaluation.json",
        "saes/topk.seed/sae_weights.safetensors",
        "saes/relu.frozen-decoder/sae_weights.safetensors",
        "features/relu/index.json",
    ):
        assert (run / part).exists(), part
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file() and file.name != ".lock"}
    started = time.monotonic()
    assert sparsight("run", recipe, "--out", run) == 0
    assert time.monotonic() - started < 5
    assert {file: file.stat().st_mtime_ns for file in before} == before
    printed = capsys.readouterr().out
    assert "FVU" in printed
    assert "untrained SAE" in printed
    assert "PCA" in printed
    assert "frozen decoder" in printed
    assert "Found again by a second seed" in printed
    assert read_jsonl(run / "saes" / "topk" / "training.jsonl")[-1]["step"] == 160
    manifest = read_json(run / "manifest.json")
    assert set(manifest["steps"]) == {
        f"{v}{s}" for v in ("evaluate ", "index ", "explain ") for s in ("topk", "relu")
    } | {
        "collect",
        "train",
    }
    assert manifest["model"]["n_tensors_loaded"] < manifest["model"]["n_tensors_total"]


def test_every_key_that_a_study_writes_is_in_the_formats(finished_run: tuple[Path, Path]) -> None:
    _, run = finished_run
    formats = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
    manifest, store = read_json(run / "manifest.json"), read_json(run / "activations" / "store.json")
    index = read_json(run / "activations" / "part-000-of-001" / "index.json")
    shard, features = index["shards"][0], read_json(run / "features" / "relu" / "index.json")
    metadata = read_json(run / "saes" / "topk" / "cfg.json")["metadata"]
    line = read_jsonl(run / "saes" / "relu" / "training.jsonl")[0]
    parts = [manifest, *(manifest[key] for key in ("model", "text", "activations")), *manifest["activations"].values()]
    parts += [
        store,
        index,
        shard,
        shard["counts"],
        shard["text_counts"],
        line,
        metadata,
        metadata["sparsight_training"],
    ]
    parts += [manifest["steps"]["train"], load_file(run / "saes" / "topk" / "initial.safetensors")]
    written = {key for part in parts for key in part}
    assert [key for key in sorted(written) if not re.search(rf"\b{key}\b", formats)] == []
    head = features_index.__doc__ or ""
    written = {*features, *features["about"], *features["arrays"]}
    assert [key for key in sorted(written) if not re.search(rf"\b{key}\b", head)] == []


def test_show_in_its_three_forms(finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, run = finished_run
    assert sparsight("show", run) == 0
    assert "64 latents at layers.2.mlp" in capsys.readouterr().out
    assert sparsight("show", run, "3", "--sae", "relu") == 0
    assert "Latent 3 at layers.2.mlp" in capsys.readouterr().out
    assert sparsight("show", run, "--text", "the cat sings (") == 0
    assert " sings" in capsys.readouterr().out


def test_show_reads_a_file_of_texts_beside_those_given(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a red dog\n\nthe old house\n")
    assert sparsight("show", finished_run[1], "--text", "the cat sings", "--texts", file) == 0
    printed = capsys.readouterr().out
    for title in ("Text 1: the cat sings", "Text 2: a red dog", "Text 3: the old house", "Latents that differ most"):
        assert title in printed


def test_steer_prints_every_arm_beside_its_controls(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished_run
    alive = int(features_index.FeatureIndex.open(run / "features" / "topk").density.argmax())
    file = tmp_path / "prompts.txt"
    file.write_text("a red dog\nthe old house\n")
    edits = ("--feature", f"{alive}:add:2p99", "--tokens", 6)
    assert sparsight("steer", run, *edits, "--prompt", "the cat", "--prompts", file) == 0
    printed = capsys.readouterr().out
    for arm in ("plain", "steered", "random", "prompt"):
        assert len(re.findall(rf"^{arm} +\d+ +[+-]\d", printed, re.M)) == 3
    assert "of the layer's mean norm)" in printed
    assert "over 3 prompts, 95 %" in printed
    assert sparsight("steer", run, *edits, "--prompt", "the cat", "--json") == 0
    *tokens, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {token["arm"] for token in tokens} == {"plain", "steered", "random", "prompt"}
    assert last["done"]
    assert last["edits"][0]["latent"] == alive
    assert sparsight("steer", run, *edits, "--prompt", "the cat", "--sweep", "1,8", "--controls", "none") == 0
    printed = capsys.readouterr().out
    assert "Sweet spot: " in printed
    assert re.search(r"^8p99 +[+-]\d", printed, re.M)


def test_controls_are_measured_with_their_sae_and_never_shown_as_results(
    finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished_run
    assert {path.name for path in (run / "features").iterdir()} == {"topk", "relu"}
    assert {path.parent.name for path in run.glob("saes/*/evaluation.json")} == {"topk", "relu"}
    assert "topk.seed" not in (run / "report.md").read_text()
    for verb in ("show", "index", "evaluate"):
        assert sparsight(verb, run, "--sae", "topk.seed") == 2
        assert "topk.seed is a control, measured with the SAE that it stands beside" in capsys.readouterr().err
    for sae_id in ("topk", "relu"):
        evaluation = read_json(run / "saes" / sae_id / "evaluation.json")
        names = [method["name"] for method in evaluation["methods"]]
        assert names == ["sae", "seed", "frozen-decoder", "random", "pca", "clean", "zero", "mean"]
        assert {verdict["baseline"] for verdict in evaluation["verdicts"]} == {"frozen-decoder", "random", "pca"}
        assert evaluation["stability"]["mmcs"]["n_latents"] <= 64
        assert sparsight("show", run, "3", "--sae", sae_id) == 0
        assert "second seed: nearest direction cosine" in capsys.readouterr().out
    assert sparsight("convert", run / "saes" / "topk", run.parent / "converted", "--to", "sparsify") == 0


def test_controls_learn_from_the_same_pass_and_the_same_batches(
    finished_run: tuple[Path, Path], tmp_path: Path
) -> None:
    """Each is what it would be alone on the run's batches, and the run has one training step in its manifest."""
    import torch

    from sparsight.activations import StoreSource
    from sparsight.artifact import RunDir
    from sparsight.sae import SparseAutoencoder
    from sparsight.study import Study
    from sparsight.train import train_saes

    run = finished_run[1]
    study = Study.reopen(RunDir.open(run))
    for control in study.recipe.trained[len(study.recipe.sae) :]:
        source = StoreSource(study.store, (control.hook_point,), study.recipe.train.epochs, study.recipe.seed)
        (alone,) = train_saes(source, [control], tmp_path / control.id, train=study.recipe.train)
        beside = SparseAutoencoder.load(run / "saes" / control.id)
        assert all(torch.equal(tensor, beside.state_dict()[name]) for name, tensor in alone.state_dict().items())
        assert read_jsonl(run / "saes" / control.id / "training.jsonl")[-1]["step"] == 160
    weights = {sae.id: SparseAutoencoder.load(run / "saes" / sae.id).W_dec for sae in study.recipe.trained}
    assert not torch.allclose(weights["topk"], weights["topk.seed"], atol=0.1)
    assert "train" in read_json(run / "manifest.json")["steps"]


def test_without_controls_nothing_stands_beside_the_sae_and_the_report_says_so(
    recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "bare"
    options = ["--set", "controls=[]", "--set", "train.epochs=1"]
    assert sparsight("run", recipe_path, "--out", run, *options) == 0
    assert {path.name for path in (run / "saes").iterdir()} == {"topk", "relu"}
    printed = capsys.readouterr().out
    assert "No verdict: the SAE was measured without a control to beat." in printed
    assert "not measured: second seed, frozen decoder, untrained SAE, PCA." in printed
    assert "Found again" not in printed
    assert not list((run / "features" / "topk").glob("seed_*"))
    assert sparsight("show", run, "3") == 0
    assert "second seed: there was none to compare with" in capsys.readouterr().out
    assert sparsight("plan", recipe_path, "--set", "controls=[]", "--device", "rtx-4090") == 0
    assert "controls     none" in capsys.readouterr().out


def test_a_run_from_before_controls_says_what_to_do(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    recipe, run = finished_run[0], tmp_path / "old"
    shutil.copytree(finished_run[1], run)
    for control in run.glob("saes/*.*"):
        shutil.rmtree(control)
    for sae_id in ("topk", "relu"):
        evaluation = read_json(run / "saes" / sae_id / "evaluation.json")
        (run / "saes" / sae_id / "evaluation.json").write_text(json.dumps(evaluation | {"version": 1}))
    assert sparsight("evaluate", run) == 2
    assert "is not an evaluation of version 2. Delete it and run `sparsight evaluate`" in capsys.readouterr().err
    for old in run.glob("saes/*/evaluation.json"):
        old.unlink()
    assert sparsight("evaluate", run) == 2
    assert "Control topk.seed in" in (error := capsys.readouterr().err)
    assert "sparsight run RECIPE" in error
    assert sparsight("run", recipe, "--out", run) == 0
    assert "Found again by a second seed" in capsys.readouterr().out


def test_evaluate_and_index_print_what_is_there(
    finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished_run
    assert sparsight("evaluate", run) == 0
    assert capsys.readouterr().out.count("fraction of variance unexplained") >= 2
    assert sparsight("index", run, "--sae", "topk") == 0
    assert "features/topk" in capsys.readouterr().out


def test_plan_prints_costs(finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert sparsight("plan", finished_run[0], "--device", "rtx-4090") == 0
    printed = capsys.readouterr().out
    for word in ("tokens", "disk", "memory", "FLOP", "seed, frozen-decoder, random, pca: 4 more SAEs trained"):
        assert word in printed


def test_an_sae_added_to_the_recipe_is_all_that_runs(finished_run: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    recipe, run = finished_run
    shutil.copytree(run, tmp_path / "run")
    more = recipe.read_text() + '\n[[sae]]\nid = "wide"\nn_latents = 96\nk = 4\n'
    (tmp_path / "more.toml").write_text(more)
    old = (tmp_path / "run" / "saes" / "topk" / "sae_weights.safetensors").stat().st_mtime_ns
    assert sparsight("run", tmp_path / "more.toml", "--out", tmp_path / "run") == 0
    assert (tmp_path / "run" / "features" / "wide" / "index.json").exists()
    assert (tmp_path / "run" / "saes" / "topk" / "sae_weights.safetensors").stat().st_mtime_ns == old
    assert "## wide" in (tmp_path / "run" / "report.md").read_text()


MISTAKES = {
    "unknown model": (["--set", "model.id=nobody/nothing"], ["nobody/nothing"]),
    "unknown hook point": (
        ["--set", "activations.hook_points=['layers.2.mpl']", "--set", "sae.0.hook_point=''"],
        ["layers.2.mpl", "mlp"],
    ),
    "layer out of range": (["--set", "activations.hook_points=['layers.9.mlp']"], ["layers.9"]),
    "unknown column": (["--set", "text.column=body"], ["'body'", "text"]),
    "missing file": (["--set", "text.files=['nowhere/*.txt']"], ["nowhere/*.txt"]),
    "unknown dataset": (["--set", "text.files=[]", "--set", "text.dataset=nobody/nothing"], ["nobody/nothing"]),
    "text too short": (["--set", "activations.n_tokens=10000000"], ["of the 10,000,000 train tokens", "allow_short"]),
    "unknown key": (["--set", "train.batch_token=3"], ["batch_token", "batch_tokens"]),
    "wrong type": (["--set", "train.epochs=two"], ["train.epochs", "whole number"]),
    "impossible sae": (["--set", "sae.topk.k=1000"], ["k = 1000", "n_latents = 64"]),
    "unknown architecture": (["--set", "sae.topk.architecture=topq"], ["topq", "topk"]),
    "nothing held out": (["--set", "activations.heldout_tokens=0"], ["hold nothing out"]),
    "unknown control": (["--set", 'controls=["sead"]'], ["'sead'", "Did you mean 'seed'"]),
    "too few rows": (["--set", "activations.n_tokens=50", "--set", "train.epochs=1"], ["50 training rows", "100"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(
    name: str, tmp_path: Path, recipe_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, words = MISTAKES[name]
    assert sparsight("run", recipe_path, "--out", tmp_path / "run", *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sparsight: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_an_empty_text_is_one_line(tmp_path: Path, recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    empty = write_texts(tmp_path / "empty", [])
    assert sparsight("run", recipe_path, "--out", tmp_path / "run", "--set", f"text.files=['{empty}']") == 2
    assert "no documents" in capsys.readouterr().err


def test_a_recipe_that_changed_under_a_run_is_refused_by_key(
    finished_run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = finished_run
    before = (run / "recipe.toml").read_text()
    assert sparsight("run", recipe, "--out", run, "--set", "sae.topk.k=5", "--set", "seed=3") == 2
    error = capsys.readouterr().err
    assert "sae.topk.k = 4; the recipe now says 5" in error or "seed = 0; the recipe now says 3" in error
    assert "--out ANOTHER_DIRECTORY" in error
    assert (run / "recipe.toml").read_text() == before


def test_a_store_of_another_recipe_is_not_taken(
    tmp_path: Path, recipe_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sparsight("collect", recipe_path, "--out", tmp_path / "run") == 0
    (tmp_path / "run" / "recipe.toml").unlink()
    assert sparsight("run", recipe_path, "--out", tmp_path / "run", "--set", "text.heldout_fraction=0.3") == 2
    assert "'heldout_fraction': 0.2" in capsys.readouterr().err


def test_a_model_or_text_that_changed_under_a_collection_is_refused(
    tmp_path: Path, recipe_path: Path, model_folder: Path, text_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model_folder, tmp_path / "model")
    shutil.copy(text_path, tmp_path / "own.jsonl")
    options = ("--set", f"model.id={tmp_path / 'model'}", "--set", f"text.files=['{tmp_path / 'own.jsonl'}']")
    assert sparsight("run", recipe_path, "--out", tmp_path / "run", *options) == 0
    shard = next((tmp_path / "run").glob("activations/part-*/train-00003.safetensors"))
    shard.unlink()
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file(
        {name: value + torch.ones_like(value) for name, value in weights.items()},
        tmp_path / "model" / "model.safetensors",
    )
    assert sparsight("run", recipe_path, "--out", tmp_path / "run", *options) == 2
    assert "model sampled_sha256" in capsys.readouterr().err
    shutil.copy(model_folder / "model.safetensors", tmp_path / "model" / "model.safetensors")
    with (tmp_path / "own.jsonl").open("a") as file:
        file.write('{"text": "one more document that was not there before"}\n')
    assert sparsight("run", recipe_path, "--out", tmp_path / "run", *options) == 2
    assert "text files" in capsys.readouterr().err


def test_a_store_with_parts_missing_is_named(
    tmp_path: Path, recipe_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sparsight("collect", recipe_path, "--out", tmp_path / "run", "--part", "1/2") == 0
    assert sparsight("run", recipe_path, "--out", tmp_path / "run") == 2
    assert "lacks the parts 0/2" in capsys.readouterr().err


def test_a_damaged_shard_can_be_left_out_aloud_and_on_record(finished_run: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    recipe, run = finished_run
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "saes")
    (tmp_path / "run" / "report.md").unlink()
    shard = next((tmp_path / "run").glob("activations/part-*/train-00002.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert sparsight("run", recipe, "--out", tmp_path / "run", "--set", "activations.skip_damaged=true") == 0
    assert "train-00002" in read_json(tmp_path / "run" / "manifest.json")["damaged"][0]
    assert "train-00002" in (tmp_path / "run" / "report.md").read_text()


def test_a_live_study_has_its_baselines_and_says_what_was_left_out(tmp_path: Path, recipe_path: Path) -> None:
    options = (
        "--set",
        "activations.mode=stream",
        "--set",
        "train.epochs=1",
        "--set",
        "activations.sink_norm_multiple=1.3",
    )
    assert sparsight("run", recipe_path, "--out", tmp_path / "run", *options) == 0
    report = (tmp_path / "run" / "report.md").read_text()
    assert "PCA" in report
    described = read_json(tmp_path / "run" / "saes" / "topk" / "cfg.json")["metadata"]["sparsight_training"][
        "activations"
    ]
    heldout = read_json(tmp_path / "run" / "manifest.json")["activations"]["heldout"]
    assert described["sinks"] > 0
    assert f"{described['sinks'] + heldout['sinks']:,} attention sinks" in report
    assert not list((tmp_path / "run" / "activations").rglob("train-*"))


def test_a_transcoder_goes_through_the_whole_study(
    tmp_path: Path, recipe_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_path.read_text().replace('["layers.2.mlp"]', '["layers.2.mlp.input", "layers.2.mlp"]')
    recipe = recipe.replace('id = "topk"', 'id = "topk"\ntarget_hook_point = "layers.2.mlp"').replace(
        'id = "relu"', 'id = "relu"\nhook_point = "layers.2.mlp"'
    )
    recipe_path.write_text(recipe)
    assert sparsight("run", recipe_path, "--out", tmp_path / "run") == 0
    assert "layers.2.mlp.input -> layers.2.mlp" in (tmp_path / "run" / "report.md").read_text()
    assert sparsight("show", tmp_path / "run", "--text", "the cat sings") == 0
    assert " sings" in capsys.readouterr().out


def test_a_text_that_ended_early_goes_on_once_it_is_allowed(tmp_path: Path, recipe_path: Path) -> None:
    short = write_texts(tmp_path, make_documents(150))
    options = (
        "--set",
        f"text.files=['{short}']",
        "--set",
        "activations.n_tokens=50000",
        "--set",
        "activations.heldout_tokens=500",
    )
    assert sparsight("run", recipe_path, "--out", tmp_path / "run", *options) == 2
    shards = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.safetensors")}
    assert shards
    assert (
        sparsight("run", recipe_path, "--out", tmp_path / "run", *options, "--set", "activations.allow_short=true") == 0
    )
    assert all(file.stat().st_mtime_ns == time for file, time in shards.items())


def test_a_damaged_shard_stops_with_its_name_and_is_made_anew_once_deleted(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    recipe, run = finished_run
    shutil.copytree(run, tmp_path / "run")
    shard = next((tmp_path / "run").glob("activations/part-*/train-00002.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:5000])
    (tmp_path / "run" / "report.md").unlink()
    assert sparsight("run", recipe, "--out", tmp_path / "run") == 2
    assert "train-00002.safetensors is damaged" in capsys.readouterr().err
    shard.unlink()
    assert sparsight("run", recipe, "--out", tmp_path / "run") == 0
    assert shard.read_bytes() == whole


def test_several_processes_collect_one_store_that_the_study_takes(tmp_path: Path, recipe_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sparsight.cli", "collect", str(recipe_path), "--out", str(tmp_path / "run")]
    both = [subprocess.Popen([*command, "--part", f"{rank}/2"], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert sparsight("run", recipe_path, "--out", tmp_path / "run") == 0
    counts = json.loads((tmp_path / "run" / "activations" / "store.json").read_text())
    assert counts["hook_points"] == {"layers.2.mlp": 32}


def test_latents_and_saes_that_are_not_there_are_named(
    finished_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished_run
    for arguments, word in (
        (("show", run, "9999"), "9999"),
        (("show", run, "--texts", tmp_path / "absent.txt"), "No such file"),
        (("steer", run, "--feature", "3:add:1", "--sweep", "1,x", "--prompt", "a"), "--sweep takes numbers"),
        (("steer", run, "--feature", "3:add", "--prompt", "a"), "is no edit"),
        (("steer", run, "--feature", "3:ablate"), "0 prompts and 1 edits"),
        (("steer", run, "--feature", "9999:ablate", "--prompt", "a"), "no latent 9999"),
        (("show", run, "--sae", "nope"), "it has topk, relu"),
        (("show", tmp_path), "not a run directory"),
        (("run", tmp_path / "none.toml"), "cannot be read"),
        (("collect", finished_run[0], "--part", "3/2"), "RANK/WORLD"),
    ):
        assert sparsight(*arguments) == 2
        assert word in capsys.readouterr().err
