/** What several views share: the session, the order that `j` and `k` walk through, and what was last written. */

import type { Dictionary, Edit, Session } from "./types";
import { remembered, store } from "./store";

export const session = store<Session | null>(null);

/** The table that a feature was opened from: its query and the row, so that j and k go on in its order. */
export interface Walk {
  key: string;
  query: string;
  index: number;
  total: number;
}
export const walk = store<Walk | null>(null);

export const columnsShown = remembered<Record<string, boolean>>("columns", {});
export const aligned = remembered<boolean>("aligned", true);
export const seen = remembered<boolean>("seen", false);
export const lastKey = remembered<string>("dictionary", "");

/** Features put aside for steering, by dictionary; they wait there from any view. */
export const edits = store<Record<string, Edit[]>>({});

export function addEdit(dictionary: Dictionary, latent: number): void {
  const now = edits.get()[dictionary.key] ?? [];
  if (now.some((edit) => edit.latent === latent)) return;
  edits.set({ ...edits.get(), [dictionary.key]: [...now, { latent, mode: "add", strength: 1, unit: "p99" }] });
}

/** The texts of "Your text", kept while the page is open. */
export const texts = store<[string, string]>(["", ""]);
export const prompt = store("");
