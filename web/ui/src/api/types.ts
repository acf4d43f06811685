// Answers that several pages use. What one page alone uses is beside it.

import type { Labels } from "../lib/format";

/** What the server writes into the page. */
export interface Boot {
  nonce?: string;
  version?: { version: string; buildUser: string; revision: string };
}

let boot: Boot | undefined;

export function bootSettings(): Boot {
  if (!boot) {
    try {
      boot = JSON.parse(document.getElementById("settings")?.textContent ?? "{}") as Boot;
    } catch {
      boot = {};
    }
  }
  return boot;
}

/** /api/tocsin/v1/cluster */
export interface Cluster {
  name: string;
  members: Member[];
}

export interface Member {
  name: string;
  zone: string;
  address: string;
  http_address: string;
  grpc_address: string;
  version: string;
  started?: string;
  completeness: number;
  alive: boolean;
  left: boolean;
  self: boolean;
  rtt_seconds: number;
  clock_skew_seconds: number;
  last_contact?: string;
  config?: { hash: string; seen_hash: string; state: string };
}

/** Milliseconds. */
export interface Interval {
  from: number;
  to: number;
}

export interface Fill extends Interval {
  replica: string;
  zone: string;
  series: number;
  samples: number;
  targets?: number;
  at: string;
}

/** Its end is beyond every date while it lasts. */
export interface Gap extends Interval {
  id: string;
  kind: "replica" | "target" | "rules";
  labels: Labels;
  match: Labels;
  cause: "down" | "frozen" | "new" | "unreachable" | "evaluation";
  state: "open" | "healed" | "lost";
  missing?: Interval[];
  found: string;
  closed?: string;
  fills?: Fill[];
  asked?: string[];
}

/** /api/tocsin/v1/gaps */
export interface Gaps {
  complete: boolean;
  completeness: number;
  healing?: {
    gap: string;
    kind: string;
    since: string;
    ratio: number;
    series: number;
    samples: number;
    samples_per_second: number;
    remaining_seconds: number;
  };
  problem?: string;
  gaps: Gap[];
}

/** /api/v1/alerts */
export interface PrometheusAlert {
  labels: Labels;
  annotations: Labels;
  state: "pending" | "firing" | "inactive";
  activeAt?: string;
  keepFiringSince?: string;
  value: string;
}

export interface RuleGroups {
  groups: RuleGroup[];
}

export interface RuleGroup {
  name: string;
  file: string;
  interval: number;
  limit?: number;
  evaluationTime: number;
  lastEvaluation: string;
  rules: Rule[];
}

export interface Rule {
  type: "alerting" | "recording";
  name: string;
  query: string;
  duration?: number;
  keepFiringFor?: number;
  labels?: Labels;
  annotations?: Labels;
  alerts?: PrometheusAlert[];
  health: "ok" | "err" | "unknown";
  lastError?: string;
  evaluationTime: number;
  lastEvaluation: string;
  state?: "inactive" | "pending" | "firing" | "unknown";
}

export interface Targets {
  activeTargets: Target[];
  droppedTargets?: { discoveredLabels: Labels; scrapePool: string }[];
  droppedTargetCounts?: Record<string, number>;
}

export interface Target {
  discoveredLabels: Labels;
  labels: Labels;
  scrapePool: string;
  scrapeUrl: string;
  globalUrl: string;
  lastError: string;
  lastScrape: string;
  lastScrapeDuration: number;
  health: "up" | "down" | "unknown";
  scrapeInterval: string;
  scrapeTimeout: string;
}
