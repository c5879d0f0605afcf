"""Compared: a comparison's run as the explorer shows it: its headline, and the page that it wrote, in a frame of its own.

The page holds what models and files wrote, as text, and no script; and were there one, its policy would not run it, nor does the frame.
"""

from typing import Any

from starlette.responses import Response

from sparsight.artifact import RunDir
from sparsight.recipe import Comparison
from sparsight.web.replies import Refusal

__all__ = ["Compared"]

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
}


class Compared:
    """One comparison, read from its folder at every request."""

    def __init__(self, run: RunDir, name: str, recipe: Comparison) -> None:
        self.name, self._run, self._recipe = name, run, recipe

    def described(self) -> dict[str, Any]:
        """What the list says of it. Raises Refusal while it is not complete."""
        self._check()
        _, first, *_ = [*self._read("report.md").decode().split("\n\n"), "", ""]  # after the title
        recipe = self._recipe
        return {
            "name": self.name,
            "base": recipe.base.id,
            "tuned": recipe.tuned,
            "hook_point": recipe.hook_point,
            "headline": first,
        }

    def page(self, colours: str) -> Response:
        """The page, "light", "dark" or, by default, as the browser prefers. Raises Refusal when it is not there."""
        self._check()
        page = self._read("report.html")
        if colours in ("light", "dark"):
            page = page.replace(b"color-scheme:light dark", b"color-scheme:" + colours.encode(), 1)
        return Response(page, media_type="text/html; charset=utf-8", headers=_HEADERS)

    def _read(self, name: str) -> bytes:
        try:
            return (self._run.comparison / name).read_bytes()
        except OSError as error:
            raise Refusal(503, f"{name} of {self.name} cannot be read now ({error.strerror}).") from None

    def _check(self) -> None:
        if not self._run.recipe.is_file():
            raise Refusal(
                410, f"The run is no longer at {self._run.path}.", "Start the explorer with a run that is there."
            )
        if not (self._run.comparison / "report.html").is_file():
            raise Refusal(
                404,
                f"{self.name} is a comparison that is not complete.",
                "Run it to its end: sparsight compare RECIPE.",
            )
