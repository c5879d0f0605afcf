/** A small line chart: one quantity, one or more lines, few ticks, the value under the pointer. */

import { useState } from "preact/hooks";
import { count, figure } from "../format";

export interface Series {
  name: string;
  style: string;
  points: [number, number | null][];
}

interface LinesProps {
  title: string;
  series: Series[];
  x: string;
  /** Marks across the whole height: a limit, the sweet spot. */
  marks?: { x: number; name: string; style: string }[];
  levels?: { y: number; name: string }[];
  log?: boolean;
  dots?: boolean;
  height?: number;
  chosen?: number | null;
  choose?: (x: number) => void;
}

const WIDTH = 300;
const LEFT = 38;

export function ticks(low: number, high: number, n = 3): number[] {
  const raw = (high - low || 1) / n;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * size >= raw)! * size;
  const all = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) all.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return all;
}

export function Lines({ title, series, x, marks = [], levels = [], log, dots, height = 110, chosen, choose }: LinesProps) {
  const [hover, setHover] = useState<number | null>(null);
  const seen = (y: number | null): y is number => y !== null && Number.isFinite(y) && (!log || y > 0);
  const points = series.flatMap((line) => line.points);
  const ys = [...points.map(([, y]) => y).filter(seen), ...levels.map((level) => level.y).filter(seen)].map((y) => (log ? Math.log10(y) : y));
  if (!ys.length) return null;
  const xs = points.map(([at]) => at);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  const room = (y1 - y0 || Math.abs(y1) || 1) * 0.06;
  [y0, y1] = [y0 - room, y1 + room];
  const right = WIDTH - 6;
  const px = (at: number) => LEFT + ((at - x0) / (x1 - x0 || 1)) * (right - LEFT);
  const py = (y: number) => 6 + (1 - ((log ? Math.log10(y) : y) - y0) / (y1 - y0)) * (height - 24);
  const at = hover ?? chosen ?? null;
  const nearest = at === null ? null : xs.reduce((best, one) => (Math.abs(one - at) < Math.abs(best - at) ? one : best), xs[0]!);
  const labels = log ? logTicks(y0, y1) : ticks(y0, y1);
  return (
    <figure class="lines">
      <figcaption>
        <b>{title}</b>
        {nearest !== null && (
          <span class="reading">
            {x} {nearest >= 1000 ? count(nearest) : figure(nearest)}:{" "}
            {series.map((line) => {
              const y = line.points.find(([one]) => one === nearest)?.[1] ?? null;
              return <span class={line.style}>{series.length > 1 && `${line.name} `}{figure(y)} </span>;
            })}
          </span>
        )}
      </figcaption>
      <svg
        viewBox={`0 0 ${WIDTH} ${height}`}
        role="img"
        aria-label={`${title} over ${x}`}
        class={choose ? "choosable" : undefined}
        onPointerMove={(event) => {
          const box = event.currentTarget.getBoundingClientRect();
          setHover(x0 + ((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (right - LEFT)) * (x1 - x0));
        }}
        onPointerLeave={() => setHover(null)}
        onClick={() => nearest !== null && choose?.(nearest)}
      >
        {labels.map((y) => (
          <g class="tick">
            <line x1={LEFT} x2={right} y1={py(log ? 10 ** y : y)} y2={py(log ? 10 ** y : y)} />
            <text x={LEFT - 4} y={py(log ? 10 ** y : y) + 3} text-anchor="end">{figure(log ? 10 ** y : y, 2)}</text>
          </g>
        ))}
        {ticks(x0, x1, 4).filter((one) => one >= x0 && one <= x1).map((one) => (
          <text class="tick-x" x={px(one)} y={height - 4} text-anchor="middle">{one >= 1000 ? count(one) : figure(one, 2)}</text>
        ))}
        {levels.filter((level) => seen(level.y)).map((level) => (
          <g class="level">
            <line x1={LEFT} x2={right} y1={py(level.y)} y2={py(level.y)} />
            <text x={LEFT + 3} y={py(level.y) - 3}>{level.name}</text>
          </g>
        ))}
        {marks.map((mark) => (
          <g class={`mark-x ${mark.style}`}>
            <line x1={px(mark.x)} x2={px(mark.x)} y1={2} y2={height - 18} />
            <text x={px(mark.x) + (px(mark.x) > WIDTH * 0.7 ? -3 : 3)} y={10} text-anchor={px(mark.x) > WIDTH * 0.7 ? "end" : "start"}>{mark.name}</text>
          </g>
        ))}
        {nearest !== null && <line class="cursor" x1={px(nearest)} x2={px(nearest)} y1={4} y2={height - 18} />}
        {series.map((line) => (
          <g class={`series ${line.style}`}>
            <path d={pathOf(line.points.map(([one, y]) => (seen(y) ? [px(one), py(y)] : null)))} />
            {(dots ? line.points : line.points.filter(([one]) => one === nearest)).map(([one, y]) => seen(y) && <circle cx={px(one)} cy={py(y)} r={one === nearest ? 3 : 2} />)}
          </g>
        ))}
      </svg>
    </figure>
  );
}

function logTicks(low: number, high: number): number[] {
  const whole = [];
  for (let power = Math.ceil(low); power <= high; power++) whole.push(power);
  return whole.length >= 2 ? whole : ticks(low, high);
}

function pathOf(points: ([number, number] | null)[]): string {
  let path = "";
  let pen = "M";
  for (const point of points) {
    if (!point) {
      pen = "M";
      continue;
    }
    path += `${pen}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    pen = "L";
  }
  return path;
}
