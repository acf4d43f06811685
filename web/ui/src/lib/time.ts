// Times as people read them, in their own zone or in UTC. Milliseconds since 1970 throughout.

import { humanDuration } from "./duration";

export type Instant = number | string | Date;

/** Milliseconds, or null for what is no time. Go's zero time is none. */
export function toMs(t: Instant | null | undefined): number | null {
  if (t === null || t === undefined || t === "") return null;
  const ms = typeof t === "number" ? t : new Date(t).getTime();
  return Number.isNaN(ms) || ms <= -62_135_596_800_000 ? null : ms;
}

function pad(n: number, width = 2): string {
  return String(n).padStart(width, "0");
}

/** 2026-01-31 14:05:09; with milliseconds where there are any and they are asked for. */
export function formatTime(ms: number, utc: boolean, millis = false): string {
  const d = new Date(ms);
  const date = utc ? [d.getUTCFullYear(), d.getUTCMonth() + 1, d.getUTCDate()] : [d.getFullYear(), d.getMonth() + 1, d.getDate()];
  const time = utc ? [d.getUTCHours(), d.getUTCMinutes(), d.getUTCSeconds()] : [d.getHours(), d.getMinutes(), d.getSeconds()];
  const fraction = millis ? `.${pad(((ms % 1000) + 1000) % 1000, 3)}` : "";
  return `${date.map((n) => pad(n)).join("-")} ${time.map((n) => pad(n)).join(":")}${fraction}`;
}

/** The zone's short name: UTC, CET, GMT+2. */
export function zoneName(utc: boolean, ms: number = Date.now()): string {
  if (utc) return "UTC";
  // Making one takes longer than all else of a time.
  zoneFormat ??= new Intl.DateTimeFormat(undefined, { timeZoneName: "short" });
  return zoneFormat.formatToParts(ms).find((p) => p.type === "timeZoneName")?.value ?? "local";
}
let zoneFormat: Intl.DateTimeFormat | undefined;

/** "3m 20s ago", "in 2h". */
export function relativeTime(ms: number, now: number): string {
  const d = now - ms;
  if (Math.abs(d) < 1000) return "just now";
  return d > 0 ? `${humanDuration(Math.max(1000, Math.floor(d / 1000) * 1000))} ago` : `in ${humanDuration(-d)}`;
}

/** What the URL and people write: 2026-01-31 14:05, with or without seconds, T, Z or an offset. UTC unless it says so. */
export function parseTime(text: string, utc = true): number | null {
  const t = text.trim();
  if (t === "") return null;
  if (/^\d{9,11}(\.\d+)?$/.test(t)) return Math.round(Number(t) * 1000);
  const m = /^(\d{4}-\d{2}-\d{2})(?:[ T](\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?))?(Z|[+-]\d{2}:?\d{2})?$/.exec(t);
  if (!m) return null;
  const [, day, time = "00:00", zone] = m;
  const ms = new Date(
    `${day}T${time.padStart(time.indexOf(":") === 1 ? time.length + 1 : time.length, "0")}${zone ?? (utc ? "Z" : "")}`,
  ).getTime();
  return Number.isNaN(ms) ? null : ms;
}
