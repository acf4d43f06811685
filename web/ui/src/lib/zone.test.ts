import { expect, test } from "vitest";
import { zoneWords } from "./format";

test("zones that are called zone are not called so twice", () => {
  expect(["a", "zone-a", "Zone 1", "zones"].map(zoneWords)).toEqual(["zone a", "zone-a", "Zone 1", "zone zones"]);
});
