/** Colours of points by a column. Numbers get a ramp of even steps in lightness, clusters a hue each. */

import type { Kind } from "../types";

type Colour = [number, number, number];

// From what is barely seen on the ground to what stands out most; the ends are swapped between light and dark.
const RAMPS: Record<"dark" | "light", Colour[]> = {
  dark: [[52, 60, 92], [58, 88, 140], [52, 124, 150], [72, 160, 138], [142, 192, 110], [222, 210, 96], [252, 238, 178]],
  light: [[214, 220, 232], [168, 194, 220], [112, 168, 196], [64, 138, 160], [44, 104, 132], [44, 68, 108], [46, 30, 74]],
};
const UNKNOWN: Record<"dark" | "light", Colour> = { dark: [70, 74, 80], light: [205, 205, 200] };

export function ramp(share: number, isDark: boolean): Colour {
  const stops = RAMPS[isDark ? "dark" : "light"];
  const at = Math.max(0, Math.min(1, share)) * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(at));
  return [0, 1, 2].map((c) => stops[i]![c]! + (at - i) * (stops[i + 1]![c]! - stops[i]![c]!)) as Colour;
}

/** A hue per cluster, by the golden angle, so that numbers that are near have hues that are far. */
export function hue(id: number, isDark: boolean): Colour {
  const h = (id * 137.508) % 360;
  const [s, l] = isDark ? [0.55, 0.62] : [0.52, 0.5];
  const c = (1 - Math.abs(2 * l - 1)) * s;
  return [0, 8, 4].map((n) => {
    const k = (n + h / 30) % 12;
    return 255 * (l - (c / 2) * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
  }) as Colour;
}

export interface Scale {
  low: number;
  high: number;
  log: boolean;
}

/** From the 1st to the 99th percentile; logarithmic where that spans two decades or more. */
export function scaleOf(values: Float32Array): Scale {
  const finite = values.filter(Number.isFinite).sort();
  if (!finite.length) return { low: 0, high: 1, log: false };
  const at = (q: number) => finite[Math.min(finite.length - 1, Math.floor(q * finite.length))]!;
  const [low, high] = [at(0.01), at(0.99)];
  if (finite[0]! >= 0 && high > 0) {
    const positive = finite.find((value) => value > 0) ?? high;
    const least = Math.max(low, positive);
    if (high / least >= 100) return { low: least, high, log: true };
  }
  return { low, high: high > low ? high : low + 1, log: false };
}

export const share = (value: number, { low, high, log }: Scale): number =>
  log ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);

interface Paint {
  values: Float32Array | null;
  kind: Kind;
  isDark: boolean;
  n: number;
  /** Others are dimmed. */
  chosen: ReadonlySet<number> | null;
}

/** RGBA bytes, one colour a latent. */
export function paint({ values, kind, isDark, n, chosen }: Paint): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(4 * n);
  const unknown = UNKNOWN[isDark ? "dark" : "light"];
  const plain: Colour = isDark ? [150, 160, 172] : [92, 100, 112];
  const scale = values && kind !== "cluster" && kind !== "flag" ? scaleOf(values) : null;
  for (let i = 0; i < n; i++) {
    const value = values ? values[i]! : NaN;
    let colour = unknown;
    if (!values) colour = plain;
    else if (kind === "cluster") colour = value >= 0 ? hue(value, isDark) : unknown;
    else if (kind === "flag") colour = value ? [226, 90, 70] : unknown;
    else if (Number.isFinite(value)) colour = ramp(share(value, scale!), isDark);
    bytes.set(colour, 4 * i);
    bytes[4 * i + 3] = chosen && !chosen.has(i) ? 28 : 205;
  }
  return bytes;
}
