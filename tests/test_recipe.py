"""Recipes: strict reading, overrides, and writing back what was read."""

from dataclasses import replace
from pathlib import Path

import pytest

from sparsight.errors import RecipeError, SAEError, SparsightError
from sparsight.recipe import changed_keys, check_same_study, dump_recipe, load_recipe, parse_recipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
MINIMAL = """
schema = 1
name = "tiny"
[model]
id = "somewhere"
[text]
files = ["a.txt"]
[activations]
hook_points = ["layers.1.mlp", "layers.2"]
n_tokens = 5000
[train]
batch_tokens = 64
[[sae]]
id = "first"
n_latents = 256
k = 8
[[sae]]
id = "second-1.5"
n_latents = 512
hook_point = "layers.2"
adam_betas = [0.5, 0.9]
"""


def test_defaults_fill_what_a_recipe_leaves_out_and_hook_points_are_spelled_out():
    recipe = parse_recipe(MINIMAL)
    assert recipe.train.epochs == 1
    assert recipe.text.context_tokens == 256
    assert [sae.hook_point for sae in recipe.sae] == ["layers.1.mlp", "layers.2"]


def test_an_unknown_key_is_refused_with_the_nearest_one():
    with pytest.raises(RecipeError, match=r"Unknown key `train.batch_token`.*Did you mean `batch_tokens`\?"):
        parse_recipe(MINIMAL.replace("batch_tokens = 64", "batch_token = 64"))


def test_an_unknown_section_is_refused_with_the_nearest_one():
    with pytest.raises(RecipeError, match=r"Unknown key `activation`.*Did you mean `activations`\?"):
        parse_recipe(MINIMAL.replace("[activations]", "[activation]"))


def test_an_unknown_key_of_an_sae_names_the_sae():
    with pytest.raises(RecipeError, match=r"`sae\.0\.n_latent`.*`n_latents`"):
        parse_recipe(MINIMAL.replace("n_latents = 256", "n_latent = 256"))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("n_tokens = 5000", 'n_tokens = "5000"', "`activations.n_tokens` must be a whole number"),
        ("n_tokens = 5000", "n_tokens = 5e3", "`activations.n_tokens` must be a whole number"),
        ("n_tokens = 5000", "n_tokens = true", "`activations.n_tokens` must be a whole number"),
        ('id = "somewhere"', "id = 3", "`model.id` must be a text in quotes"),
        ('files = ["a.txt"]', 'files = "a.txt"', "`text.files` must be a list"),
        ("k = 8", "lr = true", "`sae.0.lr` must be a number"),
        ("[train]\nbatch_tokens = 64", "train = 3", "`train` must be a section"),
    ],
)
def test_a_value_of_another_type_is_refused(old: str, new: str, complaint: str):
    text = MINIMAL.replace(old, new)
    if new.startswith("train"):  # a plain key must precede the sections
        text = f"{new}\n{text.replace(new, '')}"
    with pytest.raises(RecipeError, match=complaint):
        parse_recipe(text)


def test_a_whole_number_will_do_where_a_number_is_asked_for():
    recipe = parse_recipe(MINIMAL, ["activations.sink_norm_multiple=7"])
    assert recipe.activations.sink_norm_multiple == 7.0
    assert isinstance(recipe.activations.sink_norm_multiple, float)


@pytest.mark.parametrize(("section", "missing"), [('[model]\nid = "somewhere"', "model"), ("schema = 1", "schema")])
def test_a_missing_section_is_named(section: str, missing: str):
    with pytest.raises(RecipeError, match=f"lacks `{missing}`"):
        parse_recipe(MINIMAL.replace(section, ""))


def test_a_recipe_without_an_sae_is_refused():
    with pytest.raises(RecipeError, match="lacks `sae`"):
        parse_recipe(MINIMAL.partition("[[sae]]")[0])


def test_what_is_not_toml_is_refused_in_one_line():
    with pytest.raises(RecipeError, match="is not TOML") as caught:
        parse_recipe("name = ")
    assert "\n" not in str(caught.value)


def test_a_recipe_of_another_schema_is_refused():
    with pytest.raises(RecipeError, match=r"schema = 2; this version of Sparsight reads schema = 1"):
        parse_recipe(MINIMAL.replace("schema = 1", "schema = 2"))


def test_a_recipe_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"absent\.toml"):
        load_recipe(tmp_path / "absent.toml")


def test_overrides_reach_sections_lists_and_saes_by_id_and_number():
    recipe = parse_recipe(
        MINIMAL,
        [
            "seed=3",
            "model.dtype=float32",
            'activations.hook_points=["layers.1.mlp", "layers.2", "layers.3"]',
            "evaluate.n_resamples = 200",
            "sae.first.k=16",
            "sae.second-1.5.lr=1e-4",
            "sae.1.k=4",
        ],
    )
    assert recipe.seed == 3
    assert recipe.model.dtype == "float32"
    assert recipe.activations.hook_points == ("layers.1.mlp", "layers.2", "layers.3")
    assert recipe.evaluate.n_resamples == 200
    assert [(sae.k, sae.lr) for sae in recipe.sae] == [(16, 3e-4), (4, 1e-4)]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train.epochs", "takes section.key=value"),
        ("train.epoch=2", "Did you mean `epochs`"),
        ("sae.third.k=4", "no SAE 'third'; there are first, second-1.5"),
        ("sae.k=4", "name an SAE by id or number"),
        ("name.first=x", "is not a section"),
        ("train.batch_tokens.more.deeply=1", "is not a section"),
    ],
)
def test_an_override_that_reaches_nothing_is_refused(override: str, complaint: str):
    with pytest.raises(RecipeError, match=complaint):
        parse_recipe(MINIMAL, [override])


def test_a_hook_point_that_is_not_captured_is_refused():
    with pytest.raises(RecipeError, match=r"SAE first uses hook point layers\.9.*layers\.1\.mlp, layers\.2"):
        parse_recipe(MINIMAL, ["sae.first.hook_point=layers.9"])
    with pytest.raises(RecipeError, match=r"layers\.9"):
        parse_recipe(MINIMAL, ["sae.first.target_hook_point=layers.9"])


def test_a_target_equal_to_the_input_makes_an_autoencoder():
    assert not parse_recipe(MINIMAL, ["sae.first.target_hook_point=layers.1.mlp"]).sae[0].is_transcoder
    assert parse_recipe(MINIMAL, ["sae.first.target_hook_point=layers.2"]).sae[0].is_transcoder


def test_two_saes_of_one_id_are_refused():
    with pytest.raises(RecipeError, match="share an id: first, first"):
        parse_recipe(MINIMAL.replace("second-1.5", "first"))


def test_every_sae_has_its_controls_from_another_seed_and_with_a_frozen_decoder():
    recipe = parse_recipe(MINIMAL)
    assert recipe.controls == ("seed", "frozen-decoder", "random", "pca")
    ids = ["first", "second-1.5", "first.seed", "first.frozen-decoder", "second-1.5.seed", "second-1.5.frozen-decoder"]
    assert [sae.id for sae in recipe.trained] == ids
    first, _, seed, frozen, *_ = recipe.trained
    assert seed == replace(first, id="first.seed", seed=seed.seed)
    assert seed.seed != first.seed
    assert frozen == replace(first, id="first.frozen-decoder", freeze_decoder=True)
    assert frozen.seed == first.seed


@pytest.mark.parametrize(
    ("controls", "trained"),
    [("[]", []), ('["pca", "random"]', []), ('["pca", "seed"]', ["first.seed", "second-1.5.seed"])],
)
def test_controls_can_be_chosen_and_turned_off(controls: str, trained: list[str]):
    recipe = parse_recipe(MINIMAL, [f"controls={controls}"])
    assert [sae.id for sae in recipe.trained[2:]] == trained
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_an_sae_whose_decoder_is_frozen_has_no_control_of_that_kind():
    recipe = parse_recipe(MINIMAL, ["sae.first.freeze_decoder=true"])
    assert list(recipe.trained_controls(recipe.sae[0])) == ["seed"]


@pytest.mark.parametrize(
    ("controls", "complaint"),
    [
        ('["sead"]', r"controls names 'sead'; there are seed, .*Did you mean 'seed'\?"),
        ('["frozen_decoder"]', r"Did you mean 'frozen-decoder'\?"),
        ('["quite another"]', r"there are seed, frozen-decoder, random, pca\.$"),
        ('["seed", "pca", "seed"]', "controls names one twice"),
        ('"seed"', "`controls` must be a list"),
    ],
)
def test_a_control_that_there_is_not_is_refused_with_the_nearest(controls: str, complaint: str):
    with pytest.raises(RecipeError, match=complaint):
        parse_recipe(MINIMAL, [f"controls={controls}"])


def test_an_sae_may_not_have_the_name_of_anothers_control():
    with pytest.raises(RecipeError, match=r"SAE first\.seed has the name of first's control 'seed'"):
        parse_recipe(MINIMAL.replace("second-1.5", "first.seed"))
    parse_recipe(MINIMAL.replace("second-1.5", "first.seed"), ["controls=[]"])


def test_controls_may_not_change_under_a_run():
    old, new = parse_recipe(MINIMAL), parse_recipe(MINIMAL, ["controls=[]"])
    with pytest.raises(RecipeError, match="was begun with controls = "):
        check_same_study(old, new, Path("runs/a"))


def test_a_live_stream_passes_once():
    parse_recipe(MINIMAL, ["activations.mode=stream"])
    with pytest.raises(RecipeError, match=r'train.epochs = 2 needs activations.mode = "store"'):
        parse_recipe(MINIMAL, ["activations.mode=stream", "train.epochs=2"])


@pytest.mark.parametrize("name", ["a/b", "", ".hidden"])
def test_a_name_that_cannot_be_a_directory_is_refused(name: str):
    with pytest.raises(RecipeError, match="cannot name a directory"):
        parse_recipe(MINIMAL, [f'name="{name}"'])


def test_a_rooms_own_complaint_comes_through():
    with pytest.raises(SAEError, match="exceeds n_latents = 256"):
        parse_recipe(MINIMAL, ["sae.first.k=257"])


@pytest.mark.parametrize(
    "text", [MINIMAL, *(path.read_text() for path in RECIPES)], ids=["minimal", *(p.stem for p in RECIPES)]
)
def test_reading_what_was_written_back_is_the_identity(text: str):
    recipe = parse_recipe(text)
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert changed_keys(recipe, parse_recipe(dump_recipe(recipe))) == {}


def test_awkward_texts_survive_being_written_back():
    recipe = parse_recipe(MINIMAL, ["model.id='a \"quoted\" \\ path/ü'"])
    assert recipe.model.id == 'a "quoted" \\ path/ü'
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_changed_keys_name_each_difference_with_both_values():
    old = parse_recipe(MINIMAL)
    new = parse_recipe(MINIMAL, ["train.epochs=3", "sae.first.k=16", "seed=1"])
    assert changed_keys(old, new) == {"train.epochs": (1, 3), "sae.first.k": (8, 16), "seed": (0, 1)}


def test_an_sae_that_was_added_changes_its_own_keys_alone():
    new = parse_recipe(MINIMAL + '\n[[sae]]\nid = "third"\nn_latents = 64\n')
    changed = changed_keys(parse_recipe(MINIMAL), new)
    assert changed["sae.third.n_latents"] == (None, 64)
    assert all(key.startswith("sae.third.") for key in changed)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_named_after_its_file_and_says_what_it_takes(path: Path):
    header = path.read_text().partition("\nschema")[0]
    assert load_recipe(path).name == path.stem
    for part in ("Produces", "Hardware", "Measured"):
        assert f"# {part} " in header


def test_the_founding_recipe_is_the_founding_config_to_the_letter():
    from sparsight.sae import founding_config

    recipe = load_recipe(next(path for path in RECIPES if path.stem == "qwen3.5-9b-layer16-mlp"))
    assert recipe.sae[0] == founding_config("founding", 16384, hook_point="layers.16.mlp")
    assert recipe.activations.n_tokens == 12_208 * 4096
    assert recipe.train.batch_tokens == 4096


def test_every_recipe_error_is_one_that_the_command_line_prints():
    assert issubclass(RecipeError, SparsightError)
