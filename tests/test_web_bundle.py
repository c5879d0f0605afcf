"""The committed front end: it is what its source builds to, it is small, and it asks nobody else for anything.

Node is not needed here; `make web-check` builds it again and compares byte for byte.
"""

import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "web"
BUILT = ROOT / "src" / "sparsight" / "web" / "static"
# What vite.config.ts hashes, in its order.
SOURCES = ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "public", "src")
RECORD = json.loads((BUILT / "build.json").read_text())


def _source_hash() -> str:
    paths = [SOURCE / name for name in SOURCES]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    names = sorted(file.relative_to(SOURCE).as_posix() for file in files)
    lines = [f"{hashlib.sha256((SOURCE / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_bundle_was_built_from_this_source() -> None:
    assert RECORD["source"] == _source_hash(), "web/ changed after the page was built: make web"


def test_the_built_files_are_those_that_were_built() -> None:
    built = {file.relative_to(BUILT).as_posix(): file for file in BUILT.rglob("*") if file.is_file()}
    del built["build.json"]
    assert {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in built.items()} == RECORD["files"]


def test_the_bundle_is_under_a_megabyte() -> None:
    assert sum(file.stat().st_size for file in BUILT.rglob("*") if file.is_file()) < 1_000_000


def test_the_page_holds_no_inline_script_or_style() -> None:
    page = (BUILT / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", page) == []


@pytest.mark.parametrize("name", sorted(RECORD["files"]))
def test_no_built_file_names_another_host(name: str) -> None:
    if not name.endswith((".js", ".css", ".html", ".svg")):
        return
    namespaces = {"www.w3.org"}  # names of XML vocabularies, never fetched
    hosts = set(re.findall(r"(?:https?:)?//([\w-]+(?:\.[\w-]+)+)", (BUILT / name).read_text()))
    assert hosts <= namespaces


def test_the_source_never_makes_elements_from_strings() -> None:
    makers = r"(?i:innerHTML)|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|createContextualFragment"
    found = [
        f"{file.name}: {word}"
        for file in sorted((SOURCE / "src").rglob("*.ts*"))
        for word in re.findall(makers, file.read_text())
    ]
    assert found == []


def test_licences_of_what_is_built_in_are_there() -> None:
    packages = json.loads((SOURCE / "package.json").read_text())
    names = [
        *packages["dependencies"],
        *(name for name in packages["devDependencies"] if name.startswith("@fontsource")),
    ]
    licences = (BUILT / "LICENSES.txt").read_text()
    assert [name for name in names if f"{name}\n=" not in licences] == []
