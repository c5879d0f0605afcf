"""Generation with a cache against generation without one and against the library's own; hooks at every step and none after."""

import pytest
import torch
from torch import nn

from sparsight.errors import ModelError
from sparsight.lm import Decoding, LanguageModel, Sampler
from test_evaluate import HOOK, VOCAB, tiny_model
from test_lm_load import FAMILIES, tiny_tokenizer
from test_lm_load import tiny_model as random_model


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny_model()


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.tensor([[3, 9, 27, 4], [5, 5, 6, 40]])


def hooks_of(model: LanguageModel) -> int:
    modules: list[nn.Module] = list(model._module.modules())
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def shift(x: torch.Tensor) -> torch.Tensor:
    return x + torch.linspace(-2, 2, x.shape[-1])


def without_cache(
    model: LanguageModel, tokens: torch.Tensor, n: int, replace
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The whole text through the model for every token."""
    from sparsight.lm.hooks import hooked

    seen = []
    for _ in range(n):
        with torch.inference_mode(), hooked(model._module, replace):
            seen.append(model._module(input_ids=tokens, use_cache=False).logits[:, -1])
        tokens = torch.cat([tokens, seen[-1].argmax(1)[:, None]], 1)
    return tokens, seen


@pytest.mark.parametrize("replace", [{}, {HOOK: shift}], ids=["plain", "edited"])
def test_with_a_cache_as_without(model, prompt, replace):
    expected, logits = without_cache(model, prompt, 12, replace)
    decoding, fed, tokens = Decoding(model), prompt, prompt
    for step in range(12):
        found = decoding.feed(fed, replace=replace)
        assert torch.allclose(found, logits[step], atol=1e-4)
        fed = found.argmax(1)[:, None]
        tokens = torch.cat([tokens, fed], 1)
    assert torch.equal(tokens, expected)
    if replace:
        assert not torch.equal(expected, without_cache(model, prompt, 12, {})[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_on_from_its_cache_as_from_its_text(family, prompt):
    """Recurrent states, sliding windows and wrappers too; attention is on what the edited prompt left in the cache."""
    hook = "layers.3" if family.startswith("gpt") else "layers.3.mlp"
    model = LanguageModel.from_module(random_model(family), tiny_tokenizer(), hook_points=[hook])
    tokens, logits = without_cache(model, prompt, 10, {hook: shift})
    decoding, fed = Decoding(model), prompt
    for step in range(10):
        found = decoding.feed(fed, replace={hook: shift})
        assert torch.allclose(found, logits[step].float(), atol=1e-3 * float(logits[step].abs().max()))
        fed = tokens[:, prompt.shape[1] + step, None]


def test_greedy_text_is_the_librarys(model, prompt):
    decoding, fed, sampler, tokens = Decoding(model), prompt[:1], Sampler(0, seed=0), prompt[:1]
    while tokens.shape[1] < 20:
        fed = sampler.choose(decoding.feed(fed))[:, None]
        tokens = torch.cat([tokens, fed], 1)
    options = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(model._module.generate(prompt[:1], **options), tokens)


def test_the_hook_fires_at_the_prompt_and_at_every_token_after_it(model, prompt):
    shapes = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape[:2]))
        return x

    decoding = Decoding(model)
    fed = prompt
    for _ in range(5):
        fed = decoding.feed(fed, replace={HOOK: watch}).argmax(1)[:, None]
        assert hooks_of(model) == 0
    assert shapes == [(2, 4), (2, 1), (2, 1), (2, 1), (2, 1)]


def test_an_error_in_a_hook_leaves_the_model_as_it_was(model, prompt):
    before = Decoding(model).feed(prompt)

    def fail(_x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Decoding(model).feed(prompt, replace={HOOK: fail})
    assert hooks_of(model) == 0
    assert torch.equal(Decoding(model).feed(prompt), before)


def test_two_texts_under_way_do_not_meet(model, prompt):
    one, two = Decoding(model), Decoding(model)
    alone = Decoding(model)
    first = one.feed(prompt)
    two.feed(prompt.flip(1), replace={HOOK: shift})
    assert torch.equal(alone.feed(prompt), first)
    fed = first.argmax(1)[:, None]
    two.feed(fed)
    assert torch.equal(one.feed(fed), alone.feed(fed))


def test_what_cannot_go_on_says_why(model, prompt):
    decoding = Decoding(model)
    decoding.feed(prompt)
    with pytest.raises(ModelError, match="2 rows are under way, 1 were given"):
        decoding.feed(prompt[:1])
    longest = model._module.config.max_position_embeddings
    decoding._shape = (2, longest - 1)
    with pytest.raises(ModelError, match=f"{longest + 1} tokens"):
        decoding.feed(prompt[:, :2])


def test_draws_follow_the_softmax_and_rows_share_them():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, *[-1e9] * (VOCAB - 4)])
    sampler = Sampler(0.7, seed=3)
    draws = torch.stack([sampler.choose(torch.stack([logits, logits + 5])) for _ in range(4000)])
    assert torch.equal(draws[:, 0], draws[:, 1])
    share = torch.bincount(draws[:, 0], minlength=VOCAB)[:4] / len(draws)
    expected = (logits[:4] / 0.7).softmax(0)
    assert (share - expected).abs().max() < 4 * (expected * (1 - expected) / len(draws)).sqrt().max()


def test_a_seed_reproduces_and_another_differs():
    logits = torch.zeros(1, VOCAB)
    drawn = [
        [int(sampler.choose(logits)) for _ in range(20)] for sampler in (Sampler(1, 0), Sampler(1, 0), Sampler(1, 1))
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert Sampler(0, 0).choose(torch.tensor([[0.0, 3.0, 1.0]])).tolist() == [1]
