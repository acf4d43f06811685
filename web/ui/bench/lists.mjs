// How the long lists behave: how soon they are there, how long the page works on a key press, on scrolling and on a refresh. It opens
// what `npm run build` made in Debian's chromium, with the answers of a replica that has many targets and alerts.
//   node bench/lists.mjs http://127.0.0.1:9090 [-pages targets,alerts] [-search host-0012] [-profile lists.cpuprofile]
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { browse, median, serve } from "./serve.mjs";

const { values: flag, positionals } = parseArgs({
  args: process.argv.slice(2).map((a) => a.replace(/^-(\w{2,})/, "--$1")),
  allowPositionals: true,
  options: {
    pages: { type: "string", default: "targets,service-discovery,alerts,rules" },
    search: { type: "string", default: "host-0012" },
    profile: { type: "string" },
  },
});
const server = await serve({}, positionals[0] ?? "http://127.0.0.1:9090");
const { browser, page, client } = await browse();
await page.addInitScript(() => {
  globalThis.long = [];
  new PerformanceObserver((list) => globalThis.long.push(...list.getEntries().map((e) => e.duration))).observe({
    type: "longtask",
    buffered: true,
  });
});
const work = async (act) => {
  await page.evaluate(() => {
    globalThis.long.length = 0;
  });
  await act();
  await page.waitForTimeout(100);
  return page.evaluate(() => globalThis.long);
};
try {
  for (const name of flag.pages.split(",")) {
    await page.goto("about:blank");
    await page.goto(server.url + name);
    await page.locator('[role="listitem"]').nth(3).waitFor();
    const there = await page.evaluate(() => performance.now());
    await page.waitForTimeout(500);
    const start = await page.evaluate(() => globalThis.long);
    row(name, `there after ${there.toFixed(0)} ms, tasks`, start);
    if (flag.profile) {
      await client.send("Profiler.enable");
      await client.send("Profiler.start");
    }
    const search = page.locator("[data-search]").first();
    const keys = [];
    for (const key of flag.search) {
      keys.push(
        ...(await work(async () => {
          await search.press(key);
          await page.waitForTimeout(400);
        })),
      );
    }
    row(name, "tasks of a key press", keys);
    row(
      name,
      "tasks of clearing it",
      await work(async () => {
        await search.fill("");
        await page.waitForTimeout(600);
      }),
    );
    let frames;
    const scrolling = await work(async () => {
      frames = await page.evaluate(async () => {
        const out = [];
        let last = await new Promise(requestAnimationFrame);
        for (let i = 0; i < 180; i++) {
          // Slowly, as with a wheel, then in leaps, as with the scroll bar.
          scrollBy(0, i < 120 ? 100 : document.body.scrollHeight / 70);
          const now = await new Promise(requestAnimationFrame);
          out.push(now - last);
          last = now;
        }
        return out;
      });
    });
    row(name, "frames of scrolling", frames);
    row(name, "tasks of scrolling", scrolling);
    await page.evaluate(() => scrollTo(0, 0));
    row(name, "tasks of 35 s at rest", await work(() => page.waitForTimeout(35_000)));
    if (flag.profile) {
      const { profile } = await client.send("Profiler.stop");
      writeFileSync(`${name}-${flag.profile}`, JSON.stringify(profile));
    }
  }
} finally {
  await browser.close();
  server.close();
}

function row(name, what, ms) {
  const s = [...ms].sort((a, b) => a - b);
  const at = (q) => (s.length ? s[Math.min(s.length - 1, Math.floor(q * s.length))] : 0).toFixed(0).padStart(5);
  console.log(
    `${name.padEnd(18)} ${what.padEnd(32)} ${String(s.length).padStart(4)}: median ${(s.length ? median(s) : 0).toFixed(0).padStart(5)}  p95 ${at(0.95)}  most ${at(1)} ms,` +
      ` ${s.filter((d) => d > 50).length} over 50`,
  );
}
