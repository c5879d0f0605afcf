"""The explorer walked through in a real browser, on a real run: every view once. Writes screenshots to build/walk; fails where a step does.

    make walk                      after `make demo`; two minutes; needs Chromium

Finds a feature by text, opens it, reads a text of one's own, steers beside both controls, lassoes latents on the map into a list, writes a note while
the command line writes another, exports the list and opens the file again without a server. How long the page takes from its address to its table
(`first load`) and each step is printed. Any error in the browser's console, and any request to elsewhere, fails the walk.
The notes of the run are kept aside and put back.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "build" / "walk"
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 120_000
TEXT = "Marie Curie won the Nobel Prize in Physics in 1903, and the one in Chemistry in 1911."


class Walk:
    """One browser page, step by step."""

    def __init__(self, page: Page, run: Path, base: str) -> None:
        self.page, self.run, self.base = page, run, base
        self.sae = next((run / "features").iterdir()).name
        self.here = f"{base}/d/{run.name}/{self.sae}"
        self.seconds: dict[str, float] = {}

    def all_steps(self, token: str) -> None:
        """From the first page to the file that opens offline."""
        self.first_load(token)
        latent = self.find(" because")
        self.feature(latent)
        self.own_text()
        self.steer(self.strongest_writer())
        self.lasso("from the map")
        self.notes_from_two_sides(latent)
        self.run_view()
        self.export("from the map")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Timed, and pictured at its end."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        self.page.screenshot(path=SHOTS / f"{len(self.seconds):02d}-{name.replace(' ', '-')}.png")
        print(f"{name:<24} {self.seconds[name]:6.2f} s", flush=True)

    def first_load(self, token: str) -> None:
        """From the address that the command prints to the explanation, and then to the table."""
        with self.step("first page"):
            self.page.goto(f"{self.base}/?token={token}")
            expect(self.page.get_by_text("How to read it")).to_be_visible()
        with self.step("first load"):
            self.page.goto(f"{self.here}/features")
            self.page.locator(".grid-row .id a").first.wait_for()

    def find(self, word: str) -> int:
        """Search the table for a word; the first latent found."""
        with self.step("search"):
            before = self.page.locator(".total").inner_text()
            self.page.keyboard.press("/")
            self.page.keyboard.type(word.strip())
            expect(self.page.locator(".total")).not_to_have_text(before)
            found = int(self.page.locator(".grid-row .id").first.inner_text())
        assert "of" in self.page.locator(".total").inner_text()
        return found

    def feature(self, latent: int) -> None:
        """Its page, with passages and evidence."""
        with self.step("feature"):
            self.page.goto(f"{self.here}/feature/{latent}")
            strongest = self.page.locator("section", has=self.page.get_by_role("heading", name="Strongest")).last
            expect(strongest.locator(".passage").first).to_be_visible()
            for title in ("Promotes", "Suppresses", "Nearest directions", "Active together", "On the map"):
                expect(self.page.get_by_role("heading", name=title)).to_be_visible()

    def own_text(self) -> None:
        """What a text makes fire; then beside another."""
        self.page.goto(f"{self.here}/text")
        with self.step("text with model loading"):
            self.page.get_by_label("Your text").fill(TEXT)
            self.page.keyboard.press("Control+Enter")
            expect(self.page.locator(".shaded .figures")).to_contain_text("mean error", timeout=PATIENCE)
        self.page.locator(".shade").nth(3).click()
        expect(self.page.locator(".active tbody tr").first).to_be_visible()
        with self.step("two texts"):
            self.page.get_by_role("button", name="Compare with another").click()
            self.page.get_by_role("textbox", name="Text B").fill("def add(a, b):\n    return a + b")
            self.page.get_by_role("button", name="Read", exact=False).first.click()
            expect(self.page.locator(".shaded")).to_have_count(2, timeout=PATIENCE)

    def strongest_writer(self) -> int:
        """The latent with the highest output score: boosting it raises what it promotes."""
        self.page.goto(f"{self.here}/features?sort=output_score&order=desc")
        return int(self.page.locator(".grid-row .id").first.inner_text())

    def steer(self, latent: int) -> None:
        """A continuation that changes, with both controls beside it."""
        self.page.goto(f"{self.here}/feature/{latent}")
        self.page.get_by_role("button", name="Steer", exact=True).click()
        self.page.get_by_role("link", name="Steer").click()
        self.page.get_by_role("textbox", name="Prompt").fill("The weather today is")
        self.page.get_by_label("Tokens").fill("20")
        self.page.get_by_label(f"Strength for latent {latent}, as a number").fill("3")
        with self.step("steer"):
            self.page.keyboard.press("Control+Enter")
            for arm in ("plain", "steered", "random", "prompt"):
                expect(self.page.locator(f".arm.{arm} .spoken").first).to_be_attached(timeout=PATIENCE)
            expect(self.page.locator(".arms")).to_have_attribute("aria-busy", "false", timeout=PATIENCE)
        arms = ("plain", "steered", "random", "prompt")
        spoken = {arm: "".join(self.page.locator(f".arm.{arm} .spoken").all_inner_texts()) for arm in arms}
        for arm, text in spoken.items():
            print(f"    {arm:<8} {text!r}")
        assert spoken["steered"] != spoken["plain"]

    def lasso(self, name: str) -> None:
        """Latents of a part of the map, into a list."""
        with self.step("map"):
            self.page.goto(f"{self.here}/map")
            self.page.get_by_role("toolbar", name="Map").wait_for()
            self.page.wait_for_timeout(600)
        box = self.page.locator(".map canvas").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        with self.step("lasso"):
            self.page.get_by_role("button", name="Lasso").click()
            self.page.mouse.move(x - 80, y - 80)
            self.page.mouse.down()
            for dx, dy in ((80, -80), (80, 80), (-80, 80), (-80, -80)):
                self.page.mouse.move(x + dx, y + dy, steps=6)
            self.page.mouse.up()
            expect(self.page.locator(".chosen b")).to_have_text(re.compile(r"[1-9]"))
        print(f"    {self.page.locator('.chosen b').inner_text()} latents inside the lasso")
        self.page.get_by_role("button", name="Make a list…").click()
        self.page.get_by_label("New list").fill(name)
        self.page.get_by_role("button", name="Add", exact=True).click()
        expect(self.page.locator(".toasts")).to_contain_text("Added")

    def notes_from_two_sides(self, latent: int) -> None:
        """A note on the page while the command line writes another; both are there afterwards."""
        other = latent + 1
        with self.step("notes from two sides"):
            self.page.goto(f"{self.here}/feature/{latent}")
            box = self.page.get_by_label("Notes")
            box.fill("written on the ")
            command = [
                sys.executable,
                "-m",
                "sparsight.cli",
                "notes",
                str(self.run),
                str(other),
                "--note",
                "by command",
            ]
            writing = subprocess.Popen([*command, "--sae", self.sae], stdout=subprocess.DEVNULL)
            box.press_sequentially("page", delay=100)
            assert writing.wait(60) == 0
            self.page.goto(f"{self.here}/feature/{other}")
            expect(self.page.get_by_label("Notes")).to_have_value("by command")
            self.page.goto(f"{self.here}/feature/{latent}")
            expect(self.page.get_by_label("Notes")).to_have_value("written on the page")

    def run_view(self) -> None:
        """Where it comes from."""
        with self.step("run"):
            self.page.goto(f"{self.here}/run")
            expect(self.page.get_by_role("heading", name="Provenance")).to_be_visible()

    def export(self, name: str) -> None:
        """The list as one file, opened again from disk by a browser that reaches nothing."""
        with self.step("export"):
            self.page.goto(f"{self.here}/lists")
            expect(self.page.get_by_role("link", name=name)).to_be_visible()
            with self.page.expect_download() as download:
                self.page.get_by_role("link", name="Export page").first.click()
            file = SHOTS / "list.html"
            download.value.save_as(file)
        browser = self.page.context.browser
        assert browser is not None
        context = browser.new_context(offline=True)
        try:
            offline = context.new_page()
            offline.goto(file.as_uri())
            expect(offline.get_by_text(name).first).to_be_visible()
            offline.screenshot(path=SHOTS / "99-offline.png")
            print(f"    {file.stat().st_size / 1000:.0f} kB, opened from disk")
        finally:
            context.close()


@contextmanager
def notes_aside(run: Path) -> Iterator[None]:
    """The run's notes as they were, afterwards."""
    notes, aside = run / "notes", SHOTS / "notes-before"
    shutil.copytree(notes, aside)
    try:
        yield
    finally:
        shutil.rmtree(notes)
        shutil.move(aside, notes)


@contextmanager
def served(run: Path) -> Iterator[tuple[str, str]]:
    """(address, token) of a server on the run."""
    command = [sys.executable, "-m", "sparsight.cli", "serve", str(run), "--no-browser", "--idle-minutes", "5"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"(http://[^/]+)/\?token=([\w-]+)", server.stdout.readline())
        assert found
        yield found[1], found[2]
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "demo")
    run = parser.parse_args().run
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("There is no Chromium. Install one, such as Debian's package chromium.")
    shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir(parents=True)
    complaints: list[str] = []
    with notes_aside(run), served(run) as (base, token), sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(base_url=base, viewport={"width": 1280, "height": 800})
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(base) else complaints.append(asked.url))
        walk = Walk(page, run, base)
        walk.all_steps(token)
        browser.close()
    if complaints:
        raise SystemExit("The browser complained:\n" + "\n".join(complaints))
    print(f"Every step was taken; pictures in {SHOTS.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
