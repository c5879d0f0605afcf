"""Columns: which a table has, and their values."""

import numpy as np
import pytest

from sparsight.errors import RunError
from sparsight.features import COLUMNS, column_values, columns_of, feature_table
from sparsight.index import build_index
from test_evaluate import identity_sae, tiny_model
from test_index import DOCUMENTS, HOOK, one_hot_store


@pytest.fixture
def index(tmp_path):
    store = one_hot_store(tmp_path / "store", DOCUMENTS, masked=9)
    return build_index(identity_sae(), store, path=tmp_path / "index", hook_point=HOOK)


def test_every_column_has_a_value_for_every_latent(index):
    for column in columns_of(index):
        assert column_values(index, column.name).shape == (index.n_latents,)
    assert [c for c in COLUMNS if c in columns_of(index)] == columns_of(index)
    assert column_values(index, "n_active")[2] == 4
    assert column_values(index, "density")[2] == pytest.approx(4 / 13)
    assert column_values(index, "dead")[[0, 2]].tolist() == [True, False]
    assert column_values(index, "p99")[2] == pytest.approx(np.quantile([1, 2, 4, 7], 0.99))


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(index):
    with pytest.raises(RunError, match="no column 'seed_cosine', but n_active"):
        column_values(index, "seed_cosine")
    with pytest.raises(RunError, match="expected one of n_active"):
        column_values(index, "latents")


def test_the_table_says_nothing_of_a_dead_latent_and_words_of_others(index):
    table = feature_table(index, tiny_model().tokenizer)
    dead, seven = (table.slice(latent, 1).to_pylist()[0] for latent in (0, 7))
    assert (dead["dead"], dead["top_token"], dead["top_token_id"], dead["cluster"]) == (True, None, -1, -1)
    assert dead["decoder_neighbours"] == dead["lift_tokens"] == dead["coactive_latents"] == []
    assert np.isnan(dead["token_purity"])
    assert (seven["top_token"], seven["lift_tokens"], seven["lift_counts"]) == ("w7", ["w7"], [5])
    assert seven["lift"] == seven["lift_values"][0]
