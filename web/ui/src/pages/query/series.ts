// From the API's answer to what the graph draws.

import type { Gap } from "../../api/types";
import type { Labels } from "../../lib/format";

export type Sample = [number, string];
export interface Histogram {
  count: string;
  sum: string;
  buckets?: [number, string, string, string][];
}
/** Points in the order of time: seconds, and what was there. */
export interface Samples {
  times: Float64Array;
  values: Float64Array;
}
export interface Series {
  metric: Labels;
  values?: Sample[];
  /** In place of values where a range was asked for. */
  samples?: Samples;
  histograms?: [number, Histogram][];
  value?: Sample;
  histogram?: [number, Histogram];
}

export function parseValue(v: string): number {
  return v === "+Inf" ? Number.POSITIVE_INFINITY : v === "-Inf" ? Number.NEGATIVE_INFINITY : Number(v);
}

/** NaN is nothing. */
export type Column = Float64Array;

/** One time axis in seconds, and a column for each series, with NaN where there is nothing to draw. */
export function align(series: Series[], start: number, end: number, step: number): { times: Float64Array; columns: Column[] } {
  const n = Math.floor((end - start) / step + 1e-6) + 1;
  const times = Float64Array.from({ length: n }, (_, i) => (start + i * step) / 1000);
  const columns = series.map((s) => {
    const column = new Float64Array(n).fill(Number.NaN);
    const put = (t: number, v: number) => {
      const i = Math.round((t * 1000 - start) / step);
      if (i >= 0 && i < n && Number.isFinite(v)) column[i] = v;
    };
    if (s.samples) for (let i = 0; i < s.samples.times.length; i++) put(s.samples.times[i]!, s.samples.values[i]!);
    for (const [t, v] of s.values ?? []) put(t, parseValue(v));
    // Of a native histogram, the graph shows what its name would count.
    for (const [t, h] of s.histograms ?? []) put(t, parseValue(h.count));
    return column;
  });
  return { times, columns };
}

/** Each column on top of those before it that are shown. Positive and negative values go their own way. */
export function stack(columns: Column[], shown: (i: number) => boolean): Column[] {
  const n = columns[0]?.length ?? 0;
  const up = new Float64Array(n);
  const down = new Float64Array(n);
  return columns.map((c, s) => {
    if (!shown(s)) return c;
    return c.map((v, i) => {
      if (Number.isNaN(v)) return v;
      const sums = v < 0 ? down : up;
      sums[i]! += v;
      return sums[i]!;
    });
  });
}

export interface Stretch {
  from: number;
  to: number;
  state: Gap["state"];
  text: string;
}

/** Often a part of it came together. */
export const lost = "nobody has all of it";

/** Stretches of a graph in which this replica had a gap: what is still missing, what came from elsewhere, what nobody has. */
export function stretches(gaps: Gap[], series: Labels[], start: number, end: number, now: number): Stretch[] {
  const out: Stretch[] = [];
  for (const g of gaps) {
    if (g.kind === "rules" || !concerns(g, series)) continue;
    // Before the first data of all there is nothing to be missed.
    if (g.cause === "new" && g.state === "lost") continue;
    const whose = g.kind === "target" ? ` of ${Object.values(g.labels).join(" ")}` : "";
    const add = (from: number, to: number, state: Gap["state"], text: string) => {
      const a = Math.max(from, start);
      const b = Math.min(to, end, now);
      if (a < b) out.push({ from: a, to: b, state, text: text + whose });
    };
    const begun = g.cause === "new" ? Math.min(...(g.fills ?? []).filter((f) => f.samples > 0).map((f) => f.from)) : 0;
    for (const f of g.fills ?? []) {
      if (f.to <= begun) continue;
      if (f.replica === "") add(f.from, f.to, "lost", lost);
      else add(f.from, f.to, "healed", f.replica === "bucket" ? "healed from the bucket" : `healed from ${f.replica}`);
    }
    if (g.state === "open") for (const m of g.missing ?? [g]) add(m.from, m.to, "open", "still missing here");
    else if (!g.fills?.length) add(g.from, g.to, g.state, g.state === "lost" ? lost : "healed");
  }
  return out;
}

function concerns(g: Gap, series: Labels[]): boolean {
  if (g.kind === "replica") return true;
  const match = Object.entries(g.match ?? {});
  return series.some((s) => match.some(([k, v]) => s[k] === v) && match.every(([k, v]) => s[k] === undefined || s[k] === v));
}

/** What somebody who does not see the graph is told. */
export function summarize(names: string[], columns: Column[], format: (v: number) => string): string {
  if (columns.length === 0) return "No series.";
  const parts = columns.slice(0, 5).map((c, i) => {
    let min = Number.POSITIVE_INFINITY;
    let max = Number.NEGATIVE_INFINITY;
    let last: number | null = null;
    for (const v of c) {
      if (Number.isNaN(v)) continue;
      if (v < min) min = v;
      if (v > max) max = v;
      last = v;
    }
    return last === null ? `${names[i]}: nothing to draw` : `${names[i]}: from ${format(min)} to ${format(max)}, last ${format(last)}`;
  });
  const more = columns.length > 5 ? ` And ${columns.length - 5} more.` : "";
  return `${columns.length === 1 ? "One series" : `${columns.length} series`}. ${parts.join("; ")}.${more}`;
}
