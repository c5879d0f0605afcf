/** Numbers as they are read: few digits, aligned, and a dash where there is none. */

import type { Kind, Value } from "./types";

export const NONE = "–";
const grouped = new Intl.NumberFormat("en-US");

export const count = (value: number): string => grouped.format(value);

/** Three significant digits without an exponent where that is short. */
export function figure(value: number | null | undefined, digits = 3): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 1).replace("e+", "e").replace("-", "−");
  if (size >= 10 ** digits) return count(Math.round(value)).replace("-", "−");
  return Number(value.toPrecision(digits)).toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))).replace("-", "−");
}

export const fixed = (value: number | null | undefined, digits: number): string =>
  value === null || value === undefined || !Number.isFinite(value) ? NONE : value.toFixed(digits).replace("-", "−");

export const signed = (value: number | null | undefined, digits = 2): string =>
  value === null || value === undefined || !Number.isFinite(value) ? NONE : (value > 0 ? "+" : "") + fixed(value, digits);

export const percent = (value: number | null | undefined): string =>
  value === null || value === undefined || !Number.isFinite(value) ? NONE : value === 1 ? "100 %" : `${figure(value * 100, value >= 0.9995 ? 4 : 3)} %`;

export function show(value: Value | undefined, kind: Kind): string {
  if (value === null || value === undefined) return NONE;
  if (typeof value === "string") return value;
  if (kind === "flag") return value ? "yes" : "no";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (kind === "share") return percent(value);
  if (kind === "count") return count(value);
  if ((kind === "cluster" || kind === "latent" || kind === "token") && value < 0) return NONE;
  if (kind === "cluster" || kind === "latent" || kind === "token") return String(value);
  if (kind === "bits") return fixed(value, 2);
  return figure(value);
}

/** "0.302 [0.289, 0.317]" */
export const interval = (value: number | null, low?: number | null, high?: number | null, digits = 3): string =>
  low === null || low === undefined || high === null || high === undefined
    ? fixed(value, digits)
    : `${fixed(value, digits)} [${fixed(low, digits)}, ${fixed(high, digits)}]`;

export function seconds(value: number): string {
  if (value < 120) return `${figure(value)} s`;
  if (value < 7200) return `${figure(value / 60)} min`;
  return `${figure(value / 3600)} h`;
}

/** Of those that are there; null where none is. */
export const mean = (values: (number | null)[]): number | null => {
  const there = values.filter((value): value is number => value !== null);
  return there.length ? there.reduce((a, b) => a + b, 0) / there.length : null;
};
