/** Where the dictionary comes from and what it is worth: metrics beside their controls, training, provenance. */

import { api } from "../api";
import { Forest, scaleOf } from "../charts/forest";
import { Lines } from "../charts/lines";
import { count, fixed, seconds, signed } from "../format";
import { Markdown } from "../parts/markdown";
import { Problem } from "../parts/problem";
import { useLoad } from "../store";
import type { Dictionary, Estimate, Evaluation, RunFacts } from "../types";

const METRICS: [string, string, string, number, "low" | "high" | ""][] = [
  ["fvu", "FVU", "Fraction of variance unexplained: 0 perfect, 1 no better than the mean", 4, "low"],
  ["cosine", "cosine", "Cosine of activation and reconstruction", 4, "high"],
  ["l0", "L0", "Active latents a token", 2, ""],
  ["ce", "CE", "Cross-entropy with the reconstruction spliced in, nats a token", 4, "low"],
  ["kl", "KL", "KL divergence from the clean model's next-token distribution, nats", 4, "low"],
  ["recovered_zero", "recovered (zero)", "Share of the cross-entropy that a zero ablation loses and this wins back", 4, "high"],
  ["recovered_mean", "recovered (mean)", "The same against a mean ablation", 4, "high"],
  ["dead_share", "dead", "Share of latents never active on these tokens", 4, "low"],
];

const CURVES: [string, string, boolean][] = [
  ["fvu", "FVU", false], ["loss", "Loss", true], ["mse", "MSE", true], ["l0", "L0", false], ["dead_share", "Dead share", false],
  ["lr", "Learning rate", false], ["aux_loss", "Auxiliary loss", true], ["gradient_norm", "Gradient norm", true], ["tokens_per_second", "Tokens a second", false],
];

export function Run({ dictionary }: { dictionary: Dictionary }) {
  const { data, error, again } = useLoad(dictionary.key, () => api.run(dictionary));
  if (error) return <Problem error={error} again={again} />;
  if (!data) return <p class="waiting">Reading…</p>;
  return (
    <div class="run">
      <header>
        <h1>{dictionary.key}</h1>
        <p class="dim">
          {dictionary.architecture}, {count(dictionary.n_latents)} latents at {dictionary.hook_point}
          {dictionary.target_hook_point && dictionary.target_hook_point !== dictionary.hook_point && ` to ${dictionary.target_hook_point}`} of {dictionary.model}; indexed on {count(dictionary.n_tokens)} held-out tokens of {count(dictionary.n_documents)} documents
        </p>
      </header>
      {data.evaluation?.methods ? <Metrics evaluation={data.evaluation} /> : <p class="empty">This dictionary has not been evaluated. <code>sparsight evaluate</code> does that.</p>}
      {data.evaluation?.verdicts && data.evaluation.verdicts.length > 0 && <Verdicts evaluation={data.evaluation} />}
      {data.evaluation?.stability && <Stability stability={data.evaluation.stability} />}
      {data.training && data.training.length > 1 && <Training training={data.training} />}
      <Provenance facts={data} />
      {data.report && <details class="report"><summary><h2>The report, as written</h2></summary><Markdown text={data.report} /></details>}
    </div>
  );
}

function Metrics({ evaluation }: { evaluation: Evaluation }) {
  const methods = evaluation.methods!;
  const shown = METRICS.filter(([name]) => methods.some((method) => method.metrics[name]?.value !== null && method.metrics[name] !== undefined));
  const first = methods[0]?.metrics.fvu;
  return (
    <section>
      <h2>Beside its controls</h2>
      <p class="dim">On {first?.n_tokens ? `${count(first.n_tokens)} tokens` : "tokens"} of documents that training never saw. Point and 95 % interval, documents resampled; each column has one scale. ↓ lower is better.</p>
      <div class="scroll-x">
        <table class="plain metrics">
          <thead><tr><th /> {shown.map(([, title, hint, , better]) => <th class="numeric" data-hint={hint}>{title} {better === "low" ? "↓" : better === "high" ? "↑" : ""}</th>)}</tr></thead>
          <tbody>
            {methods.map((method, i) => (
              <tr class={i === 0 ? "subject" : ""}>
                <th scope="row">{method.label}</th>
                {shown.map(([name, , , digits]) => (
                  <td class="numeric"><Forest of={method.metrics[name]} scale={scaleOf(methods.map((one) => one.metrics[name]))} digits={digits} /></td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {evaluation.notes?.map((note) => <p class="dim">{note}</p>)}
    </section>
  );
}

function Verdicts({ evaluation }: { evaluation: Evaluation }) {
  const name = (baseline: string) => evaluation.methods!.find((method) => method.name === baseline)?.label ?? baseline;
  const metrics = [...new Set(evaluation.verdicts!.map((verdict) => verdict.metric))];
  const baselines = [...new Set(evaluation.verdicts!.map((verdict) => verdict.baseline))];
  const find = (baseline: string, metric: string) => evaluation.verdicts!.find((verdict) => verdict.baseline === baseline && verdict.metric === metric);
  return (
    <section>
      <h2>Is it better?</h2>
      <p class="dim">Control minus SAE, so right of the line favours the SAE. A tie: the interval holds zero, or two seeds differ by as much.</p>
      <div class="scroll-x">
        <table class="plain metrics">
          <thead><tr><th /> {metrics.map((metric) => <th class="numeric">{metric.toUpperCase()}</th>)}</tr></thead>
          <tbody>
            {baselines.map((baseline) => (
              <tr>
                <th scope="row">{name(baseline)}</th>
                {metrics.map((metric) => {
                  const verdict = find(baseline, metric);
                  const scale = scaleOf(evaluation.verdicts!.filter((one) => one.metric === metric).map((one) => one.difference), true);
                  return (
                    <td class="numeric">
                      {verdict && <><span class={`outcome ${verdict.outcome}`} data-hint={verdict.seed_difference === null ? undefined : `second seed minus SAE: ${signed(verdict.seed_difference, 4)}`}>{verdict.outcome}</span><Forest of={verdict.difference} scale={scale} zero /></>}
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

function Stability({ stability }: { stability: NonNullable<Evaluation["stability"]> }) {
  const of = (name: string) => stability[name] as Estimate | undefined;
  const rows: [string, string][] = [["nearest direction of each latent (MMCS)", "mmcs"], ["matched one to one (PW-MCC)", "pw_mcc"]];
  const scale = scaleOf(rows.flatMap(([, name]) => [of(name), of(`chance_${name}`)]), true);
  return (
    <section>
      <h2>Found again by a second seed</h2>
      <table class="plain metrics narrow">
        <thead><tr><th>mean cosine</th><th class="numeric">second seed</th><th class="numeric">chance</th></tr></thead>
        <tbody>{rows.map(([title, name]) => <tr><th scope="row">{title}</th><td class="numeric"><Forest of={of(name)} scale={scale} digits={3} zero /></td><td class="numeric"><Forest of={of(`chance_${name}`)} scale={scale} digits={3} zero /></td></tr>)}</tbody>
      </table>
    </section>
  );
}

function Training({ training }: { training: Record<string, number>[] }) {
  const there = CURVES.filter(([name]) => training.some((row) => Number.isFinite(row[name])) && new Set(training.map((row) => row[name])).size > 1);
  return (
    <section>
      <h2>Training</h2>
      <div class="charts">
        {there.map(([name, title, log]) => (
          <Lines title={title} x="step" log={log} height={100} series={[{ name: title, style: "plain", points: training.map((row) => [row.step!, row[name] ?? null]) }]} />
        ))}
      </div>
    </section>
  );
}

function Provenance({ facts }: { facts: RunFacts }) {
  const { steps, ...rest } = (facts.manifest ?? {}) as { steps?: Record<string, { seconds: number; finished: string }> };
  return (
    <section class="provenance">
      <h2>Provenance</h2>
      {steps && (
        <ol class="steps-done">
          {Object.entries(steps).map(([name, step]) => <li><b>{name}</b> {seconds(step.seconds)} <span class="dim">{step.finished?.slice(0, 16).replace("T", " ")}</span></li>)}
        </ol>
      )}
      <div class="pair">
        <div><h3>Manifest</h3>{facts.manifest ? <dl class="tree"><Tree value={rest} /></dl> : <p class="dim">This run has none.</p>}</div>
        <div><h3>Recipe</h3><pre class="recipe" tabIndex={0} aria-label="Recipe"><Toml text={facts.recipe ?? ""} /></pre></div>
      </div>
    </section>
  );
}

function Tree({ value }: { value: unknown }) {
  return (
    <>
      {Object.entries(value as object).map(([name, inner]) =>
        inner !== null && typeof inner === "object" && !Array.isArray(inner) ? (
          <><dt class="branch">{name}</dt><dd class="branch"><dl class="tree"><Tree value={inner} /></dl></dd></>
        ) : (
          <><dt>{name}</dt><dd>{shown(inner)}</dd></>
        ),
      )}
    </>
  );
}

function shown(value: unknown): string {
  if (Array.isArray(value)) return value.length ? value.map(shown).join(", ") : "none";
  if (typeof value === "number") return Number.isInteger(value) ? count(value) : fixed(value, 2);
  return String(value);
}

/** TOML with its keys and sections told apart; a line at a time, text only. */
function Toml({ text }: { text: string }) {
  return (
    <>
      {text.split("\n").map((line) => {
        const [, key, rest] = line.match(/^([\w.-]+)( = .*)$/) ?? [];
        if (key) return <><span class="key">{key}</span>{rest}{"\n"}</>;
        return <span class={/^\s*\[/.test(line) ? "section" : /^\s*#/.test(line) ? "dim" : ""}>{line}{"\n"}</span>;
      })}
    </>
  );
}
