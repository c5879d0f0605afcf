/** The rows of one query, fetched a page at a time as they come into view. */

import { api } from "../api";
import type { Dictionary, Row } from "../types";

const PAGE = 100;
const KEPT = 150;
const PAUSE_MS = 40;
const AHEAD = 60;

export class Pages {
  total: number | null = null;
  error: Error | null = null;
  /** Whether any row so far has a label. */
  labelled = false;
  private readonly pages = new Map<number, Row[]>();
  private readonly coming = new Map<number, AbortController>();
  private timer = 0;
  private wanted: [number, number] = [0, 0];
  private closed = false;

  constructor(
    readonly dictionary: Dictionary,
    readonly query: string,
    private readonly changed: () => void,
  ) {
    this.fetch(0);
  }

  row(index: number): Row | undefined {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  /** The rows in view, and a little more. Asked for at most every PAUSE_MS; what has left the view is not waited for. */
  want(first: number, last: number): void {
    const end = Math.min(last + AHEAD, this.total ?? last) - 1;
    this.wanted = [Math.floor(Math.max(0, first - AHEAD) / PAGE), Math.floor(Math.max(first, end) / PAGE)];
    if (this.timer || !this.missing().length) return;
    this.timer = window.setTimeout(() => {
      this.timer = 0;
      this.missing().forEach((page) => this.fetch(page));
    }, PAUSE_MS);
  }

  /** Another value in one row, as after a label was written. */
  forget(): void {
    this.pages.clear();
    this.missing().forEach((page) => this.fetch(page));
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    for (const stop of this.coming.values()) stop.abort();
  }

  private missing(): number[] {
    const [first, last] = this.wanted;
    const pages = [];
    for (let page = first; page <= last; page++) if (!this.pages.has(page) && !this.coming.has(page)) pages.push(page);
    return pages;
  }

  private async fetch(page: number): Promise<void> {
    if (this.closed) return;
    for (const [other, stop] of this.coming) if (other < this.wanted[0] - 1 || other > this.wanted[1] + 1) stop.abort();
    const stop = new AbortController();
    this.coming.set(page, stop);
    try {
      const answer = await api.features(this.dictionary, this.query, page * PAGE, PAGE, stop.signal);
      this.total = answer.total;
      this.error = null;
      this.pages.set(page, answer.rows);
      this.labelled ||= answer.rows.some((row) => row.label);
      if (this.pages.size > KEPT) this.drop(page);
    } catch (error) {
      if ((error as Error).name !== "AbortError") this.error = error as Error;
    } finally {
      this.coming.delete(page);
    }
    if (!this.closed) this.changed();
  }

  private drop(near: number): void {
    const far = [...this.pages.keys()].sort((a, b) => Math.abs(b - near) - Math.abs(a - near));
    for (const page of far.slice(0, 20)) this.pages.delete(page);
  }
}
