// What the ways through the browser UI share: a browser that keeps count of what goes wrong, patience, and axe.
// The Go tests below e2e/ start the replicas, and each script with a file that says where they are.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { after } from "node:test";
import { chromium } from "playwright-core";

export const world = JSON.parse(readFileSync(process.argv[2], "utf8"));

/** Every page there is, as the server knows them. */
export const routes = JSON.parse(readFileSync(`${import.meta.dirname}/../routes.json`, "utf8"));

const axeSource = readFileSync(`${import.meta.dirname}/../node_modules/axe-core/axe.min.js`, "utf8");
const pictures = `${import.meta.dirname}/screenshots`;
mkdirSync(pictures, { recursive: true });

/** Of a shared machine much is asked. Nothing here is about speed. */
const patience = 90_000;

const browser = await chromium.launch({
  executablePath: world.chromium,
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
after(() => browser.close());

/** Asks until there is an answer that counts, and returns it; what else was said is part of the complaint. */
export async function until(what, ask) {
  const end = Date.now() + patience;
  let said;
  for (;;) {
    try {
      said = await ask();
      if (said) return said;
    } catch (err) {
      said = err;
    }
    if (Date.now() > end) assert.fail(`${what}: not within ${patience / 1000} s: ${said?.message ?? said}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Has the test do something to a replica. */
export async function order(verb, name) {
  const answer = await fetch(`${world.orders}/${verb}/${name}`, { method: "POST" });
  assert.ok(answer.ok, `${verb} ${name}: ${await answer.text()}`);
}

export const query = (expr, more = {}) =>
  `/query?${new URLSearchParams({ "g0.expr": expr, ...Object.fromEntries(Object.entries(more).map(([k, v]) => [`g0.${k}`, v])) })}`;

export const rates = "sum by (code) (rate(http_requests_total[15s]))";
export const ratesStacked = query(rates, { tab: "graph", range_input: "2m", display_mode: "stacked" });

export const desktop = { width: 1366, height: 900 };
export const phone = { width: 360, height: 740 };

/** A person's tab at one replica, whose address is base. */
export class Visit {
  /** What a page must never do. */
  complaints = [];
  #asking = new Set();

  static async at(base, path = "/") {
    const v = new Visit();
    v.base = base;
    const context = await browser.newContext({ viewport: desktop, colorScheme: "light", reducedMotion: "reduce" });
    context.setDefaultTimeout(patience);
    v.page = await context.newPage();
    v.#listen();
    await v.go(path);
    return v;
  }

  #listen() {
    const { page, complaints } = this;
    page.on("console", (m) => {
      if (m.type() === "error" || m.type() === "warning") complaints.push(`console: ${m.text()} (${m.location().url})`);
    });
    page.on("pageerror", (err) => complaints.push(`error: ${err.stack}`));
    page.on("request", (r) => {
      if (!`${r.url()}/`.startsWith(`${this.base}/`)) complaints.push(`asks elsewhere: ${r.url()}`);
      // The server's messages are a stream that does not end.
      if (r.resourceType() !== "eventsource" && !r.url().endsWith("/notifications/live")) this.#asking.add(r);
    });
    page.on("response", (r) => {
      if (r.status() >= 400) complaints.push(`${r.status()}: ${r.url()}`);
    });
    page.on("requestfinished", (r) => this.#asking.delete(r));
    page.on("requestfailed", (r) => {
      this.#asking.delete(r);
      // Whoever leaves a page asks no more.
      if (r.failure()?.errorText !== "net::ERR_ABORTED") complaints.push(`${r.failure()?.errorText}: ${r.url()}`);
    });
  }

  /** Goes to a page by its address. */
  async go(path) {
    this.#asking.clear();
    await this.page.goto(this.base + path, { waitUntil: "domcontentloaded" });
    await this.settled();
  }

  /** Until the page shows what it has to show. */
  async settled() {
    await this.page.locator("main h1").waitFor();
    await until(`${this.page.url()} has all it asked for`, async () => {
      const waiting = await this.page.locator("main .mantine-Skeleton-root, main [aria-busy=true]").count();
      if (waiting > 0) throw new Error(`${waiting} things are on their way`);
      if (this.#asking.size > 0) throw new Error(`it asks ${[...this.#asking].map((r) => r.url()).join(", ")}`);
      return true;
    });
  }

  /** What the page says. */
  text() {
    return this.page.locator("main").innerText();
  }

  says(pattern) {
    return until(`${this.page.url()} says ${pattern}`, async () => {
      const text = await this.text();
      if (!pattern.test(text)) throw new Error(text);
      return true;
    });
  }

  async look(scheme, size) {
    await this.page.emulateMedia({ colorScheme: scheme });
    await this.page.setViewportSize(size);
    await this.page.locator(`html[data-mantine-color-scheme=${scheme}]`).waitFor();
    // Colours change from one frame to the next, and what measures itself is drawn anew.
    for (let n = 0; n < 4; n++) await this.page.evaluate(() => new Promise((resolve) => requestAnimationFrame(resolve)));
    await until("nothing moves", () => this.page.evaluate(() => document.getAnimations().every((a) => a.playState !== "running")));
  }

  /** Axe finds nothing, light and dark, wide and narrow, where nothing is wider than the screen; and there is a picture of each, of the whole page where nothing is open above it. */
  async accessible(name, picture = { fullPage: true }) {
    const found = [];
    for (const size of [desktop, phone]) {
      for (const scheme of ["light", "dark"]) {
        await this.look(scheme, size);
        const wide = await this.page.evaluate(() => document.documentElement.scrollWidth);
        if (wide > size.width) found.push(`${name}, ${scheme}: ${wide} px wide on a screen of ${size.width}`);
        for (const v of await this.#axe()) {
          for (const n of v.nodes) {
            found.push(`${name}, ${scheme}, ${size.width} px: ${v.id}: ${n.target.join(" ")}\n${n.html}\n${n.failureSummary}`);
          }
        }
        await this.picture(`${name}-${scheme}-${size.width}`, picture);
      }
    }
    await this.look("light", desktop);
    assert.deepEqual(found, []);
  }

  async #axe() {
    if (!(await this.page.evaluate(() => "axe" in window))) await this.page.evaluate(axeSource);
    const { violations } = await this.page.evaluate(() =>
      window.axe.run(document, {
        runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
        resultTypes: ["violations"],
      }),
    );
    return violations;
  }

  picture(name, options) {
    return this.page.screenshot({ path: `${pictures}/${name}.png`, animations: "disabled", ...options });
  }

  /** The visit is over, and nothing went wrong. */
  async end() {
    await this.page.context().close();
    assert.deepEqual(this.complaints, []);
  }
}
