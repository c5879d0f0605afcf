"""Our C sources: compiled on first use, kept, shared threads with torch, and nothing broken without a compiler."""

import ctypes
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sparsight.artifact import native
from sparsight.artifact.native import native_library

SOURCE = """
int threads(void) {
    int n = 0;
    #pragma omp parallel
    {
        #pragma omp atomic
        n++;
    }
    return n;
}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A C file of our own, an empty cache, and no memory of earlier tests."""
    monkeypatch.setenv("SPARSIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPARSIGHT_NATIVE", raising=False)
    native_library.cache_clear()
    (tmp_path / "probe.c").write_text(SOURCE)
    yield tmp_path / "probe.c"
    native_library.cache_clear()


def test_it_is_compiled_once_and_uses_as_many_threads_as_torch(source: Path) -> None:
    library = native_library(source)
    assert isinstance(library, ctypes.CDLL)
    before = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            assert library.threads() == n
    finally:
        torch.set_num_threads(before)
    kept = list((source.parent / "cache" / "native").iterdir())
    assert [path.suffix for path in kept] == [".so"]
    native_library.cache_clear()
    modified = kept[0].stat().st_mtime_ns
    assert native_library(source) is not None
    assert kept[0].stat().st_mtime_ns == modified


def test_a_changed_source_is_compiled_anew(source: Path) -> None:
    assert native_library(source) is not None
    source.write_text(SOURCE.replace("n++", "n += 2"))
    native_library.cache_clear()
    library = native_library(source)
    assert library is not None
    assert library.threads() == 2 * torch.get_num_threads()


@pytest.mark.parametrize("trouble", ["no compiler", "broken source", "forbidden"])
def test_without_it_there_is_one_warning_and_no_error(
    source: Path, trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if trouble == "no compiler":
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(native.shutil, "which", lambda name: None)
    elif trouble == "broken source":
        source.write_text("int broken(")
    else:
        monkeypatch.setenv("SPARSIGHT_NATIVE", "0")
    with caplog.at_level(logging.WARNING):
        assert native_library(source) is None
        assert native_library(source) is None
    assert len(caplog.records) == 1
    assert "slower" in caplog.text
    assert not list((source.parent / "cache").rglob("*.so"))
