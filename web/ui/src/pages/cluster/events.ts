// What happened in the mesh.

import type { Kind } from "../../components/Notice";

/** One of /api/tocsin/v1/mesh/events. */
export interface MeshEvent {
  time: string;
  event: string;
  level: string;
  text: string;
  member?: string;
  details?: Record<string, string>;
}

export const eventOf = (e: MeshEvent) => e.event;

export const eventText = (e: MeshEvent) =>
  [e.event, e.member, e.text, ...Object.entries(e.details ?? {}).map(([k, v]) => `${k}=${v}`)].join(" ");

const goods = new Set(["joined", "back", "ready"]);

/** How an event of a kind looks: what the log warns of is a warning, and a death is worse. */
export function eventKind({ event, level }: Pick<MeshEvent, "event" | "level">): Kind {
  if (level === "error" || event === "died") return "bad";
  if (level === "warn") return "warn";
  return goods.has(event) ? "well" : "quiet";
}

/** The kinds that there are, each as its newest event looks. */
export function eventKinds(events: readonly MeshEvent[]): { value: string; label: string; kind: Kind }[] {
  const kinds = new Map<string, Kind>();
  for (const e of events) if (!kinds.has(e.event)) kinds.set(e.event, eventKind(e));
  return [...kinds].sort(([a], [b]) => (a < b ? -1 : 1)).map(([value, kind]) => ({ value, label: value, kind }));
}
