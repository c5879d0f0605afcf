/** Every latent in a table: any column sorts and filters, the address holds it all. */

import { Component } from "preact";
import { useEffect, useMemo, useReducer, useRef, useState } from "preact/hooks";
import { pathOf } from "../api";
import { count, show } from "../format";
import { useKeys } from "../keys";
import { Grid } from "../parts/grid";
import { ListPicker } from "../parts/listpicker";
import { Problem } from "../parts/problem";
import { LabelText, Token, Tokens } from "../parts/tokens";
import { say } from "../parts/toasts";
import { go, withQuery } from "../router";
import { addEdit, columnsShown, walk } from "../state";
import { useStore } from "../store";
import type { Column, Dictionary, Kind, Row, Value } from "../types";
import { ColumnFilter } from "./filter";
import { Pages } from "./pages";

const ROW_HEIGHT = 30;
const WIDTHS: Record<Kind, number> = { count: 82, share: 86, number: 80, bits: 78, token: 112, latent: 82, flag: 62, cluster: 78 };
const HIDDEN_AT_FIRST = new Set(["n_active", "n_documents", "mean", "p99", "dead", "token_entropy", "token_coherence", "position_bits", "decoder_cosine", "seed_correlation"]);

export const isShown = (chosen: Record<string, boolean>, name: string): boolean => chosen[name] ?? !HIDDEN_AT_FIRST.has(name);

export function Features({ dictionary, query }: { dictionary: Dictionary; query: string }) {
  const params = new URLSearchParams(query);
  const sort = params.get("sort") ?? "density";
  const order = params.get("order") ?? "desc";
  const filters = params.getAll("filter");
  const chosen = useStore(columnsShown);
  const columns = dictionary.columns.filter((column) => isShown(chosen, column.name) || column.name === sort);
  const asked = withQuery(query, { sort, order });

  const [, changed] = useReducer((n: number, _: void) => n + 1, 0);
  const shown = useRef<Pages | null>(null);
  const coming = useMemo(() => new Pages(dictionary, asked, changed), [dictionary.key, asked]);
  useEffect(() => () => coming.close(), [coming]);
  // the old rows stay until the first of the new ones are there
  if (!shown.current || coming.total !== null || coming.error) shown.current = coming;
  const pages = shown.current;
  const total = pages.total ?? 0;

  const [cursor, setCursor] = useState(() => (walk.get()?.query === asked && walk.get()?.key === dictionary.key ? walk.get()!.index : -1));
  const [selected, setSelected] = useState<ReadonlySet<number>>(new Set());
  const [filtering, setFiltering] = useState<{ column: Column; at: DOMRect } | null>(null);
  const [picking, setPicking] = useState(false);

  const set = (changes: Record<string, string | string[] | null>) => {
    setCursor(-1);
    go(`${location.pathname}?${withQuery(query, changes)}`, true);
  };
  const sortBy = (name: string) => set({ sort: name, order: name === sort && order === "desc" ? "asc" : name === sort ? "desc" : name === "latent" ? "asc" : "desc" });
  const open = (index: number) => {
    const row = pages.row(index);
    if (!row) return;
    walk.set({ key: dictionary.key, query: asked, index, total });
    go(`/d${pathOf(dictionary)}/feature/${row.latent}`);
  };
  // rows keep the function they were drawn with, so it may not remember what was selected then
  const toggle = (latent: number) =>
    setSelected((now) => {
      const next = new Set(now);
      if (!next.delete(latent)) next.add(latent);
      return next;
    });
  const move = (by: number) => total && setCursor(Math.max(0, Math.min(total - 1, cursor + by)));
  useKeys({
    j: () => move(1),
    k: () => move(-1),
    ArrowDown: () => move(1),
    ArrowUp: () => move(-1),
    Enter: () => cursor >= 0 && open(cursor),
    x: () => cursor >= 0 && pages.row(cursor) && toggle(pages.row(cursor)!.latent),
    s: () => {
      const row = pages.row(cursor);
      if (!row) return;
      addEdit(dictionary, row.latent);
      say(`Latent ${row.latent} waits in Steer.`);
    },
  });

  const labelled = pages.labelled ? "minmax(170px, 1.7fr)" : "90px";
  const template = `34px 64px ${labelled} minmax(150px, 1.2fr) ${columns.map((column) => `${WIDTHS[column.kind]}px`).join(" ")}`;
  const least = 34 + 64 + 170 + 150 + columns.reduce((sum, column) => sum + WIDTHS[column.kind], 0);
  return (
    <div class="features" style={{ "--template": template, "--least": `${least}px` }}>
      <Toolbar dictionary={dictionary} query={query} filters={filters} total={pages.total} set={set} />
      {pages.error && <Problem error={pages.error} again={() => pages.forget()} />}
      <Grid
        label="Features"
        total={total}
        rowHeight={ROW_HEIGHT}
        cursor={cursor}
        columns={columns.length + 4}
        of={pages.query}
        onWindow={(first, last) => pages.want(first, last)}
        head={
          <>
            <div role="columnheader" class="cell"><span class="sr">Selected</span></div>
            <Head name="latent" title="latent" hint="The latent's number" sort={sort} order={order} sortBy={sortBy} />
            <div role="columnheader" class="cell">label</div>
            <div role="columnheader" class="cell" data-hint="The tokens whose logits its direction raises most">promotes</div>
            {columns.map((column) => (
              <Head
                name={column.name}
                title={column.title}
                hint={column.description}
                numeric={column.kind !== "token"}
                sort={sort}
                order={order}
                sortBy={sortBy}
                filter={column.kind === "token" ? undefined : (at) => setFiltering({ column, at })}
                filtered={filters.some((one) => one.startsWith(column.name) && /[<>=!]/.test(one[column.name.length] ?? ""))}
              />
            ))}
          </>
        }
        row={(index, slot, top) => (
          <TableRow
            key={slot}
            index={index}
            top={top}
            row={pages.row(index)}
            columns={columns}
            sort={sort}
            current={index === cursor}
            selected={selected.has(pages.row(index)?.latent ?? -1)}
            path={pathOf(dictionary)}
            toggle={toggle}
            open={open}
          />
        )}
      />
      {total === 0 && pages.total !== null && <p class="empty">No feature is like that. <button class="link" onClick={() => set({ q: null, filter: [], list: null, cluster: null })}>Show all</button></p>}
      {selected.size > 0 && (
        <div class="selection" role="region" aria-label="Selection">
          <b>{count(selected.size)} selected</b>
          <button onClick={() => setPicking(true)}>Add to a list…</button>
          {dictionary.live && (
            <button
              onClick={() => {
                for (const latent of selected) addEdit(dictionary, latent);
                go(`/d${pathOf(dictionary)}/steer`);
              }}
            >
              Steer with {selected.size === 1 ? "it" : "them"}
            </button>
          )}
          <button class="quiet" onClick={() => setSelected(new Set())}>Clear</button>
        </div>
      )}
      {picking && <ListPicker dictionary={dictionary} latents={[...selected]} close={(added) => (setPicking(false), added && setSelected(new Set()))} />}
      {filtering && <ColumnFilter dictionary={dictionary} column={filtering.column} at={filtering.at} filters={filters} set={(next) => set({ filter: next })} close={() => setFiltering(null)} />}
    </div>
  );
}

interface ToolbarProps {
  dictionary: Dictionary;
  query: string;
  filters: string[];
  total: number | null;
  set: (changes: Record<string, string | string[] | null>) => void;
}

function Toolbar({ dictionary, query, filters, total, set }: ToolbarProps) {
  const params = new URLSearchParams(query);
  const timer = useRef(0);
  const field = useRef<HTMLInputElement>(null);
  const q = params.get("q") ?? "";
  useEffect(() => {
    if (document.activeElement !== field.current || !q) field.current!.value = q;
  }, [q]);
  const list = params.get("list");
  const cluster = params.get("cluster");
  const title = (filter: string) => {
    const [, name = "", op = "", value = ""] = filter.match(/^(\w+)(>=|<=|!=|=)(.*)$/) ?? [];
    const column = dictionary.columns.find((one) => one.name === name);
    const sign = { ">=": "≥", "<=": "≤", "!=": "≠", "=": "=" }[op];
    return column ? `${column.title} ${sign} ${column.kind === "flag" ? (value === "1" ? "yes" : "no") : show(Number(value), column.kind)}` : filter;
  };
  return (
    <div class="toolbar">
      <input
        ref={field}
        data-search
        type="search"
        class="search"
        aria-label="Search labels, notes, promoted tokens and passages"
        placeholder="Search labels, notes, tokens, passages   /"
        onInput={(event) => {
          const q = event.currentTarget.value;
          clearTimeout(timer.current);
          timer.current = window.setTimeout(() => set({ q }), 200);
        }}
      />
      <div class="chips">
        {filters.map((filter) => (
          <Chip text={title(filter)} remove={() => set({ filter: filters.filter((one) => one !== filter) })} />
        ))}
        {list && <Chip text={`list “${list}”`} remove={() => set({ list: null })} />}
        {cluster && <Chip text={`cluster ${cluster}`} remove={() => set({ cluster: null })} />}
      </div>
      <output class="total" aria-live="polite">{total === null ? "…" : total === dictionary.n_latents ? `${count(total)} latents` : `${count(total)} of ${count(dictionary.n_latents)} latents`}</output>
      <Columns dictionary={dictionary} />
    </div>
  );
}

const Chip = ({ text, remove }: { text: string; remove: () => void }) => (
  <button class="chip" onClick={remove} aria-label={`Remove filter: ${text}`}>{text} <span aria-hidden="true">×</span></button>
);

function Columns({ dictionary }: { dictionary: Dictionary }) {
  const chosen = useStore(columnsShown);
  return (
    <details class="menu wide-only">
      <summary>Columns</summary>
      <div class="menu-body">
        {dictionary.columns.map((column) => (
          <label data-hint={column.description}>
            <input
              type="checkbox"
              checked={isShown(chosen, column.name)}
              onChange={(event) => columnsShown.set({ ...chosen, [column.name]: event.currentTarget.checked })}
            />
            {column.title}
          </label>
        ))}
      </div>
    </details>
  );
}

interface HeadProps {
  name: string;
  title: string;
  hint: string;
  sort: string;
  order: string;
  numeric?: boolean;
  filtered?: boolean;
  sortBy: (name: string) => void;
  filter?: (at: DOMRect) => void;
}

function Head({ name, title, hint, sort, order, numeric, filtered, sortBy, filter }: HeadProps) {
  const now = sort === name ? (order === "asc" ? "ascending" : "descending") : "none";
  return (
    <div role="columnheader" aria-sort={now} class={`cell${numeric ? " numeric" : ""}${now !== "none" ? " sorted" : ""}`}>
      {filter && (
        <button
          class={`filter${filtered ? " on" : ""}`}
          aria-label={`Filter by ${title}`}
          onClick={(event) => filter(event.currentTarget.parentElement!.getBoundingClientRect())}
        >
          <svg viewBox="0 0 10 10" width="9" height="9" aria-hidden="true"><path d="M0 1h10L6 5.6V9.5L4 8.3V5.6z" fill="currentColor" /></svg>
        </button>
      )}
      <button class="sort" onClick={() => sortBy(name)} data-hint={hint}>
        {title}
        {now !== "none" && <span aria-hidden="true">{now === "ascending" ? "↑" : "↓"}</span>}
      </button>
    </div>
  );
}

interface RowProps {
  index: number;
  top: number;
  row: Row | undefined;
  columns: Column[];
  sort: string;
  current: boolean;
  selected: boolean;
  path: string;
  toggle: (latent: number) => void;
  open: (index: number) => void;
}

class TableRow extends Component<RowProps> {
  override shouldComponentUpdate(next: RowProps): boolean {
    const now = this.props;
    return (
      next.row !== now.row || next.index !== now.index || next.top !== now.top || next.current !== now.current ||
      next.selected !== now.selected || next.columns.length !== now.columns.length || next.sort !== now.sort || next.path !== now.path
    );
  }

  render({ index, top, row, columns, sort, current, selected, path, toggle, open }: RowProps) {
    const where = { transform: `translateY(${top}px)` };
    const name = `grid-row${index % 2 ? " odd" : ""}${current ? " current" : ""}${selected ? " selected" : ""}${row && !row.label ? " unlabelled" : ""}`;
    if (!row) return <div role="row" class={`${name} awaited`} aria-rowindex={index + 2} style={where}><div role="gridcell" class="cell" /></div>;
    return (
      <div role="row" class={name} aria-rowindex={index + 2} aria-selected={selected} style={where} onClick={(event) => (event.target as Element).closest("a, input") || open(index)}>
        <div role="gridcell" class="cell">
          <input type="checkbox" checked={selected} onChange={() => toggle(row.latent)} aria-label={`Select latent ${row.latent}`} tabIndex={-1} />
        </div>
        <div role="gridcell" class="cell id">
          <a
            href={`/d${path}/feature/${row.latent}`}
            tabIndex={-1}
            onClick={(event) => {
              if (event.metaKey || event.ctrlKey || event.shiftKey) return;
              event.preventDefault();
              open(index);
            }}
          >
            {row.latent}
          </a>
        </div>
        <div role="gridcell" class="cell words">{row.label && <LabelText label={row.label} />}</div>
        <div role="gridcell" class="cell words promotes"><Tokens tokens={(row.promoted ?? []).slice(0, 5)} /></div>
        {columns.map((column) => <Cell column={column} value={row[column.name] as Value} sorted={column.name === sort} />)}
      </div>
    );
  }
}

// How far a value goes along its scale, where the scale has ends: a hairline under the number.
function reach(value: Value, column: Column): number | null {
  if (typeof value !== "number" || value <= 0) return null;
  if (column.name === "density") return Math.max(0, Math.min(1, 1 + Math.log10(value) / 5));
  if (column.kind === "share" || column.name.endsWith("cosine") || column.name.endsWith("correlation") || column.name === "output_score") return Math.min(1, value);
  return null;
}

function Cell({ column, value, sorted }: { column: Column; value: Value; sorted: boolean }) {
  const length = reach(value, column);
  return (
    <div role="gridcell" class={`cell ${column.kind === "token" ? "words" : "numeric"}${sorted ? " sorted" : ""}`}>
      {column.kind === "token" && typeof value === "string" ? <Token text={value} /> : show(value, column.kind)}
      {length !== null && <i class="reach" style={{ width: `calc((100% - 28px) * ${length.toFixed(3)})` }} />}
    </div>
  );
}
