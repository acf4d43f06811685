// What the built-in Alertmanager made of an alert.

import type { Labels } from "../../lib/format";

/** One of /alertmanager/api/v2/alerts. */
export interface ManagedAlert {
  labels: Labels;
  fingerprint: string;
  receivers: { name: string }[];
  status: { state: "active" | "suppressed" | "unprocessed"; silencedBy: string[]; inhibitedBy: string[]; mutedBy?: string[] };
}

function key(labels: Labels): string {
  return JSON.stringify(Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1)));
}

export function fateIndex(managed: ManagedAlert[]): Map<string, ManagedAlert> {
  return new Map(managed.map((m) => [key(m.labels), m]));
}

/**
 * In one sentence. External labels are added on the way to the Alertmanager, and relabelling may change others: then the alert
 * that has all of these labels and fewest more is the one.
 */
export function becameOf(labels: Labels, fates: Map<string, ManagedAlert>): string {
  let m = fates.get(key(labels));
  if (!m) {
    const wanted = Object.entries(labels);
    for (const one of fates.values()) {
      if (wanted.every(([k, v]) => one.labels[k] === v) && (!m || Object.keys(one.labels).length < Object.keys(m.labels).length)) m = one;
    }
  }
  if (!m) return "not known to the Alertmanager here";
  const { silencedBy, inhibitedBy, mutedBy = [] } = m.status;
  if (silencedBy.length > 0) return `silenced by ${silencedBy.join(", ")}`;
  if (inhibitedBy.length > 0) return `inhibited by ${inhibitedBy.length === 1 ? "another alert" : `${inhibitedBy.length} other alerts`}`;
  if (mutedBy.length > 0) return `muted by the time interval ${mutedBy.join(", ")}`;
  return `goes to ${m.receivers.map((r) => r.name).join(", ") || "nobody"}`;
}
