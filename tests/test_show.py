"""What the terminal shows: marks where latents fire, numbers with their n, nothing that acts on the terminal."""

import re

import pytest
import torch

from sparsight.errors import RunError, SAEError, TextError
from sparsight.features import (
    FeatureIndex,
    read_text,
    read_text_in_parts,
    read_texts,
    show_latent,
    show_overview,
    show_text,
)
from sparsight.index import build_index
from sparsight.lm import LanguageModel, Piece, make_batches
from test_evaluate import identity_sae, relu_sae, tiny_model
from test_index import DOCUMENTS, HOOK, WIDTH, one_hot_store


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


@pytest.fixture(scope="module")
def index(model, tmp_path_factory) -> FeatureIndex:
    folder = tmp_path_factory.mktemp("show")
    store = one_hot_store(folder / "store", DOCUMENTS)
    return build_index(identity_sae(), store, model, path=folder / "index", hook_point=HOOK)


def test_a_latent_is_shown_with_its_numbers_tokens_and_marked_passages(index, model):
    shown = show_latent(index, model.tokenizer, 2)
    assert "active on 4 of 16 held-out tokens (25.000%), in 3 documents" in shown
    assert "w1⟦w2⟧w3⟦w2⟧w5" in shown
    assert "promotes:" in shown
    assert "suppresses:" in shown
    assert "tokens: 100% on 'w2' (chance " in shown
    assert "nearest directions: " in shown
    assert re.search(r"output score 0\.\d\d \(another latent's tokens 0\.\d\d\)", shown)
    assert "Drawn at random" in shown
    assert "\x1b" not in shown


def test_colour_is_a_background_by_strength(index, model):
    shown = show_latent(index, model.tokenizer, 2, color=True)
    assert "⟦" not in shown
    assert "\x1b[30;48;5;203mw2\x1b[0m" in shown  # 7 of 7
    assert "\x1b[30;48;5;223mw2\x1b[0m" in shown  # 2 of 7


def test_a_dead_latent_says_so_and_an_unknown_one_is_an_error(index, model):
    assert "never active" in show_latent(index, model.tokenizer, 0)
    with pytest.raises(RunError, match="no latent 32"):
        show_latent(index, model.tokenizer, 32)


def test_the_overview_samples_dense_typical_and_rare_latents_once_each(model, tmp_path):
    documents = [[token] * (token + 1) * 3 for token in range(1, WIDTH)]
    store = one_hot_store(tmp_path / "store", documents)
    index = build_index(identity_sae(), store, model, path=tmp_path / "index", hook_point=HOOK)
    shown = show_overview(index, model.tokenizer, n_each=3)
    latents = [int(number) for number in re.findall(r"^ +(\d+)  +[\d.]+%", shown, re.M)]
    assert latents[:3] == [15, 14, 13]
    assert latents[-3:] == [3, 2, 1]
    assert len(set(latents)) == 9
    assert "17 never active" in shown  # token 0 and the 16 negative directions


def test_text_shows_the_latents_and_error_of_each_token(model):
    sae = relu_sae(torch.eye(WIDTH), torch.eye(WIDTH))  # keeps the positive half
    shown = show_text(sae, model, "w3 w9", hook_point=HOOK, per_token=2).splitlines()
    piece = Piece(0, 0, 0, 0, torch.tensor([3, 9]).int().numpy(), True)
    (batch,) = make_batches([piece], batch_tokens=8, pad_id=0, isolation="documents", context_tokens=2, eos_id=0)
    x = model.read(batch, [HOOK])[HOOK][0, 1]
    top = x.topk(2)
    expected = "  ".join(f"{i}: {v:.3g}" for i, v in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    assert shown[2].startswith("w9")
    assert shown[2].endswith(expected)
    assert f"{(x - x.relu()).norm() / x.norm():.3f}" in shown[2]


def test_several_texts_are_shown_and_compared(index, model):
    sae = relu_sae(torch.eye(WIDTH), torch.eye(WIDTH))
    texts = ["w3 w9", "<s> w4", "w3"]
    shown = show_text(sae, model, texts, hook_point=HOOK, index=index)
    alone = [show_text(sae, model, text, hook_point=HOOK, index=index) for text in texts]
    for number, (text, block) in enumerate(zip(texts, alone, strict=True), 1):
        assert f"Text {number}: {text}\n{block}" in shown
    live = [read_text(sae, model, text, hook_point=HOOK) for text in texts]
    strongest = [each.values[~each.special].max() for each in live]
    rows = [line.split() for line in shown[shown.index("Latents that differ most") :].splitlines()[2:]]
    found = {int(row[0]): [float(value) for value in row[1:4]] for row in rows}
    assert max(max(values) for values in found.values()) == pytest.approx(max(strongest), rel=0.01)
    spreads = [max(values) - min(values) for values in found.values()]
    assert spreads == sorted(spreads, reverse=True)
    latent = int(live[0].indices[0, 0])
    expected = [each.strongest()[latent] for each in live]
    assert found.get(latent, expected) == pytest.approx(expected, rel=0.01)
    means = live[1].error[~live[1].special].mean()
    assert f"   2        1 {means:>6.3f}" in shown


def test_special_tokens_are_named_and_not_explained(model):
    assert "special token" in show_text(identity_sae(), model, "<s> w3", hook_point=HOOK).splitlines()[1]


def test_text_that_cannot_be_shown_says_why(model):
    with pytest.raises(TextError, match="no tokens"):
        show_text(identity_sae(), model, "", hook_point=HOOK)
    with pytest.raises(SAEError, match="16 wide; this SAE expects d_in=4"):
        show_text(identity_sae(4), model, "w3", hook_point=HOOK)


def test_texts_read_together_are_as_read_alone(model):
    sae = identity_sae()
    texts = ["w3 w9 w12 w5", "w7", "<s> w4 w4"]
    for text, live in zip(texts, read_texts(sae, model, texts, hook_point=HOOK), strict=True):
        alone = read_text(sae, model, text, hook_point=HOOK)
        assert live.text == text
        assert live.token_ids.tolist() == alone.token_ids.tolist()
        assert live.values == pytest.approx(alone.values, abs=1e-5)
        assert (live.indices == alone.indices).all()
        assert live.l0.tolist() == alone.l0.tolist()
        assert live.error.max() < 1e-5  # identity
        assert (live.values[:, :-1] >= live.values[:, 1:]).all()
    assert live.special.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("n_words", "parts"), [(1, [1]), (48, [48]), (49, [32, 17]), (192, [32, 160]), (200, [32, 96, 72])]
)
def test_a_text_in_parts_is_the_same_text(model, n_words, parts):
    sae = relu_sae(torch.eye(WIDTH), torch.eye(WIDTH))
    text = " ".join(f"w{1 + (7 * n) % 13}" for n in range(n_words))
    whole = read_text(sae, model, text, hook_point=HOOK)
    found = list(read_text_in_parts(sae, model, text, hook_point=HOOK))
    assert [len(part.token_ids) for part in found] == parts
    rows = [part.values[row, : part.l0[row]] for part in found for row in range(len(part.l0))]
    for row, values in enumerate(rows):
        assert values == pytest.approx(whole.values[row, : whole.l0[row]], abs=1e-5)
    for name in ("token_ids", "special", "error", "l0"):
        joined = [value for part in found for value in getattr(part, name).tolist()]
        assert joined == pytest.approx(getattr(whole, name).tolist(), abs=1e-5)


def test_a_text_in_parts_is_refused_before_anything_is_read(model):
    with pytest.raises(TextError, match="no tokens"):
        next(read_text_in_parts(identity_sae(), model, "", hook_point=HOOK))
    with pytest.raises(SAEError, match="16 wide; this SAE expects d_in=4"):
        next(read_text_in_parts(identity_sae(4), model, "w3", hook_point=HOOK))
