"""Checkpoints of SAEs that train together: all of them at one step, or none.

    saes/ID/checkpoint/step-000000500.safetensors    weights, Adam's moments, counters of one SAE
    saes/stream.npz                                  what a live stream needs to go on, where there is one
    saes/training.json                               {"step": 500, "total_steps": ..., "ids": [...]}: what counts

The files of a step are written first, then `training.json` names the step, then older files go. A kill between any two leaves the step that
`training.json` names whole.
"""

import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsight.artifact import atomic_path, read_json, read_jsonl, write_atomic, write_json
from sparsight.errors import RunError

__all__ = ["Checkpoints", "load_stream_state"]


class Checkpoints:
    """The checkpoints below one folder of SAEs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pointer = folder / "training.json"

    def begun(self) -> set[str]:
        """Ids of the SAEs that a checkpoint holds."""
        return set(read_json(self.pointer)["ids"]) if self.pointer.exists() else set()

    def step(self, ids: Sequence[str], total_steps: int) -> int:
        """The step to go on from; 0 when these SAEs have none. Raises RunError when there is one that cannot be taken up."""
        if not self.begun().issuperset(ids):
            return 0
        saved = read_json(self.pointer)
        missing = [sae_id for sae_id in ids if not self._file(sae_id, saved["step"]).exists()]
        if missing or saved["total_steps"] != total_steps:
            what = (
                f"lacks {', '.join(missing)}" if missing else f"was for {saved['total_steps']} steps, not {total_steps}"
            )
            raise RunError(
                f"The checkpoint at step {saved['step']} in {self.folder} {what}. Put back what changed to go on, "
                f"or delete {self.pointer} to train these SAEs from their start."
            )
        return saved["step"]

    def load(self, sae_id: str, step: int) -> dict[str, Tensor]:
        """One SAE's state at a step."""
        return load_file(self._file(sae_id, step))

    def save(
        self, states: Mapping[str, Mapping[str, Tensor]], step: int, total_steps: int, stream: Mapping[str, Any]
    ) -> None:
        """The states of all SAEs at a step, with the stream's where it has one; then removes older ones."""
        for sae_id, state in states.items():
            with atomic_path(self._file(sae_id, step)) as temp:
                save_file({name: value.contiguous() for name, value in state.items()}, temp)
        if stream:
            buffer = io.BytesIO()
            np.savez(buffer, **{**stream, "windows": json.dumps(stream["windows"])})
            write_atomic(self.folder / "stream.npz", buffer.getvalue())
        write_json(self.pointer, {"step": step, "total_steps": total_steps, "ids": list(states)})
        for sae_id in states:
            for file in self._file(sae_id, step).parent.iterdir():
                if file != self._file(sae_id, step):
                    file.unlink()

    def trim_logs(self, ids: Sequence[str], step: int) -> None:
        """Drops lines of training.jsonl after `step`: those steps are taken again."""
        for sae_id in ids:
            log = self.folder / sae_id / "training.jsonl"
            if log.exists():
                kept = [record for record in read_jsonl(log) if record["step"] <= step]
                write_atomic(log, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def remove(self, ids: Sequence[str]) -> None:
        """Removes what only a resume needs, once these SAEs are finished."""
        for sae_id in ids:
            shutil.rmtree(self.folder / sae_id / "checkpoint", ignore_errors=True)
        if self.begun() <= set(ids):
            self.pointer.unlink(missing_ok=True)
            (self.folder / "stream.npz").unlink(missing_ok=True)

    def _file(self, sae_id: str, step: int) -> Path:
        return self.folder / sae_id / "checkpoint" / f"step-{step:09d}.safetensors"


def load_stream_state(folder: Path) -> dict[str, Any] | None:
    """What `ActivationStream` needs to go on where the SAEs in `folder` last saved; None when there is nothing."""
    file = folder / "stream.npz"
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as state:
        return {
            "windows": json.loads(str(state["windows"])),
            "seen_ids": state["seen_ids"],
            "seen_rows": state["seen_rows"],
        }
