import assert from "node:assert/strict";
import { test } from "node:test";
import { query, until, Visit, world } from "./browser.mjs";

const expr = "rate(http_requests_total[15s])";

/** How much of the graph is in the colours of its lines: axes and grid are grey. */
const coloured = (page) =>
  page.evaluate(() => {
    const canvas = document.querySelector(".uplot canvas");
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    let n = 0;
    for (let i = 0; i < data.length; i += 4) {
      const [r, g, b, a] = data.subarray(i, i + 4);
      if (a > 128 && Math.max(r, g, b) - Math.min(r, g, b) > 60) n++;
    }
    return n;
  });

const asked = (page, name) => new URL(page.url()).searchParams.get(`g0.${name}`);

async function drawn(page) {
  await page.locator(".uplot canvas").waitFor();
  await until("the graph has lines", async () => (await coloured(page)) > 500);
}

test("a query goes from typing to its graph, and the address has it all", async () => {
  const v = await Visit.at(world.replicas.a.url, "/query");
  const { page } = v;
  await page.locator(".cm-content").click();
  await page.keyboard.type("rate(http_req");
  await page
    .locator(".cm-tooltip-autocomplete li")
    .filter({ hasText: /^http_requests_total/ })
    .click();
  await until("it is completed", async () => (await page.locator(".cm-content").innerText()).includes("http_requests_total"));
  await page.keyboard.type("[15s])");
  await page.keyboard.press("Enter");

  const rows = page.locator("main section table").first().locator("> tbody > tr");
  await until("all series are in the table", async () => (await rows.count()) === 12);
  for (const row of await rows.all()) assert.match(await row.innerText(), /\{.*instance="shop-\d".*\}\s+\d/s);
  assert.equal(asked(page, "expr"), expr);
  assert.equal(asked(page, "tab"), "table");

  await page.getByText("Graph", { exact: true }).click();
  await page.getByLabel("Range", { exact: true }).fill("2m");
  await page.keyboard.press("Enter");
  await until("the range is in the address", () => asked(page, "range_input") === "2m");
  await drawn(page);
  assert.equal(asked(page, "tab"), "graph");
  assert.equal((await page.getByRole("group", { name: "Series" }).getByRole("button").count()) >= 12, true);

  const refresh = page.locator('input[aria-label="Ask again by itself"]');
  await refresh.click();
  await page.getByRole("option", { name: "Every 1m" }).click();
  await until("the refresh is in the address", () => new URL(page.url()).searchParams.get("refresh") === "60");

  const address = page.url();
  await page.reload();
  await drawn(page);
  assert.equal(await refresh.inputValue(), "Every 1m");
  assert.equal(page.url(), address);
  await until("the editor has the expression", async () => (await page.locator(".cm-content").innerText()).trim() === expr);

  await page.goBack();
  await until("the range of before is back", () => asked(page, "range_input") === "1h");
  await page.goBack();
  await until("the table is back", async () => asked(page, "tab") === "table" && (await rows.count()) === 12);
  await page.goForward();
  await page.goForward();
  await until("forward leads to the graph", () => asked(page, "range_input") === "2m");
  await drawn(page);
  await v.end();
});

test("what is typed before the editor is there goes on in it", async () => {
  const v = await Visit.at(world.replicas.a.url, "/flags");
  const { page } = v;
  let release;
  const held = new Promise((done) => {
    release = done;
  });
  await page.route("**/editor-*.js", async (route) => {
    await held;
    await route.continue();
  });
  await page.goto(`${world.replicas.a.url}/query`, { waitUntil: "commit" });
  await page.locator("main textarea").focus();
  await page.keyboard.type("vector(4");
  release();
  await page.locator(".cm-content:focus").waitFor();
  await page.keyboard.type("3)");
  await page.keyboard.press("Enter");
  await v.says(/\{\}\s+43\b/);
  assert.equal(asked(page, "expr"), "vector(43)");
  await v.end();
});

test("keys alone lead from the home page to an answer", async () => {
  const v = await Visit.at(world.replicas.a.url, "/flags");
  const { page } = v;
  // The editor comes when the heading has the focus already, which it must not take away.
  await page.route("**/editor-*.js", async (route) => {
    await new Promise((done) => setTimeout(done, 500));
    await route.continue();
  });
  await v.go("/");
  await page.keyboard.press("q");
  await page.locator(".cm-content").waitFor();
  assert.equal(await page.locator("h1").innerText(), "Query");
  await page.keyboard.press("/");
  await page.locator(".cm-content:focus").waitFor();
  await page.keyboard.type("vector(42)");
  await page.keyboard.press("Enter");
  await v.says(/\{\}\s+42\b/);
  assert.equal(asked(page, "expr"), "vector(42)");
  await v.end();
});

test("a graph without its exemplars or gaps says why", async () => {
  const v = await Visit.at(world.replicas.a.url, "/flags");
  const refuse = (part) => v.page.route(`**/${part}*`, (r) => r.fulfill({ status: 500, json: { error: `${part} is away` } }));
  await refuse("query_exemplars");
  await refuse("gaps");
  await v.go(query("up", { tab: "graph", range_input: "1m", show_exemplars: "1" }));
  await v.says(/gaps is away/);
  await v.says(/query_exemplars is away/);
  await v.page.locator(".uplot canvas").waitFor();
  v.complaints = v.complaints.filter((c) => !/\b500\b/.test(c));
  await v.end();
});

test("an error is shown with the server's text", async () => {
  const v = await Visit.at(world.replicas.a.url, `/query?g0.expr=${encodeURIComponent("sum(up")}&g0.tab=table`);
  await v.page
    .getByRole("alert")
    .filter({ hasText: /parse error: unclosed left parenthesis/ })
    .waitFor();
  v.complaints = v.complaints.filter((c) => !/\b400\b/.test(c));
  await v.end();
});
