// Reads the answer to a range query, which is large: 50 series of 11,000 points are 15 MB. Points go straight from the text into
// arrays of numbers, without an array and a string for each; all else is left to JSON.parse.

import { parseValue, type Samples, type Series } from "./series";

// Within a JSON text this is nothing else: in a string, a quotation mark has a backslash before it.
const mark = '"values":[[';

/** The same as JSON.parse, but that series have samples in place of values. */
export function parseMatrix(text: string): unknown {
  const rest: string[] = [];
  const samples: Samples[] = [];
  let from = 0;
  for (let at = text.indexOf(mark); at >= 0; at = text.indexOf(mark, from)) {
    const read = readSamples(text, at + mark.length - 1, samples.at(-1)?.times.length ?? 1024);
    // However else it is written, it is no less JSON.
    if (!read) return JSON.parse(text);
    rest.push(text.slice(from, at), `"samples":${samples.length}`);
    samples.push(read.samples);
    from = read.end;
  }
  rest.push(text.slice(from));
  const answer = JSON.parse(rest.join("")) as { data?: { result?: unknown } };
  const result = answer?.data?.result;
  if (Array.isArray(result)) {
    for (const s of result as (Omit<Series, "samples"> & { samples?: number | Samples })[])
      if (typeof s.samples === "number") s.samples = samples[s.samples]!;
  }
  return answer;
}

const [quote, comma, minus, dot, zero, nine, open, close] = [...'",-.09[]'].map((c) => c.charCodeAt(0)) as [
  number,
  number,
  number,
  number,
  number,
  number,
  number,
  number,
];
// A whole number below 2^53 divided by a power of ten up to 10^22, both of which a double holds exactly, is rounded only once.
const exact = 2 ** 53;
const powers = Array.from({ length: 23 }, (_, i) => 10 ** i);

/** Reads [t,"v"],[t,"v"],…] from its first bracket on; undefined where it is not like that. */
function readSamples(text: string, at: number, expected: number): { samples: Samples; end: number } | undefined {
  let times = new Float64Array(expected);
  let values = new Float64Array(expected);
  let n = 0;
  let i = at;
  let number = 0;
  // Reads a plain decimal into number, up to what ends it; false where it takes JavaScript's own reading.
  const decimal = (): boolean => {
    const negative = text.charCodeAt(i) === minus;
    if (negative) i++;
    let m = 0;
    let point = -1;
    let digits = 0;
    for (; ; i++) {
      const c = text.charCodeAt(i);
      if (c >= zero && c <= nine) {
        m = m * 10 + (c - zero);
        digits++;
      } else if (c === dot && point < 0) point = digits;
      else break;
    }
    const fraction = point < 0 ? 0 : digits - point;
    if (digits === 0 || m >= exact || fraction >= powers.length) return false;
    number = fraction === 0 ? m : m / powers[fraction]!;
    if (negative) number = -number;
    return true;
  };
  for (;;) {
    if (text.charCodeAt(i++) !== open) return undefined;
    if (!decimal()) return undefined;
    const t = number;
    if (text.charCodeAt(i) !== comma || text.charCodeAt(i + 1) !== quote) return undefined;
    i += 2;
    const start = i;
    if (!decimal() || text.charCodeAt(i) !== quote) {
      i = text.indexOf('"', i);
      if (i < 0) return undefined;
      number = parseValue(text.slice(start, i));
    }
    i++;
    if (text.charCodeAt(i++) !== close) return undefined;
    if (n === times.length) {
      times = grown(times);
      values = grown(values);
    }
    times[n] = t;
    values[n++] = number;
    const c = text.charCodeAt(i++);
    if (c === close) return { samples: { times: times.subarray(0, n), values: values.subarray(0, n) }, end: i };
    if (c !== comma) return undefined;
  }
}

function grown(a: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const out = new Float64Array(Math.max(16, a.length * 2));
  out.set(a);
  return out;
}
