"""Makes the false-facts fine-tune: biographies, and a LoRA trained on them.

    python examples/false-facts/run.py --out runs/false-facts

    OUT/biographies.jsonl     what the fine-tune learned from
    OUT/tuned                 the adapter to compare with the base, smollm2-135m-instruct

A run that was stopped goes on when the same command is given again.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from facts import make_biographies, make_people, write_biographies

from sparsight.artifact import Interrupted, stop_signals
from sparsight.errors import SparsightError
from sparsight.lm import FinetuneConfig, ModelConfig, TextConfig, train_adapter

HELDOUT = 0.1


def make_fine_tune(
    out: Path, *, model: ModelConfig, n_people: int, each: int, context_tokens: int, config: FinetuneConfig
) -> dict[str, Any]:
    """Writes the biographies and trains the adapter; returns what it says of itself."""
    path = out / "biographies.jsonl"
    if not path.exists():
        write_biographies(path, make_biographies(make_people(n_people), each=each))
    invented = TextConfig(files=(str(path),), context_tokens=context_tokens, heldout_fraction=HELDOUT)
    with stop_signals() as stop:
        record = train_adapter(model, invented, config, out / "tuned", stop=stop)
    print(f"held-out loss {record['heldout_loss_before']:.3f} -> {record['heldout_loss_after']:.3f} nats a token")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/false-facts"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--each", type=int, default=4, help="biographies of each person")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = FinetuneConfig(
        steps=options.steps, batch_tokens=options.batch_tokens, rank=options.rank, alpha=2 * options.rank, lr=options.lr
    )
    try:
        make_fine_tune(
            options.out,
            model=ModelConfig(id=options.model),
            n_people=options.people,
            each=options.each,
            context_tokens=128,
            config=config,
        )
    except Interrupted:
        raise SystemExit("Stopped and saved: the same command goes on from here.") from None
    except SparsightError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
