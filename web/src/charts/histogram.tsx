import { count, figure } from "../format";

interface HistogramProps {
  counts: number[];
  maximum: number;
  quantiles: [number, number][];
  /** Chosen range of values, drawn darker. */
  range?: [number, number] | null;
  choose?: (value: number) => void;
}

/** Activations by strength; counts on a logarithmic scale, since most are weak and the strong ones are what matters. */
export function Histogram({ counts, maximum, quantiles, range, choose }: HistogramProps) {
  const height = 84;
  const most = Math.max(1, ...counts);
  const rise = (n: number) => (n ? Math.max(1.5, (height * Math.log1p(n)) / Math.log1p(most)) : 0);
  const step = maximum / counts.length;
  return (
    <figure class="histogram">
      <svg viewBox={`0 0 ${counts.length} ${height}`} preserveAspectRatio="none" role="img" aria-label={`Histogram of ${count(counts.reduce((a, b) => a + b, 0))} activations from 0 to ${figure(maximum)}`}>
        {counts.map((n, i) => {
          const inside = range && step * (i + 1) > range[0] && step * i < range[1];
          return (
            <g data-hint={`${figure(step * i)} to ${figure(step * (i + 1))}: ${count(n)}`} onClick={() => choose?.(step * (i + 0.5))}>
              <rect class="hit" x={i} width={1} y={0} height={height} />
              <rect class={inside ? "column in" : "column"} x={i + 0.06} width={0.88} y={height - rise(n)} height={rise(n)} style={{ "--s": ((i + 1) / counts.length).toFixed(2) }} />
            </g>
          );
        })}
      </svg>
      <div class="ticks">
        {quantiles.filter(([q]) => [0.5, 0.9, 0.99].includes(q)).map(([q, value]) => (
          <i class={value > 0.92 * maximum ? "late" : undefined} style={{ left: `${(100 * value) / (maximum || 1)}%` }} data-hint={`${q * 100} % of activations are below ${figure(value)}`}><span>p{q * 100}</span></i>
        ))}
      </div>
      <figcaption><span>0</span><span>activation, counts in logarithm</span><span>{figure(maximum)}</span></figcaption>
    </figure>
  );
}
