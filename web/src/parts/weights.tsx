import { figure, signed } from "../format";
import { Token } from "./tokens";

/** Tokens with a number each, as bars that share a scale. */
export function Weights({ items, plain }: { items: { token: string; value: number }[]; plain?: boolean }) {
  const most = Math.max(...items.map((item) => Math.abs(item.value)), 1e-9);
  return (
    <ol class="weights">
      {items.map(({ token, value }) => (
        <li>
          <Token text={token} />
          <span class="track" aria-hidden="true"><i class={value < 0 ? "cold" : "warm"} style={{ width: `${(100 * Math.abs(value)) / most}%` }} /></span>
          <span class="num">{plain ? figure(value) : signed(value)}</span>
        </li>
      ))}
    </ol>
  );
}
