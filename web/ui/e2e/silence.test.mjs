import assert from "node:assert/strict";
import { test } from "node:test";
import { until, Visit, world } from "./browser.mjs";

const alert = (v) => v.page.getByRole("link", { name: /^Silence .*CheckoutSlow/ });

test("a firing alert is silenced at one replica, seen at another one, and heard of again", async () => {
  const { a, c } = world.replicas;
  const here = await Visit.at(a.url, "/alerts");
  await here.says(/CheckoutSlow/);
  await here.says(new RegExp(`customers wait at ${world.slow}`));
  await alert(here).click();
  await here.says(/Matches 1 alert now/);
  await here.page.getByLabel("Author").fill("ann");
  await here.page.getByRole("button", { name: "Silence", exact: true }).click();
  await here.says(/silences 1 alert/);
  const id = new URL(here.page.url()).searchParams.get("id");
  assert.match(id, /^[0-9a-f-]{36}$/);

  const there = await Visit.at(c.url, "/silences");
  await there.says(/by ann/);
  await there.says(new RegExp(`instance="${world.slow}"`));
  await there.says(/silences 1 alert/);
  await there.go("/alerts");
  await there.says(new RegExp(`silenced by silence ${id.slice(0, 8)}`));

  // The way back is from the alert to what silences it.
  await there.page.getByRole("link", { name: `silence ${id.slice(0, 8)}` }).click();
  await there.page.getByRole("button", { name: `Expire silence ${id}` }).click();
  const dialog = there.page.getByRole("dialog");
  await dialog.waitFor();
  await there.accessible("silences-expire", {});
  await dialog.getByRole("button", { name: "Expire" }).click();
  await there.says(/^expired$/m);
  await there.end();

  await here.go("/alerts");
  await here.says(/CheckoutSlow/);
  await until("the alert is not silenced any more", async () => !/silenced by/.test(await here.text()));

  // Now that it is known who sits there, it is two clicks.
  await alert(here).click();
  await here.page.getByRole("button", { name: "Silence", exact: true }).click();
  await here.says(/silences 1 alert/);
  await here.end();
});

test("a silence that cannot be is not made, and the form says why", async () => {
  const v = await Visit.at(world.replicas.a.url, "/silences?new={}");
  await v.page.getByRole("button", { name: "Silence", exact: true }).click();
  await v.says(/Name at least one label/);
  await v.page.getByLabel("Start").fill("soon");
  await v.page.getByLabel("Comment").fill("A silence for nobody");
  await v.says(/Write it as 2026-01-31 14:05/);
  await v.accessible("silences-wrong");
  await v.page.getByLabel("Start").fill("");
  await v.page.getByLabel("Label 1").fill("alertname");
  await v.page.getByLabel("Value 1").fill("CheckoutSlow");
  await v.says(/Matches 1 alert now/);
  await v.accessible("silences-new");
  await v.end();
});
