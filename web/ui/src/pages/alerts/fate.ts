// What the built-in Alertmanager made of an alert.

import type { ManagedAlert } from "../../api/alertmanager";
import type { PrometheusAlert } from "../../api/types";
import type { Labels } from "../../lib/format";

function key(labels: Labels): string {
  return JSON.stringify(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** What the Alertmanager has, to be looked up by the labels that it had before it came there. */
export interface FateIndex {
  whole: Map<string, ManagedAlert>;
  /** By each label with its value. */
  having: Map<string, ManagedAlert[]>;
}

export function fateIndex(managed: ManagedAlert[]): FateIndex {
  const whole = new Map(managed.map((m) => [key(m.labels), m]));
  const having = new Map<string, ManagedAlert[]>();
  for (const m of whole.values()) {
    for (const [k, v] of Object.entries(m.labels)) {
      const pair = `${k}=${v}`;
      const list = having.get(pair);
      if (list) list.push(m);
      else having.set(pair, [m]);
    }
  }
  return { whole, having };
}

/**
 * The alert of the Alertmanager that one of the rules' became. External labels are added on the way there, and relabelling may
 * change others: then the alert that has all of these labels and fewest more is the one.
 */
export function managedOf(labels: Labels, fates: FateIndex): ManagedAlert | undefined {
  let m = fates.whole.get(key(labels));
  if (m) return m;
  // With thousands of alerts of one rule, only the rarest of the labels leads to few.
  const wanted = Object.entries(labels);
  let few: ManagedAlert[] = wanted.length === 0 ? [...fates.whole.values()] : [];
  for (const [i, [k, v]] of wanted.entries()) {
    const list = fates.having.get(`${k}=${v}`) ?? [];
    if (i === 0 || list.length < few.length) few = list;
  }
  for (const one of few) {
    if (wanted.every(([k, v]) => one.labels[k] === v) && (!m || Object.keys(one.labels).length < Object.keys(m.labels).length)) m = one;
  }
  return m;
}

/** What became of it, in one sentence; silences are for the page to link. */
export function becameOf(m: ManagedAlert | undefined, byFingerprint: (f: string) => ManagedAlert | undefined = () => undefined): string {
  if (!m) return "not known to the Alertmanager here";
  const { silencedBy, inhibitedBy, mutedBy = [] } = m.status;
  if (silencedBy.length > 0) return `silenced by ${silencedBy.join(", ")}`;
  if (inhibitedBy.length > 0) {
    const names = new Set(inhibitedBy.map((f) => byFingerprint(f)?.labels.alertname));
    if (!names.has(undefined)) return `inhibited by ${[...names].join(", ")}`;
    return `inhibited by ${inhibitedBy.length === 1 ? "another alert" : `${inhibitedBy.length} other alerts`}`;
  }
  if (mutedBy.length > 0) return `muted by the time interval ${mutedBy.join(", ")}`;
  return `goes to ${m.receivers.map((r) => r.name).join(", ") || "nobody"}`;
}

/** One of /alertmanager/api/v2/alerts/groups: what one receiver is told of together. */
export interface Group {
  labels: Labels;
  receiver: { name: string };
  alerts: { fingerprint: string }[];
}

/** With how many others each alert is notified of, by receiver: "team: with 2 others by job=a". */
export function groupIndex(groups: Group[]): Map<string, string[]> {
  const out = new Map<string, string[]>();
  for (const g of groups) {
    const by = Object.entries(g.labels).map(([k, v]) => `${k}=${v}`);
    const n = g.alerts.length - 1;
    const text = `${g.receiver.name}: ${n === 0 ? "alone" : `with ${n} other${n === 1 ? "" : "s"}`}${by.length > 0 ? ` by ${by.join(", ")}` : ""}`;
    for (const a of g.alerts) out.set(a.fingerprint, [...(out.get(a.fingerprint) ?? []), text]);
  }
  return out;
}

/** Alerts that no rule here made: others posted them. */
export function foreign(managed: ManagedAlert[], ours: PrometheusAlert[], fates: FateIndex): ManagedAlert[] {
  const known = new Set(ours.map((a) => managedOf(a.labels, fates)?.fingerprint));
  return managed.filter((m) => !known.has(m.fingerprint));
}

/** The labels by which to silence it: those that came through to the Alertmanager, and none that tell replicas apart. */
export function silenceable(labels: Labels, m: ManagedAlert | undefined): Labels {
  const kept = m ? Object.entries(labels).filter(([k, v]) => m.labels[k] === v) : [];
  return kept.length > 0 ? Object.fromEntries(kept) : labels;
}

/** Of what an annotation says only addresses of the web are links. */
export function linkOf(text: string): string | undefined {
  return /^https?:\/\/\S+$/i.test(text.trim()) ? text.trim() : undefined;
}
