import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { defineConfig, type Plugin } from "vite";

const here = import.meta.dirname;
const out = process.env.EXPLORER_OUT ?? join(here, "../src/sparsight/web/static");

// What the bundle is made of. tests/test_web_bundle.py computes the same hash from the same list.
const sources = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "public", "src"];

function filesUnder(path: string): string[] {
  try {
    return readdirSync(path).flatMap((name) => filesUnder(join(path, name)));
  } catch {
    return [path];
  }
}

const sha256 = (data: string | Buffer) => createHash("sha256").update(data).digest("hex");

function sourceHash(): string {
  const names = sources.flatMap((name) => filesUnder(join(here, name))).map((path) => relative(here, path));
  return sha256(names.sort().map((name) => `${sha256(readFileSync(join(here, name)))}  ${name}\n`).join(""));
}

/** build.json: the hash of the sources, and of each built file, so that neither changes without the other. */
function record(): Plugin {
  return {
    name: "record",
    apply: "build",
    closeBundle() {
      const packages = ["preact", "@fontsource-variable/inter", "@fontsource-variable/jetbrains-mono"];
      const licences = packages.map((name) => {
        const text = readFileSync(join(here, "node_modules", name, "LICENSE"), "utf8");
        return `${name}\n${"=".repeat(name.length)}\n\n${text.trim()}\n`;
      });
      writeFileSync(join(out, "LICENSES.txt"), licences.join("\n\n"));
      const built = filesUnder(out).filter((path) => !path.endsWith("build.json")).sort();
      const files = Object.fromEntries(built.map((path) => [relative(out, path), sha256(readFileSync(path))]));
      writeFileSync(join(out, "build.json"), JSON.stringify({ source: sourceHash(), files }, null, 1) + "\n");
    },
  };
}

// `npm run dev` shows the page as it is written, over the API of a server that runs: EXPLORER_API=http://127.0.0.1:PORT npm run dev.
// Open that server's own address once before, for its cookie.
const server = process.env.EXPLORER_API;

export default defineConfig({
  plugins: [record()],
  server: { host: "127.0.0.1", proxy: server ? { "/api": { target: server, changeOrigin: true, headers: { origin: server } } } : {} },
  build: {
    outDir: out,
    emptyOutDir: true,
    target: ["chrome123", "firefox125", "safari17.5"],
    assetsInlineLimit: 0, // a data: URL would need a hole in the content security policy
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    rollupOptions: {
      output: {
        entryFileNames: "assets/app.js",
        chunkFileNames: "assets/[name].js",
        assetFileNames: "assets/[name][extname]",
      },
    },
  },
});
