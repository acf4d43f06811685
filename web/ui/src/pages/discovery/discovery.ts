import type { Targets } from "../../api/types";
import type { Labels } from "../../lib/format";

export interface Discovered {
  pool: string;
  before: Labels;
  /** Undefined where it was dropped. */
  after?: Labels;
}

/** Everything that service discovery found, pool by pool, what is scraped first. */
export function discovered(t: Targets): Discovered[] {
  const all: Discovered[] = [
    ...t.activeTargets.map((a) => ({ pool: a.scrapePool, before: a.discoveredLabels, after: a.labels })),
    ...(t.droppedTargets ?? []).map((d) => ({ pool: d.scrapePool, before: d.discoveredLabels })),
  ];
  // The server has no order within a pool: without one they would change places at each refresh.
  const by = (d: Discovered) => `${d.pool}\0${d.after ? 0 : 1}\0${d.after?.instance ?? ""}\0${d.before.__address__ ?? ""}`;
  return all
    .map((d) => ({ d, key: by(d) }))
    .sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0))
    .map(({ d }) => d);
}

export function discoveredText(d: Discovered): string {
  const pairs = (l: Labels) => Object.entries(l).map(([k, v]) => `${k}=${v}`);
  return [d.pool, ...pairs(d.before), ...(d.after ? pairs(d.after) : [])].join(" ");
}

export type Row = { pool: string; active: number; dropped: number; unkept: number } | { found: Discovered };

/** Under their pools. A pool says how many it has as a whole, and how many dropped ones are not kept (keep_dropped_targets). */
export function rowsOf(shown: Discovered[], all: Discovered[], counts: Record<string, number> = {}): Row[] {
  const pools = new Map<string, { active: number; dropped: number }>();
  for (const d of all) {
    const p = pools.get(d.pool) ?? { active: 0, dropped: 0 };
    pools.set(d.pool, p);
    if (d.after) p.active++;
    else p.dropped++;
  }
  const out: Row[] = [];
  let last: string | undefined;
  for (const found of shown) {
    if (found.pool !== last) {
      const p = pools.get(found.pool) ?? { active: 0, dropped: 0 };
      const dropped = Math.max(p.dropped, counts[found.pool] ?? 0);
      out.push({ pool: found.pool, active: p.active, dropped, unkept: dropped - p.dropped });
      last = found.pool;
    }
    out.push({ found });
  }
  return out;
}

export interface RelabelRule {
  source_labels?: string[];
  separator?: string;
  regex?: string;
  modulus?: number;
  target_label?: string;
  replacement?: string;
  action: string;
}

/** A rule in one line, as one would write it, without what is as always. */
export function ruleText(r: RelabelRule): string {
  const parts = [`action: ${r.action}`];
  if (r.source_labels?.length) parts.push(`source_labels: [${r.source_labels.join(", ")}]`);
  if (r.separator !== undefined && r.separator !== ";") parts.push(`separator: ${JSON.stringify(r.separator)}`);
  if (r.regex !== undefined && r.regex !== "(.*)") parts.push(`regex: ${JSON.stringify(r.regex)}`);
  if (r.modulus) parts.push(`modulus: ${r.modulus}`);
  if (r.target_label) parts.push(`target_label: ${r.target_label}`);
  if (r.replacement !== undefined && r.replacement !== "$1" && (r.action === "replace" || r.action === "labelmap"))
    parts.push(`replacement: ${JSON.stringify(r.replacement)}`);
  return parts.join(", ");
}

export interface Change {
  name: string;
  was?: string;
  is?: string;
}

/** What became of labels, by name. */
export function changes(before: Labels, after: Labels): Change[] {
  return [...new Set([...Object.keys(before), ...Object.keys(after)])]
    .filter((name) => before[name] !== after[name])
    .sort()
    .map((name) => ({ name, was: before[name], is: after[name] }));
}

export interface Step {
  rule: RelabelRule;
  output: Labels;
  keep: boolean;
}

/** Steps with what each one changed, up to the one that drops. */
export function stepChanges(before: Labels, steps: Step[]): { text: string; changes: Change[]; drops: boolean }[] {
  const out: { text: string; changes: Change[]; drops: boolean }[] = [];
  let labels = before;
  for (const s of steps) {
    out.push({ text: ruleText(s.rule), changes: s.keep ? changes(labels, s.output) : [], drops: !s.keep });
    if (!s.keep) break;
    labels = s.output;
  }
  return out;
}
