import { expect, test } from "vitest";
import type { Matching } from "./ast";
import { matchGroups, matchLabels } from "./matching";
import type { Series } from "./series";

const series = (...all: Record<string, string>[]): Series[] => all.map((metric) => ({ metric, value: [0, "1"] }));
const by = (part: Partial<Matching>): Matching => ({ card: "one-to-one", labels: [], on: false, include: [], ...part });

test("series match by the labels that are named, or by all others", () => {
  const metric = { __name__: "up", job: "a", instance: "x" };
  expect(matchLabels(metric, by({}))).toEqual({ instance: "x", job: "a" });
  expect(matchLabels(metric, by({ labels: ["instance"] }))).toEqual({ job: "a" });
  expect(matchLabels(metric, by({ on: true, labels: ["job", "zone"] }))).toEqual({ job: "a" });
  expect(matchLabels(metric, by({ on: true, labels: [] }))).toEqual({});
});

test("groups have both sides and the result, and those without a match come last", () => {
  const groups = matchGroups(
    "/",
    by({ on: true, labels: ["job"] }),
    series({ job: "c" }, { __name__: "l", job: "a" }),
    series({ job: "a" }, { job: "b" }),
    series({ job: "a" }),
  );
  expect(groups.map((g) => [g.labels.job, g.left.length, g.right.length, g.result.length, g.error])).toEqual([
    ["a", 1, 1, 1, undefined],
    ["c", 1, 0, 0, undefined],
    ["b", 0, 1, 0, undefined],
  ]);
});

const two = series({ job: "a", i: "1" }, { job: "a", i: "2" });
const one = series({ job: "a" });
test.each([
  ["/", "one-to-one", two, one, "several on the left: group_left would allow that"],
  ["/", "one-to-one", one, two, "several on the right: group_right would allow that"],
  ["/", "one-to-one", two, two, "several on both sides"],
  ["/", "many-to-one", two, one, undefined],
  ["/", "many-to-one", one, two, "several on the right, where one is allowed"],
  ["/", "one-to-many", one, two, undefined],
  ["/", "one-to-many", two, one, "several on the left, where one is allowed"],
  ["and", "many-to-many", two, two, undefined],
  ["/", "one-to-one", two, [], undefined],
  ["/", "one-to-one", [], two, "several on the right: group_right would allow that"],
] as const)("%s %s of several", (op, card, left, right, error) => {
  expect(matchGroups(op, by({ on: true, labels: ["job"], card }), [...left], [...right])[0]!.error).toBe(error);
  // What has a result has not failed: a comparison drops what does not hold before it looks.
  expect(matchGroups(op, by({ on: true, labels: ["job"], card }), [...left], [...right], [])[0]!.error).toBeUndefined();
});
