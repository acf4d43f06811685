import { expect, test } from "vitest";
import type { Gap, Gaps, Member } from "../../api/types";
import {
  clockWords,
  coverage,
  cutText,
  gapRows,
  gapWhat,
  gapWords,
  lag,
  layoutMap,
  mapWords,
  memberState,
  sinceOf,
  timelineWords,
  timeTicks,
  zoneDistance,
  zonesOf,
} from "./model";

function member(name: string, zone: string, more: Partial<Member> = {}): Member {
  return {
    name,
    zone,
    address: "",
    http_address: "",
    grpc_address: "",
    version: "1",
    completeness: 1,
    alive: true,
    left: false,
    self: false,
    rtt_seconds: 0.001,
    clock_skew_seconds: 0,
    ...more,
  };
}

function gap(more: Partial<Gap> = {}): Gap {
  return { id: "g", kind: "replica", labels: {}, match: {}, cause: "down", state: "open", found: "", from: 100, to: 200, ...more };
}

const all = (more: Partial<Gaps> = {}): Gaps => ({ complete: false, completeness: 0.5, gaps: [], ...more });

test("every replica draws the same map", () => {
  const a = member("a", "z2", { self: true });
  const b = member("b", "z1", { alive: false });
  const c = member("c", "z2", { alive: false, left: true });
  expect(zonesOf([c, a, b])).toEqual([
    { name: "z1", members: [b] },
    { name: "z2", members: [a, c] },
  ]);
  expect([a, b, c].map(memberState)).toEqual(["alive", "gone", "stopped"]);
  expect(mapWords({ name: "x", members: [c, a, b] })).toBe(
    "1 of 3 replicas is alive in 2 zones. zone z1: b gone. zone z2: a alive, this one; c stopped.",
  );
});

test("zones are side by side where there is room, and nothing lies on another", () => {
  const zones = zonesOf([member("a", "1"), member("b", "2"), member("c", "3"), member("d", "3")]);
  for (const [width, rows] of [
    [1000, 1],
    [600, 2],
    [300, 3],
  ] as const) {
    const l = layoutMap(zones, width);
    expect(l.trunks).toHaveLength(rows);
    for (const [i, z] of l.zones.entries()) {
      expect(z.x + z.w).toBeLessThanOrEqual(width);
      expect(z.y + z.h).toBeLessThanOrEqual(l.height);
      for (const n of z.nodes) expect(n.y + n.h).toBeLessThan(z.y + z.h);
      for (const o of l.zones.slice(i + 1)) expect(o.x >= z.x + z.w || o.y >= z.y + z.h).toBe(true);
    }
  }
  expect(layoutMap([], 500)).toEqual({ height: 0, zones: [], trunks: [] });
});

test("how far others are", () => {
  expect(zoneDistance({ name: "z", members: [member("a", "z"), member("b", "z", { rtt_seconds: 0.0005 })] })).toBe("500µs");
  expect(zoneDistance({ name: "z", members: [member("a", "z", { self: true, rtt_seconds: 0 })] })).toBe("");
  expect(zoneDistance({ name: "z", members: [member("a", "z", { alive: false })] })).toBe("");
  expect(clockWords(member("a", "z"))).toBe("clock in step");
  expect(clockWords(member("a", "z", { clock_skew_seconds: -2 }))).toBe("clock 2s behind");
  expect(clockWords(member("a", "z", { rtt_seconds: 0 }))).toBe("");
});

test("what is missing, and what was done about it", () => {
  expect(gapWhat(gap())).toBe("Everything");
  expect(gapWhat(gap({ kind: "rules", labels: { file: "r.yml", group: "g" } }))).toBe("Rule group g");
  expect(gapWhat(gap({ kind: "target", labels: { job: "node", instance: "h:1" } }))).toBe("node h:1");
  expect(gapWords(gap(), all())).toContain("waits to be filled");
  expect(gapWords(gap(), all({ problem: "b is away" }))).toBe("waits: b is away");
  const healing = {
    gap: "g",
    kind: "replica",
    since: "",
    ratio: 0.459,
    series: 1,
    samples: 2,
    samples_per_second: 12345.6,
    remaining_seconds: 90,
  };
  expect(gapWords(gap(), all({ healing }))).toBe("is being filled: 45 %, 12\u202f346 samples per second, 1m 30s left");
  const fill = { from: 1, to: 2, replica: "b", zone: "zb", series: 1, samples: 7, at: "" };
  expect(gapWords(gap({ state: "healed", fills: [fill, fill] }), all())).toBe("healed: 14 samples from b in zb");
  expect(gapWords(gap({ state: "lost", asked: ["b", "c"], fills: [{ ...fill, replica: "", samples: 0 }] }), all())).toBe(
    "nobody has it (asked: b, c)",
  );
  expect(
    gapWords(
      gap({
        state: "lost",
        fills: [
          { ...fill, replica: "" },
          { ...fill, replica: "", samples: 0 },
        ],
      }),
      all(),
    ),
  ).toBe("nobody has it, but for 7 samples of what nobody has whole");
  expect(timelineWords([], "1d")).toBe("No gap in the last 1d.");
  expect(timelineWords([gap(), gap({ state: "healed" })], "1d")).toContain("2 gaps in the last 1d: 1 open, 1 healed, 0 that nobody has");
});

test("gaps as rows, cut to what is shown", () => {
  const rows = gapRows(
    [
      gap({
        kind: "target",
        labels: { job: "n", instance: "1" },
        from: 0,
        to: Number.MAX_SAFE_INTEGER,
        missing: [{ from: 150, to: Number.MAX_SAFE_INTEGER }],
      }),
      gap({ state: "healed", from: 120, to: 140 }),
      gap({ state: "healed", from: 150, to: 160 }),
      gap({ from: 10, to: 20 }),
    ],
    100,
    200,
  );
  expect(rows.map((r) => r.what)).toEqual(["Everything", "n 1"]);
  expect(rows[0]!.bars.map((b) => [b.a, b.b, b.filled])).toEqual([
    [0.2, 0.4, 1],
    [0.5, 0.6, 1],
  ]);
  expect(rows[1]!.bars[0]).toMatchObject({ a: 0, b: 1, filled: 0.75 });
});

test("ticks are round in the zone that is shown", () => {
  const h = 3600e3;
  expect(timeTicks(0.5 * h, 6 * h, 6)).toEqual([1, 2, 3, 4, 5, 6].map((x) => x * h));
  expect(timeTicks(0, 24 * h, 2, 5.5 * h)).toEqual([6.5 * h, 18.5 * h]);
  expect(timeTicks(0, 1e15, 5).length).toBeGreaterThan(0);
});

test("windows of the bucket as stretches", () => {
  const w = (begin: number, whole = true) => ({ begin, end: begin + 2, whole });
  expect(coverage([w(0), w(2), w(4, false), w(10)])).toEqual([
    { from: 0, to: 4, state: "whole", windows: 2 },
    { from: 4, to: 6, state: "not whole", windows: 1 },
    { from: 6, to: 10, state: "missing", windows: 2 },
    { from: 10, to: 12, state: "whole", windows: 1 },
  ]);
  expect(coverage([])).toEqual([]);
});

test("who lags", () => {
  const config = (hash: string, seen_hash: string, state: string) => member("a", "z", { config: { hash, seen_hash, state } });
  expect(lag(member("a", "z"))).toBe("");
  expect(lag(config("1", "1", "applied"))).toBe("");
  expect(lag(config("1", "2", "applied"))).toContain("about to take");
  expect(lag(config("1", "2", "refused"))).toContain("refuses");
});

test("text of drawings has the room that it has", () => {
  expect(cutText("zone-a", 100)).toBe("zone-a");
  expect(cutText("a-very-long-name", 66)).toBe("a-very-lo…");
  expect(cutText("abc", 0)).toBe("…");
});

test("since when a member is gone is not said by who still saw it alive", () => {
  const told = { zone: "a", version: "1", self: false, rtt_seconds: 0, clock_skew_seconds: 0, since: "2026-01-01T00:00:00Z" };
  const since = sinceOf(
    [member("a", "a"), member("b", "b", { alive: false }), member("c", "c", { alive: false, left: true })],
    [
      { ...told, name: "a", state: "alive" },
      { ...told, name: "b", state: "alive" },
      { ...told, name: "c", state: "stopped" },
    ],
  );
  expect([...since.keys()]).toEqual(["a", "c"]);
});
