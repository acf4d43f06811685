// How a binary operator pairs the series of its two sides, group by group, as the engine does it.

import type { Labels } from "../../lib/format";
import type { Matching } from "./ast";
import type { Series } from "./series";

export interface MatchGroup {
  /** The labels that the series of the group have in common. */
  labels: Labels;
  left: Series[];
  right: Series[];
  result: Series[];
  /** Why the operator fails on this group. */
  error?: string;
}

const setOperators = new Set(["and", "or", "unless"]);

/** The labels by which a series finds its match. */
export function matchLabels(metric: Labels, m: Pick<Matching, "on" | "labels">): Labels {
  const named = new Set(m.labels);
  return Object.fromEntries(
    Object.entries(metric)
      .filter(([k]) => (m.on ? named.has(k) : k !== "__name__" && !named.has(k)))
      .sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}

/**
 * All groups: those with errors first, then those with results, then those where one side has no match. Without a result the
 * operator has failed.
 */
export function matchGroups(op: string, m: Matching, left: Series[], right: Series[], result?: Series[]): MatchGroup[] {
  const groups = new Map<string, MatchGroup>();
  const put = (side: "left" | "right" | "result", series: Series[]) => {
    for (const s of series) {
      const labels = matchLabels(s.metric, m);
      const key = JSON.stringify(labels);
      const g = groups.get(key) ?? { labels, left: [], right: [], result: [] };
      groups.set(key, g);
      g[side].push(s);
    }
  };
  put("left", left);
  put("right", right);
  put("result", result ?? []);
  if (!result && !setOperators.has(op)) for (const g of groups.values()) g.error = misfit(m, g);
  const rank = (g: MatchGroup) => (g.error ? 0 : g.result.length > 0 ? 1 : g.left.length > 0 && g.right.length > 0 ? 2 : 3);
  return [...groups.values()].sort((a, b) => rank(a) - rank(b));
}

/** What the engine does not take: several on the side of which one may match, whatever is on the other; without group_left, several on the left. */
function misfit(m: Matching, g: MatchGroup): string | undefined {
  const one = m.card === "one-to-many" ? "left" : "right";
  if (g[one].length > 1) {
    if (m.card !== "one-to-one") return `several on the ${one}, where one is allowed`;
    return g.left.length > 1 ? "several on both sides" : "several on the right: group_right would allow that";
  }
  return m.card === "one-to-one" && g.left.length > 1 && g.right.length > 0
    ? "several on the left: group_left would allow that"
    : undefined;
}
