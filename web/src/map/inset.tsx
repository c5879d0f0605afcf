/** The whole map, small, and where this feature lies on it. */

import { useEffect, useRef } from "preact/hooks";
import { api, pathOf } from "../api";
import { useLoad, useStore } from "../store";
import { dark } from "../theme";
import type { Dictionary } from "../types";

const SIZE = [300, 170] as const;
const grounds = new Map<string, HTMLCanvasElement>();

function frameOf(places: Float32Array): (x: number, y: number) => [number, number] {
  let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < places.length; i += 2) {
    const [x, y] = [places[i]!, places[i + 1]!];
    if (!Number.isFinite(x) || !Number.isFinite(y)) continue;
    [x0, x1, y0, y1] = [Math.min(x0, x), Math.max(x1, x), Math.min(y0, y), Math.max(y1, y)];
  }
  const zoom = 0.94 * Math.min(SIZE[0] / (x1 - x0 || 1), SIZE[1] / (y1 - y0 || 1));
  return (x, y) => [SIZE[0] / 2 + (x - (x0 + x1) / 2) * zoom, SIZE[1] / 2 - (y - (y0 + y1) / 2) * zoom];
}

export function MapInset({ dictionary, latent }: { dictionary: Dictionary; latent: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const isDark = useStore(dark);
  const { data: places } = useLoad(dictionary.key, () => api.map(dictionary));
  useEffect(() => {
    if (!places) return;
    const toScreen = frameOf(places);
    const name = `${dictionary.key} ${isDark}`;
    let ground = grounds.get(name);
    if (!ground) {
      ground = Object.assign(document.createElement("canvas"), { width: 2 * SIZE[0], height: 2 * SIZE[1] });
      const pen = ground.getContext("2d")!;
      pen.scale(2, 2);
      pen.fillStyle = isDark ? "rgb(150 160 172 / 0.35)" : "rgb(80 90 100 / 0.3)";
      for (let i = 0; i < places.length; i += 2) {
        const [left, top] = toScreen(places[i]!, places[i + 1]!);
        pen.fillRect(left, top, 1, 1);
      }
      grounds.set(name, ground);
    }
    const pen = canvas.current!.getContext("2d")!;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, 2 * SIZE[0], 2 * SIZE[1]);
    pen.drawImage(ground, 0, 0);
    pen.scale(2, 2);
    const [left, top] = toScreen(places[2 * latent]!, places[2 * latent + 1]!);
    const ink = isDark ? "#f0963c" : "#c2590a";
    pen.strokeStyle = pen.fillStyle = ink;
    pen.beginPath();
    pen.arc(left, top, 2.5, 0, 7);
    pen.fill();
    pen.beginPath();
    pen.arc(left, top, 7, 0, 7);
    pen.stroke();
  }, [places, latent, isDark]);
  return (
    <a href={`/d${pathOf(dictionary)}/map?at=${latent}`} aria-label={`Latent ${latent} on the map`}>
      <canvas ref={canvas} aria-hidden="true" class="inset" width={2 * SIZE[0]} height={2 * SIZE[1]} />
    </a>
  );
}
