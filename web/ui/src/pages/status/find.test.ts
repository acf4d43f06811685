import { expect, test } from "vitest";
import { occurrences, sortFlags } from "./find";

test("a text is searched for what was typed, and not for a pattern", () => {
  expect(occurrences("Job: a.b\njob: axb", "JOB")).toEqual([0, 9]);
  expect(occurrences("a.b axb a.b", "a.b")).toEqual([0, 8]);
  expect(occurrences("(x) [y] \\", "(x) [y] \\")).toEqual([0]);
  expect(occurrences("aaaa", "aa")).toEqual([0, 2]);
  expect(occurrences("aaaa", "a", 3)).toEqual([0, 1, 2]);
  expect(occurrences("abc", "")).toEqual([]);
  // Lower case of this one is longer.
  expect(occurrences("\u0130 job", "job")).toEqual([2]);
});

test("flags are sorted by name or value, either way", () => {
  const flags: [string, string][] = [
    ["b", "10"],
    ["a", "9"],
    ["c", "9"],
  ];
  const names = (by: Parameters<typeof sortFlags>[1]) =>
    sortFlags(flags, by)
      .map(([k]) => k)
      .join("");
  expect(names("name")).toBe("abc");
  expect(names("-name")).toBe("cba");
  expect(names("value")).toBe("acb");
  expect(names("-value")).toBe("bac");
});
