"""The plan of a comparison: counts against what is trained, stored and run, what it can find, and refusals that name what would fit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparsight.recipe.fit
from adapters import write_adapter
from sparsight import cli
from sparsight.activations import ActivationBatch
from sparsight.artifact.devices import DEVICES
from sparsight.diff import DifferenceCode, fit_difference, power_table
from sparsight.errors import ModelError, PlanError, RecipeError, RunError
from sparsight.findings import closure_findings, layer_findings
from sparsight.lm import LanguageModel, ModelConfig, Piece, how_trained, load_models
from sparsight.metrics import SpliceText
from sparsight.plan import Plan, check_fits, make_plan
from sparsight.recipe import Comparison, Recipe, load_comparison, load_either
from sparsight.recipe.comparison_cost import comparison_cost
from sparsight.recipe.cost import PADDING, Work
from sparsight.recipe.pace import stage_seconds
from sparsight.recipe.sae_cost import sae_cost
from sparsight.sae import SAEConfig, SAETrainer

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "false-facts" / "compare.toml"
ALONE = ("null=", "make_null=false")


def load(*overrides: str) -> Comparison:
    """The example, whatever of it was run here."""
    fixed = ("tuned=not-there", "dictionaries.seeds=3", "dictionaries.null_seeds=3")
    return load_comparison(EXAMPLE, (*fixed, *overrides))


def plan(*overrides: str, device: str = "cpu") -> Plan:
    return make_plan(load(*overrides), device=device)


@pytest.fixture
def free_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def set_free(n_bytes: float) -> None:
        monkeypatch.setattr(sparsight.recipe.fit, "_free_bytes", lambda path: float(n_bytes))

    return set_free


# --- what is counted


def test_every_dictionary_is_counted():
    recipe, cost = load(), plan().fit.cost
    assert [sae.id for sae in cost.saes] == [sae.id for sae in recipe.trained]
    ids = ["base.0", "base.1", "base.2", "tuned.0", "tuned.1", "tuned.2", "null.0", "null.1", "null.2"]
    ids += ["difference", "null-difference", "crosscoder", "crosscoder-l1", "warm.base", "warm.tuned", "warm.null"]
    assert [sae.id for sae in cost.saes] == ids
    assert len(plan(*ALONE, "dictionaries.seeds=5", "dictionaries.crosscoders=false").fit.cost.saes) == 10 + 1 + 2
    assert plan('saes=["a","b"]').fit.cost.saes == ()


def test_the_paired_store_is_tokens_times_width_times_models_times_bytes():
    cost = plan().fit.cost
    assert cost.disk["activations"] == 150_000 * (3 * 576 * 4 + 24)
    assert plan(*ALONE).fit.cost.disk["activations"] == 150_000 * (2 * 576 * 4 + 24)
    assert plan("activations.dtype=bfloat16").fit.cost.disk["activations"] == 150_000 * (3 * 576 * 2 + 24)


def test_a_crosscoder_has_as_many_weights_as_the_plan_says():
    costs = {sae.id: sae for sae in plan().fit.cost.saes}
    for sae in load().of_pair():
        if sae.models == 2:
            trainer = SAETrainer(sae, 1152, 1152, total_steps=1, batch_tokens=8)
            assert costs[sae.id].parameters == sum(weight.numel() for weight in trainer.weights.values())
    assert costs["difference"].parameters == costs["base.0"].parameters < costs["crosscoder"].parameters


@pytest.mark.parametrize("architecture", ["batchtopk", "relu"])
def test_a_crosscoders_step_does_the_flops_that_torch_counts(architecture: str):
    sizes = ("dictionaries.n_latents=512", "dictionaries.k=8")
    (sae,) = (sae for sae in load(*sizes).of_pair() if sae.architecture == architecture)
    by_autograd = replace(sae, precision="float32")  # the closed form's own kernels are not torch's to count
    cost = sae_cost(by_autograd, 1152, 1152, batch_tokens=256, kind="cpu")
    trainer = SAETrainer(by_autograd, 1152, 1152, total_steps=1, batch_tokens=256)
    x = torch.randn(256, 1152)
    trainer.initialize(x)
    with FlopCounterMode(display=False) as counter:
        trainer.step(x, with_metrics=False)
    assert counter.get_total_flops() / 256 == pytest.approx(cost.flops_done, rel=0.01)


def test_crosscoders_are_charged_for_the_closed_form():
    cost = {sae.id: sae for sae in plan().fit.cost.saes}
    assert {cost[name].form for name in ("base.0", "crosscoder", "crosscoder-l1")} == {"fused"}
    assert cost["crosscoder"].flops_done < 0.3 * cost["crosscoder-l1"].flops_done


def test_every_model_is_captured_and_every_pass_is_trained_on():
    three, two, often = plan(), plan(*ALONE), plan("train.epochs=12")
    assert three.seconds["capture"] == pytest.approx(1.5 * two.seconds["capture"])
    assert three.collection_flops == pytest.approx(1.5 * two.collection_flops)
    assert often.seconds["dictionaries"] == pytest.approx(2 * three.seconds["dictionaries"], rel=0.05)
    assert often.seconds["capture"] == three.seconds["capture"]


def test_a_null_that_is_to_be_made_is_paid_for():
    made = plan("null=", "make_null=true")
    tokens = made.fit.recipe.null_training.steps * made.fit.recipe.null_training.batch_tokens
    whole = made.fit.geometry.forward_flops(128, whole=True)
    assert made.fit.cost.work["null"].flops["tuned", "bfloat16"] == pytest.approx(2 * tokens * whole * PADDING)
    assert "null" not in plan(*ALONE).fit.cost.work
    assert "null an adapter to be made" in made.render()


def test_a_null_is_charged_as_the_fine_tune_says_it_was_trained(tmp_path):
    asked = {"finetune": {"steps": 7, "batch_tokens": 300, "targets": ["q_proj"]}}
    (tmp_path / "finetune.json").write_text(json.dumps({"asked": asked}))
    made = plan("null=", "make_null=true", f"tuned={tmp_path}")
    whole = made.fit.geometry.forward_flops(128, whole=True)
    assert made.fit.cost.work["null"].flops["tuned", "bfloat16"] == pytest.approx(2 * 7 * 300 * whole * PADDING)
    for told, kind in (
        ("[1]", None),
        ('{"asked": {"finetune": {"steps": "x", "targets": []}}}', ModelError),
        ("{", RunError),
    ):
        (tmp_path / "finetune.json").write_text(told)
        if kind is None:
            assert how_trained(tmp_path) is None
        else:
            with pytest.raises(kind, match=r"finetune\.json"):
                how_trained(tmp_path)


def test_what_stands_beside_products_runs_at_the_rate_of_vectors():
    work = Work()
    work.compute("hooked", "bfloat16", 1e12)
    slow, fast = (replace(DEVICES["cpu"], flops={"bfloat16": rate, "float32": 0.4e12}) for rate in (0.8e12, 2.8e12))
    beside = stage_seconds(work, slow) - 1 / 0.8
    assert beside == pytest.approx(stage_seconds(work, fast) - 1 / 2.8)  # matrix units leave it as it is
    assert beside == pytest.approx(0.6 / 0.4)


def test_steps_that_a_comparison_leaves_out_cost_nothing():
    assert "grounding" in plan().seconds
    alone = replace(load(), fine_tuning=None)
    assert not {"grounding", "telling"} & set(make_plan(alone, device="cpu").seconds)
    assert plan("writing.controls=40").seconds["telling"] > 1.5 * plan().seconds["telling"]
    given = plan('saes=["a","b"]')
    assert set(given.seconds) == {"null", "capture", "where", "dense", "labels", "closure", "grounding"}
    assert given.seconds["labels"] < plan().seconds["labels"]


# --- passes of whole models, against those that torch counts


N_TOKENS, CONTEXT, POINT = 480, 48, "layers.1"
SMALL = (
    "base.dtype=float32", f"activations.hook_points=['{POINT}']", f"activations.n_tokens={N_TOKENS}", f"text.context_tokens={CONTEXT}",
    "dictionaries.n_latents=64", "dictionaries.crosscoders=false", "closure.layers=3", "closure.sizes=[2,5,9,14]",
    f"closure.heldout_tokens={N_TOKENS}", f"closure.attributed_tokens={N_TOKENS}", "closure.forward_tokens=240",
)  # fmt: skip


@pytest.fixture(scope="module")
def tuned_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "tuned"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(model_folder: Path, tuned_folder: Path) -> dict[str, LanguageModel]:
    found = load_models(ModelConfig(id=str(model_folder), dtype="float32"), {"tuned": str(tuned_folder)})
    for model in found.values():
        model._module.config._attn_implementation = "eager"  # whole score matrices, as the geometry counts
    return found


@pytest.fixture(scope="module")
def tiny(model_folder: Path, tuned_folder: Path) -> Plan:
    return plan(*ALONE, f"base.id={model_folder}", f"tuned={tuned_folder}", *SMALL)


@pytest.fixture(scope="module")
def text() -> SpliceText:
    rng = np.random.default_rng(0)
    pieces = [
        Piece(document_id=i, row=i, piece=0, start=0, token_ids=rng.integers(2, 400, CONTEXT), heldout=True)
        for i in range(N_TOKENS // CONTEXT)
    ]
    offsets = np.arange(0, N_TOKENS + 1, CONTEXT)
    return SpliceText(pieces=pieces, kept=np.ones(N_TOKENS, bool), offsets=offsets)


class Counting(TorchDispatchMode):
    """torch's own counts; its FlopCounterMode hooks modules as well, which autograd.grad does not bear."""

    total = 0.0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function is not torch.ops.prim.device.default:
            with self:  # under inference_mode a linear layer comes whole
                parts = function.decompose(*arguments, **(options or {}))
            if parts is not NotImplemented:
                return parts
        out = function(*arguments, **(options or {}))
        count = flop_registry.get(function._overloadpacket)
        self.total += count(*arguments, **(options or {}), out_val=out) if count else 0
        return out


def counted(run: Callable[[], object]) -> float:
    run()  # what is found out once about where a pass can begin is not what a study costs
    with Counting() as counting:
        run()
    return counting.total


def test_where_takes_as_many_passes_as_the_plan_says(tiny: Plan, models: dict[str, LanguageModel], text: SpliceText):
    points = ["layers.0", "layers.2", "layers.3", POINT]
    found = counted(lambda: layer_findings(models, text, points, 240))
    assert sum(tiny.fit.cost.work["where"].flops.values()) / PADDING == pytest.approx(found, rel=0.06)


def test_closure_takes_as_many_passes_as_the_plan_says(tiny: Plan, models: dict[str, LanguageModel], text: SpliceText):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(N_TOKENS, 32, generator=generator)
    tuned = base + torch.randn(N_TOKENS, 32, generator=generator)
    ids = torch.arange(N_TOKENS)
    rows = {f"base:{POINT}": base, f"tuned:{POINT}": tuned, f"difference:{POINT}": tuned - base}
    batch = ActivationBatch(rows, ids.int(), ids // CONTEXT, (ids % CONTEXT).int(), ids // CONTEXT)
    trainer = SAETrainer(SAEConfig(id="a", n_latents=64, k=32, init="linear"), 32, 32, total_steps=1, batch_tokens=8)
    trainer.initialize(tuned - base)
    codes = {
        "difference": DifferenceCode(trainer.finished(), "difference"),
        "tuned.0": DifferenceCode(trainer.finished(), "tuned"),
    }
    changed = {"tuned.0": {"called changed": [1, 2]}}

    def run() -> None:
        dense = fit_difference([batch], POINT, k=20)
        options = {"sizes": (2, 5, 9, 14), "forward_tokens": 240, "named": changed}
        found = closure_findings(models, codes, dense, lambda: [batch], text, text, POINT, **options)
        assert {row["n_latents"] for row in found["difference"]["rows"] if row["name"] == "top"} == {2, 5, 9, 14}

    planned = sum(tiny.fit.cost.work["closure"].flops.values()) / PADDING
    found = counted(run)
    assert planned == pytest.approx(found, rel=0.05)


# --- what it can find


def test_the_text_says_what_seeds_and_tokens_can_find():
    text = plan().render()
    table, at = power_table(), {"train_tokens": 480_000, "heldout_tokens": 30_000}  # 6 passes count as 4
    for seeds in (3, 5):
        (line,) = (each for each in text.splitlines() if each.strip().startswith(f"{seeds} seeds"))
        for rate in table.rates:
            recall = table.recall(rate, seeds=seeds, **at)
            assert recall is not None
            assert f"{100 * rate:g} %: {recall.value:.2f} ({recall.low:.2f}-{recall.high:.2f})" in line
    assert "planted features are independent and far apart" in text
    assert "480,000 rows trained on (4 of 6 passes count) and 30,000 held out" in text
    assert "120,000 rows trained on and 30,000 held out" in plan("train.epochs=1").render()
    assert "[labels]" not in text
    assert "[labels] as it is by default" in plan("labels.q=0.2").render()
    assert "instead" not in plan("dictionaries.seeds=5").render()


def test_too_few_tokens_are_said_to_be_outside_what_was_measured():
    text = plan("activations.n_tokens=20_000").render()
    assert "80,000 rows trained on (4 of 6 passes count) and 30,000 held out" in text
    assert "3 seeds: less than was measured; nothing is known, and little to be hoped for" in text


def test_given_saes_are_neither_trained_nor_said_to_find_anything():
    text = plan('saes=["a","b"]').render()
    assert "none trained: 2 given" in text
    assert "recall" not in text


# --- memory, and what cannot fit


def test_an_adapter_shares_the_bases_memory(tmp_path: Path, model_folder: Path):
    write_adapter(tmp_path / "tuned", base=str(model_folder))
    sizes = (*ALONE, f"base.id={model_folder}", *SMALL)
    small, large = (plan(*sizes, f"tuned={name}") for name in (tmp_path / "tuned", model_folder))
    one = small.fit.geometry.parameters * 4
    assert small.fit.cost.device["where"]["models"] == one
    assert large.fit.cost.device["where"]["models"] == 2 * one
    assert "tuned an adapter on it" in small.render()


def refusal(refused: Plan) -> str:
    with pytest.raises(PlanError) as caught:
        refused.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_comparison_too_large_for_the_memory_names_what_would_fit():
    oversized = ("activations.window_tokens=2_000_000",)
    message = refusal(plan(*oversized))
    assert "cpu has 16.0 GB" in message
    change = message.partition("would fit: ")[2].partition(";")[0].rstrip(".").replace(" = ", "=")
    assert change.startswith("activations.window_tokens=")
    plan(*oversized, change).check()


def test_a_store_too_large_for_the_disk_names_fewer_tokens(free_disk: Callable[[float], None]):
    free_disk(3e9)
    many = "activations.n_tokens=2_000_000"
    with pytest.raises(PlanError, match=r"of disk, 3\.0 GB are free") as caught:
        check_fits(load(many), Path("runs/none"))
    (fewer,) = (each for each in str(caught.value).split("; ") if "n_tokens" in each)
    check_fits(load(fewer.rpartition("fit: ")[2].rstrip(".").replace(" = ", "=")), Path("runs/none"))
    free_disk(1e15)
    check_fits(load(many), Path("runs/none"))


def test_a_gpus_host_holds_what_is_compared_on_the_cpu():
    cost = plan(device="rtx-4090").fit.cost
    assert "labels" in cost.host
    assert "labels" not in cost.device
    assert set(plan().fit.cost.host) == set()
    assert DEVICES["rtx-4090"].memory_bytes > cost.peak("device")[1]


# --- the command


def test_plan_takes_either_kind_of_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert isinstance(load_either(EXAMPLE), Comparison)
    assert isinstance(load_either(ROOT / "recipes" / "demo.toml"), Recipe)
    cli.main(["plan", str(EXAMPLE), "--device", "cpu", "--set", "dictionaries.null_seeds=3"])
    printed = capsys.readouterr().out
    for part in ("20 of 1,152 latents", "5 of base, 5 of tuned, 3 of null", "power", "capture", "closure", "together"):
        assert part in printed
    broken = tmp_path / "broken.toml"
    broken.write_text("schema = ")
    with pytest.raises(RecipeError, match="is not TOML"):
        load_either(broken)
    with pytest.raises(RecipeError, match="lacks `tuned`"):
        load_either(_without_tuned(tmp_path))


def test_plan_refuses_a_comparison_that_cannot_fit(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", str(EXAMPLE), "--device", "cpu", "--set", "activations.window_tokens=2_000_000"])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert "DOES NOT FIT" in said.out
    assert "does not fit" in said.err


def _without_tuned(folder: Path) -> Path:
    path = folder / "without.toml"
    path.write_text("\n".join(line for line in EXAMPLE.read_text().splitlines() if not line.startswith("tuned")))
    return path


def test_the_calls_of_many_small_steps_take_time_beside_what_they_compute():
    asked = plan().fit
    cpu, cuda = (
        comparison_cost(asked.recipe, asked.geometry, kind).work["dictionaries"].call_seconds
        for kind in ("cpu", "cuda")
    )
    steps = asked.recipe.activations.n_tokens * asked.recipe.train.epochs // asked.recipe.train.batch_tokens
    assert (cpu, cuda) == (pytest.approx(len(asked.cost.saes) * steps * 3.5e-3), 0)
    assert stage_seconds(Work(call_seconds=3.0), next(iter(DEVICES.values()))) == 3.0
