import { test } from "node:test";
import { query, rates, ratesStacked, routes, Visit, world } from "./browser.mjs";

const { b } = world.replicas;
const latency = "histogram_quantile(0.9, sum by (instance) (rate(http_request_duration_seconds[15s])))";

for (const route of routes) {
  test(`the page ${route} is for everybody`, async () => {
    const v = await Visit.at(b.url, route);
    await v.accessible(route.slice(1) || "home");
    await v.end();
  });
}

test("so are graphs", async () => {
  const v = await Visit.at(b.url, query(latency, { tab: "graph", range_input: "2m", show_exemplars: "1" }));
  await v.page.locator(".uplot canvas").waitFor();
  await v.accessible("query-exemplars");
  await v.go(ratesStacked);
  await v.page.locator(".uplot canvas").waitFor();
  await v.accessible("query-graph");
  await v.end();
});

test("so are native histograms, explanations and metrics", async () => {
  const v = await Visit.at(b.url, query("http_request_duration_seconds"));
  await v.page.locator("summary").first().click();
  await v.accessible("query-histogram");
  await v.go(query(rates, { tab: "explain" }));
  await v.accessible("query-explain");
  await v.go(query(rates));
  await v.page.getByRole("button", { name: "More for panel 1" }).click();
  await v.accessible("query-menu", {});
  await v.page.getByRole("menuitem", { name: "Explore metrics" }).click();
  const dialog = v.page.getByRole("dialog");
  await dialog.getByLabel("Search metrics").fill("http_requests_total");
  await dialog.getByRole("button", { name: "Run http_requests_total" }).waitFor();
  await v.accessible("query-explore", {});
  await v.end();
});

test("so is what opens from the head of every page", async () => {
  const v = await Visit.at(b.url);
  await v.page.keyboard.press("Control+k");
  await v.page.getByPlaceholder("Go to a page").waitFor();
  await v.accessible("palette", {});
  await v.page.keyboard.press("Escape");
  await v.page.keyboard.press("?");
  await v.page.getByRole("dialog").waitFor();
  await v.accessible("shortcuts", {});
  await v.page.keyboard.press("Escape");
  await v.page.getByRole("button", { name: "Settings" }).click();
  await v.accessible("settings", {});
  await v.end();
});
