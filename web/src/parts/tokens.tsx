/** Tokens. They come from strangers' text: always text nodes, never HTML. */

import type { Label, Row } from "../types";
import { fixed, interval } from "../format";

/** One token alone, its leading space visible. */
export function Token({ text }: { text: string }) {
  const bare = text.replace(/^ +/, "");
  const spaces = text.length - bare.length;
  return (
    <span class="token">
      {spaces > 0 && <i>{"·".repeat(spaces)}</i>}
      {bare}
    </span>
  );
}

export const Tokens = ({ tokens }: { tokens: string[] }) => (
  <span class="tokens">{tokens.map((token) => <Token text={token} />)}</span>
);

/** Who says so: a person, a language model, or nothing but the numbers. */
export function sourceOf(label: Label): { mark: string; name: string } {
  if (label.source === "person") return { mark: "✎", name: "written by a person" };
  if (label.source.startsWith("llm")) return { mark: "◆", name: `by ${label.source.slice(4) || "a language model"}` };
  return { mark: "≈", name: "model-free, from its numbers" };
}

export function labelHint(label: Label): string {
  const score = label.score === null ? "not scored" : `balanced accuracy ${interval(label.score, label.low, label.high, 2)}, ${label.control === null || label.control === undefined ? "chance 0.50" : `with shuffled labels ${fixed(label.control, 2)}`}${label.n ? `, n = ${label.n}` : ""}`;
  return `${label.text} · ${sourceOf(label).name}, ${score}`;
}

/** A label's words; tokens that it names in backticks look like tokens. */
export const Words = ({ text }: { text: string }) => (
  <>{text.split(/(`[^`]+`)/).map((part) => (part.length > 2 && part.startsWith("`") ? <Token text={part.slice(1, -1)} /> : part))}</>
);

export function LabelText({ label }: { label: Label }) {
  return (
    <span class="label" data-hint={labelHint(label)}>
      <i class={`source ${label.source.split(":")[0]}`} aria-label={sourceOf(label).name}>{sourceOf(label).mark}</i>
      <Words text={label.text} />
    </span>
  );
}

/** A feature in a few words: its label, else what it promotes. */
export const Gist = ({ of }: { of: Pick<Row, "label" | "promoted"> }) =>
  of.label ? <LabelText label={of.label} /> : <Tokens tokens={(of.promoted ?? []).slice(0, 4)} />;
