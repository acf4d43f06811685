// What the cluster page makes of answers: where things are drawn, and how they are said.

import type { StatusMember } from "../../api/status";
import type { Cluster, Gap, Gaps, Interval, Member } from "../../api/types";
import type { Kind } from "../../components/Notice";
import { humanDuration } from "../../lib/duration";
import { formatCount, formatSeries, plural, zoneWords } from "../../lib/format";

export type MemberState = "alive" | "stopped" | "gone";

export function memberState(m: Member): MemberState {
  return m.alive ? "alive" : m.left ? "stopped" : "gone";
}

/** Since when members are what they are. The two answers are not from the same moment: what they disagree about is not known. */
export function sinceOf(members: Member[], told: StatusMember[]): Map<string, string | undefined> {
  const states = new Map(members.map((m) => [m.name, memberState(m)]));
  return new Map(told.filter((s) => states.get(s.name) === s.state).map((s) => [s.name, s.since]));
}

export interface Zone {
  name: string;
  members: Member[];
}

/** Zones and replicas by name, so that every replica draws the same map. */
export function zonesOf(members: Member[]): Zone[] {
  const zones = new Map<string, Member[]>();
  for (const m of [...members].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const z = zones.get(m.zone);
    if (z) z.push(m);
    else zones.set(m.zone, [m]);
  }
  return [...zones].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, ms]) => ({ name, members: ms }));
}

export interface Box {
  x: number;
  y: number;
  w: number;
  h: number;
}

export interface MapLayout {
  height: number;
  zones: (Box & { zone: Zone; trunk: number; nodes: (Box & { member: Member })[] })[];
  /** The heights at which each row of zones has its piece of the trunk, and how far that goes. */
  trunks: { y: number; x1: number; x2: number }[];
}

const gap = 16;
const drop = 40;
const zoneHead = 30;
export const nodeHeight = 78;
const nodeGap = 8;
const pad = 10;

/** Zones side by side as far as there is room, each hanging on the trunk above its row. */
export function layoutMap(zones: Zone[], width: number): MapLayout {
  const perRow = Math.max(1, Math.min(zones.length, Math.floor((width + gap) / (230 + gap))));
  const w = Math.min(340, (width - gap * (perRow - 1)) / perRow);
  const out: MapLayout = { height: 0, zones: [], trunks: [] };
  let top = 0;
  for (let i = 0; i < zones.length; i += perRow) {
    const row = zones.slice(i, i + perRow);
    const most = Math.max(...row.map((z) => z.members.length));
    const h = zoneHead + most * (nodeHeight + nodeGap) - nodeGap + pad;
    const trunk = top + 8;
    const y = top + drop;
    row.forEach((zone, j) => {
      const x = j * (w + gap);
      out.zones.push({
        zone,
        x,
        y,
        w,
        h,
        trunk,
        nodes: zone.members.map((member, k) => ({
          member,
          x: x + pad,
          y: y + zoneHead + k * (nodeHeight + nodeGap),
          w: w - 2 * pad,
          h: nodeHeight,
        })),
      });
    });
    out.trunks.push({ y: trunk, x1: w / 2, x2: (row.length - 1) * (w + gap) + w / 2 });
    top = y + h + gap;
  }
  out.height = Math.max(0, top - gap);
  return out;
}

/** The shortest way to one of a zone's living replicas, in words; "" for the zone that we are in, or that is not reached. */
export function zoneDistance(zone: Zone): string {
  if (zone.members.some((m) => m.self)) return "";
  const times = zone.members.filter((m) => m.alive && m.rtt_seconds > 0).map((m) => m.rtt_seconds);
  return times.length === 0 ? "" : humanDuration(Math.min(...times) * 1000);
}

/** "in step", or how far the clock is off ours; "" where that is not known. */
export function clockWords(m: Member): string {
  if (m.self || m.rtt_seconds === 0) return "";
  const s = m.clock_skew_seconds;
  if (Math.abs(s) < 0.001) return "clock in step";
  return `clock ${humanDuration(Math.abs(s) * 1000)} ${s > 0 ? "ahead" : "behind"}`;
}

/** The map as one sentence for who cannot see it. */
export function mapWords(cluster: Cluster): string {
  const zones = zonesOf(cluster.members);
  const alive = cluster.members.filter((m) => m.alive).length;
  const each = zones.map(
    (z) =>
      `${z.name ? zoneWords(z.name) : "no zone"}: ${z.members.map((m) => `${m.name} ${memberState(m)}${m.self ? ", this one" : ""}`).join("; ")}`,
  );
  return `${alive} of ${plural(cluster.members.length, "replica")} ${alive === 1 ? "is" : "are"} alive in ${plural(zones.length, "zone")}. ${each.join(". ")}.`;
}

export const gapKinds: Record<Gap["state"], Kind> = { open: "bad", healed: "info", lost: "quiet" };

const causes: Record<Gap["cause"], string> = {
  down: "this replica was down",
  frozen: "this replica was frozen",
  new: "the data directory was empty",
  unreachable: "this zone did not reach it",
  evaluation: "it was not evaluated",
};

export function causeWords(g: Gap): string {
  return causes[g.cause] ?? g.cause;
}

/** What is missing. */
export function gapWhat(g: Gap): string {
  if (g.kind === "replica") return "Everything";
  if (g.kind === "rules") return `Rule group ${g.labels.group ?? formatSeries(g.labels)}`;
  const { job, instance } = g.labels;
  return job && instance ? `${job} ${instance}` : formatSeries(g.labels);
}

/** What was done about it. */
export function gapWords(g: Gap, all: Gaps): string {
  const healing = all.healing?.gap === g.id ? all.healing : undefined;
  if (healing) {
    const left = healing.remaining_seconds > 0 ? `, ${humanDuration(healing.remaining_seconds * 1000)} left` : "";
    return `is being filled: ${Math.floor(100 * healing.ratio)} %, ${formatCount(Math.round(healing.samples_per_second))} samples per second${left}`;
  }
  const from = new Map<string, { samples: number; zone: string }>();
  let nobody = false;
  let part = 0; // Of stretches that nobody has whole.
  for (const f of g.fills ?? []) {
    if (f.replica === "" && f.samples === 0) nobody = true;
    else if (f.replica === "") part += f.samples;
    else from.set(f.replica, { samples: (from.get(f.replica)?.samples ?? 0) + f.samples, zone: f.zone });
  }
  const parts = [...from].map(([replica, f]) => `${plural(f.samples, "sample")} from ${replica}${f.zone ? ` in ${f.zone}` : ""}`);
  if (part > 0) parts.push(`${plural(part, "sample")} of what nobody has whole`);
  const filled = parts.length > 0 ? parts.join(", ") : "";
  if (g.state === "healed") return filled ? `healed: ${filled}` : "healed: there was nothing to have";
  if (g.state === "lost") {
    const asked = g.asked?.length ? ` (asked: ${g.asked.join(", ")})` : "";
    return `nobody has it${asked}${filled ? `, but for ${filled}` : ""}`;
  }
  if (filled) return `partly filled: ${filled}${nobody ? "; part of it nobody has" : ""}`;
  return all.problem ? `waits: ${all.problem}` : "waits to be filled; queries take it from other replicas or the bucket";
}

export interface Bar {
  gap: Gap;
  /** Beginning and end as parts of the time that is shown. */
  a: number;
  b: number;
  /** How much of it is filled, from 0 to 1. */
  filled: number;
}

export interface GapRow {
  what: string;
  kind: Gap["kind"];
  bars: Bar[];
}

export function overlaps(g: Interval, from: number, to: number): boolean {
  return g.to > from && g.from < to;
}

/** Gaps as rows of a timeline: what everything misses first, then rules, then targets. */
export function gapRows(gaps: Gap[], from: number, to: number, healing?: Gaps["healing"]): GapRow[] {
  const order = { replica: 0, rules: 1, target: 2 };
  const rows = new Map<string, GapRow>();
  const at = (ms: number) => (Math.min(Math.max(ms, from), to) - from) / (to - from);
  for (const g of gaps) {
    if (!overlaps(g, from, to)) continue;
    const what = gapWhat(g);
    const key = `${order[g.kind]} ${what}`;
    const row = rows.get(key) ?? { what, kind: g.kind, bars: [] };
    rows.set(key, row);
    row.bars.push({ gap: g, a: at(g.from), b: at(g.to), filled: healing?.gap === g.id ? healing.ratio : filledPart(g, to) });
  }
  return [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, row]) => row);
}

function filledPart(g: Gap, now: number): number {
  if (g.state === "healed") return 1;
  if (g.state === "lost" || !g.missing) return 0;
  const length = (i: Interval) => Math.max(0, Math.min(i.to, now) - i.from);
  const whole = length(g);
  return whole === 0 ? 0 : Math.max(0, 1 - g.missing.reduce((sum, i) => sum + length(i), 0) / whole);
}

/** The rows as a sentence. */
export function timelineWords(gaps: Gap[], range: string): string {
  if (gaps.length === 0) return `No gap in the last ${range}.`;
  const n = { open: 0, healed: 0, lost: 0 };
  for (const g of gaps) n[g.state]++;
  return `${plural(gaps.length, "gap")} in the last ${range}: ${n.open} open, ${n.healed} healed, ${n.lost} that nobody has. The list below has each of them.`;
}

const steps = [
  60e3,
  2 * 60e3,
  5 * 60e3,
  10 * 60e3,
  15 * 60e3,
  30 * 60e3,
  3600e3,
  2 * 3600e3,
  3 * 3600e3,
  6 * 3600e3,
  12 * 3600e3,
  86400e3,
  2 * 86400e3,
  7 * 86400e3,
  14 * 86400e3,
  28 * 86400e3,
  91 * 86400e3,
  364 * 86400e3,
];

/** Round times between two, at most so many. The offset is that of the zone that is shown, in milliseconds. */
export function timeTicks(from: number, to: number, most: number, offset = 0): number[] {
  const step = steps.find((s) => (to - from) / s <= most) ?? steps[steps.length - 1]!;
  const out: number[] = [];
  for (let t = Math.ceil((from + offset) / step) * step - offset; t <= to; t += step) out.push(t);
  return out;
}

export interface Segment extends Interval {
  state: "whole" | "not whole" | "missing";
  windows: number;
}

/** Windows of the bucket as stretches of one kind. */
export function coverage(windows: { begin: number; end: number; whole: boolean }[]): Segment[] {
  const out: Segment[] = [];
  const add = (from: number, to: number, state: Segment["state"], n: number) => {
    const last = out[out.length - 1];
    if (last && last.state === state && last.to === from) {
      last.to = to;
      last.windows += n;
    } else out.push({ from, to, state, windows: n });
  };
  for (const w of windows) {
    const last = out[out.length - 1];
    if (last && w.begin > last.to) add(last.to, w.begin, "missing", Math.round((w.begin - last.to) / (w.end - w.begin)));
    add(w.begin, w.end, w.whole ? "whole" : "not whole", 1);
  }
  return out;
}

/** Why a member does not have the configuration that is in the bucket; "" where it does, or takes none from there. */
export function lag(m: Member): string {
  if (!m.config || !m.alive) return "";
  if (m.config.state === "refused") return "refuses what is in the bucket";
  if (m.config.state === "waiting") return "waits for a configuration";
  if (m.config.seen_hash && m.config.hash !== m.config.seen_hash) return "is about to take what is in the bucket";
  return "";
}

/** Text of a drawing cut to a width in pixels, by what a letter takes on average. */
export function cutText(text: string, width: number, letter = 6.6): string {
  const most = Math.max(1, Math.floor(width / letter));
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
