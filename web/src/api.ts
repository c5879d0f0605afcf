/** The only module that speaks to the server. Every failure is an ApiError with one line to show. */

import type {
  Cluster, Compared, Contexts, Dictionary, Falsified, Feature, FeatureList, LiveText, Rows, RunFacts, Session, SteerLine, SteerRequest, SweepLine,
  TextLine,
} from "./types";

export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly remedy = "",
  ) {
    super(message);
  }
}

const CACHED = 400;
const cache = new Map<string, Promise<unknown>>();

export const pathOf = (dictionary: Dictionary): string => {
  const cut = dictionary.key.lastIndexOf("/");
  return `/${[dictionary.key.slice(0, cut), dictionary.key.slice(cut + 1)].map(encodeURIComponent).join("/")}`;
};
export const comparedPath = (compared: Compared): string => `/c/${encodeURIComponent(compared.name)}`;
const base = (dictionary: Dictionary) => `/api/d${pathOf(dictionary)}`;

async function ask(url: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, { credentials: "same-origin", ...init });
  } catch (problem) {
    if ((problem as Error).name === "AbortError") throw problem;
    throw new ApiError("The server does not answer.", 0, "Is `sparsight serve` still running? It stops by itself when idle.");
  }
  if (response.ok) return response;
  let message = `The server answered ${response.status}.`;
  let remedy = "";
  try {
    const body = await response.json();
    message = String(body.error ?? body.detail ?? message);
    remedy = String(body.remedy ?? "");
  } catch {
    // not JSON: the status says what there is to say
  }
  throw new ApiError(message, response.status, remedy);
}

const json = async <T>(url: string, signal?: AbortSignal): Promise<T> => (await ask(url, { signal })).json();

/** Answers that do not change while the page is open are asked for once. */
function kept<T>(url: string, get: () => Promise<T>): Promise<T> {
  const found = cache.get(url);
  if (found) {
    cache.delete(url); // to the young end
    cache.set(url, found);
    return found as Promise<T>;
  }
  const promise = get();
  cache.set(url, promise);
  promise.catch(() => cache.delete(url));
  if (cache.size > CACHED) cache.delete(cache.keys().next().value as string);
  return promise;
}

function write(method: string, url: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  return ask(url, {
    method,
    signal,
    headers: { "Content-Type": "application/json", "X-Sparsight": "1" },
    body: JSON.stringify(body ?? {}),
  });
}

/** Each line of an NDJSON answer as it arrives. A line {error} is thrown. */
async function* lines<T extends { error?: string }>(response: Response): AsyncGenerator<T> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += value ?? "";
      const parts = rest.split("\n");
      rest = done ? "" : parts.pop()!;
      for (const part of parts) {
        if (!part.trim()) continue;
        const line = JSON.parse(part) as T & { remedy?: string };
        if (line.error) throw new ApiError(line.error, 200, line.remedy ?? "");
        yield line;
      }
      if ((ended = done)) return;
    }
  } finally {
    if (!ended) reader.cancel().catch(() => {});
  }
}

export const api = {
  session: () => json<Session>("/api/session"),
  features: (d: Dictionary, query: string, offset: number, limit: number, signal?: AbortSignal) =>
    json<Rows>(`${base(d)}/features?${query}${query ? "&" : ""}offset=${offset}&limit=${limit}`, signal),
  feature: (d: Dictionary, latent: number) => {
    const url = `${base(d)}/features/${latent}`;
    return kept(url, () => json<Feature>(url));
  },
  contexts: (d: Dictionary, latent: number, top = 12, perBand = 4, random = 12) => {
    const url = `${base(d)}/features/${latent}/contexts?top=${top}&per_band=${perBand}&random=${random}`;
    return kept(url, () => json<Contexts>(url));
  },
  map: (d: Dictionary) => kept(`${base(d)}/map`, async () => new Float32Array(await (await ask(`${base(d)}/map`)).arrayBuffer())),
  column: (d: Dictionary, name: string) => {
    const url = `${base(d)}/columns/${encodeURIComponent(name)}`;
    return kept(url, async () => new Float32Array(await (await ask(url)).arrayBuffer()));
  },
  clusters: (d: Dictionary) => kept(`${base(d)}/clusters`, () => json<Cluster[]>(`${base(d)}/clusters`)),
  run: (d: Dictionary) => kept(`${base(d)}/run`, () => json<RunFacts>(`${base(d)}/run`)),
  /** What has been read of the text so far, again and again until it is all of it. */
  text: async function* (d: Dictionary, text: string, latents: number[], signal?: AbortSignal): AsyncGenerator<LiveText> {
    let sofar: LiveText = { tokens: [], latents: {} };
    for await (const line of lines<TextLine>(await write("POST", `${base(d)}/text`, latents.length ? { text, latents } : { text }, signal))) {
      if (line.done) return;
      sofar = { tokens: [...sofar.tokens, ...(line.tokens ?? [])], latents: { ...sofar.latents, ...line.latents } };
      yield sofar;
    }
  },
  steer: async function* (d: Dictionary, request: SteerRequest, signal: AbortSignal) {
    yield* lines<SteerLine>(await write("POST", `${base(d)}/steer`, request, signal));
  },
  sweep: async function* (d: Dictionary, request: object, signal: AbortSignal) {
    yield* lines<SweepLine>(await write("POST", `${base(d)}/sweep`, request, signal));
  },
  falsify: async (d: Dictionary, latent: number, text: string): Promise<Falsified> =>
    (await write("POST", `${base(d)}/features/${latent}/falsify`, { text })).json(),

  setLabel: (d: Dictionary, latent: number, text: string) => changed(d, latent, write("PUT", `${base(d)}/features/${latent}/label`, { text })),
  deleteLabel: (d: Dictionary, latent: number) => changed(d, latent, write("DELETE", `${base(d)}/features/${latent}/label`)),
  setNote: (d: Dictionary, latent: number, text: string) => changed(d, latent, write("PUT", `${base(d)}/features/${latent}/note`, { text })),

  lists: (d: Dictionary) => json<FeatureList[]>(`${base(d)}/lists`),
  setList: (d: Dictionary, name: string, latents: number[]) => listed(d, write("PUT", list(d, name), { latents })),
  addToList: (d: Dictionary, name: string, latents: number[]) => listed(d, write("POST", `${list(d, name)}/add`, { latents })),
  removeFromList: (d: Dictionary, name: string, latents: number[]) => listed(d, write("POST", `${list(d, name)}/remove`, { latents })),
  deleteList: (d: Dictionary, name: string) => listed(d, write("DELETE", list(d, name))),
  notesUrl: (d: Dictionary, format: "jsonl" | "markdown") => `${base(d)}/notes/export?format=${format}`,
  exportUrl: (d: Dictionary, query: string) => `${base(d)}/export?${query}`,
  importNotes: async (d: Dictionary, text: string): Promise<Record<string, unknown>> => {
    const answer = await ask(`${base(d)}/notes/import`, {
      method: "POST", headers: { "Content-Type": "application/json", "X-Sparsight": "1" }, body: text,
    });
    cache.clear();
    return answer.json().catch(() => ({}));
  },
};

/** What is wrong with a list's name, if anything; the address of a list ends at a slash. */
export const nameProblem = (name: string): string => (!name ? "A list needs a name." : name.includes("/") ? "A list's name cannot hold a slash." : "");

const list = (d: Dictionary, name: string) => `${base(d)}/lists/${encodeURIComponent(name)}`;

async function changed(d: Dictionary, latent: number, done: Promise<Response>): Promise<void> {
  await done;
  cache.delete(`${base(d)}/features/${latent}`);
  // other pages name this latent as a neighbour, but their labels may wait for the next load
}

async function listed(d: Dictionary, done: Promise<Response>): Promise<void> {
  await done;
  const prefix = `${base(d)}/features/`;
  for (const url of cache.keys()) if (url.startsWith(prefix) && !url.includes("contexts")) cache.delete(url);
}
