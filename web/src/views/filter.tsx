/** A column's distribution over all latents, and the range of it that is wanted. */

import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api";
import { count, figure } from "../format";
import { useLoad } from "../store";
import type { Column, Dictionary } from "../types";

const BINS = 48;

interface Scale {
  edges: number[];
  counts: number[];
  unknown: number;
}

/** Bins between the smallest and the largest value; even in the logarithm where values span more than two decades. */
export function binned(values: Float32Array): Scale {
  const finite = values.filter(Number.isFinite);
  const unknown = values.length - finite.length;
  if (!finite.length) return { edges: [], counts: [], unknown };
  let low = Infinity;
  let high = -Infinity;
  let least = Infinity;
  for (const value of finite) {
    if (value < low) low = value;
    if (value > high) high = value;
    if (value > 0 && value < least) least = value;
  }
  const log = low >= 0 && high / least > 100;
  const edges = Array.from({ length: BINS + 1 }, (_, i) => (log ? least * (high / least) ** (i / BINS) : low + ((high - low) * i) / BINS));
  if (log) edges[0] = low;
  const counts = new Array<number>(BINS).fill(0);
  for (const value of finite) {
    const place = log ? (BINS * Math.log(Math.max(value, least) / least)) / Math.log(high / least) : (BINS * (value - low)) / (high - low || 1);
    counts[Math.max(0, Math.min(BINS - 1, Math.floor(place)))]!++;
  }
  return { edges, counts, unknown };
}

interface FilterProps {
  dictionary: Dictionary;
  column: Column;
  at: DOMRect;
  filters: string[];
  set: (filters: string[]) => void;
  close: () => void;
}

export function ColumnFilter({ dictionary, column, at, filters, set, close }: FilterProps) {
  const box = useRef<HTMLDivElement>(null);
  const mine = filters.filter((one) => new RegExp(`^${column.name}(>=|<=|!=|=)`).test(one));
  const others = filters.filter((one) => !mine.includes(one));
  const given = (op: string) => mine.find((one) => one.startsWith(column.name + op))?.slice(column.name.length + op.length);
  const loaded = useLoad(`${dictionary.key} ${column.name}`, () => api.column(dictionary, column.name));
  const scale = loaded.data ? binned(loaded.data) : null;
  useEffect(() => {
    box.current!.querySelector<HTMLElement>("input, button")?.focus();
    const outside = (event: Event) => box.current && !box.current.contains(event.target as Node) && close();
    const escape = (event: KeyboardEvent) => event.key === "Escape" && close();
    document.addEventListener("pointerdown", outside);
    document.addEventListener("keydown", escape);
    return () => {
      document.removeEventListener("pointerdown", outside);
      document.removeEventListener("keydown", escape);
    };
  }, []);
  const left = Math.max(8, Math.min(innerWidth - 308, at.right - 300));
  return (
    <div ref={box} class="popover" role="dialog" aria-label={`Filter by ${column.title}`} style={{ left: `${left}px`, top: `${at.bottom + 4}px` }}>
      <header><b>{column.title}</b><button class="quiet icon" onClick={close} aria-label="Close">×</button></header>
      <p class="dim">{column.description}</p>
      {column.kind === "flag" ? (
        <div class="inline">
          {[["any", []], ["yes", [`${column.name}=1`]], ["no", [`${column.name}=0`]]].map(([name, wanted]) => (
            <button class={String(mine) === String(wanted) ? "primary" : ""} onClick={() => set([...others, ...(wanted as string[])])}>{name}</button>
          ))}
        </div>
      ) : (
        scale && (
          <Range
            key={String(mine)}
            scale={scale}
            column={column}
            low={given(">=")}
            high={given("<=")}
            set={(low, high) => set([...others, ...(low === null ? [] : [`${column.name}>=${low}`]), ...(high === null ? [] : [`${column.name}<=${high}`])])}
          />
        )
      )}
      {loaded.error && <p class="bad">{loaded.error.message}</p>}
    </div>
  );
}

interface RangeProps {
  scale: Scale;
  column: Column;
  low?: string;
  high?: string;
  set: (low: string | null, high: string | null) => void;
}

function Range({ scale, column, low, high, set }: RangeProps) {
  const [from, setFrom] = useState(low ?? "");
  const [to, setTo] = useState(high ?? "");
  if (!scale.edges.length) return <p>No latent has a value here.</p>;
  const most = Math.max(...scale.counts);
  const first = from === "" ? 0 : Math.max(0, scale.edges.findIndex((edge) => edge >= Number(from)));
  const above = scale.edges.findIndex((edge) => edge > Number(to));
  const last = to === "" || above < 0 ? BINS : Math.max(first, above - 1);
  const edge = (i: number) => String(Number(scale.edges[i]!.toPrecision(3)));
  const apply = (low = from, high = to) => set(low === "" ? null : low, high === "" ? null : high);
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        apply();
      }}
    >
      <svg class="bins" viewBox={`0 0 ${BINS} 32`} preserveAspectRatio="none" aria-hidden="true">
        {scale.counts.map((n, i) => {
          const height = n ? Math.max(1, (31 * Math.sqrt(n)) / Math.sqrt(most)) : 0;
          return <rect class={i >= first && i < last ? "in" : "out"} x={i + 0.1} width={0.8} y={32 - height} height={height} />;
        })}
      </svg>
      <input type="range" aria-label="Lowest" min={0} max={BINS} value={first} onInput={(e) => setFrom(e.currentTarget.value === "0" ? "" : edge(Number(e.currentTarget.value)))} onChange={() => apply()} />
      <input type="range" aria-label="Highest" min={0} max={BINS} value={last} onInput={(e) => setTo(e.currentTarget.value === String(BINS) ? "" : edge(Number(e.currentTarget.value)))} onChange={() => apply()} />
      <div class="inline">
        <label class="field"><span>at least</span><input inputMode="decimal" value={from} placeholder={figure(scale.edges[0]!)} onInput={(e) => setFrom(e.currentTarget.value)} /></label>
        <label class="field"><span>at most</span><input inputMode="decimal" value={to} placeholder={figure(scale.edges.at(-1)!)} onInput={(e) => setTo(e.currentTarget.value)} /></label>
        <button class="primary">Apply</button>
      </div>
      <p class="dim">
        {scale.unknown > 0 && `${count(scale.unknown)} latents have no value. `}
        {column.kind === "share" && `Shares are written 0 to 1. `}
        Heights are square roots of counts.
        {(low !== undefined || high !== undefined) && <> <button type="button" class="link" onClick={() => set(null, null)}>Clear</button></>}
      </p>
    </form>
  );
}
