"""How long the explorer's page waits for each answer at 131,072 latents. Writes benchmarks/records/explorer.json and .md.

    make bench-explorer

A synthetic run (random activations, 200,000 tokens at L0 = 32: 6.4 million pairs; every optional array; 131,072 labels by an explainer and
2,000 notes) is served by `sparsight serve` in a process of its own and asked over one connection that stays open, as a browser does. Each kind of
request is asked REPEATS times, in random order among the kinds, each time about something else: what is measured is not a cache of answers. The
first answer of each kind is apart, since it may build what later ones use. Live answers are measured with the model named below, its first
request, which loads it, apart. Beside the time by the clock stands the
processor time that the server used, which other work on the machine does not lengthen.
"""

import argparse
import http.client
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

import numpy as np

N_LATENTS, N_TOKENS, L0, DOCUMENT_TOKENS = 131_072, 200_000, 32, 250
MODEL, WIDTH, VOCABULARY, HOOK = "smollm2-135m-instruct", 576, 49_152, "layers.15.mlp"
REPEATS, LIVE_REPEATS, SEED = 200, 20, 0
TARGET_MS = 100
RECORDS = Path(__file__).parent / "records"
RECIPE = f"""
schema = 1
name = "wide"
controls = []
[model]
id = "{MODEL}"
[text]
builtin = "probe-text"
heldout_fraction = 0.1
[activations]
hook_points = ["{HOOK}"]
n_tokens = 1000
heldout_tokens = {N_TOKENS}
[[sae]]
id = "topk"
architecture = "topk"
n_latents = {N_LATENTS}
k = {L0}
"""


def make_run(run: Path) -> None:
    """The synthetic run: an index with every array, random weights, labels and notes."""
    import torch

    from sparsight.features import Label, Notes
    from sparsight.recipe import dump_recipe, load_recipe
    from sparsight.sae import SAEConfig, SparseAutoencoder

    run.mkdir()
    (run / "draft.toml").write_text(RECIPE)
    (run / "recipe.toml").write_text(dump_recipe(load_recipe(run / "draft.toml")))
    rng = np.random.default_rng(SEED)
    words = make_index(run / "features" / "topk", rng)
    W = torch.randn(WIDTH, N_LATENTS, generator=torch.Generator().manual_seed(SEED)) / WIDTH**0.5
    tensors = {"W_enc": W, "W_dec": W.T.contiguous(), "b_enc": torch.zeros(N_LATENTS), "b_dec": torch.zeros(WIDTH)}
    config = SAEConfig(id="topk", architecture="topk", n_latents=N_LATENTS, k=L0)
    SparseAutoencoder(config, tensors).save(run / "saes" / "topk", metadata={})
    notes = Notes.open(run / "notes" / "topk.sqlite", N_LATENTS)
    scores = rng.uniform(0.4, 1, N_LATENTS)
    notes.set_labels(
        Label(latent, f"fires on {words[latent]!r} in number {latent}", "llm:none", score=round(score, 3))
        for latent, score in enumerate(scores.tolist())
    )
    for latent in rng.choice(N_LATENTS, 2000, replace=False).tolist():
        notes.set_note(latent, f"a note on {words[latent]!r}")
    notes.set_list("mine", rng.choice(N_LATENTS, 500, replace=False).tolist())


def make_index(path: Path, rng: np.random.Generator) -> list[str]:
    """The index; returns a word for each latent."""
    from sparsight.activations import PieceTable
    from sparsight.features import FeatureIndexWriter, IndexConfig

    ids = (rng.zipf(1.2, N_TOKENS) % VOCABULARY).astype(np.int32)
    n_documents = N_TOKENS // DOCUMENT_TOKENS
    numbers = np.arange(n_documents)
    offsets = np.arange(n_documents + 1) * DOCUMENT_TOKENS
    pieces = PieceTable(ids, offsets, numbers, np.zeros(n_documents, np.int32), numbers)
    popularity = rng.lognormal(0, 1, N_LATENTS)
    bounds = np.cumsum(popularity / popularity.sum())
    with FeatureIndexWriter.create(path, pieces, N_LATENTS, IndexConfig()) as writer:
        for places in np.array_split(np.arange(N_TOKENS), 50):
            drawn = np.minimum(np.searchsorted(bounds, rng.random((len(places), L0))), N_LATENTS - 1)
            drawn.sort(axis=1)
            values = rng.gamma(2, 1, drawn.shape).astype(np.float32)
            values[:, 1:][drawn[:, 1:] == drawn[:, :-1]] = 0  # a latent drawn twice counts once
            writer.add(places, drawn, values)
        text = writer.group().text
        writer.set_arrays(optional_arrays(rng))
        about = {
            "architecture": "topk",
            "n_latents": N_LATENTS,
            "hook_point": HOOK,
            "target_hook_point": HOOK,
            "model": {},
        }
        about |= {
            "split": "heldout",
            "why_no_logits": "",
            "why_no_map": "",
            "seed_chance_cosine": 0.1,
            "mean_norm": 10.0,
        }
        writer.finish(about | {"position_tokens": text.position_tokens().tolist()})
    return [f"w{number}" for number in rng.integers(0, 20_000, N_LATENTS)]


def optional_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What a language model, neighbours, clusters, a map and a second seed add: random."""
    tokens = {
        name: rng.integers(0, VOCABULARY, (N_LATENTS, 10)).astype(np.int32) for name in ("promoted", "suppressed")
    }
    falling = np.tile(np.linspace(5, 1, 10, dtype=np.float32), (N_LATENTS, 1))
    near = {
        name: rng.integers(0, N_LATENTS, (N_LATENTS, 10)).astype(np.int32)
        for name in ("decoder", "encoder", "coactive")
    }
    return {
        **{f"{name}_tokens": ids for name, ids in tokens.items()},
        **{f"{name}_weights": falling for name in tokens},
        **{f"{name}_neighbours": near[name] for name in ("decoder", "encoder")},
        **{f"{name}_cosines": falling / 6 for name in ("decoder", "encoder")},
        "coactive_latents": near["coactive"],
        "coactive_pmi": falling,
        "coactive_jaccard": falling / 6,
        "cluster": np.minimum(rng.zipf(1.3, N_LATENTS) - 1, 3000).astype(np.int32),
        "map": rng.normal(size=(N_LATENTS, 2)).astype(np.float32),
        "output_score": rng.uniform(0, 1, N_LATENTS).astype(np.float32),
        "seed_cosine": rng.uniform(0, 1, N_LATENTS).astype(np.float32),
        "seed_cosine_latent": rng.permutation(N_LATENTS).astype(np.int32),
    }


def kinds(base: str, draw: random.Random) -> dict[str, Callable[[], tuple[str, str, dict | None]]]:
    """(method, path, body) of each kind of request, drawn anew each time."""
    columns = (
        "density maximum mean p99 token_purity token_entropy lift output_score cluster top_token seed_cosine".split()
    )
    latent = lambda: draw.randrange(N_LATENTS)  # noqa: E731
    word = lambda: "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.choice((2, 3, 4))))  # noqa: E731

    def table(**query: object) -> tuple[str, str, None]:
        asked = {"sort": draw.choice(columns), "order": draw.choice(("asc", "desc")), "limit": 100} | query
        return (
            "GET",
            f"{base}/features?" + "&".join(f"{name}={quote(str(value))}" for name, value in asked.items()),
            None,
        )

    get = lambda path: ("GET", base + path, None)  # noqa: E731
    return {
        "session": lambda: ("GET", "/api/session", None),
        "table, sorted": lambda: table(),
        "table, a page deep in it": lambda: table(offset=draw.randrange(N_LATENTS - 100)),
        "table, filtered": lambda: table(filter=f"density>={draw.random() / 1e4:.7f}"),
        "table, one cluster": lambda: table(cluster=draw.randrange(40)),
        "table, a list": lambda: table(list="mine"),
        "table, searched": lambda: table(q=word()),
        "table, searched for two words": lambda: table(q=f"{word()} {word()}"),
        "table, searched for one letter": lambda: table(q=draw.choice("aeiou") + str(draw.randrange(10))),
        "table, sorted by label": lambda: table(sort="label", filter=f"latent>={latent()}"),
        "feature": lambda: get(f"/features/{latent()}"),
        "feature, beside its table's neighbours": lambda: get(f"/features/{latent()}?sort=density&q={word()}"),
        "passages": lambda: get(f"/features/{latent()}/contexts"),
        "map": lambda: get("/map"),
        "column": lambda: get(f"/columns/{draw.choice(columns)}"),
        "clusters": lambda: get("/clusters"),
        "lists": lambda: get("/lists"),
        "run": lambda: get("/run"),
        "write a label": lambda: ("PUT", f"{base}/features/{latent()}/label", {"text": word()}),
        "write a note": lambda: ("PUT", f"{base}/features/{latent()}/note", {"text": word()}),
        "add to a list": lambda: ("POST", f"{base}/lists/other/add", {"latents": [latent()]}),
        "export 20 features": lambda: get("/export?latents=" + ",".join(str(latent()) for _ in range(20))),
    }


def processor_ms(process_id: int) -> float:
    """Processor time that a process has used, all threads, in ms."""
    found = 0
    for task in Path(f"/proc/{process_id}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that ended meanwhile
            found += int((task / "schedstat").read_text().split()[0])
    return found / 1e6


def ask(
    connection: http.client.HTTPConnection,
    token: str,
    server: int,
    method: str,
    path: str,
    body: dict | None,
    *,
    whole: bool = True,
) -> tuple[float, float, int]:
    """(ms until the last byte, or that of the first line, the server's processor time in ms, bytes) of one answer."""
    headers = {"Authorization": f"Bearer {token}", "X-Sparsight": "1", "Content-Type": "application/json"}
    used, started = processor_ms(server), time.perf_counter()
    connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
    answer = connection.getresponse()
    content = answer.read() if whole else answer.readline()
    taken = (time.perf_counter() - started) * 1000
    assert answer.status == 200, (path, answer.status, content[:300])
    used = processor_ms(server) - used
    answer.read()
    return taken, used, len(content)


def spread(answers: list[tuple[float, float, int]]) -> dict[str, float]:
    """First, median, 95th percentile and largest, in ms; the same of processor time; bytes of the median answer."""
    times, used, sizes = np.array(answers).T
    later, used = times[1:], used[1:]
    return {
        "n": len(later),
        "first_ms": round(times[0], 1),
        "median_ms": round(float(np.median(later)), 1),
        "p95_ms": round(float(np.quantile(later, 0.95)), 1),
        "max_ms": round(float(later.max()), 1),
        "processor_median_ms": round(float(np.median(used)), 1),
        "processor_p95_ms": round(float(np.quantile(used, 0.95)), 1),
        "bytes": int(np.median(sizes)),
    }


def measure(run: Path, repeats: int) -> dict[str, object]:
    """Serves the run and asks for everything."""
    command = [sys.executable, "-m", "sparsight.cli", "serve", str(run), "--no-browser", "--idle-minutes", "5"]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        found = re.search(r":(\d+)/\?token=([\w-]+)", server.stdout.readline())
        assert found
        port, token, ready = int(found[1]), found[2], time.perf_counter() - started
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        draw, base = random.Random(SEED), f"/api/d/{run.name}/topk"
        asked = kinds(base, draw)
        results: dict[str, list[tuple[float, float, int]]] = {name: [] for name in asked}
        first = [*asked]
        order = [name for name in asked for _ in range(repeats)]
        draw.shuffle(order)
        for name in first + order:
            results[name].append(ask(connection, token, server.pid, *asked[name]()))
        live = measure_live(connection, token, server.pid, base, draw)
        memory = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text())
        assert memory
        return {
            "ready_seconds": round(ready, 1),
            "answers": {name: spread(found) for name, found in results.items()},
            "live": live,
            "peak_megabytes": int(memory[1]) // 1024,
        }
    finally:
        server.terminate()
        server.wait()


def measure_live(
    connection: http.client.HTTPConnection, token: str, server: int, base: str, draw: random.Random
) -> dict[str, object]:
    """One's own text, of about 10, 100 and 1,000 tokens: until the page shows its first tokens, and until it shows all."""
    words = "the cat sat on a mat while seven quiet engineers read their logs and waited for rain".split()
    found = {}
    for n_words in (10, 100, 1000):
        for whole in (False, True):
            texts = [" ".join(draw.choices(words, k=n_words)) for _ in range(LIVE_REPEATS + 1)]
            results = [
                ask(connection, token, server, "POST", f"{base}/text", {"text": text}, whole=whole) for text in texts
            ]
            found[f"text of {n_words:,} words, {'all of it' if whole else 'its first tokens'}"] = spread(results)
    return found


def markdown(record: dict) -> str:
    """The record as a page."""
    lines = [
        "# The explorer's answers at 131,072 latents",
        "",
        f"`make bench-explorer`, commit {record['commit']}, {record['date']}; {record['processor']}, {record['cores']} cores, "
        f"load {record['load']} at the start; {', '.join(f'{name} {number}' for name, number in record['versions'].items())}.",
        "",
        f"{N_LATENTS:,} latents, {record['pairs']:,} activations on {N_TOKENS:,} tokens, a label for every latent; one connection, "
        f"{record['repeats']} requests a kind in random order, each about something else. The target is a p95 of {TARGET_MS} ms. Ready "
        f"{record['ready_seconds']} s after the command; at most {record['peak_megabytes']:,} MB of memory, the language model and an "
        "SAE of 604 MB included. One's own text is read in parts and shown as they come; its first tokens are 32 to 48.",
        "",
        "| answer | first, ms | median | p95 | largest | processor, median | processor, p95 | kB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in [*record["answers"].items(), *record["live"].items()]:
        over = " (over)" if row["p95_ms"] > TARGET_MS else ""
        lines.append(
            f"| {name} | {row['first_ms']} | {row['median_ms']} | {row['p95_ms']}{over} | {row['max_ms']} "
            f"| {row['processor_median_ms']} | {row['processor_p95_ms']} | {row['bytes'] / 1000:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--folder", type=Path, help="keep the synthetic run here, or use the one that is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = (options.folder or Path(temporary)) / "wide"
        if not run.exists():
            run.parent.mkdir(parents=True, exist_ok=True)
            make_run(run)
        description = json.loads((run / "features" / "topk" / "index.json").read_text())
        git = ["git", "-C", str(RECORDS), "describe", "--always", "--dirty", "--exclude", "*"]
        processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        record = {
            "command": "make bench-explorer",
            "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
            "date": datetime.now(UTC).date().isoformat(),
            "processor": processor[1] if processor else platform.processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 1),
            "versions": {name: version(name) for name in ("fastapi", "starlette", "uvicorn", "numpy", "torch")},
            "repeats": options.repeats,
            "pairs": description["arrays"]["activation_tokens"]["shape"][0],
            **measure(run, options.repeats),
        }
    RECORDS.joinpath("explorer.json").write_text(json.dumps(record, indent=1) + "\n")
    RECORDS.joinpath("explorer.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
