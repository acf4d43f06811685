// What receivers were told of an alert: when, by which replica, and why not yet.

import type { ManagedAlert } from "../../api/alertmanager";
import { humanDuration } from "../../lib/duration";

/** One of /api/tocsin/v1/notifications: what one integration of a receiver was told last of one alert group. */
export interface Notification {
  group_key: string;
  receiver: string;
  integration: string;
  index: number;
  sent_at?: string;
  sent_by?: string;
  /** Fingerprints of the alerts that were in it, and of those that it was not told of as firing yet. */
  firing: string[];
  resolved: string[];
  waiting: string[];
  muted_by: string[];
  group_wait_seconds: number;
  group_interval_seconds: number;
  failure?: { error: string; since: string; tries: number };
}

export interface Notifications {
  notifications: Notification[];
  left_out: number;
  /** Alerts that only the rules of other replicas have firing: whose, by fingerprint. */
  elsewhere: Record<string, string[]>;
}

/** The notifications of which an alert is, by its fingerprint. */
export function sentIndex(all: Notifications | undefined): Map<string, Notification[]> {
  const out = new Map<string, Notification[]>();
  for (const n of all?.notifications ?? []) {
    for (const f of new Set([...n.firing, ...n.resolved, ...n.waiting])) out.set(f, [...(out.get(f) ?? []), n]);
  }
  return out;
}

/** The receiver as people know it: two integrations of one kind are told apart. */
export function receiverOf(n: Notification, among: Notification[]): string {
  const alike = among.some((o) => o !== n && o.receiver === n.receiver && o.integration === n.integration);
  return `${n.receiver} (${n.integration}${alike ? ` ${n.index + 1}` : ""})`;
}

/** What one receiver knows of an alert, as said before and after the time. */
export interface Told {
  what: string;
  at?: string;
  next?: string;
}

/** In which words what a receiver was told is said; undefined where there is nothing to say. */
export function toldOf(n: Notification, among: Notification[], m: ManagedAlert): Told | undefined {
  const to = receiverOf(n, among);
  const by = n.sent_by ? `by replica ${n.sent_by}` : "by a replica that does not say its name";
  if (n.firing.includes(m.fingerprint)) return { what: `Sent to ${to}`, at: n.sent_at, next: by };
  const again = n.resolved.includes(m.fingerprint);
  const before = again ? { what: `${to} was told that it is resolved`, at: n.sent_at } : { what: `Not sent to ${to} yet` };
  const waits = waitOf(n, m);
  if (!again && !waits) return undefined;
  return { ...before, next: [again && by, waits].filter(Boolean).join("; ") };
}

/** What it waits for. Silences and inhibition are told of the alert as a whole. */
function waitOf(n: Notification, m: ManagedAlert): string {
  if (!n.waiting.includes(m.fingerprint)) return "";
  if (n.muted_by.length > 0) return `muted by the time interval ${n.muted_by.join(", ")}`;
  if (n.failure) return "";
  return n.sent_at
    ? `it waits for group_interval, ${humanDuration(n.group_interval_seconds * 1000)}`
    : `it waits for group_wait, ${humanDuration(n.group_wait_seconds * 1000)}`;
}
