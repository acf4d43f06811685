import type { Target, Targets } from "../../api/types";
import type { Kind } from "../../components/Notice";

export const healthKinds: Record<Target["health"], Kind> = { up: "well", down: "bad", unknown: "quiet" };

export type TargetRow = { pool: string; up: number; of: number } | { target: Target };

/** What a search looks through. */
export function targetText(t: Target): string {
  const labels = Object.entries(t.labels).map(([k, v]) => `${k}=${v}`);
  return [t.scrapePool, t.scrapeUrl, t.lastError, ...labels].join(" ");
}

/** Targets under their scrape pools, in the order of names; a pool says how it is as a whole, whatever is shown of it. */
export function byPool(shown: Target[], all: Targets): TargetRow[] {
  const whole = new Map<string, { up: number; of: number }>();
  for (const t of all.activeTargets) {
    const p = whole.get(t.scrapePool) ?? { up: 0, of: 0 };
    p.of++;
    if (t.health === "up") p.up++;
    whole.set(t.scrapePool, p);
  }
  const pools = new Map<string, Target[]>();
  for (const t of shown) {
    const p = pools.get(t.scrapePool);
    if (p) p.push(t);
    else pools.set(t.scrapePool, [t]);
  }
  return [...pools.keys()].sort().flatMap((pool) => [
    { pool, ...(whole.get(pool) ?? { up: 0, of: 0 }) },
    // The server has no order within a pool: without one they would change places at each refresh.
    ...pools
      .get(pool)!
      .sort((a, b) => (a.scrapeUrl < b.scrapeUrl ? -1 : a.scrapeUrl > b.scrapeUrl ? 1 : 0))
      .map((target) => ({ target })),
  ]);
}
