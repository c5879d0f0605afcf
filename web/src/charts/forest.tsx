/** A value and its interval on a scale shared by the rows of its column. */

import { fixed, NONE } from "../format";
import type { Estimate } from "../types";

interface ForestProps {
  of: Estimate | undefined;
  scale: [number, number];
  digits?: number;
  zero?: boolean;
}

export function Forest({ of, scale: [low, high], digits = 4, zero }: ForestProps) {
  if (!of || of.value === null) return <span class="forest">{NONE}</span>;
  const at = (value: number) => `${Math.max(0, Math.min(100, (100 * (value - low)) / (high - low || 1)))}%`;
  const has = of.low !== null && of.low !== undefined && of.high !== null && of.high !== undefined;
  return (
    <span class="forest" data-hint={`${fixed(of.value, digits)}${has ? `, 95 % interval ${fixed(of.low, digits)} to ${fixed(of.high, digits)}` : ", no interval"}${of.n_tokens ? `; ${of.n_tokens.toLocaleString("en-US")} tokens${of.n_documents ? ` of ${of.n_documents} documents` : ""}` : ""}`}>
      <span class="num">{fixed(of.value, digits)}</span>
      <span class="whisker" aria-hidden="true">
        {zero && <u style={{ left: at(0) }} />}
        {has && <i style={{ left: at(of.low!), right: `calc(100% - ${at(of.high!)})` }} />}
        <b style={{ left: at(of.value) }} />
      </span>
      {has && <span class="sr">interval {fixed(of.low, digits)} to {fixed(of.high, digits)}</span>}
    </span>
  );
}

/** The scale that holds every estimate of a column, with a little room. */
export function scaleOf(estimates: (Estimate | undefined)[], zero = false): [number, number] {
  const all = estimates.flatMap((one) => (one && one.value !== null ? [one.value, one.low ?? one.value, one.high ?? one.value] : []));
  if (zero) all.push(0);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const room = (high - low || 1) * 0.06;
  return [low - room, high + room];
}
