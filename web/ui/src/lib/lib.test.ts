import { describe, expect, test } from "vitest";
import { formatDuration, humanDuration, parseDuration } from "./duration";
import { formatBytes, formatCount, formatPercent, formatSeries, formatShort } from "./format";
import { fuzzyScore, searchIndex } from "./search";
import { formatTime, parseTime, relativeTime, toMs } from "./time";

describe("durations", () => {
  test.each([
    ["1h", 3_600_000],
    ["1h30m", 5_400_000],
    ["250ms", 250],
    ["1y2w3d4h5m6s7ms", 365 * 86_400_000 + 17 * 86_400_000 + 4 * 3_600_000 + 306_007],
    ["0s", 0],
    [" 90 ", 90_000],
    ["1.5", 1500],
    ["", null],
    ["1h30", null],
    ["30m1h", null],
    ["-5m", null],
    ["soon", null],
  ])("%s is read", (text, ms) => expect(parseDuration(text)).toBe(ms));

  test("what is written is read as the same", () => {
    for (const ms of [1, 999, 1000, 61_000, 5_400_000, 86_400_000, 9 * 86_400_000, 14 * 86_400_000, 365 * 86_400_000, 123_456_789]) {
      expect(parseDuration(formatDuration(ms))).toBe(ms);
    }
  });
  test.each([
    [0, "0s"],
    [5_400_000, "1h30m"],
    [86_400_000, "1d"],
    [14 * 86_400_000, "2w"],
    [15 * 86_400_000, "15d"],
    [365 * 86_400_000, "1y"],
    [-60_000, "-1m"],
  ])("%d is written as Prometheus does", (ms, text) => expect(formatDuration(ms)).toBe(text));
  test.each([
    [0.0123, "12.3µs"],
    [12.345, "12.3ms"],
    [1234, "1.23s"],
    [65_000, "1m 5s"],
    [3_600_000, "1h"],
    [26 * 3_600_000 + 5 * 60_000, "26h 5m"],
    [50 * 3_600_000, "2d 2h"],
  ])("%d is said to people", (ms, text) => expect(humanDuration(ms)).toBe(text));
});

describe("times", () => {
  const t = Date.UTC(2026, 0, 31, 14, 5, 9, 7);
  test("are written in UTC", () => {
    expect(formatTime(t, true)).toBe("2026-01-31 14:05:09");
    expect(formatTime(t, true, true)).toBe("2026-01-31 14:05:09.007");
  });
  test.each([
    ["2026-01-31 14:05:09", t - 7],
    ["2026-01-31 14:05", t - 9007],
    ["2026-01-31T14:05:09Z", t - 7],
    ["2026-01-31 4:05", Date.UTC(2026, 0, 31, 4, 5)],
    ["2026-01-31", Date.UTC(2026, 0, 31)],
    ["2026-01-31 15:05:09+01:00", t - 7],
    ["1769868309", 1_769_868_309_000],
    ["yesterday", null],
    ["2026-13-31", null],
  ])("%s is read", (text, ms) => expect(parseTime(text)).toBe(ms));
  test("Go's zero is never", () => {
    expect(toMs("0001-01-01T00:00:00Z")).toBeNull();
    expect(toMs("")).toBeNull();
    expect(toMs("2026-01-31T14:05:09.007Z")).toBe(t);
  });
  test("are told apart from now", () => {
    expect(relativeTime(t, t + 200_000)).toBe("3m 20s ago");
    expect(relativeTime(t + 3_600_000, t)).toBe("in 1h");
    expect(relativeTime(t, t)).toBe("just now");
  });
});

describe("numbers and series", () => {
  test("are short", () => {
    expect(formatShort(1500)).toBe("1.5k");
    expect(formatShort(-2.5e7)).toBe("-25M");
    expect(formatShort(0.25)).toBe("0.25");
    expect(formatShort(3.2e-7)).toBe("3.2e-7");
    expect(formatShort(Number.POSITIVE_INFINITY)).toBe("Infinity");
    expect(formatBytes(3 * 2 ** 30)).toBe("3.0 GiB");
    expect(formatCount(1234567)).toBe("1\u202f234\u202f567");
  });
  test("nothing is whole that is not", () => {
    expect(formatPercent(0.99999)).toBe("99.9 %");
    expect(formatPercent(1)).toBe("100 %");
  });
  test("a series is a selector", () => {
    expect(formatSeries({ __name__: "up", job: "node", instance: 'a"b\\' })).toBe('up{job="node", instance="a\\"b\\\\"}');
    expect(formatSeries({ __name__: "up" })).toBe("up");
    expect(formatSeries({})).toBe("{}");
    expect(formatSeries({ __name__: "a.b", "x.y": "1" })).toBe('{"a.b", "x.y"="1"}');
  });
});

describe("search", () => {
  test("every word must be there", () => {
    const find = searchIndex(["Node down", "node up", "disk"], (s) => s);
    expect(find("NODE o")).toEqual(["Node down", "node up"]);
    expect(find("node up")).toEqual(["node up"]);
    expect(find("")).toHaveLength(3);
  });
  test("closer names come first", () => {
    const score = (n: string) => fuzzyScore(n, "cpu");
    expect(score("cpu_total")).toBeGreaterThan(score("node_cpu_total"));
    expect(score("node_cpu_total")).toBeGreaterThan(score("c_p_u"));
    expect(score("nothing")).toBe(0);
  });
});
