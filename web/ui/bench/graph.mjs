// How long a graph of 50 series × 11,000 points takes: from the answer's arrival to the picture, and from a click to the next
// picture. It opens what `npm run build` made in Debian's chromium, with answers made up here.
//   node bench/graph.mjs [-series 50] [-points 11000] [-runs 7] [-profile graph.cpuprofile] [-shot graph.png]
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { browse, median, serve } from "./serve.mjs";

const { values: flag } = parseArgs({
  args: process.argv.slice(2).map((a) => a.replace(/^-(\w{2,})/, "--$1")),
  options: {
    series: { type: "string", default: "50" },
    points: { type: "string", default: "11000" },
    runs: { type: "string", default: "7" },
    profile: { type: "string" },
    shot: { type: "string" },
  },
});
const [series, points, runs] = [flag.series, flag.points, flag.runs].map(Number);
const step = 15;

// Gauges that wander, one with a spike of one sample, one with a gap of one.
function answer() {
  let seed = 1;
  const random = () => {
    seed = (seed * 48271) % 2147483647;
    return seed / 2147483647;
  };
  const from = Math.floor(Date.now() / 1000 / step) * step - (points - 1) * step;
  const result = Array.from({ length: series }, (_, s) => {
    let v = 50 + s;
    const values = [];
    for (let i = 0; i < points; i++) {
      v += random() - 0.5;
      if (s === 1 && i === Math.floor(points / 2)) continue;
      values.push([from + i * step, String(s === 0 && i === Math.floor(points / 3) ? 500 : v)]);
    }
    return { metric: { __name__: "bench_level", instance: `host-${s}:9100`, job: "bench" }, values };
  });
  return JSON.stringify({ status: "success", data: { resultType: "matrix", result } });
}

const text = answer();
const server = await serve({ "/api/v1/query_range": text });
const { browser, page, client } = await browse();
try {
  const end = new Date(Math.floor(Date.now() / 1000 / step) * step * 1000).toISOString().slice(0, 19).replace("T", " ");
  const search = new URLSearchParams({
    "g0.expr": "bench_level",
    "g0.tab": "graph",
    "g0.range_input": `${(points - 1) * step}s`,
    "g0.res_type": "custom",
    "g0.res_step": String(step),
    "g0.end_input": end,
  });
  const first = [];
  for (let i = 0; i < runs; i++) {
    await page.goto(`${server.url}query?${search}`);
    first.push(await page.evaluate(() => globalThis.bench.end(true)));
  }
  row("answer to picture", first);

  if (flag.profile) {
    await client.send("Profiler.enable");
    await client.send("Profiler.setSamplingInterval", { interval: 200 });
    await client.send("Profiler.start");
  }
  const redraw = async (name, actions, drawn = true) => {
    const took = [];
    for (let i = 0; i < runs; i++) {
      for (const act of actions) {
        await page.evaluate(() => globalThis.bench.begin());
        await act();
        took.push(await page.evaluate((drawn) => globalThis.bench.end(drawn), drawn));
      }
    }
    row(name, took);
  };
  const named = (role, name) => page.getByRole(role, { name, exact: true });
  const legend = page.getByRole("group", { name: "Series", exact: true }).getByRole("button").nth(3);
  const wide = page.viewportSize();
  await redraw("another width", [() => page.setViewportSize({ ...wide, width: wide.width - 200 }), () => page.setViewportSize(wide)]);
  await redraw("one alone, all again", [() => legend.click(), () => legend.click()]);
  await redraw("without one, with it", [() => legend.click({ modifiers: ["Control"] }), () => legend.click({ modifiers: ["Control"] })]);
  await redraw("log scale on, off", [() => named("checkbox", "Log scale").click(), () => named("checkbox", "Log scale").click()]);
  await redraw("stacked, lines", [
    () => page.getByText("Stacked", { exact: true }).click(),
    () => page.getByText("Lines", { exact: true }).click(),
  ]);
  await redraw("dark, light", [() => page.emulateMedia({ colorScheme: "dark" }), () => page.emulateMedia({ colorScheme: "light" })]);
  const over = await page.locator(".u-over").boundingBox();
  let n = 0;
  await redraw("pointer moves", [() => page.mouse.move(over.x + 100 + 7 * ++n, over.y + 60 + ((31 * n) % 200))], false);
  if (flag.profile) {
    const { profile } = await client.send("Profiler.stop");
    writeFileSync(flag.profile, JSON.stringify(profile));
  }
  if (flag.shot) await page.screenshot({ path: flag.shot });
} finally {
  await browser.close();
  server.close();
}

function row(name, ms) {
  const sorted = [...ms].sort((a, b) => a - b);
  console.log(
    `${name.padEnd(24)} median ${median(ms).toFixed(0).padStart(5)} ms   least ${sorted[0].toFixed(0).padStart(5)} ms   most ${sorted.at(-1).toFixed(0).padStart(5)} ms`,
  );
}
