"""Plans: known figures reproduced, counts against Transformers' own models, and refusals that name what would fit."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3_5TextConfig, Qwen3MoeConfig

import sparsight.recipe.fit
import sparsight.recipe.sae_cost
import sparsight.sae.fused
from sparsight.artifact.devices import DEVICES, Device, measured, named_device, this_device
from sparsight.errors import HookPointError, ModelError, PlanError
from sparsight.lm import ModelConfig
from sparsight.lm.geometry import geometry_of, read_geometry
from sparsight.plan import Plan, check_fits, make_plan
from sparsight.recipe import Recipe, load_recipe
from sparsight.recipe.cost import recipe_cost
from sparsight.recipe.sae_cost import SAECost
from sparsight.recipe.schema import CONTROLS
from sparsight.sae import SAEConfig, SAETrainer, Workspace, screening
from sparsight.sae.kernels import cpu

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL_GPU = replace(DEVICES["rtx-3090"], name="rtx-3060", memory_bytes=12e9)


def load(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml", overrides)


def founding(*overrides: str) -> Recipe:
    return load("qwen3.5-9b-layer16-mlp", *overrides)


@pytest.fixture
def free_disk(monkeypatch: pytest.MonkeyPatch):
    """Sets how many bytes are free on the run's disk."""

    def set_free(n_bytes: float) -> None:
        monkeypatch.setattr(sparsight.recipe.fit, "_free_bytes", lambda path: float(n_bytes))

    set_free(1e15)
    return set_free


@pytest.fixture
def this_gpu(monkeypatch: pytest.MonkeyPatch):
    """Makes this machine's device one of the table's, with some host memory."""

    def set_device(device: Device, host_bytes: float = 1e12) -> None:
        here = replace(device, host_bytes=host_bytes)
        monkeypatch.setattr("sparsight.plan.this_device", lambda wanted="auto": here)

    return set_device


# --- the founding job's known figures


def test_the_founding_job_costs_7_5_gflop_a_token_and_375_pflop():
    plan = make_plan(founding(), device="rtx-4090")
    assert plan.fit.cost.forward_flops == pytest.approx(7.5e9, rel=0.02)
    assert plan.collection_flops == pytest.approx(375e15, rel=0.02)


def test_the_founding_job_takes_38_minutes_at_the_4090s_roof():
    assert make_plan(founding(), device="rtx-4090").roof_seconds == pytest.approx(38 * 60, rel=0.03)


def test_the_founding_sae_adds_one_to_four_minutes_at_the_roof():
    (sae,) = (sae for sae in make_plan(founding(), device="rtx-4090").fit.cost.saes if sae.id == "founding")
    minutes = sae.flops_done * 50_003_968 / DEVICES["rtx-4090"].flops["bfloat16"] / 60
    assert 1 < minutes < 4


def test_the_founding_recipe_peaks_at_22_gb_and_fits_a_24_gb_card():
    plan = make_plan(founding(), device="rtx-4090")
    assert plan.fit.device_bytes == pytest.approx(22e9, rel=0.03)
    plan.check()


def test_the_cut_founding_model_is_17_of_32_layers_without_head():
    geometry = read_geometry(ModelConfig(id="Qwen/Qwen3.5-9B"), ["layers.16.mlp"])
    assert (geometry.n_layers_read, geometry.n_layers) == (17, 32)
    assert geometry.parameters == pytest.approx(8.95e9, rel=0.001)
    assert geometry.parameters_read == geometry.embedding_parameters + sum(geometry.block_parameters[:17])


@pytest.mark.parametrize(
    ("name", "device"), [("qwen3.5-9b-many", "h100"), ("qwen3.5-9b-many", "a100-80gb"), ("demo", "cpu")]
)
def test_a_shipped_recipe_fits_the_device_that_its_header_names(name: str, device: str):
    make_plan(load(name), device=device).check()


# --- geometry


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2),
        GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2),
        Qwen3_5TextConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
    ],
    ids=["llama", "gpt2", "qwen3.5"],
)
def test_parameters_equal_those_of_the_model_itself(config):
    model = AutoModelForCausalLM.from_config(config)
    geometry = geometry_of(config)
    assert geometry.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert geometry.n_layers == config.num_hidden_layers


def test_forward_flops_equal_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config._attn_implementation = "eager"  # whole score matrices, as the geometry counts
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 40, dtype=torch.int64), use_cache=False)
    rotary = 2 * (8 // 2) * 40  # transformers multiplies frequencies and positions as matrices, once a batch
    counted = counter.get_total_flops() - rotary
    assert geometry_of(config).forward_flops(40, whole=True) * 80 == pytest.approx(counted, rel=0.01)


def test_a_token_passes_few_of_the_experts():
    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "moe_intermediate_size": 16, "num_experts": 8}
    some = geometry_of(Qwen3MoeConfig(**sizes, num_experts_per_tok=2))
    all_of_them = geometry_of(Qwen3MoeConfig(**sizes, num_experts_per_tok=8))
    assert all_of_them.block_flops[0] - some.block_flops[0] == 2 * 6 * 3 * 32 * 16
    assert some.block_parameters == all_of_them.block_parameters


def test_recurrent_layers_cost_the_same_at_any_context():
    geometry = read_geometry(ModelConfig(id="Qwen/Qwen3.5-9B"), ["layers.2"])
    assert geometry.forward_flops(256) == geometry.forward_flops(4096)


def test_widths_of_hook_points_come_from_their_modules():
    names = ["layers.1", "layers.1.mlp", "layers.1.mlp.gate_proj", "layers.1.mlp.down_proj.input", "layers.1.self_attn"]
    geometry = read_geometry(ModelConfig(id="smollm2-135m-instruct"), names)
    assert list(geometry.widths.values()) == [576, 576, 1536, 1536, 576]


def test_the_table_says_so_and_a_folder_counts_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path / "model")
    table = read_geometry(ModelConfig(id="smollm2-135m-instruct"))
    folder = read_geometry(ModelConfig(id=str(tmp_path / "model")))
    assert "table" in table.source
    assert "config" in folder.source
    assert replace(folder, source="") == replace(table, source="")
    assert table.parameters == 134_515_008


def test_an_unknown_hook_point_is_refused_before_anything_is_loaded():
    with pytest.raises(HookPointError, match=r"layers\.30"):
        make_plan(load("demo", 'activations.hook_points=["layers.30"]'), device="cpu")


def test_a_model_without_a_config_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(ModelError, match="cannot be planned for"):
        read_geometry(ModelConfig(id=str(tmp_path)))


# --- costs


def test_the_trainers_state_is_as_large_as_the_plan_says():
    small = ("sae.topk-8x.n_latents=64", "sae.topk-8x.k=8", "sae.topk-8x.precision=float32")
    recipe = load("demo", "controls=[]", *small)
    geometry = read_geometry(recipe.model, recipe.activations.hook_points)
    (cost,) = recipe_cost(recipe, geometry, "cpu").saes
    trainer = SAETrainer(SAEConfig(id="a", n_latents=64, k=8), 576, 576, total_steps=1, batch_tokens=8)
    weights = sum(weight.numel() for weight in trainer.weights.values())
    assert cost.parameters == weights
    saved = sum(
        tensor.numel() * 4 for name, tensor in trainer.state_dict().items() if name.startswith(("weights", "adam"))
    )
    assert cost.state_bytes == saved + 4 * weights  # and a gradient


def test_the_store_takes_as_many_bytes_as_the_plan_says(free_disk):
    sizes = ("activations.n_tokens=1_000_000", "activations.heldout_tokens=100_000")
    plan = make_plan(load("demo", *sizes), device="cpu")
    assert plan.fit.cost.disk["activations"] == 1_100_000 * (576 * 2 + 20 + 4)
    int8 = make_plan(load("demo", *sizes, "activations.dtype=int8"), device="cpu")
    assert int8.fit.cost.disk["activations"] == 1_100_000 * (576 + 4 + 20 + 4)


def test_a_stream_keeps_the_held_out_rows_alone():
    plan = make_plan(founding(), device="rtx-4090")
    assert plan.fit.cost.disk["activations"] == 100_000 * (4096 * 2 + 24)
    assert "ring of two windows" in plan.fit.cost.device["train"]


def demo_sae(kind: str, *overrides: str) -> SAECost:
    """The cost of the demo's SAE, d = 576, F = 4608, k = 32, with other values under `sae.topk-8x.`."""
    recipe = load("demo", *(f"sae.topk-8x.{override}" for override in overrides))
    return recipe_cost(recipe, read_geometry(recipe.model, recipe.activations.hook_points), kind).saes[0]


def test_topk_on_a_cpu_multiplies_the_encoder_and_the_active_entries_alone():
    on_cpu, on_cuda = demo_sae("cpu"), demo_sae("cuda")
    assert (on_cpu.form, on_cuda.form) == ("fused", "dense")
    assert on_cpu.flops_done == on_cpu.flops_least == 2 * 576 * 4608 + 8 * 576 * 32
    assert on_cuda.flops_dense == on_cpu.flops_dense == 16 * 576 * 4608
    assert on_cuda.flops_done == 10 * 576 * 4608 + 6 * 576 * 576  # AuxK looks at an eighth of the columns
    by_autograd = demo_sae("cuda", "precision=float32")
    assert by_autograd.form == "autograd"
    assert by_autograd.flops_done == by_autograd.flops_dense == 16 * 576 * 4608
    assert demo_sae("cpu", "precision=float32").flops_done == 8 * 576 * 4608 + 2 * 576 * 32


def test_relu_on_a_cpu_is_dense_in_its_fused_form():
    relu = demo_sae("cpu", "architecture=relu")
    assert relu.form == "fused"
    assert relu.flops_done == relu.flops_dense == 10 * 576 * 4608


@pytest.mark.parametrize("architecture", ["relu", "topk", "batchtopk", "matryoshka", "jumprelu", "gated"])
def test_a_step_by_autograd_does_the_flops_that_torch_counts(architecture: str):
    from torch.utils.flop_counter import FlopCounterMode

    sizes = {"architecture": architecture, "n_latents": 1024, "k": 8, "precision": "float32"}
    cost = demo_sae("cpu", *(f"{name}={value}" for name, value in sizes.items()))
    trainer = SAETrainer(SAEConfig(id="a", **sizes), 576, 576, total_steps=1, batch_tokens=256)
    x = torch.randn(256, 576)
    trainer.initialize(x)
    with FlopCounterMode(display=False) as counter:
        trainer.step(x, with_metrics=False)
    assert cost.form == "autograd"
    assert counter.get_total_flops() / 256 == pytest.approx(cost.flops_done, rel=0.01)


# 30 bytes a parameter, 5,313,600 of them; passes of 9,437,184 bytes over [1024, 4608]; 8 bytes an element of [1024, 576];
# three rows of 1,152 bytes for each of 32 active latents of 1,024 tokens
@pytest.mark.parametrize(
    ("architecture", "n_bytes"),
    [
        ("topk", 159_408_000 + 2 * 9_437_184 + 4_718_592 + 113_246_208),
        ("batchtopk", 159_408_000 + 4 * 9_437_184 + 4_718_592 + 113_246_208),
        ("relu", 159_408_000 + 11 * 9_437_184 + 4_718_592),
    ],
)
def test_a_fused_step_moves_weights_preactivations_rows_and_gathered_entries(architecture: str, n_bytes: int):
    assert demo_sae("cpu", f"architecture={architecture}").bytes_moved == n_bytes


def test_other_forms_move_40_bytes_a_parameter():
    assert demo_sae("cuda").bytes_moved == demo_sae("cpu", "architecture=gated").bytes_moved == 40 * 5_313_600


def test_a_fused_step_takes_one_buffer_of_preactivations_and_relu_two():
    topk, relu = demo_sae("cpu"), demo_sae("cpu", "architecture=relu")
    rows_and_gradients = 20 * 1024 * 576 + 2 * 5_313_600
    assert topk.step_bytes == rows_and_gradients + 9_437_184 + 22 * 1024 * 32
    assert relu.step_bytes == pytest.approx(rows_and_gradients + 2 * 9_437_184 + 22 * 1024 * 230.4)
    assert topk.state_bytes == relu.state_bytes == 14 * 5_313_600
    by_autograd = demo_sae("cpu", "architecture=gated")
    assert by_autograd.step_bytes == 8 * 9_437_184 + 24 * 1024 * 576
    assert by_autograd.state_bytes == 18 * 5_313_600


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "relu"])
def test_a_fused_steps_scratch_is_as_large_as_the_plan_says(architecture: str):
    if not cpu.available():
        pytest.skip("no compiler")
    cost = demo_sae("cpu", f"architecture={architecture}")
    space = Workspace()
    config = SAEConfig(id="a", architecture=architecture, n_latents=4608, k=32, lr=1e-6)
    trainer = SAETrainer(config, 576, 576, total_steps=2, batch_tokens=1024, space=space)
    x = torch.randn(1024, 576)
    trainer.initialize(x)
    trainer.step(x, with_metrics=False)
    if architecture == "relu":  # half of its latents are active, then about a twentieth
        with torch.no_grad():
            trainer.weights["b_enc"].fill_(-1.7 * trainer.cfg.decoder_init_norm)
        trainer.step(x, with_metrics=False)
        assert ("sorted values", torch.bfloat16) in space._buffers
    held = sum(buffer.nbytes for buffer in space._buffers.values())
    metrics_and_residual = 16 * 1024 * 576  # neither is needed in these steps
    assert held + metrics_and_residual == pytest.approx(cost.step_bytes, rel=0.05)


def test_relu_turns_sparse_where_its_step_does():
    assert sparsight.recipe.sae_cost._SPARSE_SHARE == sparsight.sae.fused._SPARSE_SHARE


@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [
        # 1024 * 5,455,872 FLOPs at 0.768 TFLOP/s and 0.09 of them again at float32's, the same; 296,247,168 bytes at 0.7 of 51.2 GB/s
        ((), 0.0079292 + 0.0082658),
        # 1024 * 26,542,080 FLOPs, 267,935,616 bytes
        (("architecture=relu",), 0.0385745 + 0.0074759),
        # 1024 * 16 * 576 * 4608 FLOPs, 0.6 of them again, 212,544,000 bytes
        (("architecture=gated",), 0.0905969 + 0.0059304),
        # 1024 * 21,270,528 FLOPs at 0.65, 212,544,000 bytes
        (("precision=float32",), 0.0436319 + 0.0059304),
    ],
    ids=["fused topk", "fused relu", "gated by autograd", "float32 by autograd"],
)
def test_a_step_on_the_tables_cpu_takes_what_hand_computation_gives(overrides: tuple[str, ...], seconds: float):
    sizes = (
        "controls=[]",
        "activations.n_tokens=1024",
        "train.epochs=1",
        *(f"sae.topk-8x.{override}" for override in overrides),
    )
    assert make_plan(load("demo", *sizes), device="cpu").seconds["train"] == pytest.approx(seconds, rel=1e-4)


def test_controls_are_charged_like_the_saes_that_they_are():
    alone, all_four = (make_plan(load("demo", *more), device="cpu") for more in (("controls=[]",), ()))
    costs = alone.fit.cost, all_four.fit.cost
    assert [len(cost.saes) for cost in costs] == [1, 3]
    assert all_four.seconds["train"] == pytest.approx(3 * alone.seconds["train"])
    assert all_four.seconds["collect"] == alone.seconds["collect"]
    assert costs[1].device["train"]["SAEs"] == 3 * costs[0].device["train"]["SAEs"]
    assert costs[1].device["evaluate"]["SAE and controls"] == 4 * costs[0].device["evaluate"]["SAE and controls"]
    for part in ("saes", "checkpoints"):
        assert costs[1].disk[part] == 3 * costs[0].disk[part]
    assert costs[1].disk["features"] == costs[0].disk["features"]
    forwards = [plan.fit.cost.work["evaluate"].flops["forward", "bfloat16"] for plan in (alone, all_four)]
    assert forwards[1] / forwards[0] == pytest.approx(8 / 4)  # clean, zero, mean and the SAE; three more SAEs and PCA


def test_a_second_seed_is_charged_where_features_are_indexed(monkeypatch):
    monkeypatch.setattr(screening, "_multiplies_bfloat16", lambda: True)
    pairs, dense = 100_000 * 32**2 * 64, 2.0 * 100_000 * 4608**2
    for kind in ("cpu", "cuda"):
        recipes = [
            load("demo", "activations.heldout_tokens=100000", f"controls={names}") for names in ('["pca"]', '["seed"]')
        ]
        geometry = read_geometry(recipes[0].model, recipes[0].activations.hook_points)
        without, second = (recipe_cost(recipe, geometry, kind) for recipe in recipes)
        work = [cost.work["index"] for cost in (without, second)]
        encoding = 2.0 * 100_000 * 576 * 4608
        more = work[1].flops["forward", "float32"] - work[0].flops["forward", "float32"]
        assert more == pytest.approx(encoding + (dense if kind == "cuda" else 0))
        assert work[1].bytes_moved - work[0].bytes_moved == (0 if kind == "cuda" else pairs)
        assert without.device["index"]["seed partners"] == 0
        assert second.device["index"]["seed partners"] == 4 * 4608**2
        copies = [cost.device["index"]["encoders to screen with"] for cost in (without, second)]
        assert copies == [n * 6 * 4608 * 576 * (kind == "cpu") for n in (1, 2)]  # float32 by rows, and bfloat16


def test_the_text_says_what_controls_add():
    text = make_plan(load("demo"), device="cpu").render()
    assert "seed, frozen-decoder, random, pca: 2 more SAEs trained; included below: " in text
    assert "topk-8x.seed" not in text
    (only,) = make_plan(load("demo"), device="cpu").without_controls.fit.recipe.trained
    assert only.id == "topk-8x"


def test_dropping_controls_is_offered_before_a_smaller_dictionary():
    message = refusal(make_plan(founding(f"controls={list(CONTROLS)}"), device="rtx-4090"))
    assert 'controls = ["random", "pca"]; sae.founding.n_latents' in message
    make_plan(founding('controls=["random", "pca"]'), device="rtx-4090").check()


def test_more_tokens_and_passes_take_proportionally_longer():
    def seconds(*overrides: str) -> dict[str, float]:
        return make_plan(load("demo", *overrides), device="cpu").seconds

    once, twice = (
        seconds("activations.heldout_tokens=1", "activations.n_tokens=1_000_000"),
        seconds("activations.heldout_tokens=1", "activations.n_tokens=2_000_000"),
    )
    assert twice["collect"] / once["collect"] == pytest.approx(2, rel=1e-3)
    assert seconds("train.epochs=6")["train"] / seconds("train.epochs=3")["train"] == pytest.approx(2, rel=0.01)


# --- devices


def test_an_unknown_device_is_refused_with_the_nearest_name():
    with pytest.raises(PlanError, match=r"Did you mean rtx-4090\?"):
        named_device("rtx4090")


def test_this_machines_rate_is_measured_in_under_a_second():
    here = this_device("cpu")
    started = time.perf_counter()
    rates = measured(here, ["float32"], sides=(256, 512)).flops
    assert time.perf_counter() - started < 1.0
    assert 1e8 < rates["float32"] < 1e15
    assert here.memory_bytes > 1e8


# --- what cannot fit


def refusal(plan: Plan) -> str:
    with pytest.raises(PlanError) as caught:
        plan.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_founding_recipe_in_float32_on_12_gb_is_refused_with_what_helps_and_who_could():
    message = refusal(make_plan(founding("model.dtype=float32"), device=SMALL_GPU))
    assert "evaluate needs 42" in message or "evaluate needs 41" in message
    assert "rtx-3060 has 12.0 GB" in message
    assert 'model.dtype = "bfloat16"' in message
    assert "A device with more memory would do: rtx-4090" in message


def test_the_founding_recipe_in_float32_on_a_24_gb_card_fits_in_bfloat16():
    message = refusal(make_plan(founding("model.dtype=float32"), device="rtx-4090"))
    assert 'Any one of these would fit: model.dtype = "bfloat16"' in message


def test_a_window_too_large_for_the_card_names_a_smaller_one_that_fits():
    message = refusal(make_plan(founding("activations.window_tokens=1_048_576"), device="rtx-4090"))
    assert "ring of two windows" in message
    assert "activations.window_tokens = 262144" in message
    make_plan(founding("activations.window_tokens=262144"), device="rtx-4090").check()


def test_several_changes_are_named_together_when_none_suffices_alone():
    oversized = ("activations.window_tokens=1_048_576", "evaluate.forward_tokens=65_536")
    message = refusal(make_plan(founding(*oversized), device="rtx-4090"))
    assert "Together these would fit: activations.window_tokens = " in message
    changes = message.partition("would fit: ")[2].rstrip(".").split(", ")
    make_plan(founding(*oversized, *changes), device="rtx-4090").check()


def test_a_store_too_large_for_the_disk_names_streaming_int8_and_fewer_tokens(free_disk, this_gpu):
    this_gpu(DEVICES["rtx-4090"])
    free_disk(300e9)
    recipe = founding("activations.mode=store")
    with pytest.raises(PlanError, match=r"needs 42.* GB of disk, 300\.0 GB are free") as caught:
        check_fits(recipe, Path("runs/founding"))
    message = str(caught.value)
    assert 'activations.mode = "stream"' in message
    assert 'activations.dtype = "int8"' in message
    assert "activations.n_tokens = 35000000" in message
    for change in ("activations.mode=stream", "activations.dtype=int8", "activations.n_tokens=35000000"):
        check_fits(founding("activations.mode=store", change), Path("runs/founding"))


def test_streaming_instead_of_several_passes_says_that_it_passes_once(free_disk, this_gpu):
    this_gpu(DEVICES["rtx-4090"])
    free_disk(100e9)
    with pytest.raises(PlanError, match=r'activations.mode = "stream" and train.epochs = 1'):
        check_fits(founding("activations.mode=store", "train.epochs=2"), Path("runs/founding"))


def test_a_host_too_small_to_load_the_model_is_refused(free_disk, this_gpu):
    this_gpu(DEVICES["rtx-4090"], host_bytes=16e9)
    with pytest.raises(PlanError, match=r"of host memory .*whole model while loading"):
        check_fits(founding(), Path("runs/founding"))


def test_files_of_a_stopped_run_count_as_written(tmp_path: Path, free_disk):
    run = tmp_path / "run"
    (run / "activations").mkdir(parents=True)
    with (run / "activations" / "shard").open("wb") as file:
        file.truncate(1_000_000_000)  # sparse: takes no disk
    free_disk(1e9)
    with pytest.raises(PlanError):
        check_fits(load("demo"), tmp_path / "another")
    check_fits(load("demo"), run)


def test_the_disk_of_the_nearest_existing_parent_is_asked(tmp_path: Path):
    plan = make_plan(load("demo"), run_path=tmp_path / "not" / "yet" / "there")
    assert plan.fit.disk_free is not None
    assert plan.fit.disk_free > 0
    assert not (tmp_path / "not").exists()


def test_a_named_device_does_not_judge_this_machines_disk(free_disk):
    free_disk(0)
    make_plan(load("demo"), device="cpu").check()


def test_checking_the_demo_is_quick_and_measures_nothing(tmp_path: Path, free_disk):
    check_fits(load("demo"), tmp_path / "run")
    started = time.perf_counter()
    plan = check_fits(load("demo"), tmp_path / "run")
    assert time.perf_counter() - started < 1.5
    assert plan.seconds == {}
    assert "measured now" not in plan.render()


# --- the text


def test_the_text_names_tokens_layers_flops_disk_memory_and_time():
    text = make_plan(founding(), device="rtx-4090").render()
    for part in (
        "Estimates",
        "rtx-4090, 24.0 GB",
        "17 of 32 layers",
        "built-in table",
        "50,003,968 to train on",
        "12,208 steps of 4,096",
        "7.41 GFLOP a token forward, 371 PFLOP",
        "evaluate  22.1 GB",
        "37 min",
        "not known here",
    ):
        assert part in text


def test_the_text_marks_the_stage_that_does_not_fit():
    text = make_plan(founding(), device=SMALL_GPU).render()
    marked = [line for line in text.splitlines() if "DOES NOT FIT" in line]
    assert [line.split()[0] for line in marked] == ["train", "evaluate", "index"]
