import { expect, test } from "vitest";
import type { Target } from "../../api/types";
import { changes, discovered, discoveredText, rowsOf, ruleText, stepChanges } from "./discovery";

const active = (pool: string, address: string): Target => ({
  discoveredLabels: { __address__: address },
  labels: { instance: address },
  scrapePool: pool,
  scrapeUrl: "",
  globalUrl: "",
  lastError: "",
  lastScrape: "",
  lastScrapeDuration: 0,
  health: "up",
  scrapeInterval: "",
  scrapeTimeout: "",
});

test("what was found is under its pool, with what is not kept", () => {
  const all = discovered({
    activeTargets: [active("b", "1"), active("a", "2"), active("a", "0")],
    droppedTargets: [{ scrapePool: "a", discoveredLabels: { __address__: "3" } }],
  });
  expect(all.map((d) => `${d.pool} ${d.before.__address__} ${!!d.after}`)).toEqual(["a 0 true", "a 2 true", "a 3 false", "b 1 true"]);
  expect(discoveredText(all[1]!)).toBe("a __address__=2 instance=2");
  expect(rowsOf([all[2]!, all[3]!], all, { a: 5, b: 0 })).toEqual([
    { pool: "a", active: 2, dropped: 5, unkept: 4 },
    { found: all[2] },
    { pool: "b", active: 1, dropped: 0, unkept: 0 },
    { found: all[3] },
  ]);
});

test("a rule says what is not as always", () => {
  expect(
    ruleText({ action: "replace", source_labels: ["a", "b"], separator: ";", regex: "(.*)", target_label: "c", replacement: "$1" }),
  ).toBe("action: replace, source_labels: [a, b], target_label: c");
  expect(ruleText({ action: "replace", separator: "", regex: "x.*", target_label: "c", replacement: "" })).toBe(
    'action: replace, separator: "", regex: "x.*", target_label: c, replacement: ""',
  );
  expect(ruleText({ action: "hashmod", source_labels: ["a"], modulus: 4, target_label: "m", replacement: "$1" })).toBe(
    "action: hashmod, source_labels: [a], modulus: 4, target_label: m",
  );
});

test("steps say what they change, up to the one that drops", () => {
  expect(changes({ a: "1", b: "2", d: "4" }, { b: "3", c: "1", d: "4" })).toEqual([
    { name: "a", was: "1", is: undefined },
    { name: "b", was: "2", is: "3" },
    { name: "c", was: undefined, is: "1" },
  ]);
  const rule = { action: "drop", regex: "x" };
  const steps = stepChanges({ a: "1" }, [
    { rule: { action: "replace", target_label: "b" }, output: { a: "1", b: "1" }, keep: true },
    { rule, output: {}, keep: false },
    { rule, output: {}, keep: false },
  ]);
  expect(steps).toEqual([
    { text: "action: replace, target_label: b", changes: [{ name: "b", was: undefined, is: "1" }], drops: false },
    { text: 'action: drop, regex: "x"', changes: [], drops: true },
  ]);
});
