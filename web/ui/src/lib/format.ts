// Numbers and labels as people read them.

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${formatCount(n)} ${n === 1 ? one : many}`;
}

/** A whole number with thin separators: 12 345. */
export function formatCount(n: number): string {
  if (!Number.isFinite(n)) return "unknown";
  return Math.abs(n) < 10_000 ? String(n) : String(n).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

const binary = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function formatBytes(n: number): string {
  if (!Number.isFinite(n)) return "unknown";
  let i = 0;
  let f = n;
  while (Math.abs(f) >= 1024 && i < binary.length - 1) {
    f /= 1024;
    i++;
  }
  return i === 0 ? `${n} B` : `${f.toFixed(1)} ${binary[i]}`;
}

const prefixes: [number, string][] = [
  [1e24, "Y"],
  [1e21, "Z"],
  [1e18, "E"],
  [1e15, "P"],
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];

/** Short, for axes: 1.5k, 20M, 3.2e-7. */
export function formatShort(v: number): string {
  if (v === 0) return "0";
  const a = Math.abs(v);
  if (!Number.isFinite(v) || a >= 1e27) return String(v);
  for (const [size, name] of prefixes) {
    if (a >= size) return `${trim(v / size)}${name}`;
  }
  return a < 1e-3 ? v.toExponential(2).replace(/\.?0+e/, "e") : trim(v);
}

function trim(v: number): string {
  return String(Number(v.toPrecision(4)));
}

export function formatPercent(ratio: number): string {
  const p = ratio * 100;
  // Never 100 % where something is missing.
  return `${p >= 99.95 && p < 100 ? "99.9" : Number(p.toFixed(1))} %`;
}

export type Labels = Record<string, string>;

const bareName = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/;

function quote(s: string): string {
  return `"${s.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")}"`;
}

export function quoteLabelName(name: string): string {
  return bareName.test(name) && !name.includes(":") ? name : quote(name);
}

/** name{a="b"}, a PromQL selector that selects exactly what it shows. */
export function formatSeries(labels: Labels): string {
  const { __name__: name = "", ...rest } = labels;
  const bare = name === "" || bareName.test(name);
  const pairs = Object.entries(rest).map(([k, v]) => `${quoteLabelName(k)}=${quote(v)}`);
  if (!bare) pairs.unshift(quote(name));
  if (pairs.length === 0) return name === "" ? "{}" : name;
  return `${bare ? name : ""}{${pairs.join(", ")}}`;
}

export { quote as quoteString };

/** A value of the API's, with as many digits as are read. */
export function formatValue(text: string): string {
  const v = Number(text);
  return Number.isFinite(v) ? String(Number(v.toPrecision(6))) : text;
}

/** "zone a", without saying it twice. */
export function zoneWords(name: string): string {
  return /^zone\b/i.test(name) ? name : `zone ${name}`;
}

/** A message of the server's as a sentence among others. */
export function sentence(message: string): string {
  if (message === "") return "";
  return `${message.charAt(0).toUpperCase()}${message.slice(1)}${/[.!?]$/.test(message) ? "" : "."}`;
}
