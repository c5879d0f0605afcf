/** A scatter plot on the graphics processor: every latent a point, drawn only when something changes.
 *
 * Points are in the map's own units; `view` says which point is in the middle and how many CSS pixels a unit takes.
 * Picking needs no graphics: a grid of buckets over the plane.
 */

const VERTEX = `#version 300 es
in vec2 place;
in vec4 colour;
uniform vec2 scale;
uniform vec2 middle;
uniform float size;
out vec4 shade;
void main() {
  gl_Position = vec4((place - middle) * scale, 0.0, 1.0);
  gl_PointSize = size;
  shade = colour;
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec4 shade;
uniform float size;
out vec4 result;
void main() {
  float far = length(gl_PointCoord - 0.5) * size;
  float alpha = shade.a * clamp(size * 0.5 - far + 0.5, 0.0, 1.0);
  result = vec4(shade.rgb * alpha, alpha);
}`;

const CELLS = 192;

export interface View {
  x: number;
  y: number;
  zoom: number;
}

interface Box {
  x0: number;
  y0: number;
  x1: number;
  y1: number;
}

// The share of points on each side that the first view may leave out.
const OUTLYING = 0.01;

export class Scatter {
  view: View = { x: 0, y: 0, zoom: 1 };
  private gl!: WebGL2RenderingContext;
  private places = new Float32Array();
  private colours: Uint8Array<ArrayBuffer> = new Uint8Array();
  private buffers: { place: WebGLBuffer; colour: WebGLBuffer } | null = null;
  private uniforms: Record<string, WebGLUniformLocation | null> = {};
  private frame = 0;
  private box: Box = { x0: -1, y0: -1, x1: 1, y1: 1 };
  private core: Box = this.box;
  private starts = new Int32Array();
  private members = new Int32Array();

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly drawn: () => void,
  ) {
    this.start();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.start();
      this.setPlaces(this.places);
      this.setColours(this.colours);
    });
  }

  private start(): void {
    const gl = this.canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true, powerPreference: "low-power" });
    if (!gl) throw new Error("This browser draws no WebGL, which the map needs.");
    this.gl = gl;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]] as const) {
      const shader = gl.createShader(kind)!;
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.bindAttribLocation(program, 0, "place");
    gl.bindAttribLocation(program, 1, "colour");
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`The map's program did not link: ${gl.getProgramInfoLog(program)}`);
    gl.useProgram(program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.buffers = { place: gl.createBuffer(), colour: gl.createBuffer() };
    for (const name of ["scale", "middle", "size"]) this.uniforms[name] = gl.getUniformLocation(program, name);
  }

  get n(): number {
    return this.places.length / 2;
  }

  setPlaces(places: Float32Array): void {
    const { gl } = this;
    // a latent without a place lies where no view reaches
    this.places = places.map((value) => (Number.isFinite(value) ? value : 1e9));
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers!.place);
    gl.bufferData(gl.ARRAY_BUFFER, this.places, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    this.sort();
  }

  /** RGBA, a byte each, straight alpha. */
  setColours(colours: Uint8Array<ArrayBuffer>): void {
    const { gl } = this;
    this.colours = colours;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers!.colour);
    gl.bufferData(gl.ARRAY_BUFFER, colours, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribPointer(1, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    this.redraw();
  }

  place(i: number): [number, number] {
    return [this.places[2 * i]!, this.places[2 * i + 1]!];
  }

  /** Nearly all points in view: a far island of a few would leave the rest no room. A second time: all of them. */
  fit(): void {
    const near = this.viewOf(this.core);
    const same = Math.abs(near.x - this.view.x) + Math.abs(near.y - this.view.y) < 1e-9 && near.zoom === this.view.zoom;
    this.view = same ? this.viewOf(this.box) : near;
    this.redraw();
  }

  private viewOf({ x0, x1, y0, y1 }: Box): View {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    return { x: (x0 + x1) / 2, y: (y0 + y1) / 2, zoom: 0.9 * Math.min(width / (x1 - x0 || 1), height / (y1 - y0 || 1)) };
  }

  toScreen(x: number, y: number): [number, number] {
    const { view, canvas } = this;
    return [canvas.clientWidth / 2 + (x - view.x) * view.zoom, canvas.clientHeight / 2 - (y - view.y) * view.zoom];
  }

  toPlane(left: number, top: number): [number, number] {
    const { view, canvas } = this;
    return [view.x + (left - canvas.clientWidth / 2) / view.zoom, view.y - (top - canvas.clientHeight / 2) / view.zoom];
  }

  zoomAt(left: number, top: number, factor: number): void {
    const [x, y] = this.toPlane(left, top);
    const zoom = this.view.zoom * factor;
    this.view = { zoom, x: x - (left - this.canvas.clientWidth / 2) / zoom, y: y + (top - this.canvas.clientHeight / 2) / zoom };
    this.redraw();
  }

  pan(dx: number, dy: number): void {
    this.view = { ...this.view, x: this.view.x - dx / this.view.zoom, y: this.view.y + dy / this.view.zoom };
    this.redraw();
  }

  /** Radius of a point in CSS pixels: smaller where there are many, growing as one comes closer. */
  get radius(): number {
    const { x0, x1, y0, y1 } = this.core;
    const room = this.view.zoom * Math.sqrt(((x1 - x0) * (y1 - y0)) / Math.max(1, this.n));
    return Math.max(0.9, Math.min(7, 0.32 * room));
  }

  /** The point nearest to a place on the screen, -1 if none is within `reach` CSS pixels. */
  nearest(left: number, top: number, reach = 8): number {
    const [x, y] = this.toPlane(left, top);
    const far = (reach + this.radius) / this.view.zoom;
    let best = -1;
    let closest = far * far;
    this.visit(x - far, y - far, x + far, y + far, (i) => {
      const d = (this.places[2 * i]! - x) ** 2 + (this.places[2 * i + 1]! - y) ** 2;
      if (d < closest) [best, closest] = [i, d];
    });
    return best;
  }

  /** The points inside a polygon given in CSS pixels. */
  inside(polygon: [number, number][]): number[] {
    const corners = polygon.map(([left, top]) => this.toPlane(left, top));
    const xs = corners.map(([x]) => x);
    const ys = corners.map(([, y]) => y);
    const found: number[] = [];
    this.visit(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (i) => {
      const [px, py] = this.place(i);
      let odd = false;
      for (let a = 0, b = corners.length - 1; a < corners.length; b = a++) {
        const [ax, ay] = corners[a]!;
        const [bx, by] = corners[b]!;
        if (ay > py !== by > py && px < ((bx - ax) * (py - ay)) / (by - ay) + ax) odd = !odd;
      }
      if (odd) found.push(i);
    });
    return found.sort((a, b) => a - b);
  }

  redraw(): void {
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  stop(): void {
    cancelAnimationFrame(this.frame);
    this.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  private draw(): void {
    this.frame = 0;
    const { gl, canvas, view } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    const ratio = Math.min(devicePixelRatio, 2);
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (this.colours.length === this.n * 4 && this.n) {
      gl.uniform2f(this.uniforms.scale!, (2 * view.zoom) / width, (2 * view.zoom) / height);
      gl.uniform2f(this.uniforms.middle!, view.x, view.y);
      gl.uniform1f(this.uniforms.size!, 2 * this.radius * ratio);
      gl.drawArrays(gl.POINTS, 0, this.n);
    }
    this.drawn();
  }

  private cell(value: number, low: number, high: number): number {
    return Math.max(0, Math.min(CELLS - 1, Math.floor((CELLS * (value - low)) / (high - low || 1))));
  }

  private sort(): void {
    const { places, n } = this;
    const box = { x0: Infinity, y0: Infinity, x1: -Infinity, y1: -Infinity };
    for (let i = 0; i < n; i++) {
      const [x, y] = [places[2 * i]!, places[2 * i + 1]!];
      if (x === 1e9 || y === 1e9) continue;
      box.x0 = Math.min(box.x0, x);
      box.x1 = Math.max(box.x1, x);
      box.y0 = Math.min(box.y0, y);
      box.y1 = Math.max(box.y1, y);
    }
    this.box = box.x0 > box.x1 ? { x0: -1, y0: -1, x1: 1, y1: 1 } : box;
    this.core = this.inner();
    const cells = new Int32Array(n);
    this.starts = new Int32Array(CELLS * CELLS + 1);
    for (let i = 0; i < n; i++) {
      cells[i] = this.cell(places[2 * i]!, this.box.x0, this.box.x1) + CELLS * this.cell(places[2 * i + 1]!, this.box.y0, this.box.y1);
      this.starts[cells[i]! + 1]!++;
    }
    for (let c = 0; c < CELLS * CELLS; c++) this.starts[c + 1]! += this.starts[c]!;
    const next = this.starts.slice();
    this.members = new Int32Array(n);
    for (let i = 0; i < n; i++) this.members[next[cells[i]!]!++] = i;
  }

  private inner(): Box {
    const sorted = (axis: number) => Float32Array.from({ length: this.n }, (_, i) => this.places[2 * i + axis]!).filter((value) => value < 1e9).sort();
    const span = (of: Float32Array): [number, number] => {
      const [low, high] = [of[Math.floor(OUTLYING * of.length)] ?? -1, of[Math.ceil((1 - OUTLYING) * of.length) - 1] ?? 1];
      const room = 0.06 * (high - low || 1);
      return [Math.max(low - room, of[0] ?? -1), Math.min(high + room, of.at(-1) ?? 1)];
    };
    const [[x0, x1], [y0, y1]] = [span(sorted(0)), span(sorted(1))];
    return { x0, x1, y0, y1 };
  }

  private visit(x0: number, y0: number, x1: number, y1: number, act: (i: number) => void): void {
    const { box } = this;
    if (x1 < box.x0 || x0 > box.x1 || y1 < box.y0 || y0 > box.y1) return;
    const [left, right] = [this.cell(x0, box.x0, box.x1), this.cell(x1, box.x0, box.x1)];
    const [low, high] = [this.cell(y0, box.y0, box.y1), this.cell(y1, box.y0, box.y1)];
    for (let row = low; row <= high; row++) {
      for (let k = this.starts[row * CELLS + left]!; k < this.starts[row * CELLS + right + 1]!; k++) {
        const i = this.members[k]!;
        if (this.places[2 * i]! < 1e9) act(i);
      }
    }
  }
}
