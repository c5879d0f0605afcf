"""publish: what the folder holds, what the card says, who can open it, and what goes over the wire to a Hub on this machine."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from safetensors.torch import load_file

from conftest import recipe_text
from loopback_hub import LoopbackHub, front_matter_errors
from sparsight import cli
from sparsight.artifact import RunDir
from sparsight.convert import load_sae
from sparsight.errors import FormatError, HubError, RunError
from sparsight.features import FeatureIndex, column_values, columns_of
from sparsight.metrics import EvalReport
from sparsight.publication import PublishConfig
from sparsight.publish import publish_run
from sparsight.recipe import parse_recipe
from sparsight.sae import SparseAutoencoder
from sparsight.study import run_study

TOKEN = "hf_aTokenThatMustNeverBeSeenAnywhere"
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path, text_path: str) -> RunDir:
    """A finished study of two SAEs on a local model and text."""
    text = recipe_text(model_folder, text_path)
    return run_study(parse_recipe(text), tmp_path_factory.mktemp("study") / "run")


@pytest.fixture(scope="module")
def folder(run: RunDir) -> Path:
    """Built once, quoting passages."""
    return publish_run(run, PublishConfig(to="someone/tiny-saes", dry_run=True, contexts=True)).folder


def programs(card: Path) -> dict[str, str]:
    """The card's Python, by what it imports."""
    found = re.findall(r"^`{3,}python\n(.*?)^`{3,}$", card.read_text(), re.DOTALL | re.MULTILINE)
    names = {"import sparsight": "sparsight", "from sae_lens": "saelens"}
    return {next((name for line, name in names.items() if line in code), "torch"): code for code in found}


def test_the_folder_has_every_file_and_the_sums_agree(folder: Path) -> None:
    sae_files = {
        "cfg.json",
        "sae_weights.safetensors",
        "example.safetensors",
        "metrics.json",
        "density.svg",
        "training.svg",
    }
    expected = {"README.md", "recipe.toml", *(f"{sae}/{name}" for sae in ("topk", "relu") for name in sae_files)}
    sums = dict(reversed(line.split("  ", 1)) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == expected
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert name == "README.md" or f"{digest}  {name}" in (folder / "README.md").read_text()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == expected | {"SHA256SUMS"}


def test_the_front_matter_loads_back_with_the_reports_numbers(folder: Path, run: RunDir) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "saelens"
    assert card.data.license == "apache-2.0"
    assert "saelens" in card.data.tags
    metadata = metadata_load(folder / "README.md")
    assert "base_model" not in metadata  # a local folder is no model of the Hub
    assert "datasets" not in metadata  # and local files no dataset
    assert front_matter_errors((folder / "README.md").read_text()) == []
    measured = {
        (result.metric_type, result.metric_name.rsplit(", ", 1)[1]): result.metric_value
        for result in card.data.eval_results
    }
    for sae in ("topk", "relu"):
        report = EvalReport.load(run.evaluation(sae))
        for metric in ("fvu", "l0", "dead_share", "ce", "kl"):
            assert measured[metric, sae] == pytest.approx(report.value(metric), rel=1e-5, abs=1e-9)
    assert len(measured) == 10


def test_a_hub_model_and_dataset_are_named_and_the_built_in_text_is_not(run: RunDir) -> None:
    from dataclasses import replace

    import yaml

    from sparsight.publication import Licences, read_facts
    from sparsight.publication.metadata import front_matter
    from sparsight.recipe import load_recipe

    demo = load_recipe(ROOT / "recipes" / "demo.toml")
    theirs = replace(demo.text, builtin="", dataset="monology/pile-uncopyrighted")
    licences = Licences(own="mit", model="", text="")
    found = []
    for text in (demo.text, theirs):
        facts = replace(read_facts(run), recipe=replace(demo, text=text), local_names={})
        facts.manifest["text"]["commit"] = "abc"
        found.append(yaml.safe_load(front_matter(facts, licences, "someone/x").strip("-")))
    assert [data["base_model"] for data in found] == ["HuggingFaceTB/SmolLM2-135M-Instruct"] * 2
    assert [data.get("datasets") for data in found] == [None, ["monology/pile-uncopyrighted"]]
    datasets = [data["model-index"][0]["results"][0]["dataset"] for data in found]
    assert datasets[0] == {"name": "probe-text, held-out documents", "type": "probe-text"}
    assert (datasets[1]["type"], datasets[1]["split"], datasets[1]["revision"]) == (theirs.dataset, "train", "abc")


def test_the_card_says_what_must_be_known(folder: Path, run: RunDir) -> None:
    card = (folder / "README.md").read_text()
    report = EvalReport.load(run.evaluation("topk"))
    for method in report.methods:
        assert f"| {method.label} |" in card
    fvu = report.method("sae").metrics["fvu"]
    assert f"{fvu.value:.4f} [{fvu.low:.4f}, {fvu.high:.4f}]" in card
    for verdict in report.verdicts:
        assert f"SAE {verdict.outcome} |" in card
        if verdict.outcome != "better":
            words = {"worse": "is worse than", "tie": "does not differ from"}[verdict.outcome]
            assert f"topk {words} the {report.method(verdict.baseline).label}" in card
    for mean in (report.stability.mmcs, report.stability.chance_pw_mcc):
        assert f"{mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]" in card
    for said in (
        "PW-MCC",
        "layers.2.mlp",
        "float32",
        "64 tokens",
        "policy: auto",
        "special tokens",
        "attention sinks",
        "8,000 to train on",
        "k = 4",
    ):
        assert said in card
    assert "unknown" in card[card.index("## Licence") :]
    assert card.count("**Latent ") == 2 * 10 + sum(map(len, _chosen(run)))


def _chosen(run: RunDir) -> list[np.ndarray]:
    """By the rule the card states, counted anew: the largest means among latents in 20 documents and on 1 % of tokens at most."""
    found = []
    for sae in ("topk", "relu"):
        index = FeatureIndex.open(run.features(sae))
        active = np.diff(index.latent_offsets)
        eligible = [
            i for i in range(index.n_latents) if index.n_documents[i] >= 20 and active[i] <= 0.01 * index.n_tokens
        ]
        found.append(np.array(sorted(eligible, key=lambda i: -index.mean[i])[:10]))
    return found


def test_no_local_path_is_published(folder: Path, run: RunDir, model_folder: Path, text_path: str) -> None:
    private = (str(model_folder), str(Path(text_path).parent), str(run.path), str(Path.home()))
    assert any(path in (run.path / "saes" / "topk" / "cfg.json").read_text() for path in private)  # there to be leaked
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(private_path.encode() in content for private_path in private), path
    assert parse_recipe((folder / "recipe.toml").read_text()).model.id == model_folder.name


def test_a_model_from_a_disk_is_never_taken_for_one_of_the_hub() -> None:
    """A relative folder that is gone by now looks like an id; that no commit was recorded gives it away."""
    from dataclasses import replace

    from sparsight.publication.facts import _local_names
    from sparsight.recipe import load_recipe

    demo = load_recipe(ROOT / "recipes" / "demo.toml")
    recipe = replace(demo, model=replace(demo.model, id="models/mine"))
    assert _local_names(recipe, {"model": {}, "text": {}}) == {"models/mine": "mine"}
    assert _local_names(recipe, {"model": {"commit": "abc"}, "text": {}}) == {}
    assert _local_names(demo, {"model": {}, "text": {}}) == {}


def test_the_same_run_gives_the_same_bytes(folder: Path, run: RunDir, tmp_path: Path) -> None:
    again = publish_run(
        run, PublishConfig(to="someone/tiny-saes", dry_run=True, contexts=True, out=tmp_path / "again")
    ).folder
    for path in folder.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize("sae", ["topk", "relu"])
def test_the_cards_programs_run_as_printed(
    sae: str,
    run: RunDir,
    model_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = PublishConfig(to="someone/tiny-saes", dry_run=True, sae=sae, out=tmp_path / "tiny-saes")
    code = programs(publish_run(run, config).folder / "README.md")
    assert set(code) == {"sparsight", "saelens", "torch"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / model_folder.name).symlink_to(model_folder)
    exec(compile(code["torch"], "card", "exec"), {})
    printed = capsys.readouterr().out
    assert float(printed.rsplit(":", 1)[1]) < 1e-5
    if sae == "topk":
        assert "active per row: [4, 4, 4, 4, 4, 4, 4, 4]" in printed
    exec(compile(code["sparsight"], "card", "exec"), {})
    shown = capsys.readouterr().out
    assert "error   L0" in shown
    assert len(shown.splitlines()) > 5


@pytest.mark.parametrize("target", ["", "layers.3.mlp"])
@pytest.mark.parametrize("architecture", ["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_the_torch_program_computes_every_architecture(
    architecture: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    from sparsight.publication.usage import torch_program
    from sparsight.sae import SAEConfig
    from sparsight.sae.exchange.saelens import tensor_shapes

    cfg = SAEConfig(
        id="a", architecture=architecture, n_latents=40, k=3, hook_point="layers.3", target_hook_point=target
    )
    generator = torch.Generator().manual_seed(4)
    shapes = tensor_shapes(cfg.inference, 6, 40, 4 if target else 6)
    sae = SparseAutoencoder(cfg, {name: torch.rand(shape, generator=generator) - 0.3 for name, shape in shapes.items()})
    sae.save(tmp_path / "repository" / "a", metadata={})
    x = 2 * torch.randn(8, 6, generator=generator)
    save_file({"x": x, "x_hat": sae(x).x_hat}, tmp_path / "repository" / "a" / "example.safetensors")
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(torch_program(cfg, "repository")), "card", "exec"), {})
    printed = capsys.readouterr().out
    assert float(printed.rsplit(":", 1)[1]) < 1e-5
    assert str((sae(x).latents > 0).sum(1).tolist()) in printed


def test_the_example_is_held_out_activations_while_the_run_has_them(folder: Path, run: RunDir, tmp_path: Path) -> None:
    import shutil

    from sparsight.activations import ActivationStore

    example = load_file(folder / "topk" / "example.safetensors")
    batch = next(iter(ActivationStore.open(run.activations).batches("heldout", 8)))
    assert (example["x"] == batch["layers.2.mlp"]).all()
    assert "8 held-out activations" in (folder / "README.md").read_text()
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("activations", "publish"))
    again = publish_run(RunDir(tmp_path / "run"), PublishConfig(to="someone/tiny", dry_run=True)).folder
    assert "8 rows of random numbers" in (again / "README.md").read_text()
    assert load_file(again / "topk" / "example.safetensors")["x"].shape == (8, 32)


def test_passages_are_quoted_only_under_a_licence_that_permits_it(
    run: RunDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="sparsight")
    cases = [
        ({}, False),
        ({"text_license": "cc-by-nc-4.0"}, False),
        ({"text_license": "odc-by"}, False),
        ({"text_license": "MIT"}, True),
        ({"contexts": True}, True),
        ({"text_license": "mit", "contexts": False}, False),
    ]
    for number, (options, quoted) in enumerate(cases):
        caplog.clear()
        done = publish_run(
            run, PublishConfig(to="someone/tiny", dry_run=True, sae="topk", out=tmp_path / str(number), **options)
        )
        card = (done.folder / "README.md").read_text()
        passages = re.findall(r"^(?:strongest|random) .*⟦", card, re.MULTILINE)
        assert bool(passages) == quoted, options
        (said,) = (warning for warning in done.warnings if "quote" in warning)
        assert said in caplog.text
        assert "text.jsonl" in said
        if quoted:
            assert f"quotes {len(passages)} passages" in said
            assert 0 < int(re.search(r"([\d,]+) tokens", said)[1].replace(",", "")) <= 21 * len(passages)


def test_licences_that_are_unknown_or_say_otherwise_are_named(run: RunDir, tmp_path: Path) -> None:
    options = {"to": "someone/tiny", "dry_run": True, "sae": "topk", "out": tmp_path / "x"}
    warnings = publish_run(run, PublishConfig(**options)).warnings
    assert sum("is not known" in warning for warning in warnings) == 2
    warnings = publish_run(run, PublishConfig(**options, model_license="llama3.1", text_license="mit")).warnings
    assert any("licence is llama3.1" in warning for warning in warnings)
    assert not any("text's licence" in warning for warning in warnings)
    card = metadata_load(publish_run(run, PublishConfig(**options, license="cc-by-4.0")).folder / "README.md")
    assert card["license"] == "cc-by-4.0"


def test_what_was_edited_or_is_not_ours_is_left_alone(run: RunDir, tmp_path: Path) -> None:
    config = PublishConfig(to="someone/tiny", dry_run=True, sae="topk", out=tmp_path / "built")
    card = publish_run(run, config).folder / "README.md"
    card.write_text(card.read_text() + "My own words.\n")
    with pytest.raises(RunError, match=r"edited since it was built \(README.md\)"):
        publish_run(run, config)
    assert card.read_text().endswith("My own words.\n")
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="was not built by"):
        publish_run(run, PublishConfig(to="someone/tiny", dry_run=True, out=tmp_path / "mine"))


def test_a_run_that_is_not_finished_says_what_it_lacks(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text(run.recipe.read_text())
    with pytest.raises(
        RunError, match=r"lacks saes/topk/cfg.json, saes/topk/evaluation.json, features/topk/index.json"
    ):
        publish_run(RunDir(tmp_path / "run"), PublishConfig(to="someone/tiny", dry_run=True))


@pytest.mark.parametrize(
    "name", ["tiny", "some one/tiny", "someone/tiny--x", "a/b/c", "someone/tiny.git", "../x/y", "someone/-x"]
)
def test_names_that_the_hub_refuses_are_refused_before_anything_is_built(
    name: str, run: RunDir, tmp_path: Path
) -> None:
    with pytest.raises(HubError, match="--to"):
        publish_run(run, PublishConfig(to=name, dry_run=True, out=tmp_path / "x"))
    assert not (tmp_path / "x").exists()


# over the wire


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """The loopback Hub, which this process takes for the Hub, with a token for it and no other login."""
    from huggingface_hub import constants

    with LoopbackHub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its transfer has endpoints of its own
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def publish(run: RunDir, out: Path, capfd: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """`sparsight publish` in this process: its exit code and all that it printed."""
    capfd.readouterr()
    code = 0
    try:
        cli.main(["publish", str(run.path), "--to", "someone/tiny", "--out", str(out), *options])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return code, "".join(capfd.readouterr())


def as_a_process(run: RunDir, out: Path, endpoint: str, *options: str) -> tuple[int, str]:
    """The same as a user runs it: the Hub's address and the token come from the environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(out.parent / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
    arguments = [
        sys.executable,
        "-m",
        "sparsight.cli",
        "publish",
        str(run.path),
        "--to",
        "someone/tiny",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [*arguments, *options], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def assert_unseen(token: str, printed: str, *folders: Path) -> None:
    assert token not in printed
    for folder in folders:
        for path in folder.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path


def only_line(printed: str) -> str:
    """The one line that says what went wrong."""
    assert "Traceback" not in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("sparsight: "))
    return line


def test_an_upload_cut_off_goes_on_with_what_is_missing(
    run: RunDir, tmp_path: Path, hub: LoopbackHub, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "published" / "tiny"
    hub.fail = lambda method, path: (0, "") if "/commit/" in path else None  # dies when the large files are there
    code, printed = as_a_process(run, out, hub.url, "--private")
    assert code == 2
    assert "The same command goes on" in only_line(printed)
    assert hub.repositories["someone/tiny"]["visibility"] == "private"
    assert len(hub.sent("PUT", "/lfs/")) == len(list(out.rglob("*.safetensors"))) == 4
    assert hub.files == {}
    assert_unseen(TOKEN, printed, tmp_path, run.path)

    hub.fail = lambda method, path: None
    hub.requests.clear()
    code, printed = publish(run, out, capfd)
    assert code == 0, printed
    assert f"Uploaded: {hub.url}/someone/tiny/commit/" in printed
    assert hub.sent("PUT", "/lfs/") == []
    assert hub.files == {
        path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    assert hub.tokens <= {f"Bearer {TOKEN}", ""}
    assert f"Bearer {TOKEN}" in hub.tokens
    assert_unseen(TOKEN, printed, tmp_path, run.path)

    hub.requests.clear()
    assert publish(run, out, capfd)[0] == 0  # all there: nothing is sent
    assert hub.sent("PUT", "") + hub.sent("POST", "/commit/") == []


def test_what_was_published_is_loaded_from_the_hub_as_the_card_says(
    run: RunDir,
    model_folder: Path,
    tmp_path: Path,
    hub: LoopbackHub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from huggingface_hub import constants

    assert publish(run, tmp_path / "built" / "tiny", capfd, "--private")[0] == 0
    code = programs(tmp_path / "built" / "tiny" / "README.md")["sparsight"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # where there is no copy of the repository
    Path(model_folder.name).symlink_to(model_folder)
    names: dict[str, object] = {}
    hub.requests.clear()
    exec(compile(code, "card", "exec"), names)
    assert hub.sent("GET", "/someone/tiny/resolve/")
    mine, theirs = SparseAutoencoder.load(run.sae("topk")), names["sae"]
    assert isinstance(theirs, SparseAutoencoder)
    assert theirs.cfg == mine.cfg
    assert all((tensor == theirs.state_dict()[name]).all() for name, tensor in mine.state_dict().items())

    with pytest.raises(FormatError, match=r"someone/tiny holds 2 SAEs \(relu, topk\)\. Name one of them\."):
        load_sae("someone/tiny")
    with pytest.raises(FormatError, match="has nothing at topc; it holds 2 SAEs"):
        load_sae("someone/tiny/topc")
    for name in [name for name in hub.files if name.startswith("relu/")]:
        del hub.files[name]
    hub.requests.clear()
    assert (load_sae("someone/tiny").W_dec == mine.W_dec).all()
    fetched = {path.split("/main/")[-1] for path in hub.sent("GET", "/resolve/")}
    assert all(name.endswith(("cfg.json", "metrics.json", "sae_weights.safetensors")) for name in fetched), fetched


def test_a_file_that_fails_is_all_that_is_sent_again(
    run: RunDir, tmp_path: Path, hub: LoopbackHub, capfd: pytest.CaptureFixture[str]
) -> None:
    refused = hashlib.sha256((run.path / "saes" / "topk" / "sae_weights.safetensors").read_bytes()).hexdigest()
    hub.fail = lambda method, path: (400, "no room") if path.endswith(refused) else None
    code, printed = publish(run, tmp_path / "tiny", capfd)
    assert code == 2
    assert "topk/sae_weights.safetensors" in only_line(printed)
    arrived = set(hub.blobs)
    hub.fail = lambda method, path: None
    hub.requests.clear()
    assert publish(run, tmp_path / "tiny", capfd)[0] == 0
    again = {path.rsplit("/", 1)[1] for path in hub.sent("PUT", "/lfs/")}
    assert refused in again
    assert not again & arrived


def test_an_error_of_the_hub_is_one_line_without_the_token(
    run: RunDir, tmp_path: Path, hub: LoopbackHub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fail = lambda method, path: (403, f"denied for Bearer {TOKEN}") if "preupload" in path else None
    code, printed = publish(run, tmp_path / "out" / "tiny", capfd, "--sae", "topk")
    assert code == 2
    assert "403 denied for Bearer (token)" in only_line(printed)
    assert_unseen(TOKEN, printed, tmp_path, run.path)


def test_the_token_stays_out_of_a_debug_log(
    run: RunDir, tmp_path: Path, hub: LoopbackHub, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    code, printed = publish(run, tmp_path / "out" / "tiny", capfd, "--sae", "topk")
    assert code == 0, printed
    assert_unseen(TOKEN, printed + caplog.text, tmp_path, run.path)


def test_a_card_that_the_hub_would_refuse_is_not_uploaded(
    run: RunDir, tmp_path: Path, hub: LoopbackHub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.fail = lambda method, path: (400, "license: not one of ours") if "validate-yaml" in path else None
    code, printed = publish(run, tmp_path / "out" / "tiny", capfd, "--sae", "topk", "--license", "own")
    assert code == 2
    assert only_line(printed)
    assert hub.files == {}
    assert hub.sent("PUT", "") == []


def test_without_a_token_nothing_is_built(
    run: RunDir, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, printed = publish(run, tmp_path / "tiny", capfd)
    assert code == 2
    assert "HF_TOKEN" in only_line(printed)
    assert not (tmp_path / "tiny").exists()
    assert hub.requests == []


def test_a_dry_run_needs_neither_token_nor_network(
    run: RunDir, tmp_path: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    code, printed = publish(run, tmp_path / "tiny", capfd, "--dry-run", "--sae", "topk")
    assert code == 0, printed
    assert f"Built, not uploaded: {tmp_path / 'tiny'}" in printed
    assert (tmp_path / "tiny" / "README.md").exists()
    assert hub.requests == []


def test_tables_of_features_go_to_a_dataset_repository(
    run: RunDir, tmp_path: Path, hub: LoopbackHub, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed = publish(run, tmp_path / "tiny", capfd, "--format", "parquet", "--no-contexts")
    assert code == 0, printed
    assert hub.repositories["someone/tiny"]["type"] == "dataset"
    assert set(hub.files) == {"README.md", "SHA256SUMS", "topk.parquet", "relu.parquet"}


def test_options_that_contradict_each_other_are_one_line(
    run: RunDir, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed = publish(run, tmp_path / "tiny", capfd, "--dry-run", "--contexts", "--no-contexts")
    assert code == 2
    assert "opposite things" in only_line(printed)


# other tools' files


def test_the_parquet_table_has_the_indexs_numbers(run: RunDir, tmp_path: Path) -> None:
    config = PublishConfig(to="someone/tiny", dry_run=True, format="parquet", out=tmp_path / "tables", contexts=True)
    table = pq.read_table(publish_run(run, config).folder / "topk.parquet")
    index = FeatureIndex.open(run.features("topk"))
    assert table.num_rows == index.n_latents == 64
    latent = int(np.argmax(index.n_documents))
    row = table.slice(latent, 1).to_pylist()[0]
    tokens, values = index.activations(latent)
    assert row["latent"] == latent
    assert row["n_active"] == len(tokens)
    assert row["density"] == pytest.approx(len(tokens) / index.n_tokens)
    assert (row["maximum"], row["mean"]) == pytest.approx((values.max(), values.mean()))
    assert row["p50"] == pytest.approx(np.quantile(values, 0.5), rel=1e-5)
    assert sum(row["histogram"]) == len(tokens)
    assert row["promoted_weights"] == pytest.approx(index.promoted(latent).weights.tolist())
    assert len(row["promoted"]) == len(row["suppressed"]) == 10
    for column in columns_of(index):
        value = column_values(index, column.name)[latent]
        assert row["top_token_id" if column.kind == "token" else column.name] == pytest.approx(value, nan_ok=True)
    near, company, lift = index.neighbours(latent), index.coactive(latent), index.lift(latent)
    assert row["decoder_neighbours"] == near[0].tolist()
    assert (row["coactive_latents"], row["coactive_jaccard"]) == (
        company.latents.tolist(),
        pytest.approx(company.jaccard),
    )
    assert (len(row["lift_tokens"]), row["lift_values"]) == (len(lift.token_ids), pytest.approx(lift.weights))
    assert sum(row["position_bins"]) == len(tokens)
    assert row["contexts"][0]["values"][row["contexts"][0]["peak"]] == pytest.approx(values.max())
    assert json.loads(table.schema.metadata[b"sparsight"])["hook_point"] == "layers.2.mlp"


def test_neuronpedia_batches_hold_every_latent_once(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sparsight.features import neuronpedia

    monkeypatch.setattr(neuronpedia, "_BATCH", 50)
    config = PublishConfig(
        to="someone/tiny", dry_run=True, format="neuronpedia", out=tmp_path / "np", contexts=True, sae="topk"
    )
    files = sorted((publish_run(run, config).folder / "topk").iterdir())
    batches = [json.loads(file.read_text()) for file in files]
    assert [file.name for file in files] == ["batch-0000.json", "batch-0001.json"]
    assert [len(batch["features"]) for batch in batches] == [50, 14]
    index = FeatureIndex.open(run.features("topk"))
    features = [feature for batch in batches for feature in batch["features"]]
    assert [feature["index"] for feature in features] == list(range(64))
    for feature in features:
        tokens, values = index.activations(feature["index"])
        assert feature["density"] == len(tokens) / index.n_tokens
        assert feature["topLogits"][0]["value"] == pytest.approx(float(index.promoted(feature["index"]).weights[0]))
        assert bool(feature["activations"]) == bool(len(tokens))
        ranks = [
            (p["quantiles"], sum(1 for value in values if value <= max(p["values"]))) for p in feature["activations"]
        ]
        assert all(low * len(values) <= rank + 1 for (low, _), rank in ranks)
        assert all(high * len(values) == pytest.approx(rank) for (low, high), rank in ranks if low == high)
        assert len(tokens) == 0 or ranks[0] == ([1.0, 1.0], len(values))
        assert all(len(p["tokens"]) == len(p["values"]) for p in feature["activations"])


def test_the_hubs_own_limit_is_kept() -> None:
    from sparsight.features import neuronpedia

    assert neuronpedia._BATCH == 128


# strangers' strings

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b|c",
    "```\n# heading",
    "`code` *bold* _it_ ~~no~~",
    "---\ntitle: broken",
    "[x](javascript:alert(1)) ![y](http://evil.example/p.png)",
    "\u202eright to left\u202c",
    "line one\r\nline two\u2028three",
    "&lt;b&gt; &amp; &#60;i&#62;",
    "http://evil.example www.evil.example me@evil.example",
    '"quoted" \'single\' \\ : #',
    "- item", "1. item", "+ item", "> quote", "# head", "    indented", "=====", "</details>", "<!-- hidden", "$x$ :smile:",
)  # fmt: skip


def rendered(markdown: str) -> str:
    """As GitHub-flavoured Markdown with raw HTML let through, which is more than the Hub does."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text_in_prose_tables_and_blocks(text: str) -> None:
    import html

    from sparsight.features import printable
    from sparsight.publication.markdown import fenced, plain, table

    shown = printable(text)
    assert html.unescape(rendered(plain(text))) == f"<p>{shown}</p>\n"
    cells = re.findall(r"<td>(.*?)</td>", rendered("\n".join(table(["a", "b"], [[plain(text), "z"]]))))
    assert [html.unescape(cell) for cell in cells] == [shown.strip(), "z"] or [html.unescape(c) for c in cells] == [
        shown,
        "z",
    ]
    block = rendered("\n".join([*fenced([text, "`" * 5]), "after"]))
    assert html.unescape(block) == f'<pre><code class="language-text">{shown}\n`````\n</code></pre>\n<p>after</p>\n'
    assert not set(plain(text)) & set("<>|`*[]\n\r\u202e\u2028")


class HostileTokenizer:
    """Every token is one of the strings above."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [HOSTILE[i % len(HOSTILE)] for i in ids]

    def decode(self, ids: list[int], **_: object) -> str:
        return HOSTILE[ids[0] % len(HOSTILE)]


def test_a_card_of_hostile_names_and_tokens_keeps_its_shape(run: RunDir, folder: Path) -> None:
    from dataclasses import replace

    from sparsight.publication import Licences, model_card, read_facts

    facts = read_facts(run)
    name = "".join(HOSTILE[:11])
    local = {facts.recipe.model.id: name, facts.recipe.text.files[0]: name}
    report = replace(facts.saes[0].report, notes=HOSTILE)
    facts = replace(facts, local_names=local, saes=(replace(facts.saes[0], report=report), facts.saes[1]))
    facts.manifest["damaged"] = list(HOSTILE)
    licences = Licences(own="apache-2.0", model=name, text=name)
    options = {"with_contexts": True, "rows_are_real": True, "hashes": {"a": "b"}}
    card = model_card(facts, licences, HostileTokenizer(), "someone/tiny-saes", **options).text
    assert front_matter_errors(card) == []
    ModelCard(card)
    body = rendered(card.split("\n---\n", 1)[1])
    usual = rendered((folder / "README.md").read_text().split("\n---\n", 1)[1])
    prose = re.sub(r"<pre>.*?</pre>", "", body, flags=re.DOTALL)
    assert "<script" not in body
    assert not re.search(r"<(?:h1|a|img|em|strong|del|!--)[^>]*evil|javascript:alert[^<]*\"", body)
    for tag in ("table", "h1", "h2", "h3", "details", "a ", "img", "blockquote", "hr", "script"):
        assert prose.count(f"<{tag}") == re.sub(r"<pre>.*?</pre>", "", usual, flags=re.DOTALL).count(f"<{tag}"), tag
    for code in re.findall(r"^`{3,}python\n(.*?)^`{3,}$", card, re.DOTALL | re.MULTILINE):
        compile(code, "card", "exec")
    assert "\u202e" not in card


# plots


def test_the_density_plot_has_a_bar_for_each_count() -> None:
    from xml.etree import ElementTree

    from sparsight.metrics import DensityHistogram
    from sparsight.publication import density_svg

    counts = {"n_dead": 3, "n_tokens": 1000, "log10_edges": (-3.0, -2.5, -2.0, -1.5, -1.0)}
    first = DensityHistogram(n_latents=(0, 10, 40, 20), **counts)
    second = DensityHistogram(n_latents=(5, 0, 0, 80), **counts)
    root = ElementTree.fromstring(density_svg({"SAE": first, "<b> & co": second}, "a < b"))
    bars = [each for each in root.findall(".//{*}rect") if each.get("fill") == "#4477aa" and each.get("height") != "10"]
    heights = [float(bar.get("height", "")) for bar in bars]
    assert heights == pytest.approx([0, heights[2] / 4, heights[2], heights[2] / 2], abs=0.11)
    (outline,) = root.findall(".//{*}polyline")
    tops = [float(pair.split(",")[1]) for pair in outline.get("points", "").split()]
    assert min(tops) == pytest.approx(52)  # the largest count of all reaches the top
    assert [text.text for text in root.findall(".//{*}text")].count("<b> & co (3 never)") == 1


def test_the_training_curve_ends_where_the_log_ends() -> None:
    from xml.etree import ElementTree

    from sparsight.publication import training_svg

    root = ElementTree.fromstring(training_svg([(100, 1.0), (200, 0.5), (400, 0.25)], 0.5, "t"))
    curve, heldout = root.findall(".//{*}polyline")
    (x1, y1), (x2, y2), (x3, y3) = (map(float, pair.split(",")) for pair in curve.get("points", "").split())
    assert (x3 - x1) == pytest.approx(3 * (x2 - x1), abs=0.3)
    assert (y2 - y1) == pytest.approx(2 * (y3 - y2), abs=0.3)
    assert all(float(pair.split(",")[1]) == pytest.approx(y2) for pair in heldout.get("points", "").split())
