import { test } from "node:test";
import { Visit, world } from "./browser.mjs";

test("the home page of a replica that was just started says how it is", async () => {
  const v = await Visit.at(world.url);
  await v.says(/All is well: 2 targets are up/);
  await v.accessible("home-alone");
  await v.go("/cluster");
  await v.says(/This replica works alone/);
  await v.accessible("cluster-alone");
  await v.end();
});
