/** A value that components read and anyone sets. */

import { useEffect, useState } from "preact/hooks";

export interface Store<T> {
  get(): T;
  set(value: T): void;
  subscribe(listener: () => void): () => void;
}

export function store<T>(initial: T): Store<T> {
  let value = initial;
  const listeners = new Set<() => void>();
  return {
    get: () => value,
    set(next) {
      if (next === value) return;
      value = next;
      for (const listener of [...listeners]) listener();
    },
    subscribe(listener) {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
  };
}

export function useStore<T>(from: Store<T>): T {
  const [value, set] = useState(from.get());
  useEffect(() => {
    set(from.get()); // it may have changed between the render and this effect
    return from.subscribe(() => set(from.get()));
  }, [from]);
  return value;
}

/** A value that outlives the page. Storage that is full or forbidden is as good as empty. */
export function remembered<T>(key: string, initial: T): Store<T> {
  const inner = store(initial);
  try {
    const found = localStorage.getItem(`sparsight.${key}`);
    if (found !== null) inner.set(JSON.parse(found) as T);
  } catch {
    // nothing kept
  }
  return {
    ...inner,
    set(value) {
      inner.set(value);
      try {
        localStorage.setItem(`sparsight.${key}`, JSON.stringify(value));
      } catch {
        // nothing kept
      }
    },
  };
}

export interface Loaded<T> {
  data: T | null;
  error: Error | null;
  loading: boolean;
}

/** What `get` answers for this key; the last answer stays until the next is there, so nothing flickers. */
export function useLoad<T>(key: string | null, get: (signal: AbortSignal) => Promise<T>): Loaded<T> & { again: () => void } {
  const [state, set] = useState<Loaded<T> & { key: string | null }>({ data: null, error: null, loading: key !== null, key });
  const [round, setRound] = useState(0);
  useEffect(() => {
    if (key === null) return;
    const stop = new AbortController();
    set((now) => ({ ...now, loading: true }));
    get(stop.signal).then(
      (data) => stop.signal.aborted || set({ data, error: null, loading: false, key }),
      (error: Error) => stop.signal.aborted || set({ data: null, error, loading: false, key }),
    );
    return () => stop.abort();
  }, [key, round]);
  return { ...state, again: () => setRound((now) => now + 1) };
}
