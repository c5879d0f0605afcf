/** The address is the state: /d/RUN/SAE/VIEW?..., so that every screen can be linked, reloaded and gone back to. */

import { store, useStore } from "./store";

export interface Place {
  path: string;
  query: string;
}

const here = (): Place => ({ path: location.pathname, query: location.search.slice(1) });
const place = store<Place>(here());

addEventListener("popstate", () => place.set(here()));

export function go(url: string, replace = false): void {
  const target = new URL(url, location.href);
  const same = target.pathname === location.pathname && target.search === location.search;
  if (!same) history[replace ? "replaceState" : "pushState"](null, "", target);
  place.set(here());
}

export const usePlace = (): Place => useStore(place);

/** Links stay links (new tab, copy address); a plain click does not reload the page. */
addEventListener("click", (event) => {
  if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  const link = (event.target as Element).closest?.("a");
  if (!link || link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
  if (link.pathname.startsWith("/api/") || link.getAttribute("href")!.startsWith("#")) return;
  event.preventDefault();
  go(link.href);
});

/** The query with some keys set; empty values are left out, arrays repeat their key. */
export function withQuery(query: string, changes: Record<string, string | string[] | null>): string {
  const next = new URLSearchParams(query);
  for (const [key, value] of Object.entries(changes)) {
    next.delete(key);
    for (const one of value === null ? [] : [value].flat()) if (one !== "") next.append(key, one);
  }
  // readable addresses: these are legal unescaped in a query
  return next.toString().replaceAll("%3E%3D", ">=").replaceAll("%3C%3D", "<=").replaceAll("%2C", ",");
}
