"""probe: from labelled prompts to a report, on a tiny model; and its command."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import make_documents
from sparsight import probe as probe_module
from sparsight.activations import last_token_activations
from sparsight.artifact import RunDir, read_json
from sparsight.errors import MetricError, SAEError
from sparsight.lm import (
    LabelledPrompts,
    LabelledSet,
    LanguageModel,
    TextConfig,
    TokenBatch,
    folder_sets,
    sample_prompts,
)
from sparsight.metrics import ProbingConfig, ProbingReport, stratified_split
from sparsight.probe import probe_saes
from sparsight.publication import PublishConfig
from sparsight.publish import publish_run
from sparsight.sae import SAEConfig, SparseAutoencoder
from test_cli import finished_run, sparsight  # noqa: F401
from test_lm_labelled import write_set

HOOK = "layers.2.mlp"
TEXT = TextConfig(files=("none.txt",), bos="never", batch_tokens=512)
CONFIG = ProbingConfig(ks=(1, 3), max_prompts=160, max_tokens=24, n_resamples=200)


def make_sae(seed: int, *, d_in: int = 32, n_latents: int = 40) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(seed)
    weights = {"W_enc": torch.randn(d_in, n_latents, generator=generator), "b_enc": torch.zeros(n_latents)}
    weights |= {"W_dec": torch.randn(n_latents, d_in, generator=generator), "b_dec": torch.zeros(d_in)}
    return SparseAutoencoder(SAEConfig(id="a", architecture="topk", n_latents=n_latents, k=8), weights)


@pytest.fixture(scope="module")
def sets_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`last`: which word ends the prompt, easy at the last token. `coin`: no truth. `one`, `few`: to be skipped."""
    folder = tmp_path_factory.mktemp("sets") / "mine"
    folder.mkdir()
    texts = make_documents(300, seed=5, shortest=2, longest=8)
    write_set(folder / "last.csv", [(text + (" cat" if i % 2 else " 333"), str(i % 2)) for i, text in enumerate(texts)])
    coins = np.random.default_rng(0).integers(0, 2, len(texts))
    write_set(folder / "coin.csv", [(text, str(coin)) for text, coin in zip(texts, coins, strict=True)])
    write_set(folder / "one.csv", [(text, "yes") for text in texts])
    write_set(folder / "few.csv", [(text, str(int(i < 5))) for i, text in enumerate(texts)])
    return folder


@pytest.fixture(scope="module")
def report(reader: LanguageModel, sets_folder: Path) -> ProbingReport:
    saes = {"a": {"sae": make_sae(0), "random": make_sae(1)}}
    return probe_saes(saes, reader, folder_sets(sets_folder), hook_points={"a": HOOK}, text=TEXT, config=CONFIG)["a"]


def test_last_token_activations_are_those_of_each_prompt_alone(reader: LanguageModel, sets_folder: Path) -> None:
    (labelled,) = (each for each in folder_sets(sets_folder) if each.name == "last")
    pieces = sample_prompts(labelled, reader.tokenizer, TEXT, max_prompts=40, max_tokens=24, seed=0).pieces
    found = last_token_activations(reader, pieces, [HOOK, "layers.1"], batch_tokens=100)
    for row, piece in enumerate(pieces):
        ids = torch.from_numpy(piece.token_ids).long()[None]
        filled = torch.zeros_like(ids)
        alone = TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), filled, filled.int(), filled.int())
        for name, activations in reader.read(alone, [HOOK, "layers.1"]).items():
            torch.testing.assert_close(found[name][row], activations[0, -1], atol=1e-4, rtol=1e-4)


def test_what_the_last_token_tells_is_found_and_a_coin_is_not(report: ProbingReport) -> None:
    scores = {each.name: each.scores for each in report.sets}
    assert scores["last"]["dense"]["all"].auc > 0.8
    assert scores["last"]["raw"]["3"].auc > 0.7
    assert abs(scores["coin"]["dense"]["all"].auc - 0.5) < 0.25
    assert abs(scores["last"]["shuffled"]["3"].auc - 0.5) < 0.35
    assert set(scores["last"]) == {"sae", "random", "raw", "pca", "dense", "shuffled"}
    assert report.methods["shuffled"] == "SAE, labels shuffled"


def test_a_label_that_is_a_latent_is_found_by_it_alone(reader: LanguageModel, tmp_path: Path) -> None:
    texts = make_documents(160, seed=6, shortest=2, longest=8)
    plain = write_set(tmp_path / "plain.csv", [(text, str(i % 2)) for i, text in enumerate(texts)])
    prompts = sample_prompts(plain, reader.tokenizer, TEXT, max_prompts=160, max_tokens=24, seed=0)
    x = last_token_activations(reader, prompts.pieces, [HOOK], batch_tokens=512)[HOOK]
    weights = dict(make_sae(0).state_dict())
    read = x @ weights["W_enc"][:, 23]
    weights["b_enc"][23], weights["b_dec"] = -read.median(), torch.zeros(32)
    weights["W_enc"][:, 23] *= 0.01  # quiet beside the others
    weights["b_enc"][23] *= 0.01
    decoded = [reader.tokenizer.decode(piece.token_ids) for piece in prompts.pieces]
    fires = (read > read.median()).int().tolist()
    write_set(tmp_path / "own" / "fires.csv", [(text, str(label)) for text, label in zip(decoded, fires, strict=True)])
    sae = SparseAutoencoder(SAEConfig(id="a", architecture="relu", n_latents=40), weights)
    sets, options = folder_sets(tmp_path / "own"), {"hook_points": {"a": HOOK}, "text": TEXT, "config": CONFIG}
    found = probe_saes({"a": {"sae": sae}}, reader, sets, **options)["a"]
    assert found.sets[0].latents[0] == 23
    assert found.sets[0].scores["sae"]["1"].auc == 1.0
    assert found.sets[0].n_test == 48
    assert "second seed, frozen decoder, untrained SAE" in " ".join(found.notes)


def test_sets_that_cannot_be_probed_are_listed_with_the_reason(report: ProbingReport) -> None:
    reasons = {each.name: each.reason for each in report.skipped}
    assert reasons["one"] == "it has one class, 'yes'"
    assert reasons["few"] == "one class has 5 different prompts, fewer than 30"
    assert {each.name for each in report.sets} == {"last", "coin"}


def test_flipped_test_labels_change_scores_and_not_what_was_chosen(
    report: ProbingReport, reader: LanguageModel, sets_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = probe_module.train_probe, []

    def spied(x, labels, k, config):  # type: ignore[no-untyped-def]
        trained.append(real(x, labels, k, config))
        return trained[-1]

    monkeypatch.setattr(probe_module, "train_probe", spied)
    (labelled,) = (each for each in folder_sets(sets_folder) if each.name == "last")
    probed, _ = probe_module._read_sets(reader, [labelled], [HOOK], TEXT, CONFIG)
    pca = probe_module._pca(HOOK, probed)
    dictionaries = {"sae": make_sae(0)}
    before = probe_module._score_set(probed[0], dictionaries, pca, HOOK, CONFIG)
    n_first = len(trained)
    probed[0].prompts.labels[probed[0].test] ^= 1
    after = probe_module._score_set(probed[0], dictionaries, pca, HOOK, CONFIG)
    assert after.latents == before.latents
    for method in ("sae", "raw", "pca"):
        for k in ("1", "3"):
            assert after.scores[method][k].auc == pytest.approx(1 - before.scores[method][k].auc)
    straight = [probe for i, probe in enumerate(trained[:n_first]) if i not in (2, 3)]  # 2 and 3: shuffled labels
    flipped = [probe for i, probe in enumerate(trained[n_first:]) if i not in (2, 3)]
    for one, other in zip(straight, flipped, strict=True):
        np.testing.assert_array_equal(one.units, other.units)
        np.testing.assert_array_equal(one.weights, other.weights)


def test_shuffled_labels_come_out_at_one_half_over_sets() -> None:
    """Each set's labels are plain to see: whatever a shuffle keeps of them shows, and must differ from set to set."""
    generator, aucs, drawn = torch.Generator().manual_seed(0), [], []
    labels = np.repeat([0, 1], 100)
    train, test = stratified_split(labels, test_fraction=0.3, seed=0)
    for number in range(40):
        x = torch.randn(200, 32, generator=generator) + 3 * torch.from_numpy(labels)[:, None]
        probed = probe_module._Probed(
            labelled=LabelledSet(name=f"set {number}", family="x", path=Path("none.csv")),
            prompts=LabelledPrompts(pieces=(), labels=labels, classes=("0", "1"), counts={}),
            activations={HOOK: x},
            train=train,
            test=test,
        )
        config = ProbingConfig(ks=(3,), inverse_penalties=(0.1,))
        found = probe_module._score_set(probed, {"sae": make_sae(0)}, probe_module._pca(HOOK, [probed]), HOOK, config)
        assert found.scores["sae"]["3"].auc > 0.9
        aucs.append(found.scores["shuffled"]["3"].auc)
        drawn.append(probe_module._shuffled(probed, seed=0)[train])
        assert [drawn[-1][labels[train] == label].mean() for label in (0, 1)] == [0.5, 0.5]
    assert not any(np.array_equal(one, other) for one, other in pairwise(drawn))
    assert abs(np.mean(aucs) - 0.5) < 3 * np.std(aucs) / np.sqrt(len(aucs))


def test_an_sae_of_another_width_and_an_unknown_control_are_refused(reader: LanguageModel, sets_folder: Path) -> None:
    options = {"hook_points": {"a": HOOK}, "text": TEXT, "config": CONFIG}
    with pytest.raises(SAEError, match="width 16"):
        probe_saes({"a": {"sae": make_sae(0, d_in=16)}}, reader, folder_sets(sets_folder), **options)
    with pytest.raises(MetricError, match="magic"):
        probe_saes({"a": {"sae": make_sae(0), "magic": make_sae(1)}}, reader, [], **options)


def test_the_command_probes_writes_and_finds_it_done(
    finished_run: tuple[Path, Path],  # noqa: F811
    sets_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished_run[1], run)
    assert sparsight("probe", run, "--sets", sets_folder, "--sae", "topk") == 0
    printed = capsys.readouterr().out
    for words in ("second seed", "frozen decoder", "untrained SAE", "PCA", "labels shuffled", "Skipped one", "k = 16"):
        assert words in printed
    path = run / "saes" / "topk" / "probing-sets-mine.json"
    body = read_json(path)
    assert body["methods"]["seed"] == "second seed"
    assert not (run / "saes" / "relu" / "probing-sets-mine.json").exists()
    card = publish_run(RunDir(run), PublishConfig(to="someone/tiny", dry_run=True)).folder / "README.md"
    for read in (run / "report.md", card):
        assert printed.splitlines()[3] in read.read_text(), read
    written = path.stat().st_mtime_ns
    assert sparsight("probe", run, "--sets", sets_folder, "--sae", "topk") == 0
    assert path.stat().st_mtime_ns == written
    assert capsys.readouterr().out == printed
    assert sparsight("probe", run, "--sets", sets_folder, "--sae", "topk", "--prompts", "100") == 0
    assert read_json(path)["config"]["max_prompts"] == 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sets", "nowhere"], "no .csv file"),
        (["--sets", "nowhere", "--full"], "Give one of them"),
        (["--sae", "other", "--sets", "{sets}"], "no SAE 'other'"),
        (["--prompts", "2", "--sets", "{sets}"], "max_prompts = 2"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    words: str,
    finished_run: tuple[Path, Path],  # noqa: F811
    sets_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [each.format(sets=sets_folder) for each in arguments]
    assert sparsight("probe", finished_run[1], *arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("sparsight: "))
    assert words in line
