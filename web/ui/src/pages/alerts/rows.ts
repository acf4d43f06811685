// The rows of the list of alerts. Each alert is one of its own, so that a rule with thousands costs no more than what is in view.

import type { PrometheusAlert } from "../../api/types";
import { matches, words } from "../../lib/search";
import { byGroup, type RuleOf, type RuleRow, ruleText } from "../rules/rules";

export interface AlertRow {
  alert: PrometheusAlert;
  /** Stays the same from one refresh to the next. */
  key: string;
}

/** A rule with its alerts in an order that stays, and the words of each. */
export interface Instances {
  own: string;
  alerts: (AlertRow & { text: string })[];
}

export interface RuleHead extends RuleOf {
  key: string;
  /** How many alerts there are, and how many of them are like what is searched for. */
  of: number;
  found: number;
  folded: boolean;
}

export type OwnRow = Exclude<RuleRow, RuleOf> | RuleHead | AlertRow;

export function instancesOf(rules: RuleOf[]): Map<RuleOf, Instances> {
  return new Map(
    rules.map((r) => {
      const head = ruleKey(r);
      const alerts = (r.rule.alerts ?? []).map((alert) => {
        const labels = JSON.stringify(alert.labels);
        const pairs = Object.entries(alert.labels).map(([k, v]) => `${k}=${v}`);
        return { alert, key: `${head}\0${labels}`, text: pairs.join(" ").toLowerCase() };
      });
      // The server has no order: without one they would change places at each refresh.
      alerts.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
      return [r, { own: ruleText({ ...r, rule: { ...r.rule, alerts: [] } }).toLowerCase(), alerts }];
    }),
  );
}

// Rules of a group may share a name.
function ruleKey({ group, rule }: RuleOf): string {
  return [group.file, group.name, rule.name, rule.query, JSON.stringify(rule.labels ?? {})].join("\0");
}

/** Rules under their groups and alerts under their rules. A search that a rule as such does not answer leaves the alerts that do. */
export function ownRows(shown: RuleOf[], of: Map<RuleOf, Instances>, search: string, folded: ReadonlySet<string>): OwnRow[] {
  const wanted = words(search);
  return byGroup(shown).flatMap((row): OwnRow[] => {
    if (!("rule" in row)) return [row];
    const { own, alerts } = of.get(row)!;
    const some = wanted.length === 0 || matches(own, wanted) ? alerts : alerts.filter((a) => matches(`${own} ${a.text}`, wanted));
    const key = ruleKey(row);
    const head = { ...row, key, of: alerts.length, found: some.length, folded: folded.has(key) };
    return head.folded ? [head] : [head, ...some];
  });
}
