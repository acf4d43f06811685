// Is everything well? The server writes the sentences, for this page, for the plain one and for programs.

import { Anchor } from "@mantine/core";
import type { ReactNode } from "react";
import { Link } from "wouter";
import { apiURL } from "../../api/client";
import { useJSON } from "../../api/hooks";
import type { Status } from "../../api/status";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import { Notice, State } from "../../components/Notice";
import { Ago, Lasting, Time, useNow } from "../../components/Time";
import { humanDuration } from "../../lib/duration";
import { formatBytes, formatCount, formatShort, plural, zoneWords } from "../../lib/format";
import { toMs } from "../../lib/time";
import pageCSS from "../pages.module.css";
import { byUrgency, distance, memberKinds, pageTitle } from "./home";
import css from "./home.module.css";

export default function HomePage() {
  const status = useJSON<Status>("api/tocsin/v1/status", { refresh: 10_000 });
  return (
    <Frame title={status.data?.verdict ?? "Home"}>
      <Loaded query={status}>{(s) => <Home s={s} />}</Loaded>
    </Frame>
  );
}

function Home({ s }: { s: Status }) {
  return (
    <>
      <Who s={s} />
      {s.well ? (
        <ul className={css.concerns}>
          <li>
            <Notice kind="well">Nothing needs attention.</Notice>
          </li>
        </ul>
      ) : (
        <ul className={css.concerns}>
          {s.concerns.map((c) => (
            <li key={c.text}>
              <Notice kind="warn">
                {c.text} {pageTitle(c.page) && <PageLink to={c.page}>{`Look at ${pageTitle(c.page)}`}</PageLink>}
              </Notice>
            </li>
          ))}
        </ul>
      )}
      <div className={css.grid}>
        <Alerts s={s} />
        <Targets s={s} />
        {s.cluster.name !== "" && <Replicas s={s} />}
        <Section title="Rules" page="/rules">
          <p>
            {plural(s.rules.rules, "rule")} in {plural(s.rules.groups, "group")}, {formatCount(s.rules.failing)} failing.
          </p>
          {s.rules.problems.map((p) => (
            <div key={p} className={pageCSS.row}>
              <span className={pageCSS.error}>{p}</span>
            </div>
          ))}
        </Section>
        <Section title="Configuration" page="/config">
          <p>
            {s.config.path ? (
              <>
                File <code>{s.config.path}</code>
              </>
            ) : (
              "Built-in, no file"
            )}
            {s.config.last_reload && (
              <>
                , in force since <Time at={s.config.last_reload} />
              </>
            )}
            .
          </p>
          {s.config.error && (
            <>
              <p>The last reload {s.config.partial ? "was applied only in part" : "was refused"}:</p>
              {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls sideways, and the keyboard must be able to do so */}
              <pre className={pageCSS.pre} tabIndex={0}>
                {s.config.error}
              </pre>
            </>
          )}
        </Section>
        <Storage s={s} />
        <Section title="Addresses">
          <Facts
            facts={[
              ["For Grafana's Prometheus data source", <code key="p">{s.prometheus_url}</code>],
              ["For amtool and Grafana's Alertmanager data source", <code key="a">{s.alertmanager_url}</code>],
              ...s.addresses.map((a): [string, ReactNode] => [`Listens: ${a.name}`, <code key="l">{a.address}</code>]),
            ]}
          />
          <p>
            For programs: <Raw path="metrics">metrics</Raw>, <Raw path="metrics/node">this machine's metrics</Raw>,{" "}
            <Raw path="-/ready">ready</Raw>, <Raw path="version">version</Raw>, <Raw path="api/tocsin/v1/status">this page</Raw>,{" "}
            <Raw path="debug/pprof/">profiles</Raw>
          </p>
        </Section>
      </div>
    </>
  );
}

function Who({ s }: { s: Status }) {
  const now = useNow();
  const started = toMs(s.started);
  const parts = [
    s.replica && `Replica ${s.replica}`,
    s.zone && zoneWords(s.zone),
    s.version && `version ${s.version}`,
    started !== null && `up ${humanDuration(Math.max(0, now - started))}`,
  ];
  return <p className={css.who}>{parts.filter(Boolean).join(", ")}.</p>;
}

function Section({ title, page, children }: { title: string; page?: string; children: ReactNode }) {
  return (
    <section aria-label={title}>
      <h2 className={pageCSS.head}>
        {title}
        {page && (
          <span className={pageCSS.hint}>
            <PageLink to={page}>{pageTitle(page) === title ? `All ${title.toLowerCase()}` : pageTitle(page)}</PageLink>
          </span>
        )}
      </h2>
      {children}
    </section>
  );
}

function PageLink({ to, children }: { to: string; children: string }) {
  return (
    <Link href={to} className={`${pageCSS.more} ${css.look}`}>
      {children}
    </Link>
  );
}

function Raw({ path, children }: { path: string; children: string }) {
  return <Anchor href={apiURL(path)}>{children}</Anchor>;
}

function Alerts({ s }: { s: Status }) {
  return (
    <Section title="Alerts" page="/alerts">
      {s.alerts.length === 0 && <p>No alert is pending or firing.</p>}
      {byUrgency(s.alerts).map((a) => (
        <div key={a.labels} className={pageCSS.row}>
          <div className={pageCSS.line}>
            <State kind={a.state === "pending" ? "warn" : a.severity === "none" || a.muted ? "quiet" : "bad"}>{a.state}</State>
            {a.muted && <State kind="quiet">{a.muted}</State>}
            <strong>{a.name}</strong>
            <span className={pageCSS.hint}>
              for <Lasting since={a.since} />
            </span>
          </div>
          {a.summary && <span className={pageCSS.grow}>{a.summary}</span>}
          <code className={pageCSS.code}>{a.labels}</code>
        </div>
      ))}
      {s.more_alerts > 0 && <p>And {formatCount(s.more_alerts)} more.</p>}
      <p>{s.silences === 0 ? "No silence is" : plural(s.silences, "silence is", "silences are")} active.</p>
    </Section>
  );
}

function Targets({ s }: { s: Status }) {
  const { up, down, unknown, down_targets } = s.targets;
  return (
    <Section title="Targets" page="/targets">
      <p>
        {formatCount(up)} up, {formatCount(down)} down{unknown > 0 && `, ${formatCount(unknown)} not scraped yet`}.
      </p>
      {down_targets.map((t) => (
        <div key={`${t.job} ${t.url}`} className={pageCSS.row}>
          <div className={pageCSS.line}>
            <strong>{t.job}</strong>
            <span className={pageCSS.grow}>{t.url}</span>
            <span className={pageCSS.hint}>
              scraped <Ago at={t.last_scrape} />
            </span>
          </div>
          <span className={pageCSS.error}>{t.error}</span>
        </div>
      ))}
      {s.more_down_targets > 0 && <p>And {formatCount(s.more_down_targets)} more.</p>}
    </Section>
  );
}

function Replicas({ s }: { s: Status }) {
  return (
    <Section title={`Cluster ${s.cluster.name}`} page="/cluster">
      {s.cluster.members.map((m) => {
        const far = distance(m.rtt_seconds, m.clock_skew_seconds);
        return (
          <div key={m.name} className={pageCSS.row}>
            <div className={pageCSS.line}>
              <State kind={memberKinds[m.state]}>{m.state}</State>
              {m.url && !m.self ? <Anchor href={m.url}>{m.name}</Anchor> : <strong>{m.name}</strong>}
              <span>{[m.self && "this one", m.zone && zoneWords(m.zone)].filter(Boolean).join(", ")}</span>
              <span className={pageCSS.hint}>
                for <Lasting since={m.since} />
              </span>
            </div>
            <span className={pageCSS.hint}>{[m.version && `version ${m.version}`, far].filter(Boolean).join("; ")}</span>
          </div>
        );
      })}
    </Section>
  );
}

function Storage({ s: { storage: st } }: { s: Status }) {
  const facts: [string, ReactNode][] = [];
  if (st.dir) facts.push(["Directory", <code key="d">{st.dir}</code>]);
  if (st.series > 0) facts.push(["Series in memory", formatCount(st.series)]);
  if ((st.samples_per_second ?? 0) > 0) facts.push(["Samples per second", formatShort(st.samples_per_second!)]);
  if (st.retention) facts.push(["Retention", st.retention]);
  if (st.used_bytes > 0) facts.push(["Used on disk", formatBytes(st.used_bytes)]);
  if (st.free_bytes > 0) facts.push(["Free on disk", formatBytes(st.free_bytes)]);
  if (st.oldest) facts.push(["Oldest sample", <Time key="o" at={st.oldest} />]);
  return (
    <Section title="Storage" page="/tsdb-status">
      <Facts facts={facts} />
    </Section>
  );
}

function Facts({ facts }: { facts: [string, ReactNode][] }) {
  return (
    <table className={pageCSS.table}>
      <tbody>
        {facts.map(([name, value], i) => (
          <tr key={`${i} ${name}`}>
            <th scope="row">{name}</th>
            <td>{value}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
