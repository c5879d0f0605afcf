"""Others' formats: round trips, SAEs that the tools themselves made and computed with, and hostile files."""

import json
import pickle
import random
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsight.cli import main
from sparsight.convert import convert_sae, load_sae
from sparsight.errors import FormatError, RunError, SAEError, SparsightError
from sparsight.sae import ARCHITECTURES, SAEConfig, SparseAutoencoder
from sparsight.sae.exchange import FORMATS, read_any, recognised_format, write_as
from sparsight.sae.exchange.saelens import tensor_shapes

D, F, K = 6, 20, 3
GOLDEN = Path(__file__).parent / "golden" / "exchange"
SUFFIX = {"qwen-scope": "layer7_k3.sae.pt", "founding": "a.pt"}
HELD = {
    "saelens": set(ARCHITECTURES),
    "sparsify": {"topk"},
    "dictionary-learning": set(ARCHITECTURES),
    "qwen-scope": {"topk"},
    "founding": {"relu"},
}


def make(architecture, **changes):
    cfg = SAEConfig(id="a", architecture=architecture, n_latents=F, k=K, hook_point="layers.7", **changes)
    generator = torch.Generator().manual_seed(4)
    shapes = tensor_shapes(cfg.inference, D, F, D)
    tensors = {name: torch.rand(shape, generator=generator) - 0.3 for name, shape in shapes.items()}
    if cfg.inference == "jumprelu" and cfg.selects_k:  # one threshold for all latents, as training leaves it
        tensors["threshold"] = torch.full((F,), 0.4)
    return SparseAutoencoder(cfg, tensors)


def place(folder, format):
    return folder / SUFFIX.get(format, "layers.7")


@pytest.mark.parametrize(("format", "architecture"), [(f, a) for f in FORMATS for a in ARCHITECTURES if a in HELD[f]])
def test_out_and_in_again_is_the_identity(format, architecture, tmp_path):
    sae, path = make(architecture), place(tmp_path, format)
    write_as(path, format, sae.cfg, sae.state_dict())
    assert recognised_format(path) == format
    cfg, tensors = read_any(path)
    assert (cfg.inference, cfg.n_latents) == (sae.cfg.inference, F)
    if format != "founding":
        assert cfg.hook_point == "layers.7"
    for name, tensor in sae.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-6, atol=1e-6)
    x = torch.randn(40, D)
    torch.testing.assert_close(SparseAutoencoder(cfg, tensors).encode(x), sae.encode(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("format", "architecture"), [(f, a) for f in FORMATS for a in ARCHITECTURES if a not in HELD[f]]
)
def test_what_a_format_cannot_hold_is_refused_by_name(format, architecture, tmp_path):
    sae = make(architecture)
    with pytest.raises(SAEError, match=f"SAE a is a?.*{sae.cfg.inference if format == 'sparsify' else architecture}"):
        write_as(place(tmp_path, format), format, sae.cfg, sae.state_dict())
    assert list(tmp_path.iterdir()) == []


def test_transcoders_of_one_width_fit_sparsify(tmp_path):
    sae = make("topk", target_hook_point="layers.7.mlp")
    write_as(tmp_path / "a", "sparsify", sae.cfg, sae.state_dict())
    again = load_sae(tmp_path / "a")
    assert again.cfg.is_transcoder
    x = torch.randn(9, D)
    assert torch.equal(again.encode(x), sae.encode(x))


def test_thresholds_of_their_own_are_written_as_jumprelu(tmp_path):
    sae = make("batchtopk")
    sae.get_parameter("threshold").data[3] = 0.9
    write_as(tmp_path / "a", "dictionary-learning", sae.cfg, sae.state_dict())
    again = load_sae(tmp_path / "a")
    assert again.cfg.architecture == "jumprelu"
    x = torch.randn(30, D)
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_we_compute_what_the_tool_computed(folder):
    sae, expected = load_sae(folder), load_file(folder / "expected.safetensors")
    scale = float(expected["x_hat"].abs().max())
    torch.testing.assert_close(sae.encode(expected["x"]), expected["latents"], rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(sae.reconstruct(expected["x"]), expected["x_hat"], rtol=0, atol=1e-5 * scale)
    assert float((expected["latents"] > 0).float().mean()) > 0.05


def test_the_golden_vectors_are_there():
    assert len(list(GOLDEN.glob("*/*/expected.safetensors"))) == 17


def test_qwen_scope_subtracts_no_bias_and_needs_its_k(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {"W_enc": (F, D), "W_dec": (D, F), "b_enc": (F,), "b_dec": (D,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in weights.items()}
    torch.save(weights, tmp_path / "layer3.sae.pt")
    with pytest.raises(FormatError, match="--k 50"):
        load_sae(tmp_path / "layer3.sae.pt")
    sae, x = load_sae(tmp_path / "layer3.sae.pt", k=4), torch.randn(30, D)
    values, indices = (x @ weights["W_enc"].T + weights["b_enc"]).topk(4)
    latents = torch.zeros(30, F).scatter_(1, indices, values.relu())
    torch.testing.assert_close(sae.encode(x), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        sae.reconstruct(x), latents @ weights["W_dec"].T + weights["b_dec"], rtol=1e-5, atol=1e-5
    )
    assert sae.cfg.hook_point == "layers.3"


def test_convert_writes_reads_again_and_overwrites_nothing(tmp_path, capsys):
    make("topk").save(tmp_path / "ours", metadata={})
    assert not main(["convert", str(tmp_path / "ours"), str(tmp_path / "layers.7"), "--to", "sparsify"])
    assert "20 latents, in the format sparsify" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "layers.7").iterdir()) == ["cfg.json", "sae.safetensors"]
    (tmp_path / "a.pt").write_text("not an SAE")
    for target, to in ((tmp_path / "layers.7", "sparsify"), (tmp_path / "a.pt", "founding")):
        with pytest.raises(RunError, match=f"{target.name} exists already; choose another place, or remove it"):
            convert_sae(tmp_path / "ours", target, to=to)
    assert (tmp_path / "a.pt").read_text() == "not an SAE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "layers.7", "ours"]
    with pytest.raises(SystemExit) as stopped:
        main(["convert", str(tmp_path / "ours"), str(tmp_path / "new"), "--to", "sparsifi"])
    assert stopped.value.code == 2
    assert "known are saelens, sparsify" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("format", "architecture", "damage", "said"),
    [
        ("sparsify", "topk", lambda cfg, tensors: (cfg, tensors | {"W_dec": tensors["W_dec"] + 1e-3}), "another W_dec"),
        ("sparsify", "topk", lambda cfg, tensors: (replace(cfg, k=K + 1), tensors), "k 4 instead of 3"),
        ("founding", "relu", lambda cfg, tensors: (cfg, tensors | {"b_enc": tensors["b_enc"] * 2}), "another b_enc"),
    ],
)
def test_what_reads_otherwise_than_it_was_gets_no_name(format, architecture, damage, said, tmp_path, monkeypatch):
    make(architecture).save(tmp_path / "ours", metadata={})
    write = FORMATS[format].write
    monkeypatch.setattr(FORMATS[format], "write", lambda path, cfg, tensors: write(path, *damage(cfg, tensors)))
    with pytest.raises(SAEError, match=f"was not written: read again, it would have {said}"):
        convert_sae(tmp_path / "ours", place(tmp_path, format), to=format)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_what_is_no_sae_is_refused_in_one_line(tmp_path):
    (tmp_path / "readme.md").write_text("hello")
    for path, said in (
        (tmp_path, "readme.md"),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "readme.md", "no format"),
    ):
        with pytest.raises(FormatError, match=said) as caught:
            load_sae(path)
        assert "\n" not in str(caught.value)


# Hostile files -------------------------------------------------------------------------------------------------------

N_MUTATIONS = 500
LIMIT_BYTES = 64 << 20


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def flipped(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 30))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def truncated(data, rng):
    return data[: rng.randrange(len(data))]


def swapped(data, rng):
    """Digits, of which shapes and lengths are made, become others."""
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    data = bytearray(data)
    for place in rng.sample(places, min(len(places), rng.choice((1, 2, 5)))):
        data[place] = ord(str(rng.randrange(10)))
    return bytes(data)


def grown(data, rng):
    """A number becomes a very large one."""
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    at = rng.choice(places) if places else 0
    return data[:at] + str(rng.choice((2**31, 2**62, 10**18, -1, 0))).encode() + data[at + 1 :]


@pytest.mark.parametrize("format", FORMATS)
def test_mutated_files_are_read_or_refused_and_nothing_else(format, tmp_path, monkeypatch):
    """Each mutation either still is an SAE or is refused by one line; nothing runs, nothing large is allocated."""
    resource = pytest.importorskip("resource")
    good = place(tmp_path / "good", format)
    for architecture in sorted(HELD[format])[:1]:
        sae = make(architecture)
        write_as(good, format, sae.cfg, sae.state_dict())
    files = [path.relative_to(tmp_path / "good") for path in (tmp_path / "good").rglob("*") if path.is_file()]
    rng, refusals, finite = random.Random(0), [], []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(N_MUTATIONS):
        bad = tmp_path / "bad"
        shutil.copytree(tmp_path / "good", bad)
        file = bad / rng.choice(files)
        file.write_bytes(rng.choice((flipped, truncated, swapped, grown))(file.read_bytes(), rng))
        try:
            sae = load_sae(place(bad, format))
        except SparsightError as error:  # any other exception fails the test
            refusals.append(str(error))
        else:
            finite.append(all(torch.isfinite(tensor).all() for tensor in sae.state_dict().values()))
        shutil.rmtree(bad)
    grown_by = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown_by < LIMIT_BYTES
    assert all(finite)
    assert len(refusals) > N_MUTATIONS // 10
    assert not [said for said in refusals if "\n" in said or len(said) > 2000]


@pytest.mark.parametrize("format", ["dictionary-learning", "qwen-scope", "founding"])
def test_a_pickle_with_code_in_it_runs_nothing(format, tmp_path):
    planted = tmp_path / "planted"
    for number, write in enumerate((torch.save, lambda value, path: path.write_bytes(pickle.dumps(value)))):
        sae, path = make(min(HELD[format])), place(tmp_path / str(number), format)
        write_as(path, format, sae.cfg, sae.state_dict())
        file = path / "ae.pt" if path.is_dir() else path
        write({"model_state_dict": {"bias": Malice(planted)}, "b_dec": Malice(planted)}, file)
        with pytest.raises(FormatError, match="without running code"):
            load_sae(path)
        assert not planted.exists()


def test_an_archive_with_packed_entries_is_refused(tmp_path):
    sae = make("relu")
    write_as(tmp_path / "plain.pt", "founding", sae.cfg, sae.state_dict())
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    load_sae(tmp_path / "plain.pt")
    with pytest.raises(FormatError, match="has compressed or overlapping entries; torch writes none"):
        load_sae(tmp_path / "packed.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b_dec": torch.zeros(D + 1)}, "expected"),
        ({"more": torch.zeros(1)}, "no such tensor"),
        ({"encoder.bias": torch.full((F,), float("nan"))}, "not finite"),
        ({"encoder.weight": torch.zeros(1).expand(10**6, 10**6)}, "expected"),
        ({"decoder.weight": torch.zeros(D, F, dtype=torch.int64)}, "not a dense tensor"),
        ({"k": torch.tensor(0)}, "positive whole number"),
        ({"k": torch.tensor(F + 1, dtype=torch.int32)}, "exceeds n_latents"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, said, tmp_path):
    sae = make("topk")
    write_as(tmp_path / "a", "dictionary-learning", sae.cfg, sae.state_dict())
    state = torch.load(tmp_path / "a" / "ae.pt", weights_only=True)
    torch.save(state | change, tmp_path / "a" / "ae.pt")
    with pytest.raises(FormatError, match=said):
        load_sae(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation": "groupmax"}, "groupmax"),
        ({"skip_connection": True}, "skip_connection"),
        ({"k": "many"}, "positive whole number"),
        ({"d_in": 7}, "d_in = 7"),
    ],
)
def test_sparsify_that_is_not_ours_is_refused_by_name(change, said, tmp_path):
    sae = make("topk")
    write_as(tmp_path / "a", "sparsify", sae.cfg, sae.state_dict())
    described = json.loads((tmp_path / "a" / "cfg.json").read_text())
    (tmp_path / "a" / "cfg.json").write_text(json.dumps(described | change))
    with pytest.raises(FormatError, match=said):
        load_sae(tmp_path / "a")


def test_integers_in_safetensors_are_refused(tmp_path):
    sae = make("topk")
    write_as(tmp_path / "a", "sparsify", sae.cfg, sae.state_dict())
    tensors = load_file(tmp_path / "a" / "sae.safetensors")
    save_file(tensors | {"b_dec": torch.zeros(D, dtype=torch.int32)}, tmp_path / "a" / "sae.safetensors")
    with pytest.raises(FormatError, match="tensors of type"):
        load_sae(tmp_path / "a")
