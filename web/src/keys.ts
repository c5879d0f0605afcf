/** Keys, wherever the focus is not in a field. A view binds its own; the last bound wins. */

import { useEffect, useRef } from "preact/hooks";

export type Keys = Record<string, (event: KeyboardEvent) => void>;

const bound: { current: Keys }[] = [];

export const typing = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));

addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  if (typing(event.target) && (event.target as HTMLInputElement).type !== "checkbox") {
    if (event.key === "Escape") (event.target as HTMLElement).blur();
    return;
  }
  for (let i = bound.length - 1; i >= 0; i--) {
    const act = bound[i]!.current[event.key];
    if (!act) continue;
    event.preventDefault();
    act(event);
    return;
  }
});

/** Bound while the component is there. `general` keys give way to those of a view. */
export function useKeys(keys: Keys, general = false): void {
  const entry = useRef({ current: keys }).current;
  entry.current = keys;
  useEffect(() => {
    if (general) bound.unshift(entry);
    else bound.push(entry);
    return () => void bound.splice(bound.indexOf(entry), 1);
  }, []);
}
