import { expect, test } from "vitest";
import type { ManagedAlert } from "../api/alertmanager";
import type { PrometheusAlert, Rule, RuleGroup, Target } from "../api/types";
import { becameOf, fateIndex, foreign, groupIndex, linkOf, managedOf, silenceable } from "./alerts/fate";
import { instancesOf, ownRows } from "./alerts/rows";
import { allRules, byGroup, queryHref, ruleText } from "./rules/rules";
import { readable } from "./status/runtime";
import { byPool, targetText } from "./targets/targets";

function managed(labels: Record<string, string>, status: Partial<ManagedAlert["status"]> = {}): ManagedAlert {
  return {
    labels,
    fingerprint: "f",
    receivers: [{ name: "team" }, { name: "log" }],
    status: { state: "active", silencedBy: [], inhibitedBy: [], ...status },
  };
}

test("what became of an alert", () => {
  const labels = { alertname: "Down", job: "a" };
  const of = (...all: ManagedAlert[]) => becameOf(managedOf(labels, fateIndex(all)));
  expect(of()).toBe("not known to the Alertmanager here");
  expect(of(managed({ job: "a", alertname: "Down" }))).toBe("goes to team, log");
  expect(of(managed({ ...labels, cluster: "x" }))).toBe("goes to team, log");
  expect(of(managed({ alertname: "Down", job: "b" }))).toBe("not known to the Alertmanager here");
  expect(of(managed(labels, { silencedBy: ["s1"], inhibitedBy: ["i"] }))).toBe("silenced by s1");
  expect(of(managed(labels, { inhibitedBy: ["i", "j"] }))).toBe("inhibited by 2 other alerts");
  expect(of(managed(labels, { mutedBy: ["night"] }))).toBe("muted by the time interval night");
  // The one with the fewest further labels.
  expect(of(managed({ ...labels, x: "1", y: "2" }, { silencedBy: ["s"] }), managed({ ...labels, x: "1" }))).toBe("goes to team, log");
});

test("what inhibits an alert is named where it is known", () => {
  const by = (f: string) => (f === "i" ? managed({ alertname: "ZoneDown" }) : undefined);
  expect(becameOf(managed({}, { inhibitedBy: ["i"] }), by)).toBe("inhibited by ZoneDown");
  expect(becameOf(managed({}, { inhibitedBy: ["i", "x"] }), by)).toBe("inhibited by 2 other alerts");
});

test("with what an alert is notified of", () => {
  const of = groupIndex([
    { labels: { job: "a" }, receiver: { name: "team" }, alerts: [{ fingerprint: "1" }, { fingerprint: "2" }] },
    { labels: {}, receiver: { name: "log" }, alerts: [{ fingerprint: "1" }] },
  ]);
  expect(of.get("1")).toEqual(["team: with 1 other by job=a", "log: alone"]);
  expect(of.get("2")).toEqual(["team: with 1 other by job=a"]);
});

test("alerts of others are those that no rule made", () => {
  const ours = { labels: { alertname: "Down", job: "a" } } as unknown as PrometheusAlert;
  const one = { ...managed({ alertname: "Down", job: "a", cluster: "x" }), fingerprint: "1" };
  const two = { ...managed({ alertname: "Down", job: "b" }), fingerprint: "2" };
  expect(foreign([one, two], [ours], fateIndex([one, two]))).toEqual([two]);
  expect(foreign([one, two], [], fateIndex([one, two]))).toEqual([one, two]);
});

test("each alert is a row of its own, in an order that stays, and a search leaves those that are like it", () => {
  const alert = (instance: string): PrometheusAlert => ({
    labels: { alertname: "Down", instance },
    annotations: {},
    state: "firing",
    value: "1",
  });
  const rule = (name: string, ...alerts: PrometheusAlert[]): Rule => ({
    type: "alerting",
    name,
    query: "up == 0",
    alerts,
    health: "ok",
    evaluationTime: 0,
    lastEvaluation: "",
  });
  const rows = (alerts: PrometheusAlert[], search: string, fold = false) => {
    const group = {
      name: "g",
      file: "f",
      interval: 1,
      evaluationTime: 0,
      lastEvaluation: "",
      rules: [rule("Down", ...alerts), rule("Quiet")],
    };
    const rules = allRules({ groups: [group] });
    const all = ownRows(rules, instancesOf(rules), search, new Set());
    const head = all.find((r) => "folded" in r && r.of > 0);
    const shown = fold && head && "folded" in head ? ownRows(rules, instancesOf(rules), search, new Set([head.key])) : all;
    return shown.map((r) => ("alert" in r ? r.alert.labels.instance : "rule" in r ? `${r.rule.name} ${r.found}/${r.of}` : r.group.name));
  };
  const three = [alert("b"), alert("c"), alert("a")];
  expect(rows(three, "")).toEqual(["g", "Down 3/3", "a", "b", "c", "Quiet 0/0"]);
  expect(rows([...three].reverse(), "")).toEqual(rows(three, ""));
  expect(rows(three, "down instance=B")).toEqual(["g", "Down 1/3", "b", "Quiet 0/0"]);
  // What the rule itself answers leaves all of its alerts.
  expect(rows(three, "down")).toEqual(["g", "Down 3/3", "a", "b", "c", "Quiet 0/0"]);
  expect(rows(three, "", true)).toEqual(["g", "Down 3/3", "Quiet 0/0"]);
});

test("an alert is silenced by the labels that came through", () => {
  expect(silenceable({ a: "1", dropped: "2" }, managed({ a: "1", replica: "x" }))).toEqual({ a: "1" });
  expect(silenceable({ a: "1" }, undefined)).toEqual({ a: "1" });
});

test.each([
  ["https://example.org/a?b=c", true],
  [" HTTP://x ", true],
  ["javascript:alert(1)", false],
  ["data:text/html,x", false],
  ["see https://example.org", false],
  ["", false],
])("%s in an annotation is a link: %s", (text, want) => expect(linkOf(text) !== undefined).toBe(want));

function target(pool: string, health: Target["health"], url: string): Target {
  return {
    discoveredLabels: {},
    labels: { job: pool, instance: url },
    scrapePool: pool,
    scrapeUrl: url,
    globalUrl: url,
    lastError: health === "down" ? "refused" : "",
    lastScrape: "",
    lastScrapeDuration: 0,
    health,
    scrapeInterval: "15s",
    scrapeTimeout: "10s",
  };
}

test("targets are under their pools, which count all of theirs", () => {
  const all = [target("b", "up", "1"), target("a", "down", "2"), target("b", "down", "3"), target("b", "unknown", "4")];
  expect(byPool([all[0]!, all[1]!], { activeTargets: all })).toEqual([
    { pool: "a", up: 0, of: 1 },
    { target: all[1] },
    { pool: "b", up: 1, of: 3 },
    { target: all[0] },
  ]);
  // In one order, however the server has them.
  expect(byPool([all[3]!, all[0]!, all[2]!], { activeTargets: all }).slice(1)).toEqual([
    { target: all[0] },
    { target: all[2] },
    { target: all[3] },
  ]);
  expect(targetText(all[1]!)).toBe("a 2 refused job=a instance=2");
});

test("rules are under their groups, also where some are left out", () => {
  const rule = (type: Rule["type"], name: string): Rule => ({
    type,
    name,
    query: `q_${name}`,
    health: "ok",
    evaluationTime: 0,
    lastEvaluation: "",
  });
  const group = (name: string, ...rules: Rule[]): RuleGroup => ({
    name,
    file: `${name}.yml`,
    interval: 1,
    evaluationTime: 0,
    lastEvaluation: "",
    rules,
  });
  const one = group("one", rule("recording", "r"), rule("alerting", "A"), rule("alerting", "B"));
  const two = group("two", rule("alerting", "C"));
  const empty = group("empty", rule("recording", "s"));
  const alerting = allRules({ groups: [one, empty, two] }, "alerting");
  expect(alerting.map((r) => r.rule.name)).toEqual(["A", "B", "C"]);
  expect(byGroup(alerting).map((r) => ("rule" in r ? r.rule.name : `(${r.group.name})`))).toEqual(["(one)", "A", "B", "(two)", "C"]);
  expect(ruleText(alerting[2]!)).toContain("two two.yml C q_C");
  expect(queryHref('up{a="b"} == 0', "table")).toBe("/query?g0.expr=up%7Ba%3D%22b%22%7D+%3D%3D+0&g0.tab=table");
});

test("names of the API as words", () => {
  for (const [name, want] of [
    ["startTime", "Start time"],
    ["CWD", "CWD"],
    ["GOMAXPROCS", "GOMAXPROCS"],
    ["reloadConfigSuccess", "Reload config success"],
    ["goVersion", "Go version"],
  ] as const) {
    expect(readable(name)).toBe(want);
  }
});
