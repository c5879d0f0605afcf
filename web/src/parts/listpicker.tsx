import { useRef, useState } from "preact/hooks";
import { api, nameProblem } from "../api";
import { count } from "../format";
import { useLoad } from "../store";
import type { Dictionary } from "../types";
import { Dialog } from "./dialog";
import { complain, say } from "./toasts";

/** "Add to list…": one that is there, or a new name. */
export function ListPicker({ dictionary, latents, close }: { dictionary: Dictionary; latents: number[]; close: (added: boolean) => void }) {
  const lists = useLoad(dictionary.key, () => api.lists(dictionary));
  const name = useRef<HTMLInputElement>(null);
  const [busy, setBusy] = useState(false);
  const what = latents.length === 1 ? `latent ${latents[0]}` : `${count(latents.length)} latents`;
  const add = async (to: string) => {
    setBusy(true);
    try {
      if (lists.data?.some((one) => one.name === to)) await api.addToList(dictionary, to, latents);
      else await api.setList(dictionary, to, latents);
      say(`Added ${what} to “${to}”.`);
      close(true);
    } catch (error) {
      complain(error as Error);
      setBusy(false);
    }
  };
  return (
    <Dialog title={`Add ${what} to a list`} close={() => close(false)}>
      <form
        class="inline"
        onSubmit={(event) => {
          event.preventDefault();
          const to = name.current!.value.trim();
          const problem = nameProblem(to);
          if (problem) say(problem, true);
          else void add(to);
        }}
      >
        <label class="field grow"><span>New list</span><input ref={name} maxLength={100} autocomplete="off" /></label>
        <button class="primary" disabled={busy}>Add</button>
      </form>
      {lists.data && lists.data.length > 0 && (
        <ul class="go">
          {lists.data.map((one) => (
            <li><button class="quiet" disabled={busy} onClick={() => void add(one.name)}>{one.name} <span class="dim">{count(one.size)}</span></button></li>
          ))}
        </ul>
      )}
    </Dialog>
  );
}
