/** The frame: which dictionary, which view, and the keys that work everywhere. */

import { useEffect, useRef, useState } from "preact/hooks";
import { api, ApiError, comparedPath, pathOf } from "./api";
import { count } from "./format";
import { useKeys } from "./keys";
import { Dialog } from "./parts/dialog";
import { Hints } from "./parts/hints";
import { Guarded, Problem } from "./parts/problem";
import { Toasts } from "./parts/toasts";
import { go, usePlace } from "./router";
import { lastKey, seen, session } from "./state";
import { useStore } from "./store";
import { dark, toggleTheme } from "./theme";
import type { Dictionary } from "./types";
import { ComparedView } from "./views/compared";
import { FeaturePage } from "./views/feature";
import { Features } from "./views/features";
import { Lists } from "./views/lists";
import { MapView } from "./views/map";
import { Run } from "./views/run";
import { Steer } from "./views/steer";
import { YourText } from "./views/text";
import { Welcome } from "./views/welcome";

const VIEWS = [
  ["features", "Features", "f"],
  ["map", "Map", "m"],
  ["text", "Your text", "t"],
  ["steer", "Steer", "s"],
  ["run", "Run", "r"],
  ["lists", "Lists", "l"],
] as const;

export function App() {
  const now = useStore(session);
  const place = usePlace();
  const [error, setError] = useState<Error | null>(null);
  const [open, setOpen] = useState<"keys" | "go" | null>(null);
  const [, , run, sae, view = "features", rest = ""] = place.path.split("/");
  const found = now?.dictionaries.find((d) => pathOf(d) === `/${run}/${sae}`);
  const fallback = now?.dictionaries.find((d) => d.key === lastKey.get()) ?? now?.dictionaries[0];
  const dictionary = found ?? fallback;
  const compared = now?.comparisons.find((c) => comparedPath(c) === place.path);

  useEffect(() => void api.session().then((s) => session.set(s), setError), []);
  useEffect(() => void (found && lastKey.set(found.key)), [found?.key]);
  useEffect(() => {
    if (!now || place.path !== "/") return;
    if (!fallback) {
      if (now.comparisons[0]) go(comparedPath(now.comparisons[0]), true);
      return;
    }
    go(seen.get() ? `/d${pathOf(fallback)}/features` : "/welcome", true);
  }, [now, place.path]);
  useEffect(() => {
    const title = place.path === "/welcome" ? "" : view === "feature" ? `${rest} · ` : `${VIEWS.find(([v]) => v === view)?.[1] ?? ""} · `;
    document.title = compared ? `${compared.name} · Sparsight` : `${title}${dictionary?.key ?? ""} · Sparsight`;
    document.getElementById("main")?.scrollTo(0, 0);
  }, [place.path, dictionary?.key, compared?.name]);

  useKeys(
    {
      "?": () => setOpen("keys"),
      g: () => setOpen("go"),
      "/": () => {
        const field = document.querySelector<HTMLInputElement>("[data-search]");
        if (field) field.select();
        else if (dictionary) go(`/d${pathOf(dictionary)}/features`);
      },
    },
    true,
  );

  return (
    <>
      <a class="skip" href="#main">To the content</a>
      <header class="bar">
        <a class="mark" href="/welcome" aria-label="Sparsight: what is on the screen">
          <Mark />
          <span>Sparsight</span>
        </a>
        {dictionary && <Picker dictionary={dictionary} view={view} />}
        {now && (dictionary || now.comparisons.length > 0) && (
          <nav aria-label="Views">
            {dictionary && VIEWS.map(([name, title]) => (
              <a
                href={`/d${pathOf(dictionary)}/${name}`}
                aria-current={found && (view === name || (view === "feature" && name === "features")) ? "page" : undefined}
              >
                {title}
              </a>
            ))}
            {now.comparisons.map((c) => (
              <a href={comparedPath(c)} aria-current={c === compared ? "page" : undefined} data-hint={c.headline}>
                {now.comparisons.length > 1 || !dictionary ? c.name : "Fine-tune"}
              </a>
            ))}
          </nav>
        )}
        <div class="bar-end">
          {dictionary && <button class="quiet wide-only" onClick={() => setOpen("go")} data-hint="Go to a latent or a view (g)">Go to <kbd>g</kbd></button>}
          <ThemeButton />
          <button class="quiet icon" onClick={() => setOpen("keys")} aria-label="Keys and help" data-hint="Keys and help (?)">?</button>
        </div>
      </header>
      <main id="main" tabIndex={-1} class={`view-${compared ? "compared" : place.path === "/welcome" ? "welcome" : view}`}>
        {error ? (
          <Problem error={error} again={() => location.reload()} />
        ) : !now ? (
          <p class="waiting">Opening…</p>
        ) : compared ? (
          <ComparedView key={compared.name} compared={compared} />
        ) : !dictionary && now.comparisons[0] ? (
          place.path === "/welcome" ? <ComparedView compared={now.comparisons[0]} /> : place.path !== "/" && <Problem error={new ApiError("There is nothing at this address.", 404, "Choose a comparison above.")} />
        ) : !dictionary ? (
          <Problem
            error={new ApiError(now.unavailable?.[0]?.error ?? "There is no dictionary to show.", 0, now.unavailable?.[0]?.remedy ?? "Train one first: sparsight run RECIPE.")}
            again={() => location.reload()}
          />
        ) : place.path === "/welcome" ? (
          <Welcome session={now} dictionary={dictionary} />
        ) : !found ? (
          place.path !== "/" && <Problem error={new ApiError("There is nothing at this address.", 404, "Choose a view above.")} />
        ) : (
          <Guarded key={`${found.key} ${view}`}>
            <View dictionary={found} view={view} rest={rest} query={place.query} />
          </Guarded>
        )}
      </main>
      {open === "keys" && <KeysDialog close={() => setOpen(null)} />}
      {open === "go" && dictionary && <GoDialog dictionary={dictionary} close={() => setOpen(null)} />}
      <Hints />
      <Toasts />
    </>
  );
}

interface ViewProps {
  dictionary: Dictionary;
  view: string;
  rest: string;
  query: string;
}

function View({ dictionary, view, rest, query }: ViewProps) {
  switch (view) {
    case "features":
    case "":
      return <Features dictionary={dictionary} query={query} />;
    case "feature":
      return <FeaturePage dictionary={dictionary} latent={Number(rest)} />;
    case "map":
      return <MapView dictionary={dictionary} query={query} />;
    case "text":
      return <YourText dictionary={dictionary} />;
    case "steer":
      return <Steer dictionary={dictionary} />;
    case "run":
      return <Run dictionary={dictionary} />;
    case "lists":
      return <Lists dictionary={dictionary} />;
    default:
      return <Problem error={new ApiError("There is no such view.", 404, "Choose one above.")} />;
  }
}

function Picker({ dictionary, view }: { dictionary: Dictionary; view: string }) {
  const all = useStore(session)!.dictionaries;
  const about = `${dictionary.model}, ${dictionary.hook_point}${dictionary.target_hook_point && dictionary.target_hook_point !== dictionary.hook_point ? ` to ${dictionary.target_hook_point}` : ""}`;
  return (
    <div class="picker" data-hint={`${about}; ${dictionary.architecture}, ${count(dictionary.n_latents)} latents`}>
      {all.length > 1 ? (
        <select
          aria-label="Dictionary"
          value={dictionary.key}
          onChange={(event) => {
            const next = all.find((d) => d.key === event.currentTarget.value)!;
            go(`/d${pathOf(next)}/${view === "feature" ? "features" : view}`);
          }}
        >
          {all.map((d) => (
            <option value={d.key}>{d.key}</option>
          ))}
        </select>
      ) : (
        <b>{dictionary.key}</b>
      )}
      <span class="dim wide-only">{dictionary.hook_point}</span>
    </div>
  );
}

function ThemeButton() {
  const isDark = useStore(dark);
  return (
    <button class="quiet icon" onClick={toggleTheme} aria-label={isDark ? "Light colours" : "Dark colours"} data-hint={isDark ? "Light colours" : "Dark colours"}>
      <svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">
        <circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" stroke-width="1.3" />
        <path d="M8 2.5a5.5 5.5 0 0 1 0 11z" fill="currentColor" />
      </svg>
    </button>
  );
}

function Mark() {
  const lit = new Set([4, 8]);
  return (
    <svg viewBox="0 0 16 16" width="18" height="18" aria-hidden="true">
      {Array.from({ length: 9 }, (_, i) => (
        <circle class={lit.has(i) ? "lit" : "unlit"} cx={3 + (i % 3) * 5} cy={3 + Math.floor(i / 3) * 5} r={lit.has(i) ? 2 : 1.3} />
      ))}
    </svg>
  );
}

const KEYS: [string, string][] = [
  ["j  k", "next and previous: rows of a table, features in its order"],
  ["Enter", "open the row"],
  ["x", "select the row"],
  ["/", "search"],
  ["g", "go to a latent or a view: g 123, g m"],
  ["e", "write a label for this feature"],
  ["s", "put this feature aside for steering"],
  ["u", "from a feature back to the table"],
  ["Ctrl Enter", "run what is written: your text, steering"],
  ["?", "this help"],
  ["Esc", "leave a field, close a dialog"],
];

function KeysDialog({ close }: { close: () => void }) {
  return (
    <Dialog title="Keys" close={close}>
      <dl class="keys">
        {KEYS.map(([key, what]) => (
          <>
            <dt>{key.split("  ").map((one) => <kbd>{one}</kbd>)}</dt>
            <dd>{what}</dd>
          </>
        ))}
      </dl>
      <p class="dim">
        What everything on the screen means is on the <a href="/welcome" onClick={close}>first page</a>.
      </p>
    </Dialog>
  );
}

function GoDialog({ dictionary, close }: { dictionary: Dictionary; close: () => void }) {
  const field = useRef<HTMLInputElement>(null);
  const [problem, setProblem] = useState("");
  const to = (path: string) => {
    close();
    go(`/d${pathOf(dictionary)}/${path}`);
  };
  return (
    <Dialog title="Go to" close={close}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          const latent = Number(field.current!.value.trim());
          if (Number.isInteger(latent) && latent >= 0 && latent < dictionary.n_latents && field.current!.value.trim()) to(`feature/${latent}`);
          else setProblem(`Latents are numbered 0 to ${count(dictionary.n_latents - 1)}.`);
        }}
      >
        <label class="field">
          <span>Latent number, or the letter of a view</span>
          <input
            ref={field}
            autoFocus
            autocomplete="off"
            inputMode="numeric"
            onInput={(event) => {
              const view = VIEWS.find(([, , key]) => key === event.currentTarget.value.trim());
              if (view) to(view[0]);
            }}
          />
        </label>
        {problem && <p class="bad" role="alert">{problem}</p>}
      </form>
      <ul class="go">
        {VIEWS.map(([name, title, key]) => (
          <li>
            <button class="quiet" onClick={() => to(name)}><kbd>{key}</kbd> {title}</button>
          </li>
        ))}
      </ul>
    </Dialog>
  );
}
