/** Steering beside its controls: what the model writes plainly, steered, with random features instead, and by a prompt instead. */

import { useEffect, useReducer, useRef, useState } from "preact/hooks";
import { api, pathOf } from "../api";
import { Lines } from "../charts/lines";
import { figure, fixed, mean, signed } from "../format";
import { Problem } from "../parts/problem";
import { Gist } from "../parts/tokens";
import { edits as kept, prompt as keptPrompt } from "../state";
import { useLoad, useStore } from "../store";
import type { Arm, Dictionary, Edit, Mode, SteerRequest, SweepPoint, Unit } from "../types";
import { NotLive } from "./text";

const MODES: [Mode, string][] = [
  ["add", "Adds this much of its direction at each token."],
  ["clamp", "Holds it at this activation, whatever it was."],
  ["scale", "Multiplies its activation; 0 is ablation, 1 changes nothing."],
  ["ablate", "Takes it out: its activation becomes 0."],
];
const UNITS: [Unit, string, string][] = [
  ["p99", "× its p99", "Multiples of the activation that 99 % of its own stay below: 1 is strong but natural."],
  ["norm", "of the layer's norm", "Share of the mean length of the layer's activations; text often breaks near 0.5 to 1."],
  ["raw", "raw", "In the dictionary's own activation units."],
];
const ARMS: [Arm, string, string][] = [
  ["plain", "Plain", "The model as it is"],
  ["steered", "Steered", "With your edits"],
  ["random", "Random features", "The same edits on other features of matching density and strength: what any push of this size does"],
  ["prompt", "Prompt instead", "No edit; the prompt asks for it in words: what steering has to beat"],
];

interface Written {
  token: string;
  nll: number | null;
  kl: number | null;
}

interface Outcome {
  arms: Record<Arm, Written[]>;
  random: number[];
  control: string;
}

const empty = (): Outcome => ({ arms: { plain: [], steered: [], random: [], prompt: [] }, random: [], control: "" });

export function Steer({ dictionary }: { dictionary: Dictionary }) {
  const edits = useStore(kept)[dictionary.key] ?? [];
  const prompt = useStore(keptPrompt);
  const setEdits = (next: Edit[]) => kept.set({ ...kept.get(), [dictionary.key]: next });
  const [options, setOptions] = useState<Omit<SteerRequest, "prompt" | "edits">>({ scope: "both", max_new_tokens: 40, temperature: 0, seed: 0, controls: ["random", "prompt"] });
  const outcome = useRef<Outcome | null>(null);
  const [, redraw] = useReducer((n: number, _: void) => n + 1, 0);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const stop = useRef<AbortController | null>(null);
  useEffect(() => () => stop.current?.abort(), []);
  if (!dictionary.live) return <NotLive what="Steering" />;

  const run = async () => {
    const mine = (stop.current = new AbortController());
    const now = (outcome.current = empty());
    setBusy(true);
    setError(null);
    try {
      for await (const line of api.steer(dictionary, { prompt, edits: edits.map(complete), ...options }, mine.signal)) {
        if (line.arm && line.token !== undefined) now.arms[line.arm].push({ token: line.token, nll: line.nll ?? null, kl: line.kl ?? null });
        if (line.done) [now.random, now.control] = [line.random_latents ?? [], line.prompt_control ?? ""];
        redraw();
      }
    } catch (problem) {
      if ((problem as Error).name !== "AbortError") setError(problem as Error);
    }
    setBusy(false);
  };
  const ready = prompt.trim() !== "" && edits.length > 0;
  return (
    <div class="steer" onKeyDown={(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && ready && !busy && void run()}>
      <div class="bench">
        <div class="bench-left">
        <label class="field prompt">
          <span>Prompt</span>
          <textarea data-search rows={3} value={prompt} placeholder="I went to the market and" onInput={(event) => keptPrompt.set(event.currentTarget.value)} />
        </label>
        <Options options={options} set={setOptions} />
        <div class="inline wrap">
          {busy ? (
            <button onClick={() => stop.current?.abort()}>Stop</button>
          ) : (
            <button class="primary" disabled={!ready} onClick={() => void run()}>Steer <kbd>Ctrl Enter</kbd></button>
          )}
          {!ready && <span class="dim">{edits.length ? "A prompt is needed." : "A prompt and at least one feature are needed."}</span>}
        </div>
        </div>
        <div class="edits">
          <h3>Edits</h3>
          {edits.map((edit, i) => (
            <EditRow
              key={edit.latent}
              dictionary={dictionary}
              edit={edit}
              set={(next) => setEdits(edits.map((other, k) => (k === i ? next : other)))}
              remove={() => setEdits(edits.filter((_, k) => k !== i))}
            />
          ))}
          <AddEdit dictionary={dictionary} edits={edits} setEdits={setEdits} />
        </div>
      </div>
      {error && <Problem error={error} />}
      {outcome.current && <Arms outcome={outcome.current} prompt={prompt} busy={busy} options={options} />}
      {edits.length > 0 && <SweepPanel key={edits[0]!.latent} dictionary={dictionary} prompt={prompt} edits={edits} setEdits={setEdits} />}
    </div>
  );
}

// "ablate" has no strength, but the request has one field for it
const complete = (edit: Edit): Edit => (edit.mode === "ablate" ? { ...edit, strength: 0, unit: "raw" } : edit.mode === "scale" ? { ...edit, unit: "raw" } : edit);

interface EditRowProps {
  dictionary: Dictionary;
  edit: Edit;
  set: (edit: Edit) => void;
  remove: () => void;
}

function EditRow({ dictionary, edit, set, remove }: EditRowProps) {
  const { data, error } = useLoad(`${dictionary.key} ${edit.latent}`, () => api.feature(dictionary, edit.latent));
  const most = edit.mode === "scale" ? 5 : edit.unit === "norm" ? 2 : edit.unit === "raw" ? Math.max(10, 4 * (data?.histogram?.maximum ?? 10)) : 8;
  const unit = edit.mode === "scale" ? "× itself" : "";
  return (
    <div class="edit">
      <a class="id" href={`/d${pathOf(dictionary)}/feature/${edit.latent}`}>{edit.latent}</a>
      <span class="words">{data && <Gist of={{ label: data.label, promoted: data.promoted.map((one) => one.token) }} />}{error && <span class="bad">{error.message}</span>}</span>
      <select aria-label={`What to do with latent ${edit.latent}`} value={edit.mode} data-hint={MODES.find(([mode]) => mode === edit.mode)![1]} onChange={(event) => set({ ...edit, mode: event.currentTarget.value as Mode })}>
        {MODES.map(([mode]) => <option value={mode}>{mode}</option>)}
      </select>
      {edit.mode !== "ablate" && (
        <>
          <input type="range" aria-label={`Strength for latent ${edit.latent}`} min={edit.mode === "add" ? -most : 0} max={most} step={most / 80} value={edit.strength} onInput={(event) => set({ ...edit, strength: Number(Number(event.currentTarget.value).toPrecision(3)) })} />
          <input type="number" class="short" aria-label={`Strength for latent ${edit.latent}, as a number`} step="any" value={edit.strength} onInput={(event) => Number.isFinite(event.currentTarget.valueAsNumber) && set({ ...edit, strength: event.currentTarget.valueAsNumber })} />
          {edit.mode === "scale" ? <span class="dim">{unit}</span> : (
            <select aria-label={`Unit for latent ${edit.latent}`} value={edit.unit} data-hint={UNITS.find(([unit]) => unit === edit.unit)![2]} onChange={(event) => set({ ...edit, unit: event.currentTarget.value as Unit })}>
              {UNITS.map(([unit, title]) => <option value={unit}>{title}</option>)}
            </select>
          )}
        </>
      )}
      <button class="quiet icon" onClick={remove} aria-label={`Remove latent ${edit.latent}`}>×</button>
    </div>
  );
}

function AddEdit({ dictionary, edits, setEdits }: { dictionary: Dictionary; edits: Edit[]; setEdits: (edits: Edit[]) => void }) {
  const field = useRef<HTMLInputElement>(null);
  const [words, setWords] = useState("");
  const [q, setQ] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => setQ(words.trim()), 180);
    return () => clearTimeout(timer);
  }, [words]);
  const number = /^\d+$/.test(q) ? Number(q) : null;
  const found = useLoad(q && number === null ? `${dictionary.key} ${q}` : null, (signal) => api.features(dictionary, new URLSearchParams({ q, sort: "density" }).toString(), 0, 8, signal));
  const add = (latent: number) => {
    if (!edits.some((edit) => edit.latent === latent)) setEdits([...edits, { latent, mode: "add", strength: 1, unit: "p99" }]);
    setWords("");
    setQ("");
    field.current?.focus();
  };
  return (
    <form
      class="add-edit"
      onSubmit={(event) => {
        event.preventDefault();
        const typed = words.trim();
        if (/^\d+$/.test(typed) && Number(typed) < dictionary.n_latents) add(Number(typed));
        else if (found.data?.rows[0]) add(found.data.rows[0].latent);
      }}
    >
      <input ref={field} aria-label="Add a feature by number or words" placeholder="Add a feature: its number, or words to search for" value={words} onInput={(event) => setWords(event.currentTarget.value)} />
      {number !== null && number >= dictionary.n_latents && <p class="bad">Latents are numbered 0 to {dictionary.n_latents - 1}.</p>}
      {q && number === null && found.data && (
        <ul class="found">
          {found.data.rows.map((row) => <li><button type="button" class="quiet" onClick={() => add(row.latent)}><span class="id">{row.latent}</span> <Gist of={row} /></button></li>)}
          {!found.data.rows.length && <li class="dim">Nothing is like that.</li>}
        </ul>
      )}
    </form>
  );
}

type OptionsNow = Omit<SteerRequest, "prompt" | "edits">;

function Options({ options, set }: { options: OptionsNow; set: (next: OptionsNow) => void }) {
  const number = (name: "max_new_tokens" | "temperature" | "seed", title: string, min: number, max: number, step: number, hint: string) => (
    <label class="field" data-hint={hint}>
      <span>{title}</span>
      <input type="number" class="short" min={min} max={max} step={step} value={options[name]} onInput={(event) => {
        const value = event.currentTarget.valueAsNumber;
        if (Number.isFinite(value)) set({ ...options, [name]: Math.max(min, Math.min(max, value)) });
      }} />
    </label>
  );
  const control = (name: "random" | "prompt", title: string) => (
    <label class="check">
      <input type="checkbox" checked={options.controls.includes(name)} onChange={(event) => set({ ...options, controls: (["random", "prompt"] as const).filter((one) => (one === name ? event.currentTarget.checked : options.controls.includes(one))) })} />
      {title}
    </label>
  );
  return (
    <div class="options">
      <label class="field" data-hint="On which tokens the edits act">
        <span>Edit</span>
        <select value={options.scope} onChange={(event) => set({ ...options, scope: event.currentTarget.value as OptionsNow["scope"] })}>
          <option value="both">prompt and answer</option>
          <option value="generation">answer only</option>
          <option value="prompt">prompt only</option>
        </select>
      </label>
      {number("max_new_tokens", "Tokens", 1, 400, 1, "How many tokens to write, at most")}
      {number("temperature", "Temperature", 0, 2, 0.1, "0 takes the likeliest token; more takes chances, the same in every arm")}
      {number("seed", "Seed", 0, 1e9, 1, "The same seed writes the same text")}
      <fieldset><legend>Controls</legend>{control("random", "random features")}{control("prompt", "a prompt instead")}</fieldset>
    </div>
  );
}

function Arms({ outcome, prompt, busy, options }: { outcome: Outcome; prompt: string; busy: boolean; options: OptionsNow }) {
  const shown = ARMS.filter(([arm]) => arm === "plain" || arm === "steered" || options.controls.includes(arm as "random" | "prompt") || outcome.arms[arm].length);
  return (
    <div class="arms" aria-busy={busy}>
      {shown.map(([arm, title, hint]) => {
        const written = outcome.arms[arm];
        return (
          <section class={`arm ${arm}`}>
            <header>
              <h3 data-hint={hint}>{title}</h3>
              <span class="figures" data-hint="Mean surprise of the text to the model without edits, nats a token; and mean KL from its own next-token distribution">
                NLL <b>{fixed(mean(written.map((one) => one.nll)), 2)}</b> KL <b>{fixed(mean(written.map((one) => one.kl)), 2)}</b>
              </span>
            </header>
            <p class="whole written" dir="auto">
              <span class="dim">{prompt}</span>
              {written.map((one, i) => (
                <span key={i} class="spoken" style={{ "--s": Math.min(1, Math.max(0, ((one.nll ?? 0) - 2) / 10)).toFixed(2) }} data-hint={`NLL ${figure(one.nll)}, KL ${figure(one.kl)}`}>{one.token}</span>
              ))}
              {busy && written.length < options.max_new_tokens && <i class="caret" />}
            </p>
            {arm === "random" && outcome.random.length > 0 && <p class="dim">{outcome.random.length === 1 ? "Latent" : "Latents"} {outcome.random.join(", ")} instead.</p>}
            {arm === "prompt" && outcome.control && <p class="dim">It was asked: “{outcome.control}”</p>}
          </section>
        );
      })}
    </div>
  );
}

const STRENGTHS: Record<Unit, number[]> = { p99: [0, 0.5, 1, 1.5, 2, 3, 4, 6, 8], norm: [0, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5], raw: [0, 1, 2, 4, 8, 16, 32] };

interface SweepPanelProps {
  dictionary: Dictionary;
  prompt: string;
  edits: Edit[];
  setEdits: (edits: Edit[]) => void;
}

/** One edit at many strengths: where it works, and where the text falls apart. */
function SweepPanel({ dictionary, prompt, edits, setEdits }: SweepPanelProps) {
  const [which, setWhich] = useState(0);
  const edit = edits[Math.min(which, edits.length - 1)]!;
  const [points, setPoints] = useState<SweepPoint[]>([]);
  const [ends, setEnds] = useState<{ sweet: number | null; breaks: number | null; plain: number | null; limit: number | null; random: number | null } | null>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);
  const [chosen, setChosen] = useState<number | null>(null);
  const stop = useRef<AbortController | null>(null);
  useEffect(() => () => stop.current?.abort(), []);
  const run = async () => {
    const mine = (stop.current = new AbortController());
    setBusy(true);
    setError(null);
    setPoints([]);
    setEnds(null);
    try {
      const request = { prompt, latent: edit.latent, mode: edit.mode, unit: edit.unit, strengths: STRENGTHS[edit.unit] };
      const all: SweepPoint[] = [];
      for await (const line of api.sweep(dictionary, request, mine.signal)) {
        if (line.done) setEnds({ sweet: line.sweet_spot ?? null, breaks: line.breaks_at ?? null, plain: line.nll_plain ?? null, limit: line.nll_limit ?? null, random: line.random_latent ?? null });
        else if (line.strength !== undefined) all.push(line as SweepPoint);
        setPoints([...all]);
      }
    } catch (problem) {
      if ((problem as Error).name !== "AbortError") setError(problem as Error);
    }
    setBusy(false);
  };
  const marks = [
    ...(ends && ends.sweet !== null ? [{ x: ends.sweet, name: "sweet spot", style: "good" }] : []),
    ...(ends && ends.breaks !== null ? [{ x: ends.breaks, name: "breaks", style: "bad" }] : []),
  ];
  const at = points.find((point) => point.strength === (chosen ?? ends?.sweet)) ?? points.at(-1);
  const line = (name: keyof SweepPoint): [number, number | null][] => points.map((point) => [point.strength, (point[name] as number | null) ?? null]);
  return (
    <section class="sweep">
      <header class="inline wrap">
        <h3>How strong?</h3>
        {edits.length > 1 && (
          <select aria-label="Which edit to sweep" value={which} onChange={(event) => setWhich(Number(event.currentTarget.value))}>
            {edits.map((one, i) => <option value={i}>latent {one.latent}</option>)}
          </select>
        )}
        <span class="dim">{edit.mode} latent {edit.latent} at {STRENGTHS[edit.unit].length} strengths ({UNITS.find(([unit]) => unit === edit.unit)![1]})</span>
        {points.length > 0 && <span class="dim" data-hint="Effect: mean change of the promoted tokens' log-probability minus that of the suppressed, nats; surprise: mean negative log-likelihood of what was written under the model without edits; repetition: share of what was written before">what is measured</span>}
        {busy ? <button onClick={() => stop.current?.abort()}>Stop</button> : <button disabled={!prompt.trim() || edit.mode === "ablate" || edit.mode === "scale"} onClick={() => void run()}>Sweep</button>}
      </header>
      {error && <Problem error={error} />}
      {points.length > 1 && (
        <div class="charts">
          <Lines title="Effect on promoted tokens" x="strength" series={[{ name: "this feature", style: "steered", points: line("effect") }, ...(points.some((point) => point.random_effect != null) ? [{ name: ends?.random != null ? `random (${ends.random})` : "random", style: "random", points: line("random_effect") }] : [])]} levels={[{ y: 0, name: "" }]} marks={marks} dots chosen={at?.strength ?? null} choose={setChosen} />
          <Lines title="Surprise (NLL)" x="strength" series={[{ name: "NLL", style: "plain", points: line("nll") }]} levels={[...(ends && ends.plain !== null ? [{ y: ends.plain, name: "plain" }] : []), ...(ends && ends.limit !== null ? [{ y: ends.limit, name: "limit" }] : [])]} marks={marks} dots chosen={at?.strength ?? null} choose={setChosen} />
          <Lines title="Repetition" x="strength" series={[{ name: "repetition", style: "plain", points: line("repetition") }]} marks={marks} dots chosen={at?.strength ?? null} choose={setChosen} />
        </div>
      )}
      {at && (
        <div class="at">
          <p class="figures">strength <b>{figure(at.strength)}</b>: effect <b>{signed(at.effect)}</b>, NLL <b>{fixed(at.nll, 2)}</b>, repetition <b>{fixed(at.repetition, 2)}</b>{at.broken && <span class="bad"> the text is broken</span>} <button class="link" onClick={() => setEdits(edits.map((one) => (one === edit ? { ...one, strength: at.strength } : one)))}>use this strength</button></p>
          <p class="whole" dir="auto"><span class="dim">{prompt}</span>{at.text}</p>
        </div>
      )}
      {ends && ends.sweet === null && <p class="dim">No sweet spot: no strength raises its promoted tokens before the text breaks.</p>}
    </section>
  );
}
