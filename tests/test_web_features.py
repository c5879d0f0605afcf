"""The explorer's tables and feature pages, against the index they are made of."""

import numpy as np
import pytest
from starlette.testclient import TestClient

from sparsight.features import FeatureIndex, top_contexts
from web_run import BASE, CHANGE, DEAD, FIRST, HOSTILE, N_LATENTS, make_client, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_folder, text_path):
    return make_run(tmp_path_factory.mktemp("web"), model_folder, text_path)


@pytest.fixture(scope="module")
def client(run) -> TestClient:
    return make_client(run)


@pytest.fixture(scope="module")
def index(run) -> FeatureIndex:
    return FeatureIndex.open(run / "features" / "topk")


def get(client: TestClient, path: str, **query):
    answer = client.get(BASE + path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def latents(client: TestClient, **query) -> list[int]:
    return [row["latent"] for row in get(client, "/features", limit=1000, **query)["rows"]]


def test_the_session_names_every_dictionary_and_its_columns(client, index):
    (found,) = client.get("/api/session").json()["dictionaries"]
    assert (found["key"], found["n_latents"], found["n_documents"]) == ("run/topk", N_LATENTS, 40)
    assert found["n_tokens"] == index.n_tokens
    assert found["has_map"]
    assert {column["name"] for column in found["columns"]} >= {"density", "token_purity", "cluster", "dead"}


def test_a_table_is_sorted_either_way_with_the_missing_last(client, index):
    by_density = latents(client, sort="density", order="desc")
    assert by_density == sorted(range(N_LATENTS), key=lambda latent: (-index.density[latent], latent))
    purity = index.arrays["token_purity"]
    for order, sign in (("asc", 1), ("desc", -1)):
        found = latents(client, sort="token_purity", order=order)
        assert found[-1] == DEAD
        assert found[:-1] == sorted(set(range(N_LATENTS)) - {DEAD}, key=lambda latent: sign * purity[latent])


def test_pages_of_a_table_join_to_the_whole(client):
    whole = latents(client, sort="maximum")
    pages = [get(client, "/features", sort="maximum", offset=at, limit=7) for at in range(0, N_LATENTS, 7)]
    assert [row["latent"] for page in pages for row in page["rows"]] == whole
    assert {page["total"] for page in pages} == {N_LATENTS}


def test_filters_hold_together_and_the_missing_pass_none(client, index):
    purity = index.arrays["token_purity"]
    expected = {latent for latent in range(N_LATENTS) if purity[latent] >= 0.5 and latent <= 40}
    assert set(latents(client, filter=["token_purity>=0.5", "latent<=40"])) == expected
    assert DEAD not in latents(client, filter="token_purity<=1")
    assert latents(client, filter="dead=1") == [DEAD]
    assert set(latents(client, cluster=1)) == set(range(40, 60))


def test_a_token_column_is_filtered_by_its_text(client, index):
    word = get(client, "/features", filter="latent=7")["rows"][0]["top_token"]
    same = {row["latent"] for row in get(client, "/features", limit=1000)["rows"] if row["top_token"] == word}
    assert set(latents(client, filter=f"top_token={word}")) >= same >= {7}
    assert get(client, "/features", filter=f"latent={DEAD}")["rows"][0]["top_token"] is None


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"filter": "density>0.1"}, "expected a column"),
        ({"filter": "density>=much"}, "expected a number"),
        ({"filter": "__class__=1"}, "no column '__class__'"),
        ({"sort": "../../etc/passwd"}, "no column"),
        ({"order": "sideways"}, "expected asc or desc"),
        ({"list": "nothing"}, "There is no list"),
        ({"limit": "1001"}, "limit"),
        ({"offset": "-1"}, "offset"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(client, query, said):
    answer = client.get(f"{BASE}/features", params=query)
    assert 400 <= answer.status_code < 500
    assert said in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_search_finds_labels_notes_promoted_tokens_passages_and_numbers(client):
    client.put(f"{BASE}/features/11/label", json={"text": "Zebra Crossings"}, headers=CHANGE)
    client.put(f"{BASE}/features/12/note", json={"text": "not a zebra"}, headers=CHANGE)
    assert latents(client, q="zebra", sort="latent", order="asc") == [11, 12]
    assert latents(client, q="zebra crossings") == [11]
    assert latents(client, q='"a zebra"') == [12]
    assert latents(client, q="onerror") == [5]  # a promoted token, and the passage it is beside
    assert 37 in latents(client, q="37")
    assert latents(client, q="zebra", filter="latent>=12") == [12]
    client.delete(f"{BASE}/features/11/label", headers=CHANGE)
    assert latents(client, q="zebra") == [12]


def test_a_feature_page_says_what_the_index_holds(client, index):
    found = get(client, "/features/9")
    assert found["columns"]["n_active"] == len(index.activations(9)[0])
    assert found["histogram"]["counts"] == index.histogram[9].tolist()
    assert [q for q, _ in found["quantiles"]] == list(index.config["quantiles"])
    assert found["promoted"][0]["token_id"] == FIRST + 9
    assert [row["latent"] for row in found["neighbours"]["decoder"]] == [10, 11, 12]
    assert found["neighbours"]["encoder"] == []
    assert [(row["latent"], row["pmi"]) for row in found["coactive"]] == [(10, 4), (11, 3)]
    lift = index.lift(9)
    assert [row["value"] for row in found["lift"]] == pytest.approx(lift.weights.tolist(), rel=1e-5)
    assert sum(found["position"]["bins"]) == found["columns"]["n_active"]
    assert sum(found["position"]["baseline"]) == index.n_tokens
    assert found["chance"]["token_purity"] == pytest.approx(float(index.arrays["chance_token_purity"][9]), rel=1e-5)
    assert found["position"]["names"] == ["0", "1", "2-3", "4-7", "8-15", "16-31", "32-63", "64+"]
    assert found["map"] == [9, -9]
    assert (found["cluster"]["id"], found["cluster"]["size"]) == (0, 40)
    assert found["partner"]["cosine_latent"] == 9
    assert found["partner"]["correlation"] is None
    scope: dict = {}
    exec(found["python"].partition("tokens, values")[0], scope)
    assert scope["index"].n_latents == N_LATENTS


def test_previous_and_next_follow_the_table(client):
    order = latents(client, sort="maximum", order="asc", cluster=0)
    at = order.index(9)
    found = get(client, "/features/9", sort="maximum", order="asc", cluster=0)
    assert (found["previous"], found["next"]) == (order[at - 1], order[at + 1])
    assert (get(client, "/features/0")["previous"], get(client, "/features/0")["next"]) == (None, 1)
    assert get(client, "/features/63", sort="maximum", cluster=0)["next"] is None


def test_passages_are_those_of_the_index(client, index):
    found = get(client, "/features/9/contexts", top=3, per_band=1, random=2)
    expected = top_contexts(index, 9, 3)
    assert [context["value"] for context in found["top"]] == pytest.approx([c.value for c in expected], rel=1e-5)
    assert found["top"][0]["document"] == f"{expected[0].document_id:016x}"
    assert len(found["top"][0]["tokens"]) == len(found["top"][0]["values"]) == len(found["top"][0]["measured"])
    assert sum(band["n_active"] for band in found["bands"]) == len(index.activations(9)[0])
    assert len(found["random"]) == 2


def test_a_dead_latent_and_an_unknown_one(client):
    assert get(client, f"/features/{DEAD}/contexts") == {"top": [], "bands": [], "random": []}
    assert get(client, f"/features/{DEAD}")["columns"]["token_purity"] is None
    for path in ("/features/64", "/features/-1", "/features/64/contexts"):
        assert client.get(BASE + path).status_code == 404
    assert client.get(f"{BASE}/features/1e3").status_code == 422


def test_the_map_and_columns_are_plain_floats(client, index):
    assert np.frombuffer(client.get(f"{BASE}/map").content, "<f4").tolist() == index.arrays["map"].ravel().tolist()
    purity = np.frombuffer(client.get(f"{BASE}/columns/token_purity").content, "<f4")
    assert np.array_equal(purity, index.arrays["token_purity"], equal_nan=True)
    assert client.get(f"{BASE}/columns/piece_tokens").status_code == 404


def test_clusters_are_named_by_the_tokens_that_tell_them(client, index):
    first, second = client.get(f"{BASE}/clusters").json()
    assert (first["id"], first["size"], first["latents"]) == (0, 40, list(range(20)))
    assert second["size"] == 20
    assert first["name"] == " · ".join(first["active_on"][:3])
    top = np.asarray(index.arrays["top_token"])
    shares = {int(t): ((top[:40] == t).mean(), (top[top >= 0] == t).mean()) for t in set(top[:40]) if t >= 0}
    best = max(shares, key=lambda t: shares[t][0] * np.log(shares[t][0] / shares[t][1]))
    assert (
        first["active_on"][0] == get(client, f"/features/{int(np.flatnonzero(top == best)[0])}")["columns"]["top_token"]
    )


def test_tokens_arrive_readable_and_as_they_are_but_for_what_acts(client):
    words = [row["token"] for row in get(client, "/features/5")["promoted"]]
    assert words[0] == HOSTILE[0]  # text for the page to show as text
    assert words[2] == "\\u{202e}gnp.exe"
    assert words[3] == "\\x1b[2J\\x00"


def test_an_index_without_the_optional_arrays_has_a_page_all_the_same(tmp_path, model_folder, text_path):
    client = make_client(make_run(tmp_path, model_folder, text_path, every_array=False))
    found = get(client, "/features/9")
    assert found["promoted"] == found["coactive"] == found["lift"] == []
    assert found["map"] is found["cluster"] is found["partner"] is found["position"] is None
    assert get(client, "/features")["rows"][0]["promoted"] == []
    assert len(latents(client, q="a")) <= N_LATENTS
    assert client.get(f"{BASE}/clusters").json() == []
    assert "has no map" in client.get(f"{BASE}/map").json()["error"]
