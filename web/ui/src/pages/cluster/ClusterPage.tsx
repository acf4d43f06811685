// Who is there, what is missing here and what was done about it, what is in the bucket, who has which configuration.

import { Anchor, SegmentedControl } from "@mantine/core";
import { useMemo, useState } from "react";
import { useJSON } from "../../api/hooks";
import type { Status } from "../../api/status";
import type { Cluster, Gap, Gaps, Member } from "../../api/types";
import { Frame } from "../../app/Frame";
import { Choice } from "../../components/Choice";
import { Loaded } from "../../components/Loaded";
import { Empty, type Kind, Notice, State } from "../../components/Notice";
import { Ago, Time, useNow } from "../../components/Time";
import { humanDuration, parseDuration } from "../../lib/duration";
import { formatPercent, plural, sentence, zoneWords } from "../../lib/format";
import { useParam, useParamList } from "../../lib/urlstate";
import pageCSS from "../pages.module.css";
import { BucketSection, Key } from "./Bucket";
import css from "./cluster.module.css";
import { EventSection } from "./Events";
import { causeWords, clockWords, gapKinds, gapRows, gapWhat, gapWords, lag, memberState, overlaps, sinceOf, zonesOf } from "./model";
import { GapTimeline } from "./Timeline";
import { ZoneMap } from "./ZoneMap";

export default function ClusterPage() {
  const cluster = useJSON<Cluster>("api/tocsin/v1/cluster", { refresh: 5000 });
  return (
    <Frame title={cluster.data?.name ? `Cluster ${cluster.data.name}` : "Cluster"}>
      <Loaded query={cluster}>
        {(c) => (
          <>
            <Members cluster={c} />
            <GapSection />
            {c.name && <EventSection />}
            <BucketSection />
            <ConfigSection members={c.members} />
          </>
        )}
      </Loaded>
    </Frame>
  );
}

const memberKinds: Record<ReturnType<typeof memberState>, Kind> = { alive: "well", stopped: "quiet", gone: "bad" };

function Members({ cluster }: { cluster: Cluster }) {
  const status = useJSON<Status>("api/tocsin/v1/status", { refresh: 10_000 });
  const now = useNow();
  const since = useMemo(() => sinceOf(cluster.members, status.data?.cluster.members ?? []), [cluster, status.data]);
  const urls = useMemo(() => new Map(status.data?.cluster.members.map((m) => [m.name, m.url])), [status.data]);
  return (
    <section className={css.section} aria-label="Replicas">
      <h2 className={pageCSS.head}>Replicas</h2>
      {!cluster.name && (
        <p>
          This replica works alone. With a section <code>cluster</code> in the configuration several of them, one in each zone, share what
          they scrape, silences and notifications, and fill each other's gaps.
        </p>
      )}
      <ZoneMap cluster={cluster} now={now} since={since} />
      {zonesOf(cluster.members).flatMap((z) =>
        z.members.map((m) => <MemberRow key={m.name} m={m} since={since.get(m.name)} url={urls.get(m.name)} />),
      )}
    </section>
  );
}

function MemberRow({ m, since, url }: { m: Member; since?: string; url?: string }) {
  const state = memberState(m);
  const facts = [
    m.zone && zoneWords(m.zone),
    m.version && `version ${m.version}`,
    m.alive && m.rtt_seconds > 0 && `${humanDuration(m.rtt_seconds * 1000)} away and back`,
    m.alive && clockWords(m),
    m.alive && (m.completeness < 1 ? `has ${formatPercent(m.completeness)} of its data` : "has all its data"),
  ];
  const addresses = [
    m.address && `mesh ${m.address}`,
    m.http_address && `HTTP ${m.http_address}`,
    m.grpc_address && `gRPC ${m.grpc_address}`,
  ];
  return (
    <div className={pageCSS.row}>
      <div className={pageCSS.line}>
        <State kind={memberKinds[state]}>{state}</State>
        {url && !m.self ? <Anchor href={url}>{m.name}</Anchor> : <strong>{m.name}</strong>}
        {m.self && <span>this one</span>}
        <span className={pageCSS.hint}>
          {since && (
            <>
              since <Time at={since} />,{" "}
            </>
          )}
          {m.started && m.alive && (
            <>
              started <Ago at={m.started} />
            </>
          )}
          {!m.alive && (
            <>
              last heard of <Ago at={m.last_contact} />
            </>
          )}
        </span>
      </div>
      <span>{facts.filter(Boolean).join(", ")}</span>
      <span className={pageCSS.hint}>{addresses.filter(Boolean).join(", ")}</span>
    </div>
  );
}

const ranges = ["1h", "6h", "1d", "7d", "30d"];
const mostListed = 50;

function GapSection() {
  const gaps = useJSON<Gaps>("api/tocsin/v1/gaps", { refresh: 5000 });
  return (
    <section className={css.section} aria-label="Gaps">
      <h2 className={pageCSS.head}>What this replica missed</h2>
      {gaps.error?.status === 404 ? (
        <p>Nobody knows: gaps are found and filled in a cluster.</p>
      ) : (
        <Loaded query={gaps}>{(g) => <KnownGaps all={g} to={gaps.dataUpdatedAt} />}</Loaded>
      )}
    </section>
  );
}

function KnownGaps({ all, to }: { all: Gaps; to: number }) {
  const [range, setRange] = useParam("range", "1d");
  const [states, setStates] = useParamList("gaps");
  const [more, setMore] = useState(false);
  const from = to - (parseDuration(range) ?? 86_400_000);
  const inRange = useMemo(() => all.gaps.filter((g) => overlaps(g, from, to)), [all, from, to]);
  const chosen = states.length === 0 ? inRange : inRange.filter((g) => states.includes(g.state));
  const rows = gapRows(chosen, from, to, all.healing);
  // What is open first, then the newest.
  const listed = [...chosen].sort((a, b) => Number(b.state === "open") - Number(a.state === "open") || b.from - a.from);
  const shown = more ? listed : listed.slice(0, mostListed);
  return (
    <>
      <p>
        {all.complete
          ? "Nothing is missing that could be had."
          : `${formatPercent(all.completeness)} of what could be had is here; queries take the rest from other replicas or the bucket.`}{" "}
        {sentence(all.problem ?? "")}
      </p>
      <div className={pageCSS.bar}>
        <SegmentedControl
          size="xs"
          aria-label="Time shown"
          data={ranges}
          value={ranges.includes(range) ? range : ""}
          onChange={(r) => setRange(r, "push")}
        />
        <Choice
          label="State of gaps"
          chosen={states}
          onChange={setStates}
          options={(["open", "healed", "lost"] as const).map((s) => ({
            value: s,
            label: s,
            kind: gapKinds[s],
            count: inRange.filter((g) => g.state === s).length,
          }))}
        />
      </div>
      <GapTimeline rows={rows} all={all} from={from} to={to} range={range} />
      <div className={css.legend}>
        <Key name={css.open!}>open</Key>
        <Key name={css.healed!}>healed, or healed so far</Key>
        <Key name={css.lost!}>lost: nobody has it</Key>
      </div>
      {listed.length === 0 && (
        <Empty>
          {all.gaps.length === 0
            ? "There has been no gap."
            : `No such gap in the last ${range}; ${plural(all.gaps.length, "gap is", "gaps are")} known in all.`}
        </Empty>
      )}
      {shown.map((g) => (
        <GapRow key={g.id} g={g} all={all} now={to} />
      ))}
      {listed.length > shown.length && (
        <button type="button" className={pageCSS.more} onClick={() => setMore(true)}>
          Show all {listed.length}
        </button>
      )}
    </>
  );
}

function GapRow({ g, all, now }: { g: Gap; all: Gaps; now: number }) {
  const lasting = g.to > now;
  return (
    <div className={pageCSS.row}>
      <div className={pageCSS.line}>
        <State kind={all.healing?.gap === g.id ? "info" : gapKinds[g.state]}>{all.healing?.gap === g.id ? "healing" : g.state}</State>
        <strong>{gapWhat(g)}</strong>
        <span>
          <Time at={g.from} />{" "}
          {lasting ? (
            "and it goes on"
          ) : (
            <>
              to <Time at={g.to} />
            </>
          )}
          , {humanDuration(Math.min(g.to, now) - g.from)}
        </span>
      </div>
      <span className={pageCSS.hint}>
        {causeWords(g)}; {gapWords(g, all)}
      </span>
    </div>
  );
}

interface SourceStatus {
  prefix: string;
  hash: string;
  seen_hash: string;
  state: string;
  problem?: string;
  since?: string;
  last_success?: string;
}

const sourceKinds: Record<string, Kind> = { applied: "well", refused: "bad", waiting: "warn" };

function ConfigSection({ members }: { members: Member[] }) {
  const fromBucket = members.some((m) => m.self && m.config);
  const source = useJSON<SourceStatus>("api/tocsin/v1/config", { refresh: 15_000, enabled: fromBucket });
  return (
    <section className={css.section} aria-label="Configuration">
      <h2 className={pageCSS.head}>Configuration</h2>
      {!fromBucket ? (
        <p>
          Each replica reads its own file. With <code>config_from</code> they have one configuration, and it is in the bucket.
        </p>
      ) : (
        <Loaded query={source}>
          {(s) => (
            <>
              {s.problem && <Notice kind={s.state === "refused" ? "bad" : "warn"}>{sentence(s.problem)}</Notice>}
              <p>
                From <code>{s.prefix}</code> in the bucket;{" "}
                {s.hash ? (
                  <>
                    in force here: <code>{s.hash.slice(0, 12)}</code>
                  </>
                ) : (
                  "nothing is in force here yet"
                )}
                {s.seen_hash && s.seen_hash !== s.hash && (
                  <>
                    , in the bucket: <code>{s.seen_hash.slice(0, 12)}</code>
                  </>
                )}
                , since <Time at={s.since} />; read <Ago at={s.last_success} />.
              </p>
              {members.map((m) => (
                <div key={m.name} className={pageCSS.row}>
                  <div className={pageCSS.line}>
                    {m.config ? (
                      <State kind={m.alive ? (sourceKinds[m.config.state] ?? "quiet") : "quiet"}>
                        {m.alive ? m.config.state : "not there"}
                      </State>
                    ) : (
                      <State kind="quiet">unknown</State>
                    )}
                    <strong>{m.name}</strong>
                    {m.config?.hash && <code>{m.config.hash}</code>}
                    <span className={pageCSS.error}>{lag(m)}</span>
                  </div>
                </div>
              ))}
            </>
          )}
        </Loaded>
      )}
    </section>
  );
}
