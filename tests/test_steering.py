"""Steering against a plain loop without cache that edits by hand; its controls; strengths; sweeps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsight.errors import SAEError, SteeringError, TextError
from sparsight.features import FeatureIndex
from sparsight.index import build_index
from sparsight.lm import LanguageModel
from sparsight.lm.hooks import hooked
from sparsight.sae import LatentEdit, SparseAutoencoder, edit_change
from sparsight.steer import steer_text
from sparsight.steering import (
    EditRequest,
    LatentEditor,
    PredictedTokens,
    SteerConfig,
    matched_edits,
    matched_latents,
    matching_traits,
    mean_norm,
    parse_edit,
    repetition_of,
    steer,
    strength_of,
    sweep,
    sweep_points,
)
from sparsight.steering.sweeping import NLL_MARGIN, SweepPoint, _summary
from test_evaluate import HOOK, INPUT, SPECIAL, WIDTH, capture, relu_sae, tiny_model, tiny_pieces, write_store
from test_lm_generate import hooks_of

N_LATENTS, PROMPT, NEW = 48, "w5 w17 w3 w40 w8", 10
EDIT = LatentEdit(7, "add", 3.0)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


@pytest.fixture(scope="module")
def sae() -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(4)
    w_enc, w_dec = (torch.randn(*shape, generator=generator) for shape in ((WIDTH, N_LATENTS), (N_LATENTS, WIDTH)))
    return relu_sae(w_enc, w_dec)


@pytest.fixture(scope="module")
def index(model, sae, tmp_path_factory) -> FeatureIndex:
    folder = tmp_path_factory.mktemp("steering")
    store = write_store(
        folder / "store", {"heldout": capture(model, "heldout", tiny_pieces(model, 40, 0))}, {HOOK: WIDTH, INPUT: WIDTH}
    )
    return build_index(sae, store, model, path=folder / "index", hook_point=HOOK)


def by_hand(model: LanguageModel, edit_at, n: int = NEW, prompt: str = PROMPT) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy text and its log-probabilities, every token by a pass over the whole text; `edit_at` edits [positions, d]."""
    tokens = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    start, seen = tokens.shape[1], []
    for _ in range(n):
        edits = {HOOK: lambda x: edit_at(x[0].clone())[None]}
        with torch.inference_mode(), hooked(model._module, edits):
            seen.append(model._module(input_ids=tokens, use_cache=False).logits[0, -1].log_softmax(-1))
        tokens = torch.cat([tokens, seen[-1].argmax()[None, None]], 1)
        if int(tokens[0, -1]) in model.stop_ids:
            break
    return tokens[0, start:].tolist(), seen


def arms_of(steering) -> dict[str, list]:
    found: dict[str, list] = {arm: [] for arm in steering.arms}
    for event in steering:
        found[event.arm].append(event)
    return found


def test_the_arms_are_what_a_loop_by_hand_gives(model, sae, index):
    config = SteerConfig(max_new_tokens=NEW)
    arms = arms_of(steer(model, sae, PROMPT, [EDIT], config, hook_point=HOOK, index=index))
    assert list(arms) == ["plain", "steered", "random", "prompt"]
    steering = steer(model, sae, PROMPT, [EDIT], config, hook_point=HOOK, index=index)
    (random,) = steering.random_edits
    expected = {
        "plain": by_hand(model, lambda x: x),
        "steered": by_hand(model, lambda x: x + 3 * sae.W_dec[7]),
        "random": by_hand(model, lambda x: x + random.value * sae.W_dec[random.latent]),
        "prompt": by_hand(model, lambda x: x, prompt=steering.prompt_control),
    }
    for arm, (tokens, _) in expected.items():
        assert [event.token_id for event in arms[arm]] == tokens, arm
        assert [event.step for event in arms[arm]] == list(range(len(tokens)))
    texts = {arm: tuple(tokens) for arm, (tokens, _) in expected.items()}
    assert len({texts["plain"], texts["steered"], texts["random"]}) == 3


def test_nll_and_kl_are_of_the_unsteered_model_on_the_same_text(model, sae, index):
    config = SteerConfig(max_new_tokens=NEW)
    arms = arms_of(steer(model, sae, PROMPT, [EDIT], config, hook_point=HOOK, index=index))
    _, steered = by_hand(model, lambda x: x + 3 * sae.W_dec[7])
    before = model.tokenizer(PROMPT)["input_ids"]
    for arm, events in arms.items():
        for step, event in enumerate(events):
            text = torch.tensor([[*before, *(each.token_id for each in events[:step])]])
            with torch.inference_mode():
                clean = model._module(input_ids=text, use_cache=False).logits[0, -1].log_softmax(-1)
            assert event.nll == pytest.approx(-float(clean[event.token_id]), abs=1e-4)
            up, down = index.promoted(7).token_ids.tolist(), index.suppressed(7).token_ids.tolist()
            if arm == "steered":
                change = steered[step] - clean
                assert event.effect == pytest.approx(float(change[up].mean() - change[down].mean()), abs=1e-4)
                kl = float((clean.exp() * (clean - steered[step])).sum())
                assert event.kl == pytest.approx(kl, abs=1e-4)
                assert kl > 1e-3
    assert all(event.kl == event.effect == 0 for event in arms["plain"])
    assert max(event.kl for event in arms["prompt"]) > 1e-3


@pytest.mark.parametrize("scope", ["prompt", "generation"])
@pytest.mark.parametrize(
    "edit", [EDIT, LatentEdit(7, "clamp", 4.0), LatentEdit(7, "ablate"), LatentEdit(7, "scale", -2.0)]
)
def test_a_scope_edits_its_positions_alone(model, sae, scope, edit):
    n_before = len(model.tokenizer(PROMPT)["input_ids"])

    def edit_at(x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(x))
        where = place < n_before if scope == "prompt" else place >= n_before
        x[where] += edit_change(x[where], sae, [edit])
        return x

    config = SteerConfig(max_new_tokens=NEW, scope=scope, controls=())
    steering = steer(model, sae, PROMPT, [edit], config, hook_point=HOOK)
    tokens, _ = by_hand(model, edit_at)
    assert [event.token_id for event in arms_of(steering)["steered"]] == tokens
    assert steering.n_edited == (n_before if scope == "prompt" else len(tokens) - 1)


def test_special_tokens_keep_their_activation(model, sae):
    prompt = "<s> w5 w17"

    def edit_at(x: torch.Tensor) -> torch.Tensor:
        x[1:] += 3 * sae.W_dec[7]
        return x

    config = SteerConfig(max_new_tokens=NEW, controls=())
    arms = arms_of(steer(model, sae, prompt, [EDIT], config, hook_point=HOOK))
    assert [event.token_id for event in arms["steered"]] == by_hand(model, edit_at, prompt=prompt)[0]


def test_an_attention_sink_keeps_its_activation(sae):
    x = torch.ones(2, 5, WIDTH)
    x[0, 0] *= 50
    editor = LatentEditor(sae, [[EDIT], []], hook_point=HOOK)
    everywhere = torch.ones(2, 5, dtype=torch.bool)
    changed = editor.hooks(everywhere)[HOOK](x) - x
    assert changed[0, 0].abs().max() == 0
    assert torch.allclose(changed[0, 1:], (3 * sae.W_dec[7]).expand(4, -1), atol=1e-5)
    assert changed[1].abs().max() == 0
    later = editor.hooks(everywhere[:, :1])[HOOK](50 * torch.ones(2, 1, WIDTH))  # measured against the prompt
    assert torch.equal(later, 50 * torch.ones(2, 1, WIDTH))


def test_a_transcoder_reads_one_place_and_is_edited_at_another(model):
    generator = torch.Generator().manual_seed(5)
    w_enc, w_dec = (torch.randn(*shape, generator=generator) for shape in ((WIDTH, 24), (24, WIDTH)))
    transcoder = relu_sae(w_enc, w_dec, target_hook_point=HOOK)
    edit, inputs = LatentEdit(3, "scale", 4.0), []
    config = SteerConfig(max_new_tokens=4, controls=())
    steering = steer(model, transcoder, PROMPT, [edit], config, hook_point=INPUT, target_hook_point=HOOK)
    tokens, start = torch.tensor([model.tokenizer(PROMPT)["input_ids"]]), 5
    actions = {
        INPUT: lambda x: inputs.append(x),
        HOOK: lambda y: y + (transcoder.encode(inputs[-1][0])[:, 3:4] * 3 @ transcoder.W_dec[3:4])[None],
    }
    for _ in range(4):
        with torch.inference_mode(), hooked(model._module, actions):
            logits = model._module(input_ids=tokens, use_cache=False).logits[0, -1]
        tokens = torch.cat([tokens, logits.argmax()[None, None]], 1)
    assert [event.token_id for event in arms_of(steering)["steered"]] == tokens[0, start:].tolist()


def test_a_caller_may_stop_anywhere(model, sae, index):
    before = by_hand(model, lambda x: x)[0]
    steering = steer(model, sae, PROMPT, [EDIT], hook_point=HOOK, index=index)
    for _ in range(6):
        next(steering)
    assert hooks_of(model) == 0  # while it is under way
    assert by_hand(model, lambda x: x)[0] == before
    del steering
    assert hooks_of(model) == 0


def test_seeds_reproduce_and_arms_share_their_draws(model, sae):
    def texts(edit: LatentEdit, seed: int) -> dict[str, list[int]]:
        config = SteerConfig(max_new_tokens=20, temperature=1.5, seed=seed, controls=())
        arms = arms_of(steer(model, sae, PROMPT, [edit], config, hook_point=HOOK))
        return {arm: [event.token_id for event in events] for arm, events in arms.items()}

    nothing = texts(LatentEdit(7, "add", 0.0), 1)
    assert nothing["plain"] == nothing["steered"]
    assert texts(EDIT, 1) == texts(EDIT, 1)
    assert texts(EDIT, 1)["plain"] == nothing["plain"]
    assert texts(EDIT, 2)["plain"] != nothing["plain"]


def test_an_arm_ends_at_the_end_of_sequence(model, sae, monkeypatch):
    tokens, _ = by_hand(model, lambda x: x)
    stop = tokens[3]
    monkeypatch.setattr(model, "stop_ids", frozenset({stop}))
    config = SteerConfig(max_new_tokens=NEW, controls=())
    arms = arms_of(steer(model, sae, PROMPT, [EDIT], config, hook_point=HOOK))
    assert [event.token_id for event in arms["plain"]] == tokens[: tokens.index(stop) + 1]
    assert SPECIAL in model.special_ids


def test_random_latents_are_alike_and_not_the_same(index, sae):
    planted = np.random.default_rng(0).normal(size=(N_LATENTS, 3)) * 0.01
    planted[::2] += 5  # of another kind
    chosen = [int(matched_latents(index, sae, 8, seed=seed, traits=planted)[0]) for seed in range(30)]
    assert set(chosen) <= set(range(0, N_LATENTS, 2)) - {8}
    assert len(set(chosen)) > 2
    cosine = torch.nn.functional.cosine_similarity(sae.W_dec[chosen], sae.W_dec[8][None])
    assert cosine.abs().max() <= 0.3
    assert chosen == [int(matched_latents(index, sae, 8, seed=seed, traits=planted)[0]) for seed in range(30)]
    with pytest.raises(SteeringError, match="0 latents are left"):
        matched_latents(index, sae, 8, traits=planted, among=[8])


def test_traits_are_density_strength_and_length(index, sae):
    traits = matching_traits(index, sae)
    alive = ~np.isnan(traits[:, 0])
    column = index.config["quantiles"].index(0.99)
    raw = np.stack([index.density, index.quantiles[:, column], sae.W_dec.norm(dim=1).numpy()], 1)[alive]
    assert np.allclose(traits[alive], np.log(raw) / np.log(raw).std(0), rtol=1e-4)
    assert traits[alive].std(0) == pytest.approx([1, 1, 1], rel=1e-4)


def test_random_edits_are_as_long_as_their_own(index, sae):
    edits = [LatentEdit(7, "add", 2.0), LatentEdit(9, "clamp", 1.5), LatentEdit(7, "scale", 3.0)]
    random = matched_edits(index, sae, edits, seed=1)
    assert [edit.mode for edit in random] == ["add", "clamp", "scale"]
    assert random[0].latent == random[2].latent != random[1].latent
    assert not {edit.latent for edit in random} & {7, 9}
    for edit, other in zip(edits[:2], random[:2], strict=True):
        length, expected = other.value * sae.W_dec[other.latent].norm(), edit.value * sae.W_dec[edit.latent].norm()
        assert float(length) == pytest.approx(float(expected), rel=1e-5)
    assert random[2].value == 3
    assert matched_edits(index, sae, edits, seed=1) == random


def test_ablating_is_compared_with_latents_active_on_the_text(index, sae):
    active = set(range(20, 48))
    for seed in range(10):
        (random,) = matched_edits(index, sae, [LatentEdit(7, "ablate")], seed=seed, active=active)
        assert random.latent in active


def test_the_effect_of_weakening_counts_as_asked(index):
    logits = torch.zeros(2, 64)
    logits[1, index.promoted(7).token_ids.tolist()] = 3.0
    logits[1, index.promoted(9).token_ids.tolist()] += 1.0
    up = PredictedTokens(index, [LatentEdit(7, "add", 2.0)]).effect(logits[1], logits[0])
    assert up > 2
    assert PredictedTokens(index, [LatentEdit(7, "add", -2.0)]).effect(logits[1], logits[0]) == -up
    assert PredictedTokens(index, [LatentEdit(7, "ablate")]).effect(logits[1], logits[0]) == -up
    other = PredictedTokens(index, [LatentEdit(9, "clamp", 1.0)]).effect(logits[1], logits[0])
    both = PredictedTokens(index, [LatentEdit(7, "scale", 0.5), LatentEdit(9, "scale", 2.0)])
    assert float(both.effect(logits[1], logits[0])) == pytest.approx(float(other - up) / 2)
    assert both.effect(logits[1] + 5, logits[0]) == pytest.approx(both.effect(logits[1], logits[0]))  # no normaliser


def test_the_prompt_control_asks_in_words(model, sae, index):
    def asked(*edits: LatentEdit) -> str:
        return steer(model, sae, PROMPT, list(edits), hook_point=HOOK, index=index).prompt_control

    word = model.tokenizer.convert_ids_to_tokens(int(index.promoted(7).token_ids[0]))
    assert asked(EDIT).endswith(f"\n\n{PROMPT}")
    assert asked(EDIT).startswith(f'Write with words like "{word}", ')
    assert asked(LatentEdit(7, "ablate")).startswith(f'Write without words like "{word}", ')
    assert asked(EDIT, LatentEdit(9, "scale", 0.0)).count("Write") == 2
    own = steer(model, sae, PROMPT, [EDIT], SteerConfig(controls=("prompt",)), hook_point=HOOK, instruction="Be brief.")
    assert own.prompt_control == f"Be brief.\n\n{PROMPT}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12:add:2p99", EditRequest(12, "add", 2, "p99")),
        ("12:add:-.5norm", EditRequest(12, "add", -0.5, "norm")),
        (" 7:ablate ", EditRequest(7, "ablate")),
        ("7:scale:1e-1", EditRequest(7, "scale", 0.1)),
        ("0:clamp:3.5raw", EditRequest(0, "clamp", 3.5)),
    ],
)
def test_an_edit_as_text(text, expected):
    assert parse_edit(text) == expected


@pytest.mark.parametrize(
    "text", ["12", "12:add", "12:ablate:3", "x:add:1", "12:boost:1", "12:add:2p98", "-1:add:2", "12:add:nan"]
)
def test_what_is_no_edit_says_what_is(text):
    with pytest.raises(SteeringError, match=r"is no edit. Expected LATENT:MODE:STRENGTH, such as 12:add:2p99"):
        parse_edit(text)


def test_strengths_in_p99_and_in_norms(model, sae, index):
    _, values = index.activations(7)
    assert strength_of(index, 7, p99=2) == pytest.approx(2 * np.quantile(values, 0.99), rel=1e-5)
    value = EditRequest(7, "add", 0.5, "norm").resolve(index, sae).value
    change = edit_change(torch.zeros(1, WIDTH), sae, [LatentEdit(7, "add", value)])
    assert float(change.norm()) == pytest.approx(0.5 * mean_norm(index), rel=1e-5)
    assert EditRequest(7, "add", 0.5).resolve(None, sae) == LatentEdit(7, "add", 0.5)
    with pytest.raises(SteeringError, match="scale takes a plain factor"):
        EditRequest(7, "scale", 0.5, "p99")
    with pytest.raises(SteeringError, match="no latent 48"):
        EditRequest(48, "add", 0.5).resolve(None, sae)
    with pytest.raises(SteeringError, match="needs the SAE's feature index"):
        EditRequest(7, "add", 0.5, "p99").resolve(None, sae)


def test_the_mean_norm_is_measured_where_the_index_lacks_it(model, index):
    stored = mean_norm(index)
    old = FeatureIndex.open(index.path)
    del old.about["mean_norm"]
    with pytest.raises(SteeringError, match="Give the language model"):
        mean_norm(old)
    assert mean_norm(old, model) == pytest.approx(stored, rel=1e-4)
    lengths = []
    with torch.inference_mode(), hooked(model._module, {HOOK: lambda x: lengths.append(x[0].norm(dim=1))}):
        for start, end in zip(index.piece_offsets, index.piece_offsets[1:], strict=False):
            model._module(input_ids=torch.tensor(index.piece_tokens[start:end])[None].long(), use_cache=False)
    expected = torch.cat(lengths)[torch.tensor(np.array(index.measured))].mean()
    assert stored == pytest.approx(float(expected), rel=1e-4)


def test_a_sweeps_effect_is_the_change_of_the_promoted_tokens(model, sae, index):
    config, request = SteerConfig(max_new_tokens=NEW), EditRequest(7, "add", 0, "raw")
    found = sweep(model, sae, PROMPT, request, [0, 2, 30], config, hook_point=HOOK, index=index)
    before, (plain, _) = model.tokenizer(PROMPT)["input_ids"], by_hand(model, lambda x: x)
    text = torch.tensor([[*before, *plain]])
    up, down = index.promoted(7).token_ids.tolist(), index.suppressed(7).token_ids.tolist()

    def contrast(value: float) -> torch.Tensor:
        with torch.inference_mode(), hooked(model._module, {HOOK: lambda x: x + value * sae.W_dec[7]}):
            logits = model._module(input_ids=text, use_cache=False).logits[0]
        log_p = logits[len(before) - 1 : -1].log_softmax(-1)
        return log_p[:, up] - log_p[:, down]

    for point in found.points:
        assert point.effect == pytest.approx(float((contrast(point.strength) - contrast(0)).mean()), abs=1e-4)
    assert found.points[0].effect == found.points[0].random_effect == 0
    assert found.points[2].effect > found.points[1].effect > 0
    assert found.n_positions == len(plain)
    assert found.random_latent != 7
    assert found.points[0].text == found.plain_text
    assert found.points[0].nll == pytest.approx(found.nll_plain)
    assert found.nll_limit == found.nll_plain + NLL_MARGIN
    steered = steer_text(model, sae, PROMPT, ["7:add:2"], replace(config, controls=()), hook_point=HOOK).arms["steered"]
    assert steered.text == found.points[1].text
    assert steered.nll == pytest.approx(found.points[1].nll)


def test_a_sweep_streams_its_points(model, sae, index):
    points = sweep_points(
        model, sae, PROMPT, EditRequest(7, "add"), [1, 2], SteerConfig(max_new_tokens=4), hook_point=HOOK, index=index
    )
    assert next(points).strength == 1
    assert hooks_of(model) == 0
    with pytest.raises(SteeringError, match="ablate has none"):
        next(sweep_points(model, sae, PROMPT, EditRequest(7, "ablate"), [1], hook_point=HOOK, index=index))


def planted(strength: float, effect: float, *, broken: bool = False, random: float = 0.0) -> SweepPoint:
    return SweepPoint(
        strength=strength, effect=effect, random_effect=random, nll=1, repetition=0, broken=broken, text="w1"
    )


@pytest.mark.parametrize(
    ("points", "sweet_spot", "breaks_at"),
    [
        ([planted(1, 0.5), planted(2, 1.0), planted(4, 3.0, broken=True), planted(8, 2.0, broken=True)], 2, 4),
        ([planted(1, 0.5), planted(2, 0.4)], 1, None),
        ([planted(1, 0.5, random=0.6), planted(2, 0.3)], None, None),
        ([planted(-1, -0.5), planted(-4, -2.0), planted(-8, -9.0, broken=True)], -4, -8),
        ([planted(1, 0.5, broken=True)], None, 1),
    ],
)
def test_the_sweet_spot_is_the_largest_effect_before_the_text_breaks(points, sweet_spot, breaks_at, model, sae):
    events = list(steer(model, sae, PROMPT, [EDIT], SteerConfig(max_new_tokens=2, controls=()), hook_point=HOOK))[:1]
    found = _summary(tuple(points), EditRequest(7, "add"), events, "w1", 3, 5)
    assert (found.sweet_spot, found.breaks_at) == (sweet_spot, breaks_at)


def test_repetition_by_hand():
    assert repetition_of([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(2 / 5)
    assert repetition_of([4] * 10) == pytest.approx(7 / 8)
    assert repetition_of([1, 2]) == 0


def test_a_steered_text_reads_as_text_and_as_records(model, sae, index):
    steered = steer_text(
        model, sae, PROMPT, ["7:add:2p99"], SteerConfig(max_new_tokens=6), hook_point=HOOK, index=index
    )
    shown = steered.text(["what was edited"])
    for arm in ("plain", "steered", "random", "prompt"):
        assert f"\n{arm} " in shown
    assert steered.arms["steered"].text in " ".join(shown.split())
    promoted = set(index.promoted(7).token_ids.tolist())
    expected = sum(event.token_id in promoted for event in steered.arms["steered"].events)
    assert steered.arms["steered"].promoted == expected
    *tokens, last = steered.records()
    assert len(tokens) == sum(len(arm.events) for arm in steered.arms.values())
    assert last["done"]
    assert last["random_edits"][0]["latent"] == steered.random_edits[0].latent
    assert all(math.isfinite(record["nll"]) for record in tokens)


def test_what_cannot_be_steered_says_why(model, sae, index):
    with pytest.raises(SteeringError, match="No edit was given"):
        steer(model, sae, PROMPT, [], hook_point=HOOK, index=index)
    with pytest.raises(SteeringError, match="no latent 99; the SAE has latents 0 to 47"):
        steer(model, sae, PROMPT, [LatentEdit(99, "ablate")], hook_point=HOOK, index=index)
    with pytest.raises(SteeringError, match="controls are made from the SAE's feature index"):
        steer(model, sae, PROMPT, [EDIT], hook_point=HOOK)
    with pytest.raises(TextError, match="empty"):
        steer(model, sae, " ", [EDIT], hook_point=HOOK, index=index)
    with pytest.raises(SAEError, match="16 wide; this SAE expects d_in=4"):
        steer(model, relu_sae(torch.eye(4), torch.eye(4)), PROMPT, [EDIT], hook_point=HOOK, index=index)
    with pytest.raises(SteeringError, match="no chat template"):
        steer(model, sae, PROMPT, [EDIT], SteerConfig(chat=True), hook_point=HOOK, index=index)
    with pytest.raises(SteeringError, match="scope = 'all'"):
        SteerConfig(scope="all")
    with pytest.raises(SteeringError, match="seed = -1"):
        SteerConfig(seed=-1)
