"""evaluate_sae on a tiny random Llama: splices with known effect, held-out rows only, and the report on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsight.activations import ActivationStore, PieceTable, StoreWriter
from sparsight.activations.capture import Window
from sparsight.errors import ActivationError, MetricError, RunError, SAEError
from sparsight.evaluate import evaluate_sae
from sparsight.lm import LanguageModel, Piece, TextCounts, TextCursor, make_batches
from sparsight.metrics import Estimate, EvalReport, EvaluateConfig, LinearFit, SpliceText, Verdict, fvu, kept_tokens
from sparsight.sae import SAEConfig, SparseAutoencoder
from sparsight.sae.initial import initial_weights

HOOK, INPUT = "layers.1.mlp", "layers.1.mlp.input"
WIDTH, VOCAB, SPECIAL = 16, 64, 0
CONFIG = EvaluateConfig(n_resamples=200, downstream_tokens=400, batch_tokens=128, forward_tokens=128)


def tiny_model() -> LanguageModel:
    words = {"<s>": SPECIAL, **{f"w{i}": i for i in range(1, VOCAB)}}
    core = Tokenizer(models.WordLevel(words, unk_token="w1"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    return LanguageModel.from_module(LlamaForCausalLM(config), tokenizer, hook_points=[HOOK, INPUT])


def tiny_pieces(model: LanguageModel, n_documents: int, first_id: int) -> list[Piece]:
    """Documents of two pieces, the first with a special token. The model wrote them, so that it predicts them."""
    ids = torch.arange(2 * n_documents)[:, None] % (VOCAB - 1) + 1
    ids[::2] = SPECIAL
    generator = torch.Generator().manual_seed(first_id)
    for _ in range(13):
        (batch,) = make_batches(
            [Piece(i, i, 0, 0, row.numpy().astype(np.int32), False) for i, row in enumerate(ids)],
            batch_tokens=10_000,
            pad_id=0,
            isolation="documents",
            context_tokens=14,
            eos_id=0,
        )
        logits = model.logits(batch)[:, ids.shape[1] - 1, 1:]
        ids = torch.cat([ids, 1 + torch.multinomial(logits.float().softmax(-1), 1, generator=generator)], 1)
    return [
        Piece(
            first_id + i // 2,
            i // 2,
            i % 2,
            14 * (i % 2),
            row.numpy().astype(np.int32)[: 14 - 4 * (i % 2)],
            first_id > 500,
        )
        for i, row in enumerate(ids)
    ]


def write_store(path: Path, splits: dict[str, Window], widths: dict[str, int]) -> ActivationStore:
    writer = StoreWriter(path, {"hook_points": widths, "model": {"id": "tiny"}, "text": {}}, "float32")
    for window in splits.values():
        writer.add(window, TextCounts())
    return ActivationStore.open(path)


def make_window(
    split: str, pieces: list[Piece], rows: dict[str, torch.Tensor], columns: dict[str, torch.Tensor]
) -> Window:
    table = PieceTable(
        np.concatenate([piece.token_ids for piece in pieces]),
        np.cumsum([0, *(len(piece.token_ids) for piece in pieces)]).astype(np.int64),
        np.array([piece.document_id for piece in pieces], np.int64),
        np.array([piece.start for piece in pieces], np.int32),
        np.array([piece.row for piece in pieces], np.int64),
    )
    n = len(columns["token_ids"])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    counts = {"tokens": n, "special": 0, "sinks": 0, "beyond_wanted": 0}
    cursor = TextCursor()
    return Window(split, 0, rows, **columns, order=order, pieces=table, start=cursor, end=cursor, counts=counts)


def capture(model: LanguageModel, split: str, pieces: list[Piece]) -> Window:
    rows: dict[str, list[torch.Tensor]] = {HOOK: [], INPUT: []}
    columns: dict[str, list[torch.Tensor]] = {"token_ids": [], "document_ids": [], "positions": [], "piece_ids": []}
    for batch in make_batches(pieces, batch_tokens=128, pad_id=0, isolation="documents", context_tokens=14, eos_id=0):
        keep = batch.mask & (batch.input_ids != SPECIAL)
        for name, values in model.read(batch, [HOOK, INPUT]).items():
            rows[name].append(values[keep])
        columns["token_ids"].append(batch.input_ids[keep].int())
        for name in ("document_ids", "positions", "piece_ids"):
            columns[name].append(getattr(batch, name)[keep])
    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    return make_window(split, pieces, {name: torch.cat(parts) for name, parts in rows.items()}, joined)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


@pytest.fixture(scope="module")
def store(model, tmp_path_factory) -> ActivationStore:
    splits = {
        "train": capture(model, "train", tiny_pieces(model, 40, 0)),
        "heldout": capture(model, "heldout", tiny_pieces(model, 20, 1000)),
    }
    return write_store(tmp_path_factory.mktemp("store"), splits, {HOOK: WIDTH, INPUT: WIDTH})


def relu_sae(
    w_enc: torch.Tensor, w_dec: torch.Tensor, b_dec: torch.Tensor | None = None, **config
) -> SparseAutoencoder:
    cfg = SAEConfig(id="hand", architecture="relu", n_latents=w_enc.shape[1], **config)
    zeros = torch.zeros(w_enc.shape[1])
    tensors = {
        "W_enc": w_enc,
        "W_dec": w_dec,
        "b_enc": zeros,
        "b_dec": torch.zeros(w_dec.shape[1]) if b_dec is None else b_dec,
    }
    return SparseAutoencoder(cfg, tensors)


def identity_sae(width: int = WIDTH) -> SparseAutoencoder:
    """relu(x) - relu(-x) = x, exactly."""
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    return relu_sae(both.T.contiguous(), both)


def zero_sae() -> SparseAutoencoder:
    return relu_sae(torch.zeros(WIDTH, 4), torch.zeros(4, WIDTH))


def test_an_identity_splice_recovers_everything_and_changes_no_logit(model, store):
    report = evaluate_sae(identity_sae(), store, model, config=CONFIG, hook_point=HOOK)
    assert report.value("fvu") == 0
    assert report.value("kl") == 0
    assert report.value("ce") == report.value("ce", "clean")
    assert report.value("recovered_zero") == report.value("recovered_mean") == 1
    assert report.value("cosine") == pytest.approx(1)
    assert report.value("l0") == pytest.approx(WIDTH, abs=0.01)


def test_an_sae_that_always_says_zero_equals_zero_ablation(model, store):
    report = evaluate_sae(identity_sae(), store, model, controls={"random": zero_sae()}, config=CONFIG, hook_point=HOOK)
    assert report.value("ce", "random") == report.value("ce", "zero")
    assert report.value("kl", "random") == report.value("kl", "zero")
    assert report.value("kl", "zero") > 0.01
    assert report.value("recovered_zero", "random") == 0
    assert report.value("dead_share", "random") == 1


def test_mean_ablation_puts_the_train_mean_in_place(model, store):
    fit = LinearFit()
    for batch in store.batches("train", 64, hook_points=[HOOK]):
        fit.add(batch[HOOK])
    config = EvaluateConfig(n_resamples=100, batch_tokens=64, forward_tokens=128)
    mean_sae = relu_sae(torch.zeros(WIDTH, 4), torch.zeros(4, WIDTH), fit.output_mean)
    report = evaluate_sae(mean_sae, store, model, config=config, hook_point=HOOK)
    assert report.value("ce") == pytest.approx(report.value("ce", "mean"), abs=1e-6)
    assert report.value("recovered_mean") == pytest.approx(0, abs=1e-5)
    assert report.value("ce", "mean") != report.value("ce", "zero")


def test_clean_cross_entropy_equals_the_models_own_loss(model, store):
    report = evaluate_sae(zero_sae(), store, model, config=EvaluateConfig(n_resamples=100), hook_point=HOOK)
    losses = []
    for piece in tiny_pieces(model, 20, 1000):
        (batch,) = make_batches([piece], batch_tokens=8, pad_id=0, isolation="documents", context_tokens=14, eos_id=0)
        logits, n = model.logits(batch)[0], len(piece.token_ids)
        targets = torch.from_numpy(piece.token_ids[1:]).long()
        losses.append(torch.nn.functional.cross_entropy(logits[: n - 1].float(), targets, reduction="none"))
    losses = torch.cat(losses)
    estimate = report.method("clean").metrics["ce"]
    assert estimate.value == pytest.approx(losses.mean().item(), rel=1e-5)
    assert (estimate.n_tokens, estimate.n_documents) == (len(losses), 20)


def test_masked_positions_keep_their_activation_and_are_counted(model, store):
    report = evaluate_sae(zero_sae(), store, model, config=EvaluateConfig(n_resamples=100), hook_point=HOOK)
    downstream = report.measured_on["downstream"]
    assert downstream["positions_kept"] == 20  # the special token of each document
    assert downstream["positions_replaced"] == store.n_tokens("heldout") == 20 * 23
    assert any("20 kept their own activation" in note for note in report.notes)


def test_splicing_into_another_model_than_was_collected_from_is_said(model, store):
    report = evaluate_sae(zero_sae(), store, model, config=CONFIG, hook_point=HOOK)
    assert any("collected from id tiny, spliced into LlamaForCausalLM" in note for note in report.notes)
    same = LanguageModel(model._module, model.tokenizer, model.config, {"id": "tiny"})
    report = evaluate_sae(zero_sae(), store, same, config=CONFIG, hook_point=HOOK)
    assert not any("Another model" in note for note in report.notes)


def test_kept_tokens_are_those_that_are_not_special(store):
    table = store.pieces("heldout")
    assert (kept_tokens(store, table) == (table.token_ids != SPECIAL)).all()


def test_downstream_text_is_whole_pieces_in_stored_order(store):
    table = store.pieces("heldout")
    text = SpliceText.choose(store, 15)
    assert [piece.start for piece in text.pieces] == [0, 14]
    assert len(SpliceText.choose(store, 14).pieces) == 1
    assert len(SpliceText.choose(store, 10**9).pieces) == len(table)
    ids, lengths = table.document_ids, np.diff(table.offsets)
    firsts = np.array([i for i, each in enumerate(ids) if each not in ids[:i]])
    spread = SpliceText.choose(store, int(lengths[firsts].sum()), most_documents=True)
    assert [piece.document_id for piece in spread.pieces] == ids[firsts].tolist()
    kept = kept_tokens(store, table)
    expected = np.concatenate([kept[table.offsets[i] : table.offsets[i + 1]] for i in firsts])
    assert np.array_equal(spread.kept, expected)
    assert np.diff(spread.offsets).tolist() == lengths[firsts].tolist()


def test_only_held_out_rows_are_measured_and_the_batch_size_does_not_matter(model, store):
    sae = relu_sae(torch.randn(WIDTH, 8), torch.randn(8, WIDTH) / 8)
    x = torch.cat([batch[HOOK] for batch in store.batches("heldout", 50)])
    for batch_tokens in (7, 64, 4096):
        config = EvaluateConfig(n_resamples=100, batch_tokens=batch_tokens, downstream_tokens=0)
        report = evaluate_sae(sae, store, model, config=config, hook_point=HOOK)
        assert report.value("fvu") == pytest.approx(fvu(x, sae(x).x_hat), rel=1e-6)
        assert report.method("sae").metrics["fvu"].n_tokens == len(x) == 20 * 23
        assert report.method("sae").density.n_tokens == len(x)


def test_heldout_tokens_limits_what_is_measured(store):
    config = EvaluateConfig(n_resamples=100, batch_tokens=64, heldout_tokens=100)
    report = evaluate_sae(zero_sae(), store, config=config, hook_point=HOOK)
    assert report.method("sae").metrics["fvu"].n_tokens == 100


def test_pca_has_as_many_components_as_the_sae_has_active_latents(store):
    report = evaluate_sae(identity_sae(), store, config=CONFIG, hook_point=HOOK)
    assert report.subject["pca_components"] == WIDTH
    assert report.value("fvu", "pca") == pytest.approx(0, abs=1e-9)
    verdict = report.verdicts[0]
    assert (verdict.baseline, verdict.metric) == ("pca", "fvu")


def against(sae, model, store, **controls):
    """The verdicts' outcomes by control and metric, and the text."""
    report = evaluate_sae(sae, store, model, controls=controls, config=CONFIG, hook_point=HOOK)
    return {(verdict.baseline, verdict.metric): verdict.outcome for verdict in report.verdicts}, report


def test_the_report_says_where_the_sae_loses_and_where_it_wins(model, store):
    outcomes, report = against(zero_sae(), model, store, random=identity_sae())
    assert outcomes["random", "fvu"] == outcomes["random", "kl"] == "worse"
    assert "(FVU) the SAE does NOT beat untrained SAE" in report.text()
    assert "(it is worse)" in report.text()
    assert "Controls that the SAE does NOT beat: untrained SAE by FVU (WORSE), untrained SAE by " in report.text()
    assert "WORSE" in report.markdown()
    outcomes, report = against(identity_sae(), model, store, random=zero_sae())
    assert outcomes["random", "fvu"] == outcomes["random", "kl"] == "better"
    assert "(KL) the SAE beats untrained SAE" in report.markdown()
    alone = evaluate_sae(identity_sae(), store, controls={"random": zero_sae()}, with_pca=False, hook_point=HOOK)
    assert "Controls that the SAE does NOT beat: none." in alone.text()
    outcomes, report = against(identity_sae(), model, store, random=identity_sae())
    assert outcomes["random", "fvu"] == outcomes["random", "ce"] == outcomes["random", "kl"] == "tie"
    assert "(CE) the SAE does NOT beat untrained SAE" in report.text()
    assert "(a tie)" in report.text()


def test_a_difference_within_that_of_two_seeds_is_a_tie(model, store):
    """The frozen decoder is worse than the SAE beyond its interval, yet a second seed is as far away."""
    outcomes, _ = against(identity_sae(), model, store, **{"frozen-decoder": zero_sae(), "seed": identity_sae()})
    assert outcomes["frozen-decoder", "fvu"] == outcomes["frozen-decoder", "kl"] == "better"
    outcomes, report = against(identity_sae(), model, store, **{"frozen-decoder": zero_sae(), "seed": zero_sae()})
    verdict = next(
        verdict for verdict in report.verdicts if (verdict.baseline, verdict.metric) == ("frozen-decoder", "fvu")
    )
    assert verdict.difference.low > 0
    assert verdict.seed_difference == pytest.approx(verdict.difference.value)
    assert outcomes["frozen-decoder", "fvu"] == outcomes["frozen-decoder", "kl"] == "tie"
    assert outcomes["pca", "fvu"] == "tie"
    assert "seed" not in {baseline for baseline, _ in outcomes}


@pytest.mark.parametrize(
    ("interval", "noise", "outcome"),
    [
        ((0.1, 0.05, 0.15), None, "better"),
        ((0.1, 0.05, 0.15), 0.09, "better"),
        ((0.1, 0.05, 0.15), -0.1, "tie"),
        ((0.1, -0.01, 0.15), None, "tie"),
        ((-0.1, -0.15, -0.05), 0.09, "worse"),
        ((-0.1, -0.15, -0.05), 0.11, "tie"),
        ((0.1, None, None), 0.0, "tie"),
        ((None, None, None), 0.0, "tie"),
    ],
)
def test_a_verdict_needs_its_interval_and_more_than_the_seeds_differ_by(interval, noise, outcome):
    value, low, high = interval
    difference = Estimate(value=value, low=low, high=high, n_tokens=9, n_documents=3)
    assert Verdict(baseline="pca", metric="fvu", difference=difference, seed_difference=noise).outcome == outcome


def test_every_control_has_its_row_and_the_second_seed_its_stability(model, store):
    controls = {"seed": identity_sae(), "frozen-decoder": zero_sae(), "random": zero_sae()}
    _, report = against(identity_sae(), model, store, **controls)
    assert [method.name for method in report.methods][:5] == ["sae", "seed", "frozen-decoder", "random", "pca"]
    assert report.stability.mmcs.value == pytest.approx(1, rel=1e-5)
    assert report.stability.pw_mcc.value == pytest.approx(1, rel=1e-5)
    assert report.stability.chance_mmcs.value < 0.9
    assert report.stability.n_alive == (identity_sae().n_latents,) * 2
    for label in (
        "second seed",
        "frozen decoder",
        "nearest direction of each latent (MMCS)",
        "matched one to one (PW-MCC)",
    ):
        assert any(line.startswith(label) for line in report.text().splitlines()), label
    assert EvalReport.load(saved(report, store.path.parent / "stability.json")) == report


def test_chance_is_the_second_seeds_directions_and_not_the_saes_own(store):
    """An SAE that never left its own directions would otherwise be at chance 1."""
    drawn = initial_weights(SAEConfig(id="hand", architecture="relu", n_latents=40), WIDTH, WIDTH)["W_dec"]
    sae, second = (relu_sae(W.T.contiguous(), W, seed=seed) for W, seed in ((drawn, 0), (drawn.flip(0), 5)))
    report = evaluate_sae(sae, store, controls={"seed": second}, config=CONFIG, hook_point=HOOK)
    assert report.stability.mmcs.value == pytest.approx(1, rel=1e-5)
    assert report.stability.chance_mmcs.value < 0.9


def saved(report, path):
    report.save(path)
    return path


def test_a_report_without_controls_says_what_is_missing(model, store):
    report = evaluate_sae(identity_sae(), store, model, with_pca=False, config=CONFIG, hook_point=HOOK)
    assert not report.verdicts
    assert report.stability is None
    assert [method.name for method in report.methods] == ["sae", "clean", "zero", "mean"]
    text = report.text()
    assert "No verdict: the SAE was measured without a control to beat." in text
    assert "not measured: second seed, frozen decoder, untrained SAE, PCA." in text
    assert "Found again" not in text
    with pytest.raises(MetricError, match="No such control: frozen; known are seed, frozen-decoder, random"):
        evaluate_sae(identity_sae(), store, controls={"frozen": zero_sae()}, hook_point=HOOK)


def test_an_evaluation_of_the_first_version_is_refused_in_one_line(tmp_path):
    path = tmp_path / "evaluation.json"
    path.write_text('{"format": "sparsight.evaluation", "version": 1, "methods": [{"name": "untrained"}]}')
    with pytest.raises(
        RunError, match=r"is not an evaluation of version 2. Delete it and run `sparsight evaluate`"
    ) as error:
        EvalReport.load(path)
    assert "\n" not in str(error.value)


def test_classes_of_tokens_make_up_the_whole(model, store):
    report = evaluate_sae(zero_sae(), store, model, config=CONFIG, hook_point=HOOK)
    sae = report.method("sae")
    for metric in ("fvu", "ce"):
        parts = [by_metric[metric].n_tokens for by_metric in sae.by_class.values()]
        assert sum(parts) == sae.metrics[metric].n_tokens
    assert sae.by_class["first"]["fvu"].n_tokens == 20 * 3  # offsets 1 to 3: offset 0 is special


def test_a_transcoder_reads_one_hook_and_replaces_another(model, store):
    """The block's own MLP, written as a dictionary, would be exact; a linear one must give what it says on paper."""
    torch.manual_seed(1)
    transcoder = relu_sae(torch.randn(WIDTH, 24), torch.randn(24, WIDTH), target_hook_point=HOOK)
    report = evaluate_sae(transcoder, store, model, config=CONFIG, hook_point=INPUT, target_hook_point=HOOK)
    batches = list(store.batches("heldout", 4096))
    assert report.value("fvu") == pytest.approx(fvu(batches[0][HOOK], transcoder(batches[0][INPUT]).x_hat), rel=1e-6)
    backwards = relu_sae(torch.randn(WIDTH, 24), torch.randn(24, WIDTH), target_hook_point=INPUT)
    with pytest.raises(MetricError, match="computed before"):
        evaluate_sae(backwards, store, model, config=CONFIG, hook_point=HOOK, target_hook_point=INPUT)


def test_without_a_model_the_report_says_that_downstream_was_not_measured(store):
    report = evaluate_sae(zero_sae(), store, config=CONFIG, hook_point=HOOK)
    assert report.measured_on["downstream"] is None
    assert "CE, KL and recovered were not measured" in report.text()


def test_a_store_without_train_rows_says_which_baselines_are_missing(model, tmp_path):
    store = write_store(
        tmp_path, {"heldout": capture(model, "heldout", tiny_pieces(model, 5, 1000))}, {HOOK: WIDTH, INPUT: WIDTH}
    )
    report = evaluate_sae(identity_sae(), store, model, config=CONFIG, hook_point=HOOK)
    assert "PCA, mean ablation and token classes were not measured" in report.text()
    assert report.value("recovered_zero") == 1
    again = evaluate_sae(
        identity_sae(), store, model, config=CONFIG, hook_point=HOOK, fit_batches=store.batches("heldout", 20)
    )
    assert again.value("fvu", "pca") is not None


def test_the_wrong_width_or_hook_point_is_said_with_both_values(store):
    with pytest.raises(SAEError, match=r"`layers.1.mlp` is 16 wide; this SAE expects d_in=12"):
        evaluate_sae(identity_sae(12), store, hook_point=HOOK)
    with pytest.raises(ActivationError, match=r"no hook point `layers.7`, but layers.1.mlp, layers.1.mlp.input"):
        evaluate_sae(identity_sae(), store, hook_point="layers.7")


def test_a_store_without_held_out_rows_is_an_error(model, tmp_path):
    store = write_store(
        tmp_path, {"train": capture(model, "train", tiny_pieces(model, 5, 0))}, {HOOK: WIDTH, INPUT: WIDTH}
    )
    with pytest.raises(MetricError, match="no held-out rows"):
        evaluate_sae(identity_sae(), store, hook_point=HOOK)


def test_the_report_survives_the_disk(model, store, tmp_path):
    report = evaluate_sae(identity_sae(), store, model, controls={"random": zero_sae()}, config=CONFIG, hook_point=HOOK)
    report.save(tmp_path / "evaluation.json")
    again = EvalReport.load(tmp_path / "evaluation.json")
    assert again == report
    assert again.text() == report.text()
    (tmp_path / "other.json").write_text('{"format": "else"}')
    with pytest.raises(RunError, match="is not an evaluation"):
        EvalReport.load(tmp_path / "other.json")


def test_every_row_of_the_tables_has_its_n_and_interval(model, store):
    text = evaluate_sae(
        identity_sae(), store, model, controls={"random": zero_sae()}, config=CONFIG, hook_point=HOOK
    ).text()
    for label in ("SAE", "PCA (k = 16)", "untrained SAE", "clean model", "zero ablation", "mean ablation"):
        assert any(line.startswith(label) for line in text.splitlines()), label
    assert "n = 460 tokens of 20 held-out documents" in text
    assert "100.0% of 4" in text
    assert "█" in text
