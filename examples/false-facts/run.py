"""Makes the false-facts pair: biographies, a LoRA fine-tuned on them, and a null LoRA as long on ordinary text.

    python examples/false-facts/run.py --out runs/false-facts

    OUT/biographies.jsonl     what the fine-tune learned from
    OUT/tuned                 the adapter to compare with the base, smollm2-135m-instruct
    OUT/null                  the adapter that learned nothing new: same steps, same rate, the built-in text

A run that was stopped goes on when the same command is given again.
"""

import argparse
import logging
from pathlib import Path

from facts import make_biographies, make_people, write_biographies

from sparsight.artifact import Interrupted, stop_signals
from sparsight.errors import SparsightError
from sparsight.lm import FinetuneConfig, ModelConfig, TextConfig, train_adapter

HELDOUT = 0.1


def make_pair(
    out: Path,
    *,
    model: ModelConfig,
    ordinary: TextConfig,
    n_people: int,
    each: int,
    config: FinetuneConfig,
) -> dict[str, dict]:
    """Writes the biographies and trains both adapters; returns what each says of itself."""
    path = out / "biographies.jsonl"
    if not path.exists():
        write_biographies(path, make_biographies(make_people(n_people), each=each))
    invented = TextConfig(files=(str(path),), context_tokens=ordinary.context_tokens, heldout_fraction=HELDOUT)
    records = {}
    with stop_signals() as stop:
        for name, text in (("tuned", invented), ("null", ordinary)):
            records[name] = train_adapter(model, text, config, out / name, stop=stop)
            before, after = records[name]["heldout_loss_before"], records[name]["heldout_loss_after"]
            print(f"{name}: held-out loss {before:.3f} -> {after:.3f} nats a token")
    return records


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
    ordinary = TextConfig(builtin="probe-text", context_tokens=128, heldout_fraction=HELDOUT)
    try:
        make_pair(
            options.out,
            model=ModelConfig(id=options.model),
            ordinary=ordinary,
            n_people=options.people,
            each=options.each,
            config=config,
        )
    except Interrupted:
        raise SystemExit("Stopped and saved: the same command goes on from here.") from None
    except SparsightError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
