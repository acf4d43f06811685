// What silences are made of: matchers as text, the form's draft, and what the API takes.

import type { Matcher, Silence } from "../../api/alertmanager";
import { formatDuration } from "../../lib/duration";
import { type Labels, quoteLabelName, quoteString } from "../../lib/format";

export const operators = ["=", "!=", "=~", "!~"] as const;
export type Operator = (typeof operators)[number];

export function operatorOf(m: Matcher): Operator {
  return `${m.isEqual === false ? "!" : "="}${m.isRegex ? "~" : m.isEqual === false ? "=" : ""}` as Operator;
}

export function withOperator(m: Matcher, op: Operator): Matcher {
  return { ...m, isEqual: op.startsWith("="), isRegex: op.endsWith("~") };
}

export function formatMatcher(m: Matcher): string {
  return `${quoteLabelName(m.name)}${operatorOf(m)}${quoteString(m.value)}`;
}

export function formatMatchers(matchers: Matcher[]): string {
  return `{${matchers.map(formatMatcher).join(", ")}}`;
}

const one = /^\s*("(?:[^"\\]|\\.)*"|[^\s"=!~{},]+)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*"|[^\s",{}]*)\s*(?:,|$)/;

/** {a="b", c=~"d.*"}, with braces or without, values quoted or bare; null where the text is something else. */
export function parseMatchers(text: string): Matcher[] | null {
  let rest = text.trim();
  if (rest.startsWith("{") !== rest.endsWith("}")) return null;
  if (rest.startsWith("{")) rest = rest.slice(1, -1).trim();
  const out: Matcher[] = [];
  while (rest !== "") {
    const m = one.exec(rest);
    if (!m) return null;
    out.push(withOperator({ name: bare(m[1]!), value: bare(m[3]!), isRegex: false, isEqual: true }, m[2] as Operator));
    rest = rest.slice(m[0].length);
  }
  return out;
}

function bare(s: string): string {
  return s.startsWith('"') ? s.slice(1, -1).replace(/\\(.)/gs, (_, c: string) => (c === "n" ? "\n" : c)) : s;
}

export function matchersOf(labels: Labels): Matcher[] {
  return Object.entries(labels)
    .sort(([a], [b]) => Number(b === "alertname") - Number(a === "alertname") || (a < b ? -1 : 1))
    .map(([name, value]) => ({ name, value, isRegex: false, isEqual: true }));
}

/** The address of the form, filled in for an alert. */
export function silenceHref(labels: Labels): string {
  return `/silences?${new URLSearchParams({ new: formatMatchers(matchersOf(labels)) })}`;
}

/** The form. The end is a moment, or else a duration from the start, or from now where the start is over. */
export interface Draft {
  id?: string;
  matchers: Matcher[];
  startsAt: number | null; // null = now, NaN = is not readable
  endsAt: number | null; // null = after the duration
  duration: number | null; // null = is not readable
  createdBy: string;
  comment: string;
}

const usual = 2 * 3_600_000;
const short = 5 * 60_000;

export const emptyMatcher: Matcher = { name: "", value: "", isRegex: false, isEqual: true };

export function newDraft(matchers: Matcher[], createdBy: string): Draft {
  const alert = matchers.find((m) => m.name === "alertname" && operatorOf(m) === "=")?.value;
  return {
    matchers: matchers.length > 0 ? matchers : [emptyMatcher],
    startsAt: null,
    endsAt: null,
    duration: usual,
    createdBy,
    // It can be saved as it is: at night nobody wants to think of a text.
    comment: alert ? `Silenced from the alert ${alert}` : "",
  };
}

/**
 * To change a silence; or, of one that is over, to make one like it that begins now and lasts as long. Expiring moves the end:
 * how long one that was expired soon after its start was meant to last is not known.
 */
export function draftOf(s: Silence, createdBy: string): Draft {
  const [from, to] = [Date.parse(s.startsAt), Date.parse(s.endsAt)];
  const base = { matchers: s.matchers, comment: s.comment };
  if (s.status.state === "expired")
    return { ...base, createdBy: createdBy || s.createdBy, startsAt: null, endsAt: null, duration: to - from < short ? usual : to - from };
  return { ...base, id: s.id, createdBy: s.createdBy, startsAt: from, endsAt: to, duration: to - from };
}

export function endOf(d: Draft, now: number): number | null {
  if (d.endsAt !== null) return d.endsAt;
  return d.duration === null ? null : Math.max(d.startsAt ?? now, now) + d.duration;
}

/** How long from now, or from the start, as the field shows it. */
export function durationText(d: Draft, now: number): string {
  if (d.endsAt === null) return d.duration === null ? "" : formatDuration(d.duration);
  const ms = d.endsAt - Math.max(d.startsAt ?? now, now);
  return Number.isNaN(ms) ? "" : formatDuration(Math.round(ms / 60_000) * 60_000);
}

/** What is missing, in a sentence; the rest is for the server to say. */
export function problemOf(d: Draft, now: number): string {
  const named = d.matchers.filter((m) => m.name.trim() !== "");
  if (named.length === 0) return "Name at least one label.";
  if (named.length < d.matchers.length) return "A matcher has no label name.";
  if (Number.isNaN(d.startsAt) || Number.isNaN(d.endsAt)) return "Write times as 2026-01-31 14:05.";
  const end = endOf(d, now);
  if (end === null) return "Write the duration as 30m, 4h or 1d12h.";
  if (end <= now) return "The end is over already.";
  if (end <= (d.startsAt ?? now)) return "The end is before the start.";
  if (d.createdBy.trim() === "") return "Say who you are.";
  if (d.comment.trim() === "") return "Say why, in the comment.";
  return "";
}

/** What the API takes. */
export function postable(d: Draft, now: number) {
  return {
    ...(d.id ? { id: d.id } : {}),
    matchers: d.matchers.map((m) => ({ ...m, name: m.name.trim() })),
    startsAt: new Date(d.startsAt ?? now).toISOString(),
    endsAt: new Date(endOf(d, now) ?? now).toISOString(),
    createdBy: d.createdBy.trim(),
    comment: d.comment.trim(),
  };
}

export function silenceText(s: Silence): string {
  return [s.id, s.createdBy, s.comment, ...s.matchers.map(formatMatcher), ...s.matchers.map((m) => `${m.name}=${m.value}`)].join(" ");
}

const order = { active: 0, pending: 1, expired: 2 };

/** What is in force first, then by what ends next; of what is over the latest first. */
export function sortSilences(all: Silence[]): Silence[] {
  return [...all].sort((a, b) => {
    const [x, y] = [a.status.state, b.status.state];
    const end = Date.parse(a.endsAt) - Date.parse(b.endsAt);
    return order[x] - order[y] || (x === "expired" ? -end : end);
  });
}

/** Where an address of Alertmanager's own UI leads here: #/silences/ID, #/silences/new?filter=…, #/alerts?filter=…; "" = nowhere else. */
export function oldLink(hash: string): string {
  const m = /^#!?\/(silences|alerts)(?:\/([^/?]+))?(?:\/(edit))?\/?(?:\?(.*))?$/.exec(hash);
  if (!m) return "";
  const [, page, id, edit, query] = m;
  const filter = new URLSearchParams(query ?? "").get("filter") ?? "";
  const to = (path: string, params: Record<string, string>) => {
    const p = new URLSearchParams(params).toString();
    return p ? `${path}?${p}` : path;
  };
  // The search here is by words.
  const search = (parseMatchers(filter) ?? []).map((f) => (f.isRegex || !f.isEqual ? f.name : `${f.name}=${f.value}`)).join(" ");
  if (page === "alerts") return to("/alerts", search ? { search } : {});
  if (id === "new") return to("/silences", { new: filter || "{}" });
  if (id) return to("/silences", { [edit ? "edit" : "id"]: id });
  return to("/silences", search ? { search } : {});
}
