"""The house: layers, exported names, import time, and what the documentation promises."""

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import sparsight
from sparsight import diff, features, grounding, labels, lm, metrics, recipe, sae, steering
from sparsight.activations import CaptureConfig
from sparsight.publication import PublishConfig

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "sparsight"
MODULES = sorted(path for path in SOURCE.rglob("*.py"))


def test_layers_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_importing_the_package_is_quick_and_imports_no_torch() -> None:
    code = "import sys, time; t = time.perf_counter(); import sparsight; print(time.perf_counter() - t, 'torch' in sys.modules)"
    seconds, torch_there = min(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(3)
    )
    assert float(seconds) < 0.2
    assert torch_there == "False"


def test_the_command_line_answers_without_torch() -> None:
    code = (
        "import sys\ntry:\n    import sparsight.cli as c; c.main(['--help'])\nexcept SystemExit: pass\n"
        "print('TORCH' if 'torch' in sys.modules else 'LIGHT')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("LIGHT")


def test_every_exported_name_exists() -> None:
    for name in sparsight.__all__:
        assert getattr(sparsight, name) is not None
    for path in MODULES:
        module = importlib.import_module(
            ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        )
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{module.__name__}.{name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_public_things_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    exported = {
        element.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "id", "") == "__all__"
        and isinstance(node.value, ast.List)
        for element in node.value.elts
        if isinstance(element, ast.Constant)
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in exported:
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    assert ast.get_docstring(method), f"{path.name}: {node.name}.{method.name} has no docstring"


@pytest.mark.parametrize(
    "config",
    [
        lm.ModelConfig,
        lm.TextConfig,
        lm.FinetuneConfig,
        CaptureConfig,
        sae.SAEConfig,
        recipe.TrainConfig,
        metrics.EvaluateConfig,
        metrics.ProbingConfig,
        diff.LabelConfig,
        recipe.DictionaryConfig,
        recipe.ClosureConfig,
        recipe.WritingConfig,
        grounding.ArrangementConfig,
        grounding.URRConfig,
        grounding.DetailConfig,
        grounding.WriteConfig,
        grounding.ScoreConfig,
        grounding.CausalConfig,
        features.IndexConfig,
        labels.ExplainConfig,
        labels.EndpointConfig,
        steering.SteerConfig,
        PublishConfig,
    ],
)
def test_every_field_of_a_config_has_a_docstring(config: type) -> None:
    path = Path(sys.modules[config.__module__].__file__ or "")
    tree = next(
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == config.__name__
    )
    documented = {
        before.target.id
        for before, after in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
    }
    assert documented == {field.name for field in dataclasses.fields(config)}


def test_the_readmes_commands_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = set(re.findall(r"^sparsight (\w+)", readme, re.MULTILINE)) | set(re.findall(r"`sparsight (\w+)", readme))
    from sparsight.cli import _COMMANDS

    assert commands
    assert commands <= {command.__name__.lower() for command in _COMMANDS}
    for name in re.findall(r"recipes/([\w.-]+\.toml)", readme):
        assert (ROOT / "recipes" / name).exists()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= targets


def test_the_readmes_python_uses_names_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    compile(code, "README.md", "exec")
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("import")]) <= 13
    for name in re.findall(r"\bss\.(\w+)", code):
        assert hasattr(sparsight, name)


def test_the_readmes_python_runs(
    tmp_path: Path, model_folder: Path, text_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    small = {
        '"smollm2-135m-instruct"': f'"{model_folder}", dtype="float32"',
        'builtin="probe-text"': f'files=("{text_path}",), context_tokens=64',
        "layers.15.mlp": "layers.2.mlp",
        "n_tokens=200_000, heldout_tokens=20_000": "n_tokens=3000, heldout_tokens=500",
        "n_latents=4608, k=32": "n_latents=64, k=4",
        "1024": "100",
        "runs/mine": str(tmp_path),
    }
    for large, replacement in small.items():
        assert large in code
        code = code.replace(large, replacement)
    exec(code, {})
    printed = capsys.readouterr().out
    assert "FVU" in printed
    assert "64 latents at layers.2.mlp" in printed


def test_the_readmes_tree_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"^  (\w+(?:\.py|/)) ", readme, re.MULTILINE))
    there = {path.name + ("/" if path.is_dir() else "") for path in SOURCE.iterdir()} - {
        "__pycache__/",
        "__init__.py",
        "py.typed",
    }
    assert listed == there


def test_dependencies_say_why_they_are_there() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in tomllib.loads(text)["project"]["dependencies"]:
        line = next(line for line in text.splitlines() if f'"{requirement}"' in line)
        assert "#" in line, requirement


def test_starting_the_command_line_is_quick() -> None:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sparsight.cli", "--help"], capture_output=True, check=True)
    assert time.perf_counter() - started < 5
