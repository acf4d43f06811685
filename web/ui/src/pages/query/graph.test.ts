import { describe, expect, test } from "vitest";
import { parseMatrix } from "./matrix";
import { align, type Series } from "./series";
import { alone, thin, widened } from "./thin";

const nothing = Number.NaN;

describe("thinned columns", () => {
  const n = 10_000;
  const width = 100;
  const times = Float64Array.from({ length: n }, (_, i) => 1000 + 15 * i);
  // Up and down within each column of pixels, so that all of them are alike.
  const wave = () => Float64Array.from({ length: n }, (_, i) => i % 10);
  const thinned = (c: Float64Array) => thin(times, [c], width).columns[0]!;

  test("have two points for each pixel, and the axis has its ends", () => {
    const d = thin(times, [wave(), wave()], width);
    expect(d.times).toHaveLength(2 * width);
    expect(d.columns.map((c) => c.length)).toEqual([2 * width, 2 * width]);
    expect([d.times[0], d.times.at(-1)]).toEqual([times[0], times[n - 1]]);
    expect(d.times.every((t, i) => i === 0 || t > d.times[i - 1]!)).toBe(true);
    expect(new Set(d.columns[0])).toEqual(new Set([0, 9]));
  });

  test.each([0, 1, 4_999, 5_050, n - 1])("keep a spike of one sample, up or down, at %i", (at) => {
    for (const v of [500, -500]) {
      const c = wave();
      c[at] = v;
      const d = thinned(c);
      expect(d.filter((x) => x === v)).toHaveLength(1);
      expect(Math.floor(d.indexOf(v) / 2)).toBe(Math.floor((at * width) / n));
    }
  });

  test.each([1, 150, 199, 200, 4_999, 5_050])("keep a hole of one sample at %i", (at) => {
    const c = wave();
    c[at] = nothing;
    const d = thinned(c);
    const pixel = Math.floor((at * width) / n);
    // At either end of the graph there is no line on the other side of the hole.
    const want = pixel === 0 ? [] : [2 * pixel, 2 * pixel + 1];
    expect(d.flatMap((v, i) => (v === null ? [i] : []))).toEqual(want);
  });

  test("draw a spike where a hole is in the same pixel", () => {
    const c = wave();
    c[5_050] = nothing;
    c[5_051] = 500;
    expect(thinned(c)).toContain(500);
  });

  test("are dotted, not gone, where every pixel has a hole", () => {
    const c = wave().map((v, i) => (i % 7 === 3 ? nothing : v));
    const drawn = thinned(c).filter((_, i) => i % 2 === 0);
    expect(drawn.filter((v) => v !== null).length).toBeGreaterThanOrEqual(width / 2);
    expect(drawn.filter((v) => v === null).length).toBeGreaterThan(width / 5);
  });

  test("are empty where nothing is, for as long as it lasts", () => {
    const c = wave().fill(nothing, 2_000, 3_000);
    const d = thinned(c);
    expect(d.flatMap((v, i) => (v === null ? [i] : []))).toEqual(Array.from({ length: 20 }, (_, i) => 40 + i));
    expect(thinned(wave().fill(nothing)).every((v) => v === null)).toBe(true);
  });

  test("leave a sample alone where it is alone", () => {
    const c = new Float64Array(n).fill(nothing);
    c[5_050] = 7;
    expect(alone(thinned(c))).toEqual([100]);
  });

  test("are what there is where there are few", () => {
    const d = thin(Float64Array.of(1, 2, 3), [Float64Array.of(7, nothing, 9)], 800);
    expect(d).toEqual({ times: [1, 2, 3], columns: [[7, null, 9]] });
  });
});

test("a hole is never too narrow to be seen", () => {
  expect(
    widened(
      [
        [10, 11],
        [20, 20],
        [30, 50],
      ],
      2,
    ),
  ).toEqual([
    [9.5, 11.5],
    [19, 21],
    [30, 50],
  ]);
});

test("a value between two holes stands alone", () => {
  expect(alone([1, null, 2, null, 3, 4])).toEqual([0, 2]);
  expect(alone([null, null])).toEqual([]);
});

describe("the answer to a range query", () => {
  const answer = (...values: [number, string][][]) =>
    JSON.stringify({
      status: "success",
      data: { resultType: "matrix", result: values.map((v, i) => ({ metric: { i: String(i) }, values: v })), stats: { timings: { a: 1 } } },
      warnings: ["w"],
    });
  const read = (text: string) => parseMatrix(text) as { data: { result: Series[] }; warnings?: string[] };

  test("has the very numbers that JavaScript reads", () => {
    const values = ["0", "-0", "1", "-1.5", "0.1", "0.30000000000000004", "123456.789", "9007199254740993", "9007199254740992.5", "1e-7"];
    values.push(
      "1.7976931348623157e+308",
      "5e-324",
      "4.35",
      "0.000001",
      "NaN",
      "+Inf",
      "-Inf",
      "12345678901234567890",
      "0.0000000000000000000000001",
    );
    for (let i = 0; i < 2000; i++) values.push(String(Math.sin(i) * 10 ** ((i % 40) - 20)), (Math.cos(i) * 1e4).toFixed(i % 12));
    const times = values.map((_, i) => 1_700_000_000.25 + i * 0.015);
    const got = read(answer(times.map((t, i) => [t, values[i]!]))).data.result[0]!.samples!;
    expect([...got.times]).toEqual(times);
    expect([...got.values]).toEqual(
      values.map((v) => (v === "+Inf" ? Number.POSITIVE_INFINITY : v === "-Inf" ? Number.NEGATIVE_INFINITY : Number(v))),
    );
  });

  test("keeps all else", () => {
    const text = answer(
      [[1, "1"]],
      [
        [1, "2"],
        [2, "3"],
      ],
      [],
    );
    const plain = JSON.parse(text);
    const got = read(text);
    expect(got.warnings).toEqual(["w"]);
    expect(got.data.result.map((s) => [s.metric, s.samples && [...s.samples.values]])).toEqual([
      [{ i: "0" }, [1]],
      [{ i: "1" }, [2, 3]],
      [{ i: "2" }, undefined],
    ]);
    expect({ ...got.data, result: undefined }).toEqual({ ...plain.data, result: undefined });
    expect(got.data.result[2]!.values).toEqual([]);
  });

  test.each([
    '{"status":"success","data":{"result":[{"metric":{"values":"[[1,\\"2\\"]]","x":"\\"values\\":[["},"values":[[1,"2"]]}]}}',
    '{"status":"success","data":{"result":[{"metric":{},"values":[[1, "2"], [2, "3"]]}]}}',
    '{"status":"success","data":{"result":[{"metric":{},"values":[[1e3,"2"]]}]}}',
    '{"status":"success","data":{"result":[]}}',
    '{"status":"error","error":"x"}',
    '"values"',
    "null",
  ])("is drawn alike however it is written: %s", (text) => {
    const drawn = (a: unknown) => {
      const result = (a as { data?: { result: Series[] } } | null)?.data?.result ?? [];
      return { metrics: result.map((s) => s.metric), columns: align(result, 1000, 5000, 1000).columns };
    };
    expect(drawn(parseMatrix(text))).toEqual(drawn(JSON.parse(text)));
  });

  test.each(['{"values":[[1,"2"', '{"values":[[1,"2"]', '{"values":[[', '{"values":[[1,"2]]}', ""])(
    "that is cut off is an error: %s",
    (text) => {
      expect(() => parseMatrix(text)).toThrow(SyntaxError);
    },
  );
});
