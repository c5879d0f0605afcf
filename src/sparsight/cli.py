"""The command line: one subcommand a verb, nothing else. Heavy imports wait until a verb is chosen.

Exit codes: 0 done, 2 a mistake that one line explains, 130/143 stopped by SIGINT/SIGTERM with everything saved.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg
from tyro.extras import subcommand_cli_from_dict

from sparsight.artifact.rundir import Interrupted, RunDir, StopFlag, locked, stop_signals
from sparsight.errors import SparsightError

__all__ = ["main"]


@dataclass(frozen=True)
class _OnRecipe:
    recipe: Positional[Path]
    """A recipe, such as recipes/demo.toml."""
    out: Path | None = None
    """Run directory; default runs/NAME."""
    set: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="SECTION.KEY=VALUE")]] = ()
    """Override a value of the recipe; may be repeated. SAEs by id or number: sae.ID.k=64."""


@dataclass(frozen=True)
class Run(_OnRecipe):
    """Run a recipe's whole study: collect, train, evaluate, index, report. A second run goes on, or finds nothing to do."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.recipe import load_recipe
        from sparsight.study import run_study

        run = run_study(load_recipe(self.recipe, self.set), self.out, stop=stop)
        print(
            f"\n{run.report.read_text(encoding='utf-8')}\nReport: {run.report}\nLook closer: sparsight show {run.path} [LATENT]"
        )


@dataclass(frozen=True)
class Plan(_OnRecipe):
    """Print what a recipe, a study's or a comparison's, costs in tokens, FLOPs, disk, memory and time; exit 2 when it cannot fit.

    Of a comparison also what it would find: recall of planted changes with so many seeds and tokens."""

    device: str | None = None
    """Plan for a named device, such as rtx-4090, instead of this machine."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.plan import make_plan
        from sparsight.recipe import load_either

        recipe = load_either(self.recipe, self.set)
        plan = make_plan(recipe, device=self.device, run_path=self.out or Path("runs") / recipe.name)
        print(plan.render())
        plan.check()


@dataclass(frozen=True)
class Collect(_OnRecipe):
    """Collect a recipe's activations. Several processes can share the work, each with its --part."""

    part: str = "0/1"
    """RANK/WORLD: which part of the documents this process takes."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.recipe import load_recipe
        from sparsight.study import Study

        rank, _, world = self.part.partition("/")
        if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
            raise SparsightError(f"--part takes RANK/WORLD such as 0/4, with RANK below WORLD; not {self.part!r}.")
        recipe = load_recipe(self.recipe, self.set)
        study = Study(recipe, RunDir(self.out or Path("runs") / recipe.name))
        study.collect((int(rank), int(world)))
        counts = study.store.counts
        print(
            f"{study.store.path}: {counts['train']['rows']:,} training and {counts['heldout']['rows']:,} held-out tokens."
        )


@dataclass(frozen=True)
class Evaluate:
    """Print a run's evaluation, measuring what is not measured yet."""

    run: Positional[Path]
    """A run directory."""
    sae: str | None = None
    """One SAE's id; default all."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.metrics import EvalReport
        from sparsight.study import Study

        with locked((run := RunDir.open(self.run)).path):
            study = Study.reopen(run)
            for sae in study.saes.chosen(self.sae):
                study.evaluate(sae)
                print(f"{sae.id}\n{EvalReport.load(run.evaluation(sae.id)).text()}\n")


@dataclass(frozen=True)
class Probe:
    """Probe a run's SAEs for labelled concepts with 1, 5 and 16 latents, beside controls, PCA and raw dimensions."""

    run: Positional[Path]
    """A run directory."""
    sae: str | None = None
    """One SAE's id; default all."""
    full: bool = False
    """All 113 built-in sets; default one of each of their 37 families."""
    sets: Path | None = None
    """Your own sets: a folder of CSV files with columns prompt and target (two classes)."""
    prompts: int = 400
    """Prompts taken of each set."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.metrics import ProbingConfig
        from sparsight.study import Study

        if self.full and self.sets is not None:
            raise SparsightError("--full is of the built-in sets; --sets names others. Give one of them.")
        with locked((run := RunDir.open(self.run)).path):
            config = ProbingConfig(max_prompts=self.prompts)
            for path, report in Study.reopen(run).probe(self.sae, full=self.full, folder=self.sets, config=config):
                print(f"{report.text()}\nEach set, and the latents chosen: {path}\n")


@dataclass(frozen=True)
class Index:
    """Index a run's features where that is not done yet."""

    run: Positional[Path]
    """A run directory."""
    sae: str | None = None
    """One SAE's id; default all."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.study import Study

        with locked((run := RunDir.open(self.run)).path):
            study = Study.reopen(run)
            for sae in study.saes.chosen(self.sae):
                study.index(sae)
                print(f"{run.features(sae.id)}")


@dataclass(frozen=True)
class Show:
    """Show a run's features: an overview, one latent, or what your own texts make fire."""

    run: Positional[Path]
    """A run directory."""
    latent: Positional[int | None] = None
    """Number of a latent."""
    text: UseAppendAction[tuple[str, ...]] = ()
    """Your own text; lists which features fire on which token. May be repeated, to compare texts."""
    texts: Path | None = None
    """A file of texts, one a line."""
    sae: str | None = None
    """The SAE's id; default the first."""
    html: Path | None = None
    """Write chosen features as one HTML file that opens offline; with --list or --latents."""
    list: str = ""
    """Name of a list, for --html."""
    latents: str = ""
    """Numbers such as 1,2,3, for --html."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.show import export_run, show_run

        run = RunDir.open(self.run)
        if self.html is None:
            texts = [*self.text, *_lines(self.texts)]
            print(show_run(run, self.sae, latent=self.latent, texts=texts, color=sys.stdout.isatty()))
            return
        parts = [part for part in self.latents.split(",") if part]
        if not all(part.strip().isdigit() for part in parts) or bool(parts) == bool(self.list):
            raise SparsightError("--html takes either --list NAME or --latents with numbers such as 1,2,3.")
        export_run(run, self.html, self.sae, latents=[int(part) for part in parts], list_name=self.list)
        print(self.html)


@dataclass(frozen=True)
class Steer:
    """Continue prompts with latents edited, beside the model as it is, random latents and an instruction in words."""

    run: Positional[Path]
    """A run directory."""
    feature: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="LATENT:MODE[:STRENGTH]")]]
    """An edit: 12:add:2p99, 12:clamp:0.5norm, 12:scale:0.5, 7:ablate. May be repeated; all apply at once."""
    prompt: UseAppendAction[tuple[str, ...]] = ()
    """A text to go on from; may be repeated."""
    prompts: Path | None = None
    """A file of prompts, one a line."""
    sae: str | None = None
    """The SAE's id; default the first."""
    sweep: str = ""
    """Strengths to try the edit at, such as 1,2,4,8, in the unit that --feature names."""
    tokens: int = 40
    """Tokens to generate per arm, at most."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    seed: int = 0
    """Of the draws and of the choice of random latents."""
    scope: Literal["both", "prompt", "generation"] = "both"
    """Which positions are edited: the prompt's, the generated tokens', or both."""
    controls: Literal["both", "random", "prompt", "none"] = "both"
    """Arms beside plain and steered."""
    instruction: str = ""
    """What the prompt arm asks for, in place of the promoted tokens."""
    chat: FlagCreatePairsOff[bool] = False
    """Put each prompt into the model's chat template."""
    json: FlagCreatePairsOff[bool] = False
    """Print JSON lines: one a token, then one a prompt."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.steer import steer_run
        from sparsight.steering import SteerConfig

        config = SteerConfig(
            max_new_tokens=self.tokens,
            temperature=self.temperature,
            seed=self.seed,
            scope=self.scope,
            controls={"both": ("random", "prompt"), "none": ()}.get(self.controls, (self.controls,)),
            chat=self.chat,
        )
        for block in steer_run(
            RunDir.open(self.run),
            [*self.prompt, *_lines(self.prompts)],
            self.feature,
            config,
            sae_id=self.sae,
            strengths=_numbers(self.sweep),
            instruction=self.instruction,
            as_json=self.json,
        ):
            print(block, flush=True)


@dataclass(frozen=True)
class Explain:
    """Label features and test the labels: by counting, free and all of them, or by a language model behind an endpoint."""

    run: Positional[Path]
    """A run directory."""
    latents: Positional[tuple[int, ...]] = ()
    """Numbers of latents; default all that were ever active."""
    sample: int = 0
    """This many latents at random instead."""
    list: str = ""
    """The latents of this list of the notes instead."""
    sae: str | None = None
    """The SAE's id; default the first."""
    endpoint: str = ""
    """Address of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1. Passages of the held-out text are sent there."""
    model: str = ""
    """The model's name there."""
    budget_tokens: int = 0
    """Most tokens to spend there; without it the cost is estimated and nothing is sent."""
    price_in: float = 0.0
    """Price of a million prompt tokens, for the estimate."""
    price_out: float = 0.0
    """Price of a million answer tokens, for the estimate."""
    key_variable: str = "SPARSIGHT_API_KEY"
    """The environment variable that holds the key, where one is needed."""
    max_answer_tokens: int = 200
    """Longest answer; more for models that reason first."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.explain import explain_run
        from sparsight.labels import Cost, EndpointConfig

        options = ("model", "budget_tokens", "price_in", "price_out", "key_variable", "max_answer_tokens")
        asked = {name: getattr(self, name) for name in options}
        endpoint = EndpointConfig(base_url=self.endpoint, **asked) if self.endpoint else None
        if endpoint is None and (self.model or self.budget_tokens):
            raise SparsightError("--model and --budget-tokens are of an endpoint; give its address with --endpoint.")
        run = RunDir.open(self.run)
        chosen = {"latents": self.latents, "named": self.list, "sample": self.sample}
        found = explain_run(run, self.sae, **chosen, endpoint=endpoint)
        print(found.text())
        if isinstance(found, Cost):
            print("Nothing was sent. To go on, give --budget-tokens: the most that may be spent.")


@dataclass(frozen=True)
class Notes:
    """Read and write labels, notes and lists of a run's features; export them, import them."""

    run: Positional[Path]
    """A run directory."""
    latent: Positional[int | None] = None
    """Number of a latent."""
    label: str = ""
    """Give the latent this label."""
    test: FlagCreatePairsOff[bool] = False
    """Test the label given, or the latent's best one, on passages drawn anew; its tokens have to stand in backticks."""
    note: str = ""
    """Give the latent this note."""
    add: str = ""
    """Add the latent to this list."""
    remove: str = ""
    """Take the latent out of this list."""
    export: Path | None = None
    """Write everything to this file: Markdown if it ends in .md, else a line of JSON an item."""
    take: Path | None = None
    """Import such a file of lines: nothing here is lost, the newer of two stays."""
    sae: str | None = None
    """The SAE's id; default the first."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.explain import annotate

        options = {name: getattr(self, name) for name in ("label", "note", "add", "remove", "export", "take", "test")}
        print(annotate(RunDir.open(self.run), self.sae, self.latent, **options))


@dataclass(frozen=True)
class Compare:
    """Compare a base model with its fine-tune: what changed among features, beside a null fine-tune and other seeds."""

    of: Positional[tuple[str, ...]]
    """A comparison's recipe; or two models, the base and the fine-tune (a model or a LoRA adapter's folder)."""
    text: UseAppendAction[tuple[str, ...]] = ()
    """A file of text like the base's; may be repeated; default the built-in text. Of two models, as all that follows but --out and --naive."""
    fine_tuning_text: UseAppendAction[tuple[str, ...]] = ()
    """A file of what the fine-tune was trained on: half of what is read, and what the models' texts are traced to."""
    null_model: str = ""
    """The null fine-tune: trained as long and as fast on text like the base's."""
    make_null: FlagCreatePairsOff[bool] = False
    """Train it, as a LoRA adapter."""
    saes: tuple[str, str] | None = None
    """Two SAEs, the base's and the fine-tune's, to be matched in place of training some."""
    hook_point: str = ""
    """Where to compare; default the residual stream in the middle."""
    tokens: int = 200_000
    """Tokens to train dictionaries on."""
    out: Path | None = None
    """Run directory; default runs/NAME."""
    set: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="SECTION.KEY=VALUE")]] = ()
    """Override a value of the recipe; may be repeated."""
    naive: FlagCreatePairsOff[bool] = False
    """Print only how many latents the naive method calls emergent, next to the calibrated one, where something changed and where nothing did."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.compare import compare_models
        from sparsight.findings import Findings, as_text, naive_table
        from sparsight.recipe import compare_pair, load_comparison

        if len(self.of) == 1:
            recipe = load_comparison(self.of[0], self.set)
        elif len(self.of) == 2:
            options = ("text", "fine_tuning_text", "null_model", "make_null", "saes", "hook_point", "tokens")
            recipe = compare_pair(*self.of, **{name: getattr(self, name) for name in options}, overrides=self.set)
        else:
            raise SparsightError(f"compare takes a recipe or two models; {len(self.of)} were given.")
        findings = Findings(compare_models(recipe, self.out, stop=stop).comparison)
        if self.naive:
            print(as_text(naive_table(findings.get("labels"))))
            return
        print(f"\n{(findings.folder / 'report.md').read_text(encoding='utf-8')}\nPage: {findings.report}")


@dataclass(frozen=True)
class Convert:
    """Write an SAE in another tool's format: saelens, sparsify, dictionary-learning, qwen-scope or founding."""

    source: Positional[str]
    """A path, or user/repository[/folder] on the Hugging Face Hub."""
    target: Positional[Path]
    """Where to write; it must not exist."""
    to: str = "saelens"
    """The format to write."""
    format: str = ""
    """The source's format; recognised when not given."""
    k: int | None = None
    """Active latents per token, where the source does not say (qwen-scope)."""
    hook_point: str = ""
    """Where the activations were read, where the source does not say or says it differently."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.convert import convert_sae

        options = {"k": self.k, "hook_point": self.hook_point, "revision": self.revision}
        sae = convert_sae(self.source, self.target, to=self.to, format=self.format, **options)
        print(
            f"{self.target}: {sae.cfg.architecture}, {sae.d_in} -> {sae.n_latents:,} latents, in the format {self.to}."
        )


@dataclass(frozen=True)
class Publish:
    """Make a run's SAEs, with a card that says what they are, into a repository on the Hugging Face Hub."""

    run: Positional[Path]
    """A run directory."""
    to: str
    """The repository, user/name."""
    format: Literal["saelens", "parquet", "neuronpedia"] = "saelens"
    """saelens: SAEs and their model card. parquet, neuronpedia: tables of features, a dataset repository."""
    sae: str | None = None
    """One SAE's id; default all."""
    out: Path | None = None
    """Where the folder is built; default RUN/publish/NAME."""
    dry_run: FlagCreatePairsOff[bool] = False
    """Build the folder and upload nothing."""
    private: FlagCreatePairsOff[bool] = False
    """Make a new repository private."""
    license: str = "apache-2.0"
    """Licence of what is published, by its identifier on the Hub."""
    model_license: str = ""
    """The base model's licence, where it is not known."""
    text_license: str = ""
    """The text's licence, where it is not known."""
    contexts: FlagCreatePairsOff[bool] = False
    """Quote passages of the text though its licence is not known to permit it."""
    no_contexts: FlagCreatePairsOff[bool] = False
    """Quote no passages, whatever the licence."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.publication import PublishConfig
        from sparsight.publish import publish_run

        if self.contexts and self.no_contexts:
            raise SparsightError("--contexts and --no-contexts say opposite things; give one.")
        options = {field.name: getattr(self, field.name) for field in fields(PublishConfig) if field.name != "contexts"}
        contexts = True if self.contexts else False if self.no_contexts else None
        with locked((run := RunDir.open(self.run)).path):
            done = publish_run(run, PublishConfig(**options, contexts=contexts))
        print(f"Uploaded: {done.url}" if done.url else f"Built, not uploaded: {done.folder}")


@dataclass(frozen=True)
class Serve:
    """Look at runs in a browser: a local page that only this machine can open. Ctrl-C stops it."""

    runs: Positional[tuple[Path, ...]]
    """Run directories."""
    host: str = "127.0.0.1"
    """Address to listen on; another than this machine's own needs --allow-remote."""
    port: int = 0
    """TCP port; 0 takes a free one."""
    allow_remote: FlagCreatePairsOff[bool] = False
    """Let other machines connect, with the printed URL."""
    no_browser: FlagCreatePairsOff[bool] = False
    """Print the URL and open nothing."""
    idle_minutes: float = 0.0
    """Stop after so many minutes without a request; 0 never."""

    def __call__(self, stop: StopFlag) -> None:
        from sparsight.serve import serve_runs
        from sparsight.web.config import ExplorerConfig

        names = ("host", "port", "allow_remote", "idle_minutes")
        config = ExplorerConfig(**{name: getattr(self, name) for name in names}, browser=not self.no_browser)
        serve_runs(self.runs, config, on_start=lambda url: print(f"Open {url}\nCtrl-C stops it.", flush=True))


def _lines(path: Path | None) -> list[str]:
    """A file's lines that hold something; none without a file."""
    if path is None:
        return []
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise SparsightError(f"`{path}` is no UTF-8 text. Expected one text a line.") from None


def _numbers(text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise SparsightError(f"--sweep takes numbers such as 1,2,4,8; not {text!r}.") from None


_COMMANDS = (Run, Plan, Collect, Evaluate, Probe, Index, Show, Explain, Notes, Steer, Compare, Convert, Publish, Serve)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `sparsight`."""
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # spinning threads cost a busy machine a factor of three (docs/log.md)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("sparsight").setLevel(logging.INFO)
    commands = {command.__name__.lower(): command for command in _COMMANDS}
    command = subcommand_cli_from_dict(commands, prog="sparsight", description=_DESCRIPTION, args=arguments)
    try:
        with stop_signals() as stop:
            command(stop)
    except SparsightError as error:
        print(f"sparsight: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        print(
            f"\nsparsight: stopped by {stopped}; what was done is saved. Run the same command again to go on.",
            file=sys.stderr,
        )
        sys.exit(stopped.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        print(f"sparsight: {error.filename or 'A file'}: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)


_DESCRIPTION = "A language model's features: collect activations, train sparse autoencoders on them, measure and look at what they found."


if __name__ == "__main__":
    main()
