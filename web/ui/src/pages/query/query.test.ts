import { describe, expect, test } from "vitest";
import type { Gap } from "../../api/types";
import { countExpr, type Node, serialize } from "./ast";
import { emptyPanel, formatPanels, nextRange, parsePanels, stepOf } from "./model";
import { align, stack, stretches, summarize } from "./series";

const nothing = Number.NaN;

describe("the address", () => {
  test("is Prometheus's", () => {
    const [a, b] = parsePanels(
      "g0.expr=up%7Bjob%3D%22a%22%7D&g0.show_tree=1&g0.tab=graph&g0.range_input=1h30m&g0.end_input=2026-01-31+14%3A05%3A00&g0.res_type=fixed&g0.res_step=60&g0.display_mode=stacked&g0.show_exemplars=1&g0.y_axis_min=0&g1.expr=x&g1.tab=table&g1.moment_input=2026-01-31%2014:05:00&g1.res_type=auto&g1.res_density=high",
    );
    expect(a).toEqual({
      ...emptyPanel,
      expr: 'up{job="a"}',
      showTree: true,
      tab: "graph",
      range: 5_400_000,
      end: Date.UTC(2026, 0, 31, 14, 5),
      resolution: { type: "fixed", step: 60_000 },
      display: "stacked",
      exemplars: true,
      yMin: 0,
    });
    expect(b).toMatchObject({
      expr: "x",
      tab: "table",
      moment: Date.UTC(2026, 0, 31, 14, 5),
      resolution: { type: "auto", density: "high" },
    });
  });
  test("of old links is understood", () => {
    expect(parsePanels("?g0.expr=up&g0.tab=1")[0]).toMatchObject({ expr: "up", tab: "table" });
    expect(parsePanels("g0.expr=up&g0.tab=0&g0.stacked=1&g0.step_input=15")[0]).toMatchObject({
      tab: "graph",
      display: "stacked",
      resolution: { type: "custom", step: 15_000 },
    });
  });
  test("that makes no sense is no panel, or the default", () => {
    expect(parsePanels("")).toEqual([emptyPanel]);
    expect(parsePanels("g0.range_input=x&g0.tab=z&g0.end_input=q&g0.res_density=z&g0.y_axis_min=a&other=1")).toEqual([emptyPanel]);
  });
  test("is read as it was written", () => {
    const panels = [
      { ...emptyPanel, expr: 'a{b=~"c|d"} + 1', tab: "graph" as const, end: Date.UTC(2026, 0, 1), log: true, gaps: false },
      {
        ...emptyPanel,
        expr: "",
        moment: Date.UTC(2026, 0, 1),
        resolution: { type: "custom" as const, step: 500 },
        display: "stacked" as const,
      },
    ];
    expect(parsePanels(formatPanels(panels))).toEqual(panels);
  });
});

describe("steps", () => {
  const auto = { type: "auto", density: "medium" } as const;
  test("follow the range", () => {
    expect(stepOf({ range: 3_600_000, resolution: auto })).toBe(14_000);
    expect(stepOf({ range: 60_000, resolution: auto })).toBe(1000);
    expect(stepOf({ range: 3_600_000, resolution: { type: "fixed", step: 30_000 } })).toBe(30_000);
  });
  test("never ask for more points than the API gives", () => {
    const range = 365 * 86_400_000;
    expect(range / stepOf({ range, resolution: { type: "custom", step: 1000 } })).toBeLessThanOrEqual(11_000);
  });
  test("lead up and down", () => {
    expect(nextRange(3_600_000, true)).toBe(7_200_000);
    expect(nextRange(3_600_000, false)).toBe(1_800_000);
    expect(nextRange(1000, false)).toBe(1000);
  });
});

describe("the graph", () => {
  const series = [
    {
      metric: { a: "1" },
      values: [
        [10, "1"],
        [30, "3"],
      ] as [number, string][],
    },
    {
      metric: { a: "2" },
      values: [
        [10, "-2"],
        [20, "NaN"],
        [30, "+Inf"],
      ] as [number, string][],
    },
  ];
  test("leaves holes where nothing is", () => {
    const { times, columns } = align(series, 10_000, 30_000, 10_000);
    expect([...times]).toEqual([10, 20, 30]);
    expect(columns.map((c) => [...c])).toEqual([
      [1, nothing, 3],
      [-2, nothing, nothing],
    ]);
  });
  test("stacks what is shown, each sign its own way", () => {
    const c = [
      [1, nothing, 1],
      [2, 2, -1],
      [3, 3, -2],
    ].map((v) => Float64Array.from(v));
    expect(stack(c, () => true).map((v) => [...v])).toEqual([
      [1, nothing, 1],
      [3, 2, -1],
      [6, 5, -3],
    ]);
    expect([...stack(c, (i) => i !== 1)[2]!]).toEqual([4, 3, -2]);
  });
  test("is told in words", () => {
    expect(summarize(["up"], [Float64Array.of(1, nothing, 3)], String)).toBe("One series. up: from 1 to 3, last 3.");
    expect(summarize(["x"], [Float64Array.of(nothing)], String)).toBe("One series. x: nothing to draw.");
    expect(summarize([], [], String)).toBe("No series.");
  });
});

describe("gaps on the graph", () => {
  const gap = (g: Partial<Gap>): Gap => ({
    id: "1",
    kind: "replica",
    labels: {},
    match: {},
    from: 100,
    to: 200,
    cause: "down",
    state: "open",
    found: "",
    ...g,
  });
  test("show what is missing and what was healed", () => {
    const g = gap({
      missing: [{ from: 150, to: 200 }],
      fills: [{ from: 100, to: 150, replica: "r2", zone: "z2", series: 1, samples: 1, at: "" }],
    });
    expect(stretches([g], [], 0, 1000, 1000)).toEqual([
      { from: 100, to: 150, state: "healed", text: "healed from r2" },
      { from: 150, to: 200, state: "open", text: "still missing here" },
    ]);
  });
  test("that last end now, and stay in the picture", () => {
    expect(stretches([gap({ to: 9.2e18 })], [], 120, 1000, 500)).toEqual([
      { from: 120, to: 500, state: "open", text: "still missing here" },
    ]);
    expect(stretches([gap({})], [], 300, 1000, 1000)).toEqual([]);
  });
  test("before the beginning are none", () => {
    expect(stretches([gap({ cause: "new", state: "lost" })], [], 0, 1000, 1000)).toEqual([]);
    expect(stretches([gap({ cause: "new", state: "healed" })], [], 0, 1000, 1000)).toHaveLength(1);
  });
  test("of a replica that began empty begin with the first data of all", () => {
    const fill = (from: number, to: number, replica: string, samples: number) => ({
      from,
      to,
      replica,
      zone: "",
      series: samples,
      samples,
      at: "",
    });
    const began = gap({ cause: "new", state: "healed", fills: [fill(0, 150, "", 0), fill(150, 160, "r2", 0)] });
    expect(stretches([began], [], 0, 1000, 1000)).toEqual([]);
    const late = gap({
      cause: "new",
      state: "healed",
      fills: [fill(0, 100, "", 0), fill(170, 200, "", 3), fill(100, 150, "r2", 9), fill(150, 170, "", 0)],
    });
    expect(stretches([late], [], 0, 1000, 1000)).toEqual([
      { from: 170, to: 200, state: "lost", text: "nobody has all of it" },
      { from: 100, to: 150, state: "healed", text: "healed from r2" },
      { from: 150, to: 170, state: "lost", text: "nobody has all of it" },
    ]);
    expect(stretches([gap({ state: "lost" })], [], 0, 1000, 1000)[0]).toMatchObject({ state: "lost", text: "nobody has all of it" });
  });
  test("of other targets and of rules are none of its business", () => {
    const target = gap({ kind: "target", labels: { instance: "a" }, match: { job: "node", instance: "a" } });
    expect(stretches([target], [{ job: "node", instance: "b" }], 0, 1000, 1000)).toEqual([]);
    expect(stretches([target], [{ job: "node", instance: "a", cpu: "0" }], 0, 1000, 1000)).toHaveLength(1);
    expect(stretches([target], [{ job: "node" }], 0, 1000, 1000)).toHaveLength(1);
    expect(stretches([target], [{}], 0, 1000, 1000)).toEqual([]);
    expect(stretches([gap({ kind: "rules" })], [{}], 0, 1000, 1000)).toEqual([]);
  });
});

describe("the tree", () => {
  const at = { offset: 0, timestamp: null, startOrEnd: null };
  const up: Node = {
    type: "vectorSelector",
    name: "up",
    matchers: [
      { name: "__name__", type: "=", value: "up" },
      { name: "job", type: "=~", value: 'a"b' },
    ],
    ...at,
  };
  test("is text again", () => {
    expect(serialize(up)).toBe('up{job=~"a\\"b"}');
    expect(serialize({ ...up, offset: -60_000, timestamp: 1500 } as Node)).toBe('up{job=~"a\\"b"} @ 1.5 offset -1m');
    expect(
      serialize({
        type: "aggregation",
        op: "topk",
        expr: up,
        param: { type: "numberLiteral", val: "3" },
        grouping: ["job"],
        without: true,
      }),
    ).toBe('topk without (job) (3, up{job=~"a\\"b"})');
    expect(
      serialize({
        type: "binaryExpr",
        op: "/",
        bool: false,
        lhs: {
          type: "call",
          func: { name: "rate", returnType: "vector", variadic: 0 },
          args: [{ type: "matrixSelector", name: "x", matchers: [], range: 300_000, ...at }],
        },
        rhs: {
          type: "parenExpr",
          expr: {
            type: "subquery",
            expr: { type: "unaryExpr", op: "-", expr: { type: "numberLiteral", val: "1" } },
            range: 60_000,
            step: 0,
            ...at,
          },
        },
        matching: { card: "many-to-one", labels: ["a"], on: true, include: [] },
      }),
    ).toBe("rate(x[5m]) / on (a) group_left () (-1[1m:])");
  });
  test("counts what has series", () => {
    expect(countExpr(up)).toBe('count(up{job=~"a\\"b"})');
    expect(countExpr({ type: "matrixSelector", name: "x", matchers: [], range: 60_000, ...at })).toBe("count(present_over_time(x[1m]))");
    expect(countExpr({ type: "numberLiteral", val: "1" })).toBeNull();
    expect(countExpr({ type: "call", func: { name: "time", returnType: "scalar", variadic: 0 }, args: [] })).toBeNull();
  });
});
