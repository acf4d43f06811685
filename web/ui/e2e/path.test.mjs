import assert from "node:assert/strict";
import { test } from "node:test";
import { routes, Visit, world } from "./browser.mjs";

test("every page is below the path, by its address and from the menu", async () => {
  const v = await Visit.at(world.url);
  for (const route of routes) {
    await v.go(route);
    assert.doesNotMatch(await v.page.title(), /not found/i);
    const heading = await v.page.locator("main h1").innerText();
    await v.page.locator("nav").getByRole("link").first().click();
    await v.settled();
    await v.page.locator(`nav a[href="${new URL(world.url).pathname}${route}"]`).click();
    await v.settled();
    assert.equal(await v.page.locator("main h1").innerText(), heading);
    assert.equal(v.page.url(), world.url + route);
  }
  await v.end();
});
