"""Answers: JSON without NaN, and refusals of one line.

    {"error": "one line", "remedy": "one line"}       with the status; the remedy may be absent

Numbers have six digits: float32 has seven, and the page shows three.
"""

import json
import math
from typing import Any

import numpy as np
from starlette.responses import Response

__all__ = ["Json", "Refusal", "failure", "finite", "number", "numbers"]


class Json(Response):
    """A value as UTF-8 JSON. NaN raises ValueError: `number` and `numbers` make it null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


class Refusal(Exception):
    """An answer that is an error: its status, what happened, and what to do."""

    def __init__(self, status: int, error: str, remedy: str = "") -> None:
        super().__init__(error)
        self.status, self.error, self.remedy = status, " ".join(error.split()), remedy

    @property
    def body(self) -> dict[str, str]:
        """What it says, for JSON."""
        return {"error": self.error} | ({"remedy": self.remedy} if self.remedy else {})

    def reply(self) -> Json:
        """The answer."""
        return Json(self.body, status_code=self.status)


def failure(error: Exception) -> Refusal:
    """Our own bug, without what it may know of the machine."""
    return Refusal(500, f"The explorer failed ({type(error).__name__}).", "Its terminal says more.")


def number(value: float | None) -> float | None:
    """One number for JSON: six digits; None for NaN and infinity."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def numbers(values: np.ndarray) -> list[Any]:
    """An array of any shape as nested lists for JSON; integers and booleans as they are."""
    if values.ndim > 1:
        return [numbers(row) for row in values]
    if values.dtype.kind in "iub":
        return values.tolist()
    return [number(value) for value in values.tolist()]


def finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which a stranger's JSON may hold and ours may not."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
