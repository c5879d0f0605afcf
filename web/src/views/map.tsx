/** All latents in a plane: those that are alike lie together. Zoom, ask, colour, and circle some into a list. */

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { api, pathOf } from "../api";
import { count, fixed, interval, percent, show } from "../format";
import { useKeys } from "../keys";
import { hue, paint, ramp, scaleOf } from "../map/colours";
import { Scatter } from "../map/scatter";
import { ListPicker } from "../parts/listpicker";
import { Problem } from "../parts/problem";
import { Gist, Tokens } from "../parts/tokens";
import { go, withQuery } from "../router";
import { useLoad, useStore } from "../store";
import { dark } from "../theme";
import type { Cluster, Column, Dictionary, Feature } from "../types";

export function MapView({ dictionary, query }: { dictionary: Dictionary; query: string }) {
  if (!dictionary.has_map)
    return (
      <div class="problem">
        <p><strong>This index has no map.</strong></p>
        {dictionary.about?.why_no_map && <p>{dictionary.about.why_no_map}</p>}
        <p>A map needs the extra <code>maps</code> (umap-learn) when the index is built: <code>pip install "sparsight[maps]"</code>, then <code>sparsight index</code> again. Everything else works without it.</p>
      </div>
    );
  return <Plane dictionary={dictionary} query={query} />;
}

function Plane({ dictionary, query }: { dictionary: Dictionary; query: string }) {
  const params = new URLSearchParams(query);
  const by = params.get("colour") ?? (dictionary.columns.some((column) => column.name === "cluster") ? "cluster" : "density");
  const at = params.get("at");
  const column = dictionary.columns.find((one) => one.name === by) ?? null;
  const isDark = useStore(dark);
  const places = useLoad(dictionary.key, () => api.map(dictionary));
  const values = useLoad(column && `${dictionary.key} ${column.name}`, () => api.column(dictionary, column!.name));
  const clusters = useLoad(dictionary.key, () => api.clusters(dictionary).catch(() => [] as Cluster[]));
  const membership = useLoad(dictionary.columns.some((one) => one.name === "cluster") ? dictionary.key : null, () => api.column(dictionary, "cluster"));

  const canvas = useRef<HTMLCanvasElement>(null);
  const overlay = useRef<HTMLDivElement>(null);
  const scatter = useRef<Scatter | null>(null);
  const [problem, setProblem] = useState<Error | null>(null);
  const [hover, setHover] = useState(-1);
  const [pinned, setPinned] = useState(at === null ? -1 : Number(at));
  const [tool, setTool] = useState<"move" | "lasso">("move");
  const [chosen, setChosen] = useState<number[] | null>(null);
  const [picking, setPicking] = useState(false);
  const names = useMemo(() => namesOf(clusters.data, membership.data, places.data), [clusters.data, membership.data, places.data]);
  const latest = useRef({ names, hover, pinned });
  latest.current = { names, hover, pinned };

  const arrange = () => {
    if (scatter.current && overlay.current) arrangeOverlay(scatter.current, overlay.current, latest.current);
  };
  useEffect(() => {
    if (!places.data) return;
    let plot: Scatter;
    try {
      plot = new Scatter(canvas.current!, arrange);
    } catch (error) {
      return setProblem(error as Error);
    }
    scatter.current = plot;
    plot.setPlaces(places.data);
    plot.fit();
    if (pinned >= 0 && pinned < plot.n) {
      const [x, y] = plot.place(pinned);
      plot.view = { x, y, zoom: plot.view.zoom * 4 };
    }
    const observer = new ResizeObserver(() => plot.redraw());
    observer.observe(canvas.current!);
    return () => {
      observer.disconnect();
      plot.stop();
      scatter.current = null;
    };
  }, [places.data]);
  useEffect(() => {
    if (!scatter.current || !places.data || (column && !values.data)) return;
    const set = chosen && new Set(chosen);
    scatter.current.setColours(paint({ values: column && values.data, kind: column?.kind ?? "number", isDark, n: places.data.length / 2, chosen: set }));
  }, [places.data, values.data, isDark, chosen]);
  useEffect(arrange, [names, hover, pinned]);

  const middle = (factor: number) => {
    const element = canvas.current!;
    scatter.current?.zoomAt(element.clientWidth / 2, element.clientHeight / 2, factor);
  };
  useKeys({
    "+": () => middle(1.4),
    "=": () => middle(1.4),
    "-": () => middle(1 / 1.4),
    "0": () => scatter.current?.fit(),
    l: () => setTool(tool === "lasso" ? "move" : "lasso"),
    ArrowLeft: () => scatter.current?.pan(60, 0),
    ArrowRight: () => scatter.current?.pan(-60, 0),
    ArrowUp: () => scatter.current?.pan(0, 60),
    ArrowDown: () => scatter.current?.pan(0, -60),
    Enter: () => pinned >= 0 && go(`/d${pathOf(dictionary)}/feature/${pinned}`),
    Escape: () => (setChosen(null), setPinned(-1)),
  });
  const events = usePointer(canvas, scatter, tool, setHover, setPinned, (found) => {
    setChosen(found.length ? found : null);
    setTool("move");
  });

  const error = places.error ?? problem;
  if (error) return <Problem error={error} again={places.again} />;
  const asked = hover >= 0 ? hover : pinned;
  return (
    <div class="map">
      <div class="map-plane">
        <canvas ref={canvas} class={tool} tabIndex={0} role="img" aria-label={`Map of ${count(dictionary.n_latents)} latents. Arrow keys move, plus and minus zoom; the clusters are listed beside it.`} {...events.handlers} />
        <svg class="lasso" aria-hidden="true"><path ref={events.lasso} /></svg>
        <div class="map-overlay" ref={overlay} aria-hidden="true">
          <i class="ring" data-ring="pinned" />
          <i class="ring" data-ring="hover" />
          {names.map((name) => (
            <span key={name.id} class="cluster-name" data-name={name.id}>{name.name}</span>
          ))}
        </div>
        <div class="map-tools" role="toolbar" aria-label="Map">
          <button onClick={() => middle(1.4)} aria-label="Closer" data-hint="Closer (+)">+</button>
          <button onClick={() => middle(1 / 1.4)} aria-label="Farther" data-hint="Farther (−)">−</button>
          <button onClick={() => scatter.current?.fit()} aria-label="All in view" data-hint="All in view (0); again for the outliers too">⤢</button>
          <button aria-pressed={tool === "lasso"} onClick={() => setTool(tool === "lasso" ? "move" : "lasso")} aria-label="Lasso" data-hint="Lasso: circle some (l, or hold Shift)">◌</button>
        </div>
        {!places.data && <p class="waiting">Drawing…</p>}
      </div>
      <aside class="map-side">
        <label class="field">
          <span>Colour by</span>
          <select value={by} onChange={(event) => go(`${location.pathname}?${withQuery(query, { colour: event.currentTarget.value })}`, true)}>
            <option value="none">one colour</option>
            {dictionary.columns.filter((one) => one.kind !== "token").map((one) => <option value={one.name}>{one.title}</option>)}
          </select>
        </label>
        {column && <p class="dim">{column.description}</p>}
        {column && values.data && <Legend column={column} values={values.data} isDark={isDark} />}
        {chosen && (
          <section class="chosen" role="region" aria-label="Chosen on the map">
            <p><b>{count(chosen.length)}</b> latents circled</p>
            <div class="inline">
              <button class="primary" onClick={() => setPicking(true)}>Make a list…</button>
              <button class="quiet" onClick={() => setChosen(null)}>Clear</button>
            </div>
          </section>
        )}
        {asked >= 0 ? <Card dictionary={dictionary} latent={asked} column={column} /> : <p class="card dim">Point at a latent to see what it is; click to keep it here; Enter opens it. Hold Shift to circle some.</p>}
        <Trust dictionary={dictionary} />
        <ClusterList dictionary={dictionary} clusters={clusters.data ?? []} isDark={isDark} coloured={by === "cluster"} fly={(id) => fly(scatter.current, names, id)} />
      </aside>
      {picking && chosen && <ListPicker dictionary={dictionary} latents={chosen} close={() => setPicking(false)} />}
    </div>
  );
}

interface Name {
  id: number;
  name: string;
  x: number;
  y: number;
  size: number;
}

/** Where each cluster's name goes: the median of its members, which no outlier moves. */
function namesOf(clusters: Cluster[] | null, membership: Float32Array | null, places: Float32Array | null): Name[] {
  if (!clusters || !membership || !places) return [];
  const members = new Map<number, number[]>();
  membership.forEach((id, latent) => {
    if (!(id >= 0) || !Number.isFinite(places[2 * latent]!)) return;
    if (!members.has(id)) members.set(id, []);
    members.get(id)!.push(latent);
  });
  const middle = (of: number[], axis: number) => of.map((latent) => places[2 * latent + axis]!).sort((a, b) => a - b)[of.length >> 1]!;
  return clusters
    .filter((cluster) => members.has(cluster.id))
    .map((cluster) => {
      const of = members.get(cluster.id)!;
      return { id: cluster.id, name: nameOf(cluster), x: middle(of, 0), y: middle(of, 1), size: of.length };
    })
    .sort((a, b) => b.size - a.size);
}

const nameOf = (cluster: Cluster) => cluster.name?.trim() || `cluster ${cluster.id}`;

/** Rings and names follow the points. A name that would cover a larger cluster's is left out until one comes closer. */
function arrangeOverlay(plot: Scatter, overlay: HTMLElement, { names, hover, pinned }: { names: Name[]; hover: number; pinned: number }): void {
  for (const [ring, latent] of [["pinned", pinned], ["hover", hover]] as const) {
    const element = overlay.querySelector<HTMLElement>(`[data-ring=${ring}]`)!;
    element.hidden = latent < 0 || latent >= plot.n;
    if (element.hidden) continue;
    const [left, top] = plot.toScreen(...plot.place(latent));
    element.style.transform = `translate(${left}px, ${top}px)`;
  }
  const { clientWidth: width, clientHeight: height } = overlay;
  const taken: [number, number, number, number][] = [];
  const elements = overlay.querySelectorAll<HTMLElement>(".cluster-name");
  names.forEach((name, i) => {
    const element = elements[i];
    if (!element) return;
    const [left, top] = plot.toScreen(name.x, name.y);
    const half = 3.4 * name.name.length + 6;
    const box: [number, number, number, number] = [left - half, top - 9, left + half, top + 9];
    const free = box[0] > 0 && box[2] < width && box[1] > 0 && box[3] < height && !taken.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
    element.hidden = !free;
    if (!free) return;
    taken.push(box);
    element.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px) translate(-50%, -50%)`;
  });
}

function fly(plot: Scatter | null, names: Name[], id: number): void {
  const name = names.find((one) => one.id === id);
  if (!plot || !name) return;
  const from = plot.view;
  plot.fit();
  const to = { x: name.x, y: name.y, zoom: plot.view.zoom * 3.5 };
  plot.view = from;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const start = performance.now();
  const step = (now: number) => {
    const t = still ? 1 : Math.min(1, (now - start) / 350);
    const s = t * t * (3 - 2 * t);
    plot.view = { x: from.x + s * (to.x - from.x), y: from.y + s * (to.y - from.y), zoom: from.zoom * (to.zoom / from.zoom) ** s };
    plot.redraw();
    if (t < 1) requestAnimationFrame(step);
  };
  step(still ? start + 1e3 : start);
}

/** Pointers: one moves or draws the lasso, two pinch, the wheel zooms where it is. */
function usePointer(
  canvas: { current: HTMLCanvasElement | null },
  scatter: { current: Scatter | null },
  tool: "move" | "lasso",
  setHover: (latent: number) => void,
  setPinned: (latent: number) => void,
  lassoed: (latents: number[]) => void,
) {
  const lasso = useRef<SVGPathElement>(null);
  const down = useRef(new Map<number, [number, number]>());
  const path = useRef<[number, number][] | null>(null);
  const moved = useRef(0);
  const where = (event: PointerEvent | WheelEvent): [number, number] => {
    const box = canvas.current!.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  useEffect(() => {
    const element = canvas.current!;
    const wheel = (event: WheelEvent) => {
      event.preventDefault(); // a passive listener could not
      scatter.current?.zoomAt(...where(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
    };
    element.addEventListener("wheel", wheel, { passive: false });
    return () => element.removeEventListener("wheel", wheel);
  }, []);
  const trace = () => {
    const points = path.current ?? [];
    lasso.current?.setAttribute("d", points.length ? `M${points.map((point) => point.map(Math.round).join(" ")).join("L")}Z` : "");
  };
  const end = (event: PointerEvent) => {
    const here = down.current.get(event.pointerId);
    down.current.delete(event.pointerId);
    if (path.current) {
      const points = path.current;
      path.current = null;
      trace();
      if (points.length > 3 && event.type === "pointerup") lassoed(scatter.current?.inside(points) ?? []);
    } else if (here && moved.current < 4 && event.type === "pointerup") {
      setPinned(scatter.current?.nearest(...where(event), event.pointerType === "touch" ? 18 : 8) ?? -1);
    }
  };
  return {
    lasso,
    handlers: {
      onPointerDown: (event: PointerEvent) => {
        canvas.current!.setPointerCapture(event.pointerId);
        down.current.set(event.pointerId, where(event));
        moved.current = 0;
        if (down.current.size === 1 && (tool === "lasso" || event.shiftKey)) path.current = [where(event)];
      },
      onPointerMove: (event: PointerEvent) => {
        const now = where(event);
        const before = down.current.get(event.pointerId);
        if (!before) return setHover(scatter.current?.nearest(...now) ?? -1);
        moved.current += Math.hypot(now[0] - before[0], now[1] - before[1]);
        if (path.current) {
          path.current.push(now);
          trace();
        } else if (down.current.size === 2) {
          const other = [...down.current].find(([id]) => id !== event.pointerId)![1];
          const spread = (a: [number, number]) => Math.hypot(a[0] - other[0], a[1] - other[1]);
          scatter.current?.zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, spread(now) / (spread(before) || 1));
        } else scatter.current?.pan(now[0] - before[0], now[1] - before[1]);
        down.current.set(event.pointerId, now);
      },
      onPointerUp: end,
      onPointerCancel: end,
      onPointerLeave: () => setHover(-1),
      onDblClick: (event: MouseEvent) => scatter.current?.zoomAt(...where(event as PointerEvent), 1.8),
    },
  };
}

function Legend({ column, values, isDark }: { column: Column; values: Float32Array; isDark: boolean }) {
  if (column.kind === "cluster" || column.kind === "flag") return null;
  const scale = scaleOf(values);
  const steps = Array.from({ length: 24 }, (_, i) => `rgb(${ramp(i / 23, isDark).map(Math.round).join(" ")})`);
  return (
    <figure class="legend">
      <div style={{ background: `linear-gradient(90deg, ${steps.join(",")})` }} />
      <figcaption><span>{show(scale.low, column.kind === "count" ? "number" : column.kind)}</span><span class="dim">{scale.log ? "logarithmic" : "linear"}, 1st to 99th percentile</span><span>{show(scale.high, column.kind === "count" ? "number" : column.kind)}</span></figcaption>
    </figure>
  );
}

function Card({ dictionary, latent, column }: { dictionary: Dictionary; latent: number; column: Column | null }) {
  const { data } = useSettled(dictionary, latent);
  return (
    <section class="card">
      <p><a href={`/d${pathOf(dictionary)}/feature/${latent}`}><b class="id">{latent}</b></a> {data?.latent === latent && data.cluster && <span class="dim">{data.cluster.name || `cluster ${data.cluster.id}`}</span>}</p>
      {data?.latent === latent && (
        <>
          {data.label && <p><Gist of={{ label: data.label, promoted: [] }} /></p>}
          <p><Tokens tokens={data.promoted.slice(0, 6).map((one) => one.token)} /></p>
          {column && column.kind !== "cluster" && <p class="dim">{column.title} {show(data.columns[column.name], column.kind)}</p>}
          {column?.name !== "density" && <p class="dim">on {percent(Number(data.columns.density ?? NaN))} of tokens</p>}
        </>
      )}
    </section>
  );
}

/** The feature under the pointer once the pointer rests: not one request for each point it passes. */
function useSettled(dictionary: Dictionary, latent: number): { data: Feature | null } {
  const [settled, setSettled] = useState(latent);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(latent), 70);
    return () => clearTimeout(timer);
  }, [latent]);
  return useLoad(`${dictionary.key} ${settled}`, () => api.feature(dictionary, settled));
}

/** How far the picture can be believed. */
function Trust({ dictionary }: { dictionary: Dictionary }) {
  const map = dictionary.about?.map;
  const clusters = dictionary.about?.clusters;
  if (!map && !clusters) return null;
  return (
    <p class="dim">
      {map && <span data-hint="Whether those near each other here are near in truth: 1 always, and beside it what random places give">{map.method}, trustworthiness <b>{interval(map.trustworthiness, map.low, map.high, 2)}</b>, by chance {fixed(map.chance, 2)}. </span>}
      {clusters && <span data-hint="How much more the clusters hold together than chance">Clusters are made from the neighbours, not from this picture: modularity <b>{fixed(clusters.modularity, 2)}</b>, by chance {fixed(clusters.chance_modularity, 2)}.</span>}
    </p>
  );
}

interface ClusterListProps {
  dictionary: Dictionary;
  clusters: Cluster[];
  isDark: boolean;
  coloured: boolean;
  fly: (id: number) => void;
}

function ClusterList({ dictionary, clusters, isDark, coloured, fly }: ClusterListProps) {
  if (!clusters.length) return null;
  return (
    <section>
      <h3>Clusters <span class="dim">{count(clusters.length)}</span></h3>
      <ol class="clusters">
        {clusters.slice(0, 200).map((cluster) => (
          <li>
            <button class="quiet" onClick={() => fly(cluster.id)} data-hint="Show on the map">
              {coloured && <i class="swatch" style={{ background: `rgb(${hue(cluster.id, isDark).map(Math.round).join(" ")})` }} />}
              {nameOf(cluster)}
            </button>
            <a class="num" href={`/d${pathOf(dictionary)}/features?cluster=${cluster.id}`} aria-label={`${cluster.size} features of ${nameOf(cluster)} as a table`}>{count(cluster.size)}</a>
          </li>
        ))}
      </ol>
    </section>
  );
}
