import { useClipboard } from "@mantine/hooks";
import { useMemo } from "react";
import { Link } from "wouter";
import { usePrometheus } from "../../api/hooks";
import type { RuleGroups } from "../../api/types";
import { Frame } from "../../app/Frame";
import { FilterBar, useFilter } from "../../components/Filter";
import { LabelList } from "../../components/LabelList";
import { Loaded } from "../../components/Loaded";
import { Empty, State } from "../../components/Notice";
import { Ago } from "../../components/Time";
import { VirtualList } from "../../components/VirtualList";
import { humanDuration } from "../../lib/duration";
import css from "../pages.module.css";
import { allRules, byGroup, healthKinds, queryHref, type RuleOf, type RuleRow, ruleText } from "./rules";

export default function RulesPage() {
  const groups = usePrometheus<RuleGroups>("rules", { refresh: 15_000 });
  return (
    <Frame title="Rules">
      <Loaded query={groups}>{({ data }) => <List groups={data} />}</Loaded>
    </Frame>
  );
}

const names = { ok: "healthy", err: "failing", unknown: "not evaluated yet" };
const states = (["err", "unknown", "ok"] as const).map((h) => ({ value: h, label: names[h], kind: healthKinds[h] }));
const healthOf = ({ rule }: RuleOf) => rule.health;

function List({ groups }: { groups: RuleGroups }) {
  const rules = useMemo(() => allRules(groups), [groups]);
  const filter = useFilter(rules, "health", healthOf, ruleText);
  const rows = useMemo(() => byGroup(filter.shown), [filter.shown]);
  return (
    <>
      <FilterBar filter={filter} search="Search by group, name, expression, label or error" label="Health" states={states} />
      {rows.length === 0 ? (
        <Empty>{rules.length === 0 ? "The configuration names no rules." : "No rule is like that."}</Empty>
      ) : (
        <VirtualList items={rows} estimate={80} itemKey={keyOf}>
          {(r) => <Row row={r} />}
        </VirtualList>
      )}
    </>
  );
}

function keyOf(r: RuleRow, i: number): string | number {
  return "rule" in r ? i : `group ${r.group.file} ${r.group.name}`;
}

function Row({ row }: { row: RuleRow }) {
  if ("rule" in row) return <RuleItem {...row} />;
  const g = row.group;
  return (
    <h2 className={css.head}>
      {g.name}
      <span className={css.hint}>
        {g.file}; every {humanDuration(g.interval * 1000)}, evaluated <Ago at={g.lastEvaluation} /> in{" "}
        {humanDuration(g.evaluationTime * 1000)}
      </span>
    </h2>
  );
}

function RuleItem({ rule: r }: RuleOf) {
  const clipboard = useClipboard();
  return (
    <div className={css.row}>
      <div className={css.line}>
        <State kind={healthKinds[r.health]}>{names[r.health]}</State>
        <strong className={css.grow}>{r.name}</strong>
        <span className={css.hint}>
          {r.type}
          {r.duration ? `, for ${humanDuration(r.duration * 1000)}` : ""}
          {r.keepFiringFor ? `, keeps firing for ${humanDuration(r.keepFiringFor * 1000)}` : ""}
          {`, took ${humanDuration(r.evaluationTime * 1000)}`}
        </span>
        <button type="button" className={css.more} aria-label={`Copy the name ${r.name}`} onClick={() => clipboard.copy(r.name)}>
          {clipboard.copied ? "Copied" : "Copy the name"}
        </button>
      </div>
      <Link href={queryHref(r.query)} className={css.code}>
        <code>{r.query}</code>
      </Link>
      {r.labels && <LabelList labels={r.labels} />}
      {r.lastError && <div className={css.error}>{r.lastError}</div>}
    </div>
  );
}
