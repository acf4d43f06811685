// What the benchmarks share: the built UI behind a server that answers what it is given, and a browser that looks at the clock.
import { existsSync, readFileSync } from "node:fs";
import { createServer, request } from "node:http";
import { extname, join } from "node:path";
import { chromium } from "playwright-core";

const build = join(import.meta.dirname, "../build");
const types = { ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html" };

/** Serves the build; answers by path, and asks `behind` (http://host:port) for what it has no answer to. */
export async function serve(answers, behind) {
  if (!existsSync(join(build, "index.html"))) throw new Error("There is nothing built: run npm run build first.");
  const shell = readFileSync(join(build, "index.html"), "utf8").replace(
    "<head>",
    '<head><base href="/"><script type="application/json" id="settings">{}</script>',
  );
  const asked = new Set();
  const server = createServer((req, res) => {
    const path = new URL(req.url, "http://x").pathname;
    const file = join(build, path);
    if (path.startsWith("/assets/") && existsSync(file)) {
      res.setHeader("Content-Type", types[extname(file)] ?? "text/plain");
      res.end(readFileSync(file));
    } else if (answers[path] !== undefined) {
      res.setHeader("Content-Type", "application/json");
      res.end(answers[path]);
    } else if (behind && /^\/(api|-|alertmanager\/api|version)\b/.test(path)) {
      const ask = request(behind + req.url, { method: req.method, headers: req.headers }, (answer) => {
        res.writeHead(answer.statusCode, answer.headers);
        answer.pipe(res);
      });
      ask.on("error", () => res.destroy()).on("close", () => asked.delete(ask));
      asked.add(ask); // streams do not end by themselves
      req.pipe(ask);
    } else if (path === "/-/ready") {
      res.end("ready");
    } else if (path.startsWith("/api/") || path.startsWith("/alertmanager/api/")) {
      res.writeHead(404, { "Content-Type": "application/json" });
      res.end('{"status":"error","error":"the benchmark has no answer to this"}');
    } else {
      res.setHeader("Content-Type", "text/html");
      res.end(shell);
    }
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    close: () => {
      server.closeAllConnections();
      server.close();
      for (const s of asked) s.destroy();
    },
  };
}

/** Debian's chromium, with what is measured in the page as globalThis.bench. */
export async function browse() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  page.on("pageerror", (err) => console.error(err));
  await page.addInitScript(clock);
  return { browser, page, client: await page.context().newCDPSession(page) };
}

/* Runs in the page. */
function clock() {
  const bench = { began: 0, cleared: 0 };
  globalThis.bench = bench;
  const { text } = Response.prototype;
  Response.prototype.text = async function () {
    const out = await text.call(this);
    if (this.url.includes("query_range")) bench.began = performance.now();
    return out;
  };
  // The graph's canvas is cleared each time that it is drawn.
  const clear = CanvasRenderingContext2D.prototype.clearRect;
  let canvas;
  CanvasRenderingContext2D.prototype.clearRect = function (...args) {
    bench.cleared = performance.now();
    canvas = this;
    clear.apply(this, args);
  };
  for (const kind of ["click", "mousemove", "resize"])
    addEventListener(
      kind,
      (e) => {
        bench.began ||= e.timeStamp;
      },
      true,
    );
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (e) => {
    bench.began ||= e.timeStamp;
  });
  const frame = () =>
    new Promise((done) =>
      requestAnimationFrame(() => {
        const c = new MessageChannel();
        c.port1.onmessage = () => done(performance.now()); // a task after the picture was made
        c.port2.postMessage(0);
      }),
    );
  bench.begin = async () => {
    await frame();
    bench.began = bench.cleared = 0;
  };
  /** Milliseconds from what happened to the pixels; drawn = wait for the graph to be drawn. */
  bench.end = async (drawn) => {
    let at;
    for (let i = 0; i < 200; i++) {
      at = await frame();
      if (bench.began && (!drawn || bench.cleared > bench.began)) break;
    }
    if (drawn) {
      if (!(bench.cleared > bench.began)) return Number.NaN;
      canvas.getImageData(0, 0, 1, 1); // there only once they are
      at = performance.now();
    }
    return at - bench.began;
  };
}

export function median(list) {
  const s = [...list].sort((a, b) => a - b);
  return s.length % 2 ? s[(s.length - 1) / 2] : (s[s.length / 2 - 1] + s[s.length / 2]) / 2;
}
