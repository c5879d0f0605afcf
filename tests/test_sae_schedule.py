"""The plan of a training run: rates rise, stay and fall where they should, and the table says what the functions say."""

import pytest

from sparsight.sae import SAEConfig
from sparsight.sae.schedule import SCHEDULE, lr_factor, schedule_table, sparsity_weight, threshold_momentum


def config(**changes):
    return SAEConfig(**({"id": "a", "n_latents": 8, "k": 2, "lr": 1.0} | changes))


def rates(total_steps, **changes):
    return [lr_factor(config(**changes), step, total_steps) for step in range(total_steps + 1)]


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    found = rates(20, warmup_steps=4, decay_fraction=0.25)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4:16] == [1.0] * 12
    assert found[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_the_warm_up_takes_no_more_than_a_fifth_of_all_steps():
    assert rates(20, warmup_steps=1000) == rates(20, warmup_steps=4)
    assert rates(20, warmup_steps=3) != rates(20, warmup_steps=4)
    assert rates(3, warmup_steps=1000, decay_fraction=0.0) == [1.0] * 4


def test_without_warm_up_and_decay_the_rate_is_the_same_throughout():
    assert rates(20, warmup_steps=0, decay_fraction=0.0) == [1.0] * 21


def test_the_penaltys_weight_rises_from_zero():
    cfg = config(architecture="relu", sparsity_warmup_fraction=0.5)
    assert [sparsity_weight(cfg, step, 8) for step in range(8)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_the_running_threshold_begins_as_a_plain_mean():
    assert [threshold_momentum(step, 1000) for step in (0, 1, 3, 19, 500)] == [1.0, 0.5, 0.25, 0.05, 0.05]
    assert [threshold_momentum(step, 100) for step in (0, 3, 19)] == [1.0, 0.25, 0.2]  # a short run forgets sooner
    assert threshold_momentum(9, 10) == 0.5


def test_the_table_holds_what_the_functions_give():
    cfg = config(lr=3e-3, warmup_steps=5, sparsity_warmup_fraction=0.3)
    table = schedule_table(cfg, 20)
    assert table.shape == (20, len(SCHEDULE))
    for step in (0, 3, 12, 19):
        row = dict(zip(SCHEDULE, table[step].tolist(), strict=True))
        lr = 3e-3 * lr_factor(cfg, step, 20)
        assert row["lr"] == pytest.approx(lr)
        assert row["step_size"] == pytest.approx(lr / (1 - cfg.betas[0] ** (step + 1)))
        assert row["root_correction"] == pytest.approx((1 - cfg.betas[1] ** (step + 1)) ** -0.5)
        assert row["sparsity_weight"] == pytest.approx(sparsity_weight(cfg, step, 20))
        assert row["threshold_momentum"] == pytest.approx(threshold_momentum(step, 20))
