import { Anchor } from "@mantine/core";
import { useMemo, useState } from "react";
import { usePrometheus } from "../../api/hooks";
import type { Target, Targets } from "../../api/types";
import { Frame } from "../../app/Frame";
import { FilterBar, useFilter } from "../../components/Filter";
import { LabelList } from "../../components/LabelList";
import { Loaded } from "../../components/Loaded";
import { Empty, State } from "../../components/Notice";
import { PoolSelect } from "../../components/PoolSelect";
import { Ago } from "../../components/Time";
import { VirtualList } from "../../components/VirtualList";
import { humanDuration } from "../../lib/duration";
import { useParam } from "../../lib/urlstate";
import css from "../pages.module.css";
import { byPool, healthKinds, type TargetRow, targetText } from "./targets";

export default function TargetsPage() {
  const [pool, setPool] = useParam("pool");
  const targets = usePrometheus<Targets>("targets", {
    params: { state: "active", scrapePool: pool || undefined },
    refresh: 10_000,
    large: true,
  });
  return (
    <Frame title="Targets">
      <Loaded query={targets}>{({ data }) => <List all={data} pool={pool} setPool={setPool} />}</Loaded>
    </Frame>
  );
}

const states = (["down", "unknown", "up"] as const).map((h) => ({ value: h, label: h, kind: healthKinds[h] }));
const healthOf = (t: Target) => t.health;

function List({ all, pool, setPool }: { all: Targets; pool: string; setPool: (pool: string, how?: "push") => void }) {
  const filter = useFilter(all.activeTargets, "health", healthOf, targetText);
  const rows = useMemo(() => byPool(filter.shown, all), [filter.shown, all]);
  return (
    <>
      <FilterBar filter={filter} search="Search by pool, address, label or error" label="Health" states={states}>
        <PoolSelect value={pool} onChange={(p) => setPool(p, "push")} />
      </FilterBar>
      {rows.length === 0 ? (
        <Empty>
          {all.activeTargets.length === 0 ? "There is nothing to scrape: no scrape pool has a target." : "No target is like that."}
        </Empty>
      ) : (
        <VirtualList items={rows} estimate={93} itemKey={keyOf}>
          {(r) => <Row row={r} />}
        </VirtualList>
      )}
    </>
  );
}

function keyOf(r: TargetRow): string {
  return "pool" in r ? `pool ${r.pool}` : `${r.target.scrapePool} ${r.target.scrapeUrl} ${JSON.stringify(r.target.labels)}`;
}

function Row({ row }: { row: TargetRow }) {
  if ("target" in row) return <TargetItem target={row.target} />;
  return (
    <h2 className={css.head}>
      {row.pool}
      <State kind={row.up === row.of ? "well" : row.up === 0 ? "bad" : "warn"}>
        {row.up} of {row.of} up
      </State>
    </h2>
  );
}

function TargetItem({ target: t }: { target: Target }) {
  const [open, setOpen] = useState(false);
  return (
    <div className={css.row}>
      <div className={css.line}>
        <State kind={healthKinds[t.health]}>{t.health}</State>
        <span className={css.grow}>
          <Anchor href={t.globalUrl}>{t.scrapeUrl}</Anchor>
        </span>
        <span className={css.hint}>
          {"last scrape "}
          <Ago at={t.health === "unknown" ? null : t.lastScrape} />
          {t.health !== "unknown" && `, took ${humanDuration(t.lastScrapeDuration * 1000)}`}
          {`; every ${t.scrapeInterval}, within ${t.scrapeTimeout}`}
        </span>
      </div>
      <LabelList labels={t.labels} />
      {t.lastError && <div className={css.error}>{t.lastError}</div>}
      <div>
        <button type="button" className={css.more} aria-expanded={open} onClick={() => setOpen(!open)}>
          {open ? "Hide the discovered labels" : "Discovered labels"}
        </button>
        {open && <LabelList labels={t.discoveredLabels} />}
      </div>
    </div>
  );
}
