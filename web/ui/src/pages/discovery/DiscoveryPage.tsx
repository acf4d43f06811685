// What service discovery found, what relabelling made of it, and by which steps.

import { useMemo, useState } from "react";
import { usePrometheus } from "../../api/hooks";
import type { Targets } from "../../api/types";
import { Frame } from "../../app/Frame";
import { FilterBar, useFilter } from "../../components/Filter";
import { LabelList } from "../../components/LabelList";
import { Loaded } from "../../components/Loaded";
import { Empty, State } from "../../components/Notice";
import { PoolSelect } from "../../components/PoolSelect";
import { VirtualList } from "../../components/VirtualList";
import { formatCount, type Labels } from "../../lib/format";
import { useParam } from "../../lib/urlstate";
import css from "../pages.module.css";
import { type Change, type Discovered, discovered, discoveredText, type Row, rowsOf, type Step, stepChanges } from "./discovery";

export default function DiscoveryPage() {
  const [pool, setPool] = useParam("pool");
  const targets = usePrometheus<Targets>("targets", { params: { scrapePool: pool || undefined }, refresh: 30_000, large: true });
  return (
    <Frame title="Service discovery">
      <Loaded query={targets}>{({ data }) => <List t={data} pool={pool} setPool={setPool} />}</Loaded>
    </Frame>
  );
}

const states = [
  { value: "active", label: "active", kind: "well" },
  { value: "dropped", label: "dropped", kind: "quiet" },
] as const;
const stateOf = (d: Discovered) => (d.after ? "active" : "dropped");

function List({ t, pool, setPool }: { t: Targets; pool: string; setPool: (pool: string, how?: "push") => void }) {
  const all = useMemo(() => discovered(t), [t]);
  const filter = useFilter(all, "state", stateOf, discoveredText);
  const rows = useMemo(() => rowsOf(filter.shown, all, t.droppedTargetCounts), [filter.shown, all, t]);
  return (
    <>
      <FilterBar filter={filter} search="Search by pool or label=value, before or after" label="State" states={states}>
        <PoolSelect value={pool} onChange={(p) => setPool(p, "push")} />
      </FilterBar>
      {rows.length === 0 ? (
        <Empty>{all.length === 0 ? "Service discovery has found nothing." : "Nothing that was found is like that."}</Empty>
      ) : (
        <VirtualList items={rows} estimate={120} itemKey={keyOf}>
          {(r) => <RowView row={r} />}
        </VirtualList>
      )}
    </>
  );
}

function keyOf(r: Row): string {
  return "found" in r ? `${r.found.pool} ${JSON.stringify(r.found.before)}` : `pool ${r.pool}`;
}

function RowView({ row }: { row: Row }) {
  if ("found" in row) return <Found d={row.found} />;
  return (
    <h2 className={css.head}>
      {row.pool}
      <span className={css.hint}>
        {formatCount(row.active)} active, {formatCount(row.dropped)} dropped
        {row.unkept > 0 && `, ${formatCount(row.unkept)} of them not listed, by keep_dropped_targets`}
      </span>
    </h2>
  );
}

function Found({ d }: { d: Discovered }) {
  const [open, setOpen] = useState(false);
  return (
    <div className={css.row}>
      <div className={css.line}>
        {d.after ? <State kind="well">active</State> : <State kind="quiet">dropped</State>}
        <strong>{d.after?.instance ?? d.before.__address__}</strong>
      </div>
      <span className={css.hint}>Discovered</span>
      <LabelList labels={d.before} />
      {d.after && (
        <>
          <span className={css.hint}>Relabelled</span>
          <LabelList labels={d.after} />
        </>
      )}
      <div>
        <button type="button" className={css.more} aria-expanded={open} onClick={() => setOpen(!open)}>
          {open ? "Hide the relabel steps" : "Relabel steps"}
        </button>
      </div>
      {open && <Steps pool={d.pool} before={d.before} />}
    </div>
  );
}

function Steps({ pool, before }: { pool: string; before: Labels }) {
  const steps = usePrometheus<{ steps: Step[] | null }>("targets/relabel_steps", {
    params: { scrapePool: pool, labels: JSON.stringify(before) },
  });
  return (
    <Loaded query={steps}>
      {({ data }) => {
        const list = stepChanges(before, data.steps ?? []);
        if (list.length === 0) return <span className={css.hint}>This pool has no relabel_configs.</span>;
        return (
          <ol style={{ margin: 0, paddingInlineStart: "1.75rem" }}>
            {list.map((s, i) => (
              <li key={`${i} ${s.text}`}>
                <code className={css.code}>{s.text}</code>
                {s.drops && <State kind="bad">drops it</State>}
                {!s.drops && s.changes.length === 0 && <span className={css.hint}>changes nothing</span>}
                {s.changes.map((c) => (
                  <div key={c.name} className={css.grow}>
                    {changeWords(c)}
                  </div>
                ))}
              </li>
            ))}
          </ol>
        );
      }}
    </Loaded>
  );
}

function changeWords({ name, was, is }: Change) {
  if (is === undefined)
    return (
      <>
        removes <code>{name}</code>, which was <code>{was || '""'}</code>
      </>
    );
  return (
    <>
      sets <code>{name}</code> to <code>{is}</code>
      {was !== undefined && (
        <>
          {" "}
          from <code>{was}</code>
        </>
      )}
    </>
  );
}
