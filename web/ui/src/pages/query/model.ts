// The panels of the query page, and how they are written in the address. The names are Prometheus's: links in old alerts
// and bookmarks go on working, and links from here work there.

import { formatDuration, parseDuration } from "../../lib/duration";
import { formatTime, parseTime } from "../../lib/time";

export type Tab = "table" | "graph" | "explain";
export type Density = "low" | "medium" | "high";
export type Resolution = { type: "auto"; density: Density } | { type: "fixed" | "custom"; step: number };

export interface PanelState {
  expr: string;
  tab: Tab;
  showTree: boolean;
  /** Milliseconds throughout. */
  range: number;
  /** null = now. */
  end: number | null;
  moment: number | null;
  resolution: Resolution;
  display: "lines" | "stacked";
  exemplars: boolean;
  /** null = what fits. */
  yMin: number | null;
  log: boolean;
  gaps: boolean;
}

export const emptyPanel: PanelState = {
  expr: "",
  tab: "table",
  showTree: false,
  range: 3_600_000,
  end: null,
  moment: null,
  resolution: { type: "auto", density: "medium" },
  display: "lines",
  exemplars: false,
  yMin: null,
  log: false,
  gaps: true,
};

const maxPanels = 100;

export function parsePanels(search: string): PanelState[] {
  const found = new Map<number, PanelState>();
  for (const [name, value] of new URLSearchParams(search)) {
    const m = /^g(\d+)\.([a-z_]+)$/.exec(name);
    if (!m || found.size > maxPanels) continue;
    const n = Number(m[1]);
    const p = found.get(n) ?? { ...emptyPanel };
    found.set(n, p);
    read(p, m[2]!, value);
  }
  const panels = [...found.entries()].sort(([a], [b]) => a - b).map(([, p]) => p);
  return panels.length > 0 ? panels : [{ ...emptyPanel }];
}

function read(p: PanelState, name: string, value: string): void {
  switch (name) {
    case "expr":
      p.expr = value;
      break;
    case "tab":
      p.tab = value === "0" || value === "graph" ? "graph" : value === "explain" ? "explain" : "table";
      break;
    case "show_tree":
      p.showTree = value === "1";
      break;
    case "range_input":
      p.range = parseDuration(value) || p.range;
      break;
    case "end_input":
      p.end = parseTime(value);
      break;
    case "moment_input":
      p.moment = parseTime(value);
      break;
    case "res_type":
      if (value === "fixed" || value === "custom")
        p.resolution = { type: value, step: p.resolution.type === "auto" ? 0 : p.resolution.step };
      break;
    case "res_density":
      if (value === "low" || value === "medium" || value === "high") p.resolution = { type: "auto", density: value };
      break;
    case "res_step":
    case "step_input": {
      const step = parseDuration(value);
      if (step) p.resolution = { type: p.resolution.type === "fixed" ? "fixed" : "custom", step };
      break;
    }
    case "display_mode":
      p.display = value === "stacked" ? "stacked" : "lines";
      break;
    case "stacked":
      p.display = value === "1" ? "stacked" : "lines";
      break;
    case "show_exemplars":
      p.exemplars = value === "1";
      break;
    case "y_axis_min":
      p.yMin = value === "" || Number.isNaN(Number(value)) ? null : Number(value);
      break;
    case "log":
      p.log = value === "1";
      break;
    case "gaps":
      p.gaps = value !== "0";
      break;
  }
}

export function formatPanels(panels: PanelState[]): string {
  const out = new URLSearchParams();
  panels.forEach((p, i) => {
    const set = (name: string, value: string) => out.set(`g${i}.${name}`, value);
    set("expr", p.expr);
    set("show_tree", p.showTree ? "1" : "0");
    set("tab", p.tab);
    if (p.end !== null) set("end_input", formatTime(p.end, true));
    if (p.moment !== null) set("moment_input", formatTime(p.moment, true));
    set("range_input", formatDuration(p.range));
    set("res_type", p.resolution.type);
    if (p.resolution.type === "auto") set("res_density", p.resolution.density);
    else set("res_step", String(p.resolution.step / 1000));
    set("display_mode", p.display);
    set("show_exemplars", p.exemplars ? "1" : "0");
    if (p.yMin !== null) set("y_axis_min", String(p.yMin));
    if (p.log) set("log", "1");
    if (!p.gaps) set("gaps", "0");
  });
  return out.toString();
}

const points: Record<Density, number> = { low: 100, medium: 250, high: 750 };

/** The API refuses more points for a series. */
const maxPoints = 11_000;

/** Milliseconds between points. */
export function stepOf(p: Pick<PanelState, "range" | "resolution">): number {
  const least = Math.ceil(p.range / maxPoints);
  if (p.resolution.type !== "auto") return Math.max(p.resolution.step, least, 1);
  const step = p.range / points[p.resolution.density];
  return Math.max(step >= 1000 ? Math.floor(step / 1000) * 1000 : 1000, least);
}

const ranges = "1s 10s 1m 5m 15m 30m 1h 2h 6h 12h 1d 2d 1w 2w 4w 8w 1y 2y".split(" ").map((d) => parseDuration(d)!);

/** The next range in the row, up or down. */
export function nextRange(range: number, up: boolean): number {
  const next = up ? ranges.find((r) => r > range) : ranges.findLast((r) => r < range);
  return next ?? range;
}
