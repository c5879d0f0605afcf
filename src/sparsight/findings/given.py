"""Two SAEs from anywhere, one of each model: matched, and nothing more said of them than that allows.

What two seeds of one model differ by is not known here, so no latent is called emergent: each is undetermined, with its partners, and
the naive count stands beside what it usually is between two seeds of one model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from sparsight.diff import LABELS, Dictionary, LatentScaling, matched, mutual_pairs, naive_emergent, pw_mcc
from sparsight.errors import SAEError
from sparsight.findings.tables import write_table
from sparsight.sae import SparseAutoencoder

__all__ = ["MISSING", "check_given", "given_findings"]

MISSING = ("other seeds of either model", "a null fine-tune", "a replication")


def check_given(saes: Mapping[str, SparseAutoencoder], paths: Sequence[str], width: int, hook_point: str) -> None:
    """Raises SAEError unless every SAE reads and writes the hook point's activations."""
    for path, sae in zip(paths, saes.values(), strict=True):
        if sae.d_in != width or sae.d_out != width:
            raise SAEError(
                f"{path} maps {sae.d_in} to {sae.d_out} numbers; `{hook_point}` has {width}. Give SAEs of that place."
            )
        if sae.cfg.hook_point.rpartition(":")[2] not in ("", hook_point):  # ours name their model before it
            raise SAEError(
                f"{path} was trained at `{sae.cfg.hook_point}` and the comparison is at `{hook_point}`. Give two SAEs of one hook point."
            )


def given_findings(base: Dictionary, tuned: Dictionary, scaling: LatentScaling, folder: Path) -> dict[str, Any]:
    """What matching says of the two, in the form of a comparison's labels; writes features.parquet and pairs.parquet.

    `scaling`: of the fine-tune's SAE in the base.
    """
    there, back = matched(tuned, base)
    folder.mkdir(parents=True, exist_ok=True)
    sides = (("tuned", tuned, there), ("base", base, back))
    tables = []
    for side, dictionary, partners in sides:
        n = len(dictionary.firings)
        columns: dict[str, Any] = {
            "side": np.full(n, side),
            "latent": np.arange(n),
            "label": np.full(n, "undetermined"),
            "firings": dictionary.firings,
        }
        columns |= {
            name: getattr(partners, name) for name in ("cosine", "cosine_latent", "correlation", "correlation_latent")
        }
        for place, name in enumerate(("nu_error", "nu_reconstruction")):
            columns[name] = scaling.nu[place, 0] if side == "tuned" else np.full(n, np.nan)
        tables.append(pa.table(columns))
    write_table(folder / "features.parquet", pa.concat_tables(tables))
    pairs = mutual_pairs(there, back)
    write_table(
        folder / "pairs.parquet",
        pa.table({"tuned": pairs[:, 0], "base": pairs[:, 1], "cosine": there.cosine[pairs[:, 0]]}),
    )
    share, alive = naive_emergent(there.cosine), int(np.isfinite(there.cosine).sum())
    return {
        "against": "nothing: " + ", ".join(MISSING) + " are missing",
        "missing": list(MISSING),
        "n_tokens": base.n_tokens,
        "seeds": {"base": 1, "tuned": 1},
        "config": {"q": 0.05},
        "counts": {side: [_all_undetermined(len(dictionary.firings))] for side, dictionary, _ in sides},
        "naive": {"real": {"share": share, "n": round(share * alive), "of": alive}},
        "pw_mcc": {"real": pw_mcc(tuned, base)},
        "tests": {"direction": {"n_tested": 0, "n_null": 0, "least_p": 1.0}},
        "volcano": [],
        "passages": [],
        "furthest": _furthest(there.cosine, tuned.firings),
    }


def _all_undetermined(n: int) -> dict[str, int]:
    return {label: n if label == "undetermined" else 0 for label in LABELS}


def _furthest(cosine: Float[np.ndarray, " F"], firings: np.ndarray, n: int = 20, least: int = 20) -> list[int]:
    """Latents that fire often enough to be looked at, the worst matched first."""
    often = np.flatnonzero((firings >= least) & np.isfinite(cosine))
    return often[np.argsort(cosine[often], kind="stable")][:n].tolist()
