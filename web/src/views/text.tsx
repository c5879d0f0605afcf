/** Your own text: which features are active on which token, and where the dictionary is blind. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, pathOf } from "../api";
import { count, figure, fixed, mean, percent } from "../format";
import { useKeys } from "../keys";
import { Problem } from "../parts/problem";
import { Gist, Token } from "../parts/tokens";
import { texts } from "../state";
import { useStore } from "../store";
import type { Dictionary, Label, LiveText } from "../types";

const EXAMPLES = ["The court held that the defendant had not been informed of her rights.", "def mean(values):\n    return sum(values) / len(values)"];
const ROWS_SHOWN = 60;

type Shade = "error" | "l0" | number;
type Side = 0 | 1;

interface Known {
  label: Label | null;
  promoted: string[];
}

/** What one feature does in each text. */
interface Active {
  latent: number;
  peak: [number, number];
  tokens: [number, number];
}

export function YourText({ dictionary }: { dictionary: Dictionary }) {
  const written = useStore(texts);
  const [two, setTwo] = useState(written[1] !== "");
  const [found, setFound] = useState<[LiveText | null, LiveText | null]>([null, null]);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  const [shade, setShade] = useState<Shade>("error");
  const [token, setToken] = useState<{ side: Side; at: number } | null>(null);
  const stop = useRef<AbortController | null>(null);
  useEffect(() => () => stop.current?.abort(), []);

  const read = async (now: [string, string] = texts.get()) => {
    stop.current?.abort();
    const mine = (stop.current = new AbortController());
    setBusy(true);
    setError(null);
    setToken(null);
    const watched = typeof shade === "number" ? [shade] : [];
    try {
      const sofar: [LiveText | null, LiveText | null] = [null, null];
      for (const side of ([0, 1] as Side[]).slice(0, two ? 2 : 1)) {
        if (!now[side].trim()) continue;
        for await (const part of api.text(dictionary, now[side], watched, mine.signal)) {
          sofar[side] = part;
          setFound([...sofar]);
        }
      }
    } catch (problem) {
      if ((problem as Error).name !== "AbortError") setError(problem as Error);
    }
    if (stop.current === mine) setBusy(false);
  };
  const write = (side: Side, text: string) => texts.set(side ? [texts.get()[0], text] : [text, texts.get()[1]]);
  useKeys({ Escape: () => (setToken(null), setShade("error")) });

  if (!dictionary.live) return <NotLive what="Reading your own text" />;
  const known: Record<string, Known> = { ...found[0]?.latents, ...found[1]?.latents };
  const onKey = (event: KeyboardEvent) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && void read();
  return (
    <div class="text-view">
      <div class={two ? "pair writing" : "writing"}>
        {([0, 1] as Side[]).slice(0, two ? 2 : 1).map((side) => (
          <label class="field">
            <span>{two ? `Text ${side ? "B" : "A"}` : "Your text"}</span>
            <textarea data-search={side ? undefined : true} rows={4} value={written[side]} placeholder="Write or paste" onInput={(event) => write(side, event.currentTarget.value)} onKeyDown={onKey} />
          </label>
        ))}
      </div>
      <div class="inline wrap">
        <button class="primary" disabled={busy || !written[0].trim()} onClick={() => void read()}>{busy ? "Reading…" : "Read"} <kbd>Ctrl Enter</kbd></button>
        <button onClick={() => (setTwo(!two), setFound([found[0], null]))}>{two ? "One text" : "Compare with another"}</button>
        {!written[0] && EXAMPLES.map((example, i) => (
          <button class="link" onClick={() => (write(0, example), void read([example, ""]))}>{i ? "try some code" : "try a sentence"}</button>
        ))}
        <span class="spacer" />
        {(found[0] || found[1]) && (
          <div class="segmented" role="group" aria-label="Shade tokens by">
            <button aria-pressed={shade === "error"} onClick={() => setShade("error")} data-hint="|x − x̂| / |x|: how much of the activation no feature explains. Dark is where the dictionary is blind.">blind spots</button>
            <button aria-pressed={shade === "l0"} onClick={() => setShade("l0")} data-hint="How many features are active on the token">features active</button>
            {typeof shade === "number" && <button aria-pressed>latent {shade}</button>}
          </div>
        )}
      </div>
      {error && <Problem error={error} again={() => void read()} />}
      <div class={two ? "pair" : ""} aria-busy={busy}>
        {([0, 1] as Side[]).map((side) => found[side] && <Shaded name={two ? (side ? "B" : "A") : ""} text={found[side]} shade={shade} chosen={token?.side === side ? token.at : -1} choose={(at) => setToken(token?.side === side && token.at === at ? null : { side, at })} />)}
      </div>
      {(found[0] || found[1]) && <Active dictionary={dictionary} found={found} known={known} shade={shade} setShade={setShade} token={token} />}
      {!found[0] && !found[1] && !error && !busy && (
        <p class="dim explain">Each token will be shaded by the share of its activation that the dictionary does not explain. Click a token to see the features active on it, click a feature to see where in the text it is. The first reading loads the language model.</p>
      )}
    </div>
  );
}

export function NotLive({ what }: { what: string }) {
  return (
    <div class="problem">
      <p><strong>{what} needs the language model, which this server does not have.</strong></p>
      <p>Serve the run where its model can be loaded, without turning it off. Features, map and run work without it.</p>
    </div>
  );
}

interface ShadedProps {
  name: string;
  text: LiveText;
  shade: Shade;
  chosen: number;
  choose: (at: number) => void;
}

const valueOf = (text: LiveText, at: number, shade: Shade): number | null => {
  const token = text.tokens[at]!;
  if (token.special) return null;
  if (shade === "error") return token.error;
  if (shade === "l0") return token.l0;
  return token.active.find(([latent]) => latent === shade)?.[1] ?? 0;
};

function Shaded({ name, text, shade, chosen, choose }: ShadedProps) {
  const values = text.tokens.map((_, at) => valueOf(text, at, shade));
  const most = shade === "error" ? 1 : Math.max(...values.map((value) => value ?? 0), 1e-9);
  const least = shade === "error" ? 0 : shade === "l0" ? Math.min(...values.map((value) => value ?? Infinity)) : 0;
  const ordinary = text.tokens.filter((token) => !token.special);
  const what = shade === "error" ? "error" : shade === "l0" ? "active" : `latent ${shade}`;
  return (
    <section class="shaded">
      <p class="figures">{name && <b>{name} </b>}{count(text.tokens.length)} tokens, mean error <b>{fixed(mean(ordinary.map((token) => token.error)), 3)}</b>, mean L0 <b>{figure(mean(ordinary.map((token) => token.l0)))}</b></p>
      <p class={`whole ${shade === "error" ? "blind" : shade === "l0" ? "many" : "heat"}`} dir="auto">
        {text.tokens.map((token, at) => {
          const value = values[at] ?? null;
          const strength = value === null ? 0 : Math.max(0, Math.min(1, (value - least) / (most - least || 1)));
          return (
            <>
              <button
                class={`shade${chosen === at ? " chosen" : ""}${token.special ? " unmeasured" : ""}`}
                aria-pressed={chosen === at}
                style={{ "--s": (value ? 0.85 * strength + (typeof shade === "number" ? 0.12 : 0) : 0).toFixed(3) }}
                data-hint={token.special ? "special token: training never saw one here" : `${what} ${figure(value)}`}
                onClick={() => choose(at)}
              >
                {token.token}
              </button>
              {token.token.includes("⏎") && <br />}
            </>
          );
        })}
      </p>
    </section>
  );
}

interface ActiveProps {
  dictionary: Dictionary;
  found: [LiveText | null, LiveText | null];
  known: Record<string, Known>;
  shade: Shade;
  setShade: (shade: Shade) => void;
  token: { side: Side; at: number } | null;
}

type Order = "here" | "peak" | "tokens" | "difference";

/** The features of the chosen token, or of the whole text; beside each other where there are two. */
function Active({ dictionary, found, known, shade, setShade, token }: ActiveProps) {
  const two = Boolean(found[0] && found[1]);
  const [order, setOrder] = useState<Order>("peak");
  const all = useMemo(() => gather(found), [found]);
  const chosen = token ? found[token.side]?.tokens[token.at] : null;
  const here = new Map(chosen?.active ?? []);
  const rows = chosen ? all.filter((one) => here.has(one.latent)) : all;
  const now: Order = chosen && order === "peak" ? "here" : order === "difference" && !two ? "peak" : order === "here" && !chosen ? "peak" : order;
  const key = (one: Active): number => {
    if (now === "here") return here.get(one.latent) ?? 0;
    if (now === "tokens") return one.tokens[0] + one.tokens[1];
    if (now === "difference") return Math.abs(one.peak[0] - one.peak[1]);
    return Math.max(...one.peak);
  };
  const sorted = [...rows].sort((a, b) => key(b) - key(a)).slice(0, ROWS_SHOWN);
  const most = Math.max(...sorted.map((one) => Math.max(...one.peak, here.get(one.latent) ?? 0)), 1e-9);
  const head = (name: Order, title: string, hint: string) => (
    <th aria-sort={now === name ? "descending" : "none"} class="numeric"><button class="sort" onClick={() => setOrder(name)} data-hint={hint}>{title}{now === name && " ↓"}</button></th>
  );
  return (
    <section class="active">
      <h3>{chosen ? <>Active on <Token text={chosen.token} /> <span class="dim">error {fixed(chosen.error, 3)}, {chosen.l0} features; its strongest are listed</span></> : <>Features of the text <span class="dim">{count(all.length)} among the strongest of some token</span></>}</h3>
      <table class="plain">
        <thead>
          <tr>
            <th class="numeric">latent</th>
            <th>label or promoted tokens</th>
            {chosen && head("here", "here", "Its activation on the chosen token")}
            {head("peak", two ? "peak A" : "peak", "Its largest activation in the text")}
            {two && <th class="numeric">peak B</th>}
            {two && head("difference", "difference", "A − B, sorted by size")}
            {head("tokens", "tokens", "On how many tokens it is among the strongest")}
          </tr>
        </thead>
        <tbody>
          {sorted.map((one) => (
            <tr class={shade === one.latent ? "current" : ""} onClick={(event) => (event.target as Element).closest("a") || setShade(shade === one.latent ? "error" : one.latent)}>
              <td class="numeric id"><a href={`/d${pathOf(dictionary)}/feature/${one.latent}`}>{one.latent}</a></td>
              <td class="words"><button class="bare" aria-pressed={shade === one.latent} aria-label={`Shade the text by latent ${one.latent}`}>{known[one.latent] && <Gist of={known[one.latent]!} />}</button></td>
              {chosen && <BarCell value={here.get(one.latent) ?? 0} most={most} />}
              <BarCell value={found[0] ? one.peak[0] : one.peak[1]} most={most} />
              {two && <BarCell value={one.peak[1]} most={most} />}
              {two && <td class="numeric">{figure(one.peak[0] - one.peak[1])}</td>}
              <td class="numeric" data-hint={two ? `A ${one.tokens[0]}, B ${one.tokens[1]}` : percent(one.tokens[0] / (found[0]?.tokens.length ?? 1))}>{two ? `${one.tokens[0]} / ${one.tokens[1]}` : one.tokens[0]}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

const BarCell = ({ value, most }: { value: number; most: number }) => (
  <td class="numeric bar-cell"><i style={{ transform: `scaleX(${(value / most).toFixed(3)})` }} />{figure(value)}</td>
);

function gather(found: [LiveText | null, LiveText | null]): Active[] {
  const all = new Map<number, Active>();
  found.forEach((text, side) => {
    for (const token of text?.tokens ?? []) {
      if (token.special) continue;
      for (const [latent, value] of token.active) {
        if (!all.has(latent)) all.set(latent, { latent, peak: [0, 0], tokens: [0, 0] });
        const one = all.get(latent)!;
        one.peak[side] = Math.max(one.peak[side]!, value);
        one.tokens[side]!++;
      }
    }
  });
  return [...all.values()];
}
