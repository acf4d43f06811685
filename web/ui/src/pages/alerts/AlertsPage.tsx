import { useMemo } from "react";
import { Link } from "wouter";
import { useJSON, usePrometheus } from "../../api/hooks";
import type { PrometheusAlert, RuleGroups } from "../../api/types";
import { Frame } from "../../app/Frame";
import { Choice } from "../../components/Choice";
import { LabelList } from "../../components/LabelList";
import { Loaded } from "../../components/Loaded";
import { Empty, State } from "../../components/Notice";
import { SearchInput } from "../../components/SearchInput";
import { Ago } from "../../components/Time";
import { VirtualList } from "../../components/VirtualList";
import { plural } from "../../lib/format";
import { searchIndex } from "../../lib/search";
import { useParam, useParamList } from "../../lib/urlstate";
import css from "../pages.module.css";
import { allRules, byGroup, queryHref, type RuleOf, type RuleRow, ruleText, stateKinds } from "../rules/rules";
import { becameOf, fateIndex, type ManagedAlert } from "./fate";

export default function AlertsPage() {
  const groups = usePrometheus<RuleGroups>("rules", { params: { type: "alert" }, refresh: 10_000 });
  const managed = useJSON<ManagedAlert[]>("alertmanager/api/v2/alerts", { refresh: 10_000 });
  return (
    <Frame title="Alerts">
      <Loaded query={groups}>{({ data }) => <List groups={data} managed={managed.data ?? []} />}</Loaded>
    </Frame>
  );
}

const states = ["firing", "pending", "inactive", "unknown"];

function List({ groups, managed }: { groups: RuleGroups; managed: ManagedAlert[] }) {
  const [search, setSearch] = useParam("search");
  const [chosen, setChosen] = useParamList("state");
  const rules = useMemo(() => allRules(groups, "alerting"), [groups]);
  const find = useMemo(() => searchIndex(rules, ruleText), [rules]);
  const found = useMemo(() => find(search), [find, search]);
  const rows = useMemo(
    () => byGroup(chosen.length === 0 ? found : found.filter((r) => chosen.includes(r.rule.state ?? "unknown"))),
    [found, chosen],
  );
  const fates = useMemo(() => fateIndex(managed), [managed]);
  return (
    <>
      <div className={css.bar}>
        <SearchInput value={search} onChange={setSearch} label="Search by name, group, expression or label" />
        <Choice
          label="State"
          chosen={chosen}
          onChange={setChosen}
          options={states
            .map((s) => ({
              value: s,
              label: s,
              kind: stateKinds[s]!,
              count: found.filter((r) => (r.rule.state ?? "unknown") === s).length,
            }))
            .filter((o) => o.value !== "unknown" || o.count > 0)}
        />
      </div>
      {rows.length === 0 ? (
        <Empty>{rules.length === 0 ? "The configuration names no alerting rules." : "No alert is like that."}</Empty>
      ) : (
        <VirtualList items={rows} estimate={80} itemKey={(r, i) => ("rule" in r ? i : `group ${r.group.file} ${r.group.name}`)}>
          {(r) => <Row row={r} fates={fates} />}
        </VirtualList>
      )}
    </>
  );
}

function Row({ row, fates }: { row: RuleRow; fates: Map<string, ManagedAlert> }) {
  if ("rule" in row) return <AlertRule {...row} fates={fates} />;
  return (
    <h2 className={css.head}>
      {row.group.name}
      <span className={css.hint}>{row.group.file}</span>
    </h2>
  );
}

function AlertRule({ rule: r, fates }: RuleOf & { fates: Map<string, ManagedAlert> }) {
  const state = r.state ?? "unknown";
  const alerts = r.alerts ?? [];
  return (
    <div className={css.row}>
      <div className={css.line}>
        <State kind={stateKinds[state] ?? "quiet"}>{state}</State>
        <strong className={css.grow}>{r.name}</strong>
        {alerts.length > 0 && <span className={css.hint}>{plural(alerts.length, "alert")}</span>}
      </div>
      <Link href={queryHref(r.query)} className={css.code}>
        <code>{r.query}</code>
      </Link>
      {r.lastError && <div className={css.error}>{r.lastError}</div>}
      {alerts.map((a) => (
        <Alert key={JSON.stringify(a.labels)} alert={a} fate={fates} />
      ))}
    </div>
  );
}

function Alert({ alert: a, fate }: { alert: PrometheusAlert; fate: Map<string, ManagedAlert> }) {
  return (
    <div className={css.row}>
      <div className={css.line}>
        <State kind={stateKinds[a.state] ?? "quiet"}>{a.state}</State>
        <span>
          since <Ago at={a.activeAt} />
        </span>
        <span className={css.hint}>value {a.value}</span>
        {a.state === "firing" && <span className={css.hint}>{becameOf(a.labels, fate)}</span>}
      </div>
      <LabelList labels={a.labels} without={["alertname"]} />
      {Object.entries(a.annotations).map(([k, v]) => (
        <div key={k} className={css.hint}>
          {k}: {v}
        </div>
      ))}
    </div>
  );
}
