/** A passage with the tokens marked on which a latent is active, by strength; the value on hover. */

import { useState } from "preact/hooks";
import { figure } from "../format";
import type { Context } from "../types";

interface MarkedProps {
  tokens: string[];
  values: (number | null)[];
  measured?: boolean[];
  peak?: number;
  maximum: number;
  from?: number;
}

export function Marked({ tokens, values, measured, peak = -1, maximum, from = 0 }: MarkedProps) {
  return tokens.map((token, i) => {
    const value = values[i] ?? 0;
    const unmeasured = measured && measured[i] === false;
    if (!(value > 0)) return <span class={unmeasured ? "unmeasured" : undefined} data-hint={unmeasured ? "not measured: left out of the index" : undefined}>{token}</span>;
    const strength = Math.min(1, value / (maximum || 1));
    return (
      <span
        class={from + i === peak ? "lit peak" : "lit"}
        style={{ "--s": (0.12 + 0.78 * strength).toFixed(3) }}
        data-hint={figure(value)}
      >
        {token}
      </span>
    );
  });
}

/** One line with the peak in the same column as its neighbours' (a concordance); a click unfolds the whole passage. */
export function Passage({ context, maximum, aligned }: { context: Context; maximum: number; aligned: boolean }) {
  const [unfolded, unfold] = useState(false);
  const { tokens, values, measured, peak } = context;
  const about = `document ${context.document}, token ${context.position}${context.folded ? `; ${context.folded} more alike` : ""}`;
  const line = !unfolded && aligned;
  return (
    <li class={line ? "passage aligned" : "passage wrapped"}>
      <button class="value" onClick={() => unfold(!unfolded)} aria-expanded={!line} data-hint={about} aria-label={`${figure(context.value)}, ${about}`}>
        {figure(context.value)}
      </button>
      {line ? (
        <>
          <span class="before" dir="auto">
            <span><Marked tokens={tokens.slice(0, peak)} values={values.slice(0, peak)} measured={measured.slice(0, peak)} maximum={maximum} /></span>
          </span>
          <span class="after" dir="auto">
            <Marked tokens={tokens.slice(peak)} values={values.slice(peak)} measured={measured.slice(peak)} peak={peak} maximum={maximum} from={peak} />
          </span>
        </>
      ) : (
        <span class="whole" dir="auto">
          <Marked tokens={tokens} values={values} measured={measured} peak={peak} maximum={maximum} />
        </span>
      )}
      {context.folded > 0 && <span class="folded" data-hint={`${context.folded} passages alike are folded into this one`}>+{context.folded}</span>}
    </li>
  );
}
