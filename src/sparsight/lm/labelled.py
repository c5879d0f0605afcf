"""Labelled text: sets of prompts with two classes, as probes read them.

    builtin   the 113 binary sets of the sae-probes wheel (builtin.py), the benchmark of Kantamneni et al. 2025, arXiv:2502.16681
    a folder  .csv files, UTF-8, with columns `prompt` and `target`; the file's name is the set's

The positive class is the later of the two targets in alphabetical order (1, True, yes). A set of the wheel belongs to a family, the first
word of its name (glue, wikidata, us; the 21 sets named after a word pair are one): sets of one family share their texts or their making, so
they count as one where sets are resampled. A file of the user's is a family of its own.

The wheel's sets balance their classes by repeating prompts (5,000 rows of hist_fig_isamerican are 3,240 prompts), so a split by rows would
test on prompts it was trained on. Here each prompt counts once, and those with both labels are dropped.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from sparsight.artifact import sha256_file
from sparsight.errors import TextError
from sparsight.lm.builtin import BUILTIN_TEXTS, fetch_builtin_sets, unpacked
from sparsight.lm.config import TextConfig
from sparsight.lm.tokens import Piece, text_encoder

__all__ = ["LabelledPrompts", "LabelledSet", "builtin_sets", "folder_sets", "sample_prompts", "sets_fingerprint"]

_COLUMNS = ("prompt", "target")
_LARGEST_FILE_BYTES = 64 * 2**20
_MOST_FILES = 1000
_CHARACTERS_PER_TOKEN = 16  # kept of a prompt's end before it is tokenised: four times what text has


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Where one set lies. Nothing is read yet."""

    name: str
    """The file's name without its ending, printable."""
    family: str
    """Sets of one family are not independent of each other."""
    path: Path
    """A .csv file, or the same packed with zstandard (.csv.zst)."""

    def rows(self) -> tuple[list[str], list[str]]:
        """(prompts, targets) as they stand. Raises TextError in one line for a file that is not such a set."""
        try:
            return self._rows()
        except UnicodeDecodeError as error:
            raise TextError(f"{self.path} is not UTF-8 ({error.reason}). Convert it.") from None
        except (csv.Error, OSError) as error:
            raise TextError(f"{self.path} cannot be read as CSV ({error}).") from None

    def _rows(self) -> tuple[list[str], list[str]]:
        prompts, targets = [], []
        csv.field_size_limit(2**31 - 1)  # the file's size is the limit
        with ExitStack() as stack:
            raw: Any = stack.enter_context(self.path.open("rb"))
            if self.path.suffix == ".zst":
                raw = stack.enter_context(unpacked(raw))
            elif (size := self.path.stat().st_size) > _LARGEST_FILE_BYTES:
                raise TextError(
                    f"{self.path} has {size:,} bytes. Expected at most {_LARGEST_FILE_BYTES:,}: keep fewer rows."
                )
            reader = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8-sig", newline=""))
            if missing := [name for name in _COLUMNS if name not in (reader.fieldnames or [])]:
                found = ", ".join(repr(name)[:40] for name in (reader.fieldnames or [])[:8]) or "no header"
                raise TextError(f"{self.path} lacks the column {missing[0]!r}; it has {found}.")
            for number, row in enumerate(reader, start=2):
                if row["prompt"] is None or row["target"] is None:
                    raise TextError(f"{self.path}: record {number} has fewer fields than the header.")
                prompts.append(row["prompt"])
                targets.append(row["target"].strip())
        return prompts, targets


@dataclass(frozen=True, kw_only=True)
class LabelledPrompts:
    """Prompts of one set as tokens, each once."""

    pieces: tuple[Piece, ...]
    labels: Int[np.ndarray, " n"]
    """1 for the positive class."""
    classes: tuple[str, ...]
    """The targets as the file has them, negative first; one alone, or none, where the set has no two."""
    counts: dict[str, int]
    """rows of the file; duplicates, conflicting (both labels) and empty prompts among them, and those beyond the cap: none of these are in."""


def builtin_sets(*, full: bool = False) -> list[LabelledSet]:
    """The wheel's 113 sets, or the first of each family in the catalogue's order: 37 of all kinds, chosen by name alone."""
    sets = [
        LabelledSet(name=name, family=_family(name), path=path)
        for path in fetch_builtin_sets()
        for name in [path.name.removesuffix(".csv.zst")]
    ]
    first = {each.family: each for each in reversed(sets)}
    return sets if full else [each for each in sets if each is first[each.family]]


def folder_sets(folder: str | Path) -> list[LabelledSet]:
    """One's own sets, by name. Raises TextError when the folder has no .csv file."""
    paths = sorted(path for path in Path(folder).glob("*.csv") if path.is_file())
    if not paths:
        raise TextError(f"{folder} holds no .csv file. Give a folder of CSV files with columns prompt and target.")
    if len(paths) > _MOST_FILES:
        raise TextError(f"{folder} holds {len(paths):,} .csv files. Expected at most {_MOST_FILES:,}.")
    names = ["".join(char if char.isprintable() else "?" for char in path.stem) for path in paths]
    return [LabelledSet(name=name, family=name, path=path) for name, path in zip(names, paths, strict=True)]


def sets_fingerprint(sets: Sequence[LabelledSet], *, builtin: bool) -> dict[str, Any]:
    """What text this is: the wheel's hash and the sets' names, or the files' hashes."""
    if builtin:
        wheel = BUILTIN_TEXTS["probe-text"].wheel
        return {"requirement": wheel.requirement, "sha256": wheel.sha256, "sets": [each.name for each in sets]}
    return {"files": [{"name": each.name, "sha256": sha256_file(each.path)} for each in sets]}


def sample_prompts(
    labelled: LabelledSet,
    tokenizer: PreTrainedTokenizerBase,
    text: TextConfig,
    *,
    max_prompts: int,
    max_tokens: int,
    seed: int,
) -> LabelledPrompts:
    """At most max_prompts / 2 prompts of each class, drawn by seed and name, tokenised as `text` says, the last max_tokens kept.

    The end is kept as the last token is what is probed; a beginning-of-sequence token stays in front. Two prompts whose kept tokens are
    the same are one. Raises TextError for a file that is no labelled set, or has more than two targets.
    """
    prompts, targets = labelled.rows()
    classes = tuple(sorted(set(targets)))
    if len(classes) > 2:
        shown = ", ".join(repr(name)[:40] for name in classes[:4])
        raise TextError(
            f"{labelled.path} has {len(classes):,} targets ({shown}, ...). Expected two: a probe is binary."
        )
    counts = {"rows": len(prompts), "duplicates": 0, "conflicting": 0, "empty": 0, "beyond_cap": 0}
    keys = [prompt[-max_tokens * _CHARACTERS_PER_TOKEN :] for prompt in prompts]
    positive = max(classes, default="")
    labels = [int(target == positive) for target in targets]
    unique = _once(keys, labels, counts)
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(labelled.name.encode()).digest()[:4], "big")])
    chosen: list[tuple[str, int]] = []
    for label in (0, 1):
        ours = [key for key, its in unique.items() if its == label]
        kept = rng.permutation(len(ours))[: max_prompts // 2]
        counts["beyond_cap"] += len(ours) - len(kept)
        chosen += [(ours[index], label) for index in kept]
    ids = text_encoder(text, tokenizer)([prompt for prompt, _ in chosen]) if chosen else []
    bos = tokenizer.bos_token_id if isinstance(tokenizer.bos_token_id, int) else None
    rows = [_ending(row, max_tokens, bos) for row in ids]
    once = _once([row.tobytes() for row in rows], [label for _, label in chosen], counts)
    once.pop(b"", None)
    pieces = tuple(
        Piece(index, index, 0, 0, np.frombuffer(row, dtype=np.int32).copy(), False) for index, row in enumerate(once)
    )
    return LabelledPrompts(
        pieces=pieces, labels=np.array(list(once.values()), dtype=np.int64), classes=classes, counts=counts
    )


def _once(keys: Sequence[Any], labels: Sequence[int], counts: dict[str, int]) -> dict[Any, int]:
    """Each key with its label, in order; keys with both labels, and empty ones, are dropped. What is dropped is counted."""
    seen: dict[Any, set[int]] = {}
    for key, label in zip(keys, labels, strict=True):
        seen.setdefault(key, set()).add(label)
    kept = {key: min(its) for key, its in seen.items() if len(its) == 1 and key}
    for key in keys:
        counts["empty"] += not key
        counts["conflicting"] += bool(key) and len(seen[key]) > 1
    counts["duplicates"] += sum(1 for key in keys if key in kept) - len(kept)
    return kept


def _ending(row: np.ndarray, max_tokens: int, bos: int | None) -> np.ndarray:
    if len(row) <= max_tokens or bos is None or row[0] != bos or max_tokens < 2:
        return row[-max_tokens:]
    return np.concatenate([row[:1], row[1 - max_tokens :]])


def _family(name: str) -> str:
    """`87_glue_cola` -> glue; `65_high-school`, one of 21 word pairs, -> word-pair."""
    words = name.partition("_")[2]
    if words.startswith("wikidata"):
        return "wikidata"
    first = words.split("_")[0]
    return "word-pair" if "-" in words and first == words else first
