// Fewer points than there are samples, and the same picture: where several fall into one column of pixels, the lowest and the
// highest of them are drawn.

import type { Column } from "./series";

/** What uPlot takes: null is a hole. */
export interface Drawn {
  times: number[];
  columns: (number | null)[][];
}

/**
 * Width is in pixels of the page. A hole of one sample would be narrower than a pixel and so not be seen: then the column of pixels
 * stays empty, unless it has a peak that is nowhere else, or one of the three before it stayed empty already.
 */
export function thin(times: Float64Array, columns: Column[], width: number): Drawn {
  const n = times.length;
  const pixels = Math.max(1, Math.floor(width));
  if (n <= 3 * pixels) return { times: Array.from(times), columns: columns.map((c) => Array.from(c, (v) => (Number.isNaN(v) ? null : v))) };
  const starts = Int32Array.from({ length: pixels + 1 }, (_, p) => Math.floor((p * n) / pixels));
  const at = new Array<number>(2 * pixels);
  for (let p = 0; p < pixels; p++) {
    const a = times[starts[p]!]!;
    const b = times[starts[p + 1]! - 1]!;
    at[2 * p] = a + (b - a) / 4;
    at[2 * p + 1] = b - (b - a) / 4;
  }
  // The ends of the axis stay where they are.
  at[0] = times[0]!;
  at[at.length - 1] = times[n - 1]!;
  const low = new Float64Array(pixels);
  const high = new Float64Array(pixels);
  const falls = new Uint8Array(pixels); // the highest comes before the lowest
  const holes = new Uint8Array(pixels);
  return {
    times: at,
    columns: columns.map((c) => {
      for (let p = 0; p < pixels; p++) {
        let min = Number.POSITIVE_INFINITY;
        let max = Number.NEGATIVE_INFINITY;
        let minAt = 0;
        let maxAt = 0;
        let hole = 0;
        for (let i = starts[p]!, end = starts[p + 1]!; i < end; i++) {
          const v = c[i]!;
          if (v < min) {
            min = v;
            minAt = i;
          }
          if (v > max) {
            max = v;
            maxAt = i;
          }
          if (Number.isNaN(v)) hole = 1;
        }
        low[p] = min;
        high[p] = max;
        falls[p] = maxAt < minAt ? 1 : 0;
        holes[p] = hole;
      }
      const out = new Array<number | null>(2 * pixels);
      let left = Number.NEGATIVE_INFINITY; // the last one that stayed empty for a hole
      for (let p = 0; p < pixels; p++) {
        const empty = low[p]! > high[p]!;
        if (!empty && p - left > 3 && holes[p] === 1 && within(low, high, p)) left = p;
        const nothing = empty || left === p;
        out[2 * p] = nothing ? null : falls[p] ? high[p]! : low[p]!;
        // A line from a value to itself cannot be seen where no other joins it.
        const dot = low[p] === high[p] && !(low[p - 1]! <= high[p - 1]!) && !(low[p + 1]! <= high[p + 1]!);
        out[2 * p + 1] = nothing || dot ? null : falls[p] ? low[p]! : high[p]!;
      }
      return out;
    }),
  };
}

/** Whether both neighbours are there, and together reach as low and as high. */
function within(low: Float64Array, high: Float64Array, p: number): boolean {
  if (p === 0 || p === low.length - 1) return false;
  if (low[p - 1]! > high[p - 1]! || low[p + 1]! > high[p + 1]!) return false;
  return low[p]! >= Math.min(low[p - 1]!, low[p + 1]!) && high[p]! <= Math.max(high[p - 1]!, high[p + 1]!);
}

/** Values that have a hole on both sides: no line leads to them. */
export function alone(c: ArrayLike<number | null | undefined>): number[] {
  const out: number[] = [];
  for (let i = 0; i < c.length; i++) if (c[i] != null && c[i - 1] == null && c[i + 1] == null) out.push(i);
  return out;
}

/** Holes that are wide enough to be seen, in pixels of the canvas. */
export function widened(gaps: [number, number][], least: number): [number, number][] {
  return gaps.map(([a, b]) => (b - a < least ? [(a + b - least) / 2, (a + b + least) / 2] : [a, b]));
}
