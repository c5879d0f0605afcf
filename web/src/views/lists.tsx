/** Lists of features, and the way out for labels, notes and lists. */

import { useRef, useState } from "preact/hooks";
import { api, nameProblem, pathOf } from "../api";
import { count } from "../format";
import { Dialog } from "../parts/dialog";
import { Problem } from "../parts/problem";
import { complain, say } from "../parts/toasts";
import { useLoad } from "../store";
import type { Dictionary, FeatureList } from "../types";

export function Lists({ dictionary }: { dictionary: Dictionary }) {
  const { data, error, again } = useLoad(dictionary.key, () => api.lists(dictionary));
  const [doomed, setDoomed] = useState<FeatureList | null>(null);
  const name = useRef<HTMLInputElement>(null);
  const latents = useRef<HTMLInputElement>(null);
  const file = useRef<HTMLInputElement>(null);
  const act = (what: Promise<unknown>, done: string) => what.then(() => (say(done), again()), complain);
  if (error) return <Problem error={error} again={again} />;
  return (
    <div class="lists">
      <section>
        <h2>Lists</h2>
        {data && !data.length && <p class="empty">None yet. Select features in the table, or circle some on the map, and make a list of them.</p>}
        {data && data.length > 0 && (
          <table class="plain">
            <thead><tr><th>name</th><th class="numeric">features</th><th>made</th><th><span class="sr">Actions</span></th></tr></thead>
            <tbody>
              {data.map((list) => (
                <tr>
                  <td><a href={`/d${pathOf(dictionary)}/features?list=${encodeURIComponent(list.name)}`}>{list.name}</a></td>
                  <td class="numeric">{count(list.size)}</td>
                  <td class="dim">{made(list.created)}</td>
                  <td class="inline">
                    <a class="button" href={api.exportUrl(dictionary, `list=${encodeURIComponent(list.name)}`)} download data-hint="One HTML file that opens anywhere, offline">Export page</a>
                    <button class="quiet" onClick={() => setDoomed(list)}>Delete</button>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        )}
        <form
          class="inline wrap"
          onSubmit={(event) => {
            event.preventDefault();
            const wanted = latents.current!.value.split(/[\s,;]+/).filter(Boolean).map(Number);
            const to = name.current!.value.trim();
            if (nameProblem(to)) return say(nameProblem(to), true);
            if (wanted.some((one) => !Number.isInteger(one) || one < 0 || one >= dictionary.n_latents)) return say(`Latents are numbers from 0 to ${count(dictionary.n_latents - 1)}.`, true);
            void act(api.setList(dictionary, to, wanted), `Made “${to}”.`);
            event.currentTarget.reset();
          }}
        >
          <label class="field"><span>New list</span><input ref={name} maxLength={100} autocomplete="off" /></label>
          <label class="field grow"><span>Latents, separated by commas</span><input ref={latents} inputMode="numeric" autocomplete="off" placeholder="12, 407, 3021" /></label>
          <button>Make</button>
        </form>
      </section>
      <section>
        <h2>Labels, notes and lists as a file</h2>
        <p class="dim">They are kept beside the run, not in this browser, and survive a new index. JSON lines can be read in again, here or elsewhere; Markdown is for reading.</p>
        <div class="inline wrap">
          <a class="button" href={api.notesUrl(dictionary, "jsonl")} download={`${dictionary.sae}-notes.jsonl`}>Export JSON lines</a>
          <a class="button" href={api.notesUrl(dictionary, "markdown")} download={`${dictionary.sae}-notes.md`}>Export Markdown</a>
          <button onClick={() => file.current!.click()}>Import JSON lines…</button>
          <input
            ref={file}
            type="file"
            accept=".jsonl,application/jsonl"
            hidden
            aria-label="File of JSON lines to import"
            onChange={async (event) => {
              const chosen = event.currentTarget.files?.[0];
              event.currentTarget.value = "";
              if (chosen) void act(api.importNotes(dictionary, await chosen.text()), `Read ${chosen.name}.`);
            }}
          />
        </div>
      </section>
      {doomed && (
        <Dialog title={`Delete “${doomed.name}”?`} close={() => setDoomed(null)}>
          <p>Its {count(doomed.size)} features stay; the list of them goes.</p>
          <div class="inline">
            <button class="primary" onClick={() => (void act(api.deleteList(dictionary, doomed.name), `Deleted “${doomed.name}”.`), setDoomed(null))}>Delete</button>
            <button class="quiet" onClick={() => setDoomed(null)}>Keep</button>
          </div>
        </Dialog>
      )}
    </div>
  );
}

function made(created: string | number): string {
  const date = new Date(typeof created === "number" ? created * 1000 : created);
  return Number.isNaN(date.getTime()) ? String(created) : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
