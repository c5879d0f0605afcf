/** A sentence of one's own, marked by this one latent. */

import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api";
import { figure } from "../format";
import { Marked } from "../parts/passage";
import { complain } from "../parts/toasts";
import { store, useStore } from "../store";
import type { Dictionary, LiveText } from "../types";

const sentence = store("");

export function TryIt({ dictionary, latent, maximum }: { dictionary: Dictionary; latent: number; maximum: number }) {
  const text = useStore(sentence);
  const [found, setFound] = useState<LiveText | null>(null);
  const [busy, setBusy] = useState(false);
  const stop = useRef<AbortController | null>(null);
  const run = async () => {
    if (!text.trim()) return;
    stop.current?.abort();
    const mine = (stop.current = new AbortController());
    setBusy(true);
    try {
      for await (const part of api.text(dictionary, text, [latent], mine.signal)) setFound(part);
    } catch (error) {
      if ((error as Error).name !== "AbortError") complain(error as Error);
    }
    if (stop.current === mine) setBusy(false);
  };
  useEffect(() => {
    setFound(null);
    void run(); // the same sentence on the next feature
    return () => stop.current?.abort();
  }, [latent]);
  const values = found?.tokens.map((token) => token.active.find(([other]) => other === latent)?.[1] ?? 0) ?? [];
  const best = Math.max(0, ...values);
  return (
    <section class="tryit">
      <h3>Try it</h3>
      <form
        class="inline"
        onSubmit={(event) => {
          event.preventDefault();
          void run();
        }}
      >
        <input class="grow" aria-label="A sentence to try this feature on" placeholder="A sentence of your own" value={text} onInput={(event) => sentence.set(event.currentTarget.value)} />
        <button disabled={busy}>{busy ? "Reading…" : "Read"}</button>
      </form>
      {found && (
        <>
          <p class="reading whole" dir="auto"><Marked tokens={found.tokens.map((one) => one.token)} values={values} maximum={maximum} /></p>
          <p class="dim">{best > 0 ? `at most ${figure(best)} here; its largest on the held-out text is ${figure(maximum)}` : "not among the strongest features of any token here"}</p>
        </>
      )}
    </section>
  );
}
