// Answers of Alertmanager's API v2.

import type { Labels } from "../lib/format";

export interface Matcher {
  name: string;
  value: string;
  isRegex: boolean;
  isEqual: boolean;
}

/** One of /alertmanager/api/v2/silences. */
export interface Silence {
  id: string;
  status: { state: "active" | "pending" | "expired" };
  updatedAt: string;
  startsAt: string;
  endsAt: string;
  createdBy: string;
  comment: string;
  matchers: Matcher[];
}

/** One of /alertmanager/api/v2/alerts. */
export interface ManagedAlert {
  labels: Labels;
  annotations?: Labels;
  startsAt?: string;
  fingerprint: string;
  generatorURL?: string;
  receivers: { name: string }[];
  status: { state: "active" | "suppressed" | "unprocessed"; silencedBy: string[]; inhibitedBy: string[]; mutedBy?: string[] };
}
