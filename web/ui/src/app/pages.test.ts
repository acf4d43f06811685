import { expect, test } from "vitest";
import routes from "../../routes.json";
import { pages } from "./pages";

test("the server knows every page, and no other", () => {
  expect(pages.map((p) => p.path).sort()).toEqual([...routes].sort());
});

test("no two pages have one key", () => {
  const keys = pages.flatMap((p) => p.key ?? []);
  expect(new Set(keys).size).toBe(keys.length);
});
