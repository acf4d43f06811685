import { expect, test } from "vitest";
import { formatValue, sentence, zoneWords } from "./format";

test("zones that are called zone are not called so twice", () => {
  expect(["a", "zone-a", "Zone 1", "zones"].map(zoneWords)).toEqual(["zone a", "zone-a", "Zone 1", "zone zones"]);
});

test("what the server says stands among sentences", () => {
  expect(["no replica can be reached", "It is away.", "", "why?"].map(sentence)).toEqual([
    "No replica can be reached.",
    "It is away.",
    "",
    "Why?",
  ]);
});

test("values have the digits that are read", () => {
  expect(["7.842018963427675e-01", "0e+00", "+Inf", "6.5e+01", "1.5e+20"].map(formatValue)).toEqual([
    "0.784202",
    "0",
    "+Inf",
    "65",
    "150000000000000000000",
  ]);
});
