// Durations as Prometheus writes them: 1h30m, 5d, 250ms.

const units: [string, number][] = [
  ["y", 365 * 86_400_000],
  ["w", 7 * 86_400_000],
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1000],
  ["ms", 1],
];

const pattern = /^(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?$/;

/** Milliseconds, or null where the text is no duration. A bare number is seconds, as in the API. */
export function parseDuration(text: string): number | null {
  const t = text.trim();
  if (t === "") return null;
  if (/^\d+(\.\d+)?$/.test(t)) return Math.round(Number(t) * 1000);
  const m = pattern.exec(t);
  if (!m) return null;
  return units.reduce((sum, [, size], i) => sum + Number(m[i + 1] ?? 0) * size, 0);
}

/** The way Prometheus writes it: nothing is lost, and weeks and years only where they are whole. */
export function formatDuration(ms: number): string {
  if (ms < 0) return `-${formatDuration(-ms)}`;
  let left = Math.round(ms);
  if (left === 0) return "0s";
  let out = "";
  for (const [name, size] of units) {
    const whole = name === "y" || name === "w";
    if (whole && left % size !== 0) continue;
    const n = Math.floor(left / size);
    if (n > 0) {
      out += `${n}${name}`;
      left -= n * size;
    }
  }
  return out;
}

/** A duration for people: two units at most, rounded. */
export function humanDuration(ms: number): string {
  if (!Number.isFinite(ms)) return "unknown";
  if (ms < 0) return `-${humanDuration(-ms)}`;
  if (ms < 1) return ms === 0 ? "0s" : `${Number((ms * 1000).toPrecision(3))}µs`;
  if (ms < 1000) return `${Number(ms.toPrecision(3))}ms`;
  if (ms < 10_000) return `${Number((ms / 1000).toPrecision(3))}s`;
  const s = Math.round(ms / 1000);
  if (s < 60) return `${s}s`;
  if (s < 3600) return two(Math.floor(s / 60), "m", s % 60, "s");
  const m = Math.round(s / 60);
  if (m < 48 * 60) return two(Math.floor(m / 60), "h", m % 60, "m");
  const h = Math.round(m / 60);
  return two(Math.floor(h / 24), "d", h % 24, "h");
}

function two(a: number, ua: string, b: number, ub: string): string {
  return b === 0 ? `${a}${ua}` : `${a}${ua} ${b}${ub}`;
}
