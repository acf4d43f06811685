import { test } from "node:test";
import { desktop, order, query, until, Visit, world } from "./browser.mjs";

test("a killed replica is gone on the map, and what it missed is a gap that heals", async () => {
  const { a, b } = world.replicas;
  await order("kill", "b");
  const survivor = await Visit.at(a.url, "/cluster");
  await survivor.says(new RegExp(`^gone\\s+${b.name}`, "m"));
  await survivor.page.getByRole("img", { name: new RegExp(`${b.name} gone`) }).waitFor();
  await survivor.accessible("cluster-gone");
  await survivor.go("/");
  await survivor.says(new RegExp(`Replica ${b.name} in zone-b died, or cannot be reached`));
  await survivor.accessible("home-gone");
  await survivor.end();

  // While the others do not answer, the gap stays open.
  await order("freeze", "a");
  await order("freeze", "c");
  await order("start", "b");
  await until("it is back", async () => (await fetch(`${b.url}/-/ready`)).ok);
  const back = await Visit.at(b.url, "/cluster");
  await back.says(/^open\s+Everything/m);
  await back.accessible("cluster-open");
  await order("thaw", "a");
  await order("thaw", "c");
  await back.says(/this replica was down; healed/);
  await back.says(/^0 open$/m);
  await back.says(/Nothing is missing that could be had/);

  // What the README shows.
  await back.go("/cluster?range=1h");
  await until("all are whole", async () => !/not whole|has \d/.test(await back.text()));
  await back.look("light", { width: 1200, height: 920 });
  await back.picture("readme-cluster");
  await back.look("light", desktop);
  const stacked = { tab: "graph", range_input: "2m", display_mode: "stacked" };
  await back.go(query("sum by (job, code) (rate(http_requests_total[15s]))", stacked));
  await back.page.locator(".uplot canvas").waitFor();
  await back.says(/healed|from mon-/);
  await back.look("light", { width: 1200, height: 690 });
  await back.picture("readme-query");
  await back.look("light", desktop);
  await back.accessible("query-healed");
  await back.end();
});
