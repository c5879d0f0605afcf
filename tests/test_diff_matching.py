"""Partners of latents: by hand, by numpy, and when the same dictionary comes in another order."""

import numpy as np
import pytest
import torch

from sparsight.diff import Dictionary, matched, mutual_pairs, pw_mcc
from sparsight.errors import MetricError
from sparsight.sae import SAEConfig, SparseAutoencoder


def sae_of(directions, threshold=0.1):
    n, d = directions.shape
    config = SAEConfig(id="s", architecture="jumprelu", n_latents=n)
    weights = {"W_enc": directions.T, "W_dec": directions, "b_dec": torch.zeros(d), "b_enc": torch.zeros(n)}
    return SparseAutoencoder(config, weights | {"threshold": torch.full((n,), threshold)})


def read(sae, x):
    return Dictionary.of(sae, list(x.split(50)))


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator), dim=1)
    magnitudes = (torch.rand(400, 12, generator=generator) < 0.1) * (1 + torch.rand(400, 12, generator=generator))
    return features, magnitudes @ features


def test_a_permuted_dictionary_is_matched_with_itself(data):
    features, x = data
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    ours, theirs = read(sae_of(features), x), read(sae_of(features[order]), x)
    there, back = matched(ours, theirs)
    assert order[torch.from_numpy(there.cosine_latent)].tolist() == list(range(12))
    assert there.correlation_latent.tolist() == there.cosine_latent.tolist()
    for values, expected in ((there.cosine, 1), (there.correlation, 1), (there.cosine_there, 1), (there.strength, 0)):
        assert np.allclose(values, expected, atol=1e-4)
    assert len(mutual_pairs(there, back)) == 12
    assert pw_mcc(ours, theirs) == pytest.approx(1.0, abs=1e-5)


def test_correlations_are_numpys(data):
    features, x = data
    turned = torch.nn.functional.normalize(features + 0.4 * features.roll(1, 0), dim=1)
    first, second = sae_of(features), sae_of(turned)
    there, _ = matched(read(first, x), read(second, x))
    z, other = first.encode(x).numpy(), second.encode(x).numpy()
    table = np.corrcoef(z.T, other.T)[:12, 12:]
    assert np.allclose(there.correlation, table.max(1), atol=1e-4)
    assert (there.correlation_latent == table.argmax(1)).all()
    assert there.cosine_there == pytest.approx((features @ turned.T).numpy()[np.arange(12), table.argmax(1)], abs=1e-5)


def test_strength_is_the_ratio_of_what_is_added_whatever_the_rows_norms(data):
    features, x = data
    ours = read(sae_of(features), 3 * x)
    theirs = sae_of(features)
    theirs.W_dec *= 5  # as if its latents were a fifth as large
    theirs.W_enc /= 5
    theirs.get_parameter("threshold").div_(5)
    there, back = matched(ours, read(theirs, x))
    assert there.strength == pytest.approx(np.log(3), abs=0.15)  # the threshold cuts off less of what is larger
    assert back.strength == pytest.approx(-there.strength, abs=1e-5)


def test_latents_that_never_fired_take_no_part(data):
    features, x = data
    dead = features.clone()
    theirs = sae_of(dead)
    theirs.get_parameter("threshold")[3] = 1e9
    there, back = matched(read(sae_of(features), x), read(theirs, x))
    assert back.cosine_latent[3] == -1
    assert np.isnan(back.cosine[3])
    assert np.isnan(back.correlation[3])
    assert there.cosine_latent[3] != 3
    assert there.cosine[3] < 0.95
    assert 3 not in mutual_pairs(there, back)


def test_unequal_tokens_and_silent_dictionaries_are_refused(data):
    features, x = data
    with pytest.raises(MetricError, match="400 and 350 tokens"):
        matched(read(sae_of(features), x), read(sae_of(features), x[50:]))
    with pytest.raises(MetricError, match="without a latent"):
        matched(read(sae_of(features), x), read(sae_of(features, threshold=1e9), x))
    with pytest.raises(MetricError, match="no activations"):
        Dictionary.of(sae_of(features), [])
