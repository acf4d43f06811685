import { test } from "node:test";
import { order, Visit, world } from "./browser.mjs";

const { b } = world.replicas;

test("a configuration that is refused is told of everywhere", async () => {
  await order("spoil", "b");
  const v = await Visit.at(b.url, "/cluster");
  await v.says(/refuses what is in the bucket/);
  await v.accessible("cluster-refused");
  await v.go("/");
  await v.page.getByRole("button", { name: "1 message of the server" }).click();
  await v.page.getByRole("menu").getByText("Configuration reload has failed").waitFor();
  await v.accessible("bell", {});
  await v.end();
});
