// Writes compressed copies of what vite built to dist/, which is all that the Go package embeds, and fails when it is
// over budget: a page must be there at once on a slow line too.
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";

const root = import.meta.dirname;
const build = join(root, "build");
const dist = join(root, "dist");

// In kB of gzip.
const budget = { firstScript: 200, firstStyle: 25, all: 450, page: 40 };
// Loaded when they are needed, and as large as what they are made of.
const large = /^assets\/(editor|graph)-/;

const kept = new Set([".keep"]);
for (const f of readdirSync(dist)) if (!kept.has(f)) rmSync(join(dist, f), { recursive: true });

const sizes = new Map(); // file → kB of gzip
const files = readdirSync(build, { recursive: true, withFileTypes: true })
  .filter((f) => f.isFile())
  .map((f) => relative(build, join(f.parentPath, f.name)).replaceAll("\\", "/"))
  .filter((f) => !f.startsWith(".vite/"))
  // The page is last: it is what make looks at to know whether there is a build.
  .sort((a, b) => Number(a === "index.html") - Number(b === "index.html"));

const written = [];
for (const f of files) {
  const raw = readFileSync(join(build, f));
  const gz = gzipSync(raw, { level: 9 });
  const br = brotliCompressSync(raw, {
    params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: raw.length },
  });
  sizes.set(f, gz.length / 1000);
  written.push([`${f}.gz`, gz]);
  // The page is filled in by the server, which needs one copy.
  if (f !== "index.html") written.push([`${f}.br`, br]);
}

const manifest = JSON.parse(readFileSync(join(build, ".vite/manifest.json"), "utf8"));
const closure = (key, seen = new Set()) => {
  const c = manifest[key];
  if (!c || seen.has(key)) return seen;
  seen.add(key);
  for (const i of c.imports ?? []) closure(i, seen);
  return seen;
};
// First paint is the entry with the chunks of the home page, or with those of the query page.
const filesOf = (key) => [manifest[key].file, ...(manifest[key].css ?? [])];
const paints = ["src/pages/home/HomePage.tsx", "src/pages/query/QueryPage.tsx"].map((page) => [
  ...new Set([...closure("index.html"), ...closure(page)].flatMap(filesOf)),
]);
const firstFiles = new Set(paints.flat());
const sum = (list) => list.reduce((n, f) => n + (sizes.get(f) ?? 0), 0);
const largest = (ext) => Math.max(...paints.map((p) => sum(p.filter((f) => f.endsWith(ext)))));
const shipped = [...sizes.keys()].filter((f) => /\.(js|css|svg)$/.test(f));
const figures = {
  firstScript: largest(".js"),
  firstStyle: largest(".css"),
  all: sum(shipped),
};
const over = [];
for (const [name, size] of Object.entries(figures)) {
  console.log(`${name.padEnd(12)} ${size.toFixed(1).padStart(6)} kB of ${budget[name]}`);
  if (size > budget[name]) over.push(`${name} is ${size.toFixed(1)} kB, over its ${budget[name]}`);
}
for (const f of shipped.filter((f) => f.endsWith(".js")).sort((a, b) => sizes.get(b) - sizes.get(a))) {
  if (process.argv.includes("-v")) console.log(`  ${sizes.get(f).toFixed(1).padStart(6)} kB ${f}${firstFiles.has(f) ? " (first)" : ""}`);
  if (!firstFiles.has(f) && !large.test(f) && sizes.get(f) > budget.page)
    over.push(`${f} is ${sizes.get(f).toFixed(1)} kB, over the ${budget.page} of a page`);
}
if (over.length) {
  console.error(`over budget (gzip):\n  ${over.join("\n  ")}`);
  process.exit(1);
}
for (const [f, content] of written) {
  mkdirSync(dirname(join(dist, f)), { recursive: true });
  writeFileSync(join(dist, f), content);
}
