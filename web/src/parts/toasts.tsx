import { store, useStore } from "../store";

const said = store<{ id: number; text: string; bad: boolean }[]>([]);
let next = 0;

/** A line at the foot of the screen, also spoken by screen readers. */
export function say(text: string, bad = false): void {
  const id = next++;
  said.set([...said.get().slice(-3), { id, text, bad }]);
  setTimeout(() => said.set(said.get().filter((one) => one.id !== id)), bad ? 8000 : 3500);
}

export const complain = (error: Error): void => say([error.message, (error as { remedy?: string }).remedy].filter(Boolean).join(" "), true);

export function Toasts() {
  return (
    <div class="toasts" role="status" aria-live="polite">
      {useStore(said).map((one) => (
        <p key={one.id} class={one.bad ? "toast bad" : "toast"}>{one.text}</p>
      ))}
    </div>
  );
}
