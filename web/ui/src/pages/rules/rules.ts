import type { Rule, RuleGroup, RuleGroups } from "../../api/types";
import type { Kind } from "../../components/Notice";

export const healthKinds: Record<Rule["health"], Kind> = { ok: "well", err: "bad", unknown: "quiet" };
export const stateKinds: Record<string, Kind> = { firing: "bad", pending: "warn", inactive: "well", unknown: "quiet" };

export interface RuleOf {
  group: RuleGroup;
  rule: Rule;
}

export type RuleRow = { group: RuleGroup } | RuleOf;

export function allRules(groups: RuleGroups, type?: Rule["type"]): RuleOf[] {
  return groups.groups.flatMap((group) => group.rules.filter((r) => !type || r.type === type).map((rule) => ({ group, rule })));
}

/** What a search looks through. */
export function ruleText({ group, rule }: RuleOf): string {
  const labels = Object.entries(rule.labels ?? {}).map(([k, v]) => `${k}=${v}`);
  const instances = (rule.alerts ?? []).flatMap((a) => Object.entries(a.labels).map(([k, v]) => `${k}=${v}`));
  return [group.name, group.file, rule.name, rule.query, rule.lastError ?? "", ...labels, ...instances].join(" ");
}

/** Rules under their groups, in the order in which they are evaluated. */
export function byGroup(rules: RuleOf[]): RuleRow[] {
  return rules.flatMap((r, i) => (rules[i - 1]?.group === r.group ? [r] : [{ group: r.group }, r]));
}

/** The address of the query page with an expression, as a table or as a graph. */
export function queryHref(expr: string, tab: "table" | "graph" = "graph"): string {
  return `/query?${new URLSearchParams({ "g0.expr": expr, "g0.tab": tab })}`;
}
