// What GET /api/tocsin/v1/status answers: the sentences are the server's.

export interface Status {
  now: string;
  well: boolean;
  verdict: string;
  concerns: { text: string; page: string }[];
  replica: string;
  zone: string;
  version: string;
  started?: string;
  cluster: { name: string; members: StatusMember[] };
  targets: { up: number; down: number; unknown: number; down_targets: DownTarget[] };
  more_down_targets: number;
  alerts: StatusAlert[];
  more_alerts: number;
  silences: number;
  rules: { groups: number; rules: number; failing: number; problems: string[] };
  config: { path: string; last_reload?: string; error?: string; partial?: boolean };
  storage: {
    dir: string;
    series: number;
    samples_per_second?: number;
    retention: string;
    used_bytes: number;
    free_bytes: number;
    oldest?: string;
  };
  bucket: boolean;
  prometheus_url: string;
  alertmanager_url: string;
  addresses: { name: string; address: string }[];
}

export interface StatusMember {
  name: string;
  zone: string;
  state: "alive" | "stopped" | "gone";
  version: string;
  url?: string;
  self: boolean;
  since?: string;
  rtt_seconds: number;
  clock_skew_seconds: number;
}

export interface DownTarget {
  job: string;
  url: string;
  error: string;
  last_scrape?: string;
}

export interface StatusAlert {
  name: string;
  state: "pending" | "firing";
  severity?: string;
  labels: string;
  summary?: string;
  since?: string;
  muted?: "silenced" | "inhibited";
}
