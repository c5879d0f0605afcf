import { figure, percent } from "../format";

const NAMES = ["0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "64+"];

/** Where in a document it is active, beside where tokens are at all. */
export function Positions({ bins, baseline, names = NAMES }: { bins: number[]; baseline: number[]; names?: string[] }) {
  const total = bins.reduce((a, b) => a + b, 0) || 1;
  const whole = baseline.reduce((a, b) => a + b, 0) || 1;
  const rates = bins.map((n, i) => n / total / ((baseline[i] ?? 0) / whole || NaN));
  const most = Math.max(2, ...rates.filter(Number.isFinite));
  return (
    <figure class="positions" aria-label="Activity by position in the document, relative to all tokens">
      <div class="columns">
        {rates.map((rate, i) => (
          <div data-hint={`token ${names[i] ?? i} of a document: ${percent(bins[i]! / total)} of its activations, ${percent((baseline[i] ?? 0) / whole)} of all tokens (${figure(rate, 2)} times)`}>
            <i style={{ height: `${Number.isFinite(rate) ? Math.max(1, (100 * rate) / most) : 0}%` }} />
          </div>
        ))}
        <hr style={{ bottom: `${100 / most}%` }} data-hint="as often as tokens are there" />
      </div>
      <figcaption>{rates.map((_, i) => <span>{names[i] ?? i}</span>)}</figcaption>
    </figure>
  );
}
