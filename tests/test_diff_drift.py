"""Drift of warm starts: by hand, and on a planted pair beside its null fine-tune."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsight.activations.synthetic_pair import PlantedPair
from sparsight.diff import Dictionary, decoder_drift, drift_test
from sparsight.errors import MetricError
from sparsight.sae import SAEConfig
from sparsight.train import train_sae

D, F = 24, 32


def test_drift_by_hand():
    base, warm = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    assert decoder_drift(base, warm) == pytest.approx([0.0, 1.0, 2.0])
    with pytest.raises(MetricError, match="not of an SAE"):
        decoder_drift(base, warm[:2])


def test_latents_that_turn_stand_out_from_what_any_training_moves(tmp_path: Path):
    pair = PlantedPair(16, D, changed={"rotated": 2}, rates=(0.05, 0.1), rotation_cosine=0.6, drift=0.1, seed=1)
    cfg = SAEConfig(id="base", n_latents=F, k=2, lr=5e-3, hook_point="base:synthetic")
    base = train_sae(pair.batches(256, 300), cfg, total_steps=300)
    base.save(tmp_path / "base", metadata={})
    warm = {
        model: train_sae(
            pair.batches(256, 200, seed=2),
            replace(cfg, id=model, hook_point=f"{model}:synthetic", start_from=str(tmp_path / "base"), lr=2e-3),
            total_steps=200,
        )
        for model in ("tuned", "null")
    }
    heldout = [pair.planted(1024, index, seed=3).x for index in range(4)]
    firings = {model: Dictionary.of(sae, [x[model] for x in heldout]).firings for model, sae in warm.items()}
    found = drift_test(
        base.W_dec, warm["tuned"].W_dec, warm["null"].W_dec, firings["tuned"], firings["null"], n_strata=1
    )
    started_at = (pair.directions["base"] @ torch.nn.functional.normalize(base.W_dec, dim=1).T).max(1)
    assert (started_at.values > 0.9).all()
    turned = started_at.indices[pair.is_kind("rotated")].numpy()
    others = np.setdiff1d(started_at.indices.numpy(), turned)
    assert found.drift[turned].min() > 3 * found.drift[others].max()
    assert found.mean > found.null_mean > 1e-4  # training on moves latents where nothing turned
    assert found.test.p[turned] == pytest.approx(1 / (found.test.n_null + 1))  # as small as a rank can be
    assert (found.test.p[others] > 0.05).mean() > 0.8
    with pytest.raises(MetricError, match="fired on 100000 tokens"):
        drift_test(base.W_dec, base.W_dec, base.W_dec, firings["tuned"], firings["null"], least_firings=100_000)
