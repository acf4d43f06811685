import { useCallback, useEffect, useMemo, useState } from "react";
import { Link, useLocation } from "wouter";
import type { ManagedAlert } from "../../api/alertmanager";
import { useJSON, usePrometheus } from "../../api/hooks";
import type { PrometheusAlert, RuleGroups } from "../../api/types";
import { Frame } from "../../app/Frame";
import { FilterBar, useFilter } from "../../components/Filter";
import { LabelList } from "../../components/LabelList";
import { Failures, Loaded } from "../../components/Loaded";
import { Empty, State } from "../../components/Notice";
import { Ago } from "../../components/Time";
import { VirtualList } from "../../components/VirtualList";
import { formatCount, formatSeries, formatValue, type Labels, plural } from "../../lib/format";
import { searchIndex } from "../../lib/search";
import css from "../pages.module.css";
import { allRules, queryHref, type RuleOf, ruleText, stateKinds } from "../rules/rules";
import { oldLink, silenceHref } from "../silences/silences";
import { becameOf, type FateIndex, fateIndex, foreign, type Group, groupIndex, linkOf, managedOf, silenceable } from "./fate";
import { instancesOf, type OwnRow, ownRows, type RuleHead } from "./rows";
import { Sent } from "./Sent";
import { type Notification, type Notifications, sentIndex } from "./sent";

export default function AlertsPage() {
  const groups = usePrometheus<RuleGroups>("rules", { params: { type: "alert" }, refresh: 10_000 });
  const managed = useJSON<ManagedAlert[]>("alertmanager/api/v2/alerts", { refresh: 10_000 });
  const together = useJSON<Group[]>("alertmanager/api/v2/alerts/groups", { refresh: 10_000 });
  const sent = useJSON<Notifications>("api/tocsin/v1/notifications", { params: { limit: "10000" }, refresh: 10_000 });
  // Links into Alertmanager's own UI arrive here with what they were after.
  const [, navigate] = useLocation();
  useEffect(() => {
    const lead = () => {
      const to = oldLink(location.hash);
      if (to) navigate(to, { replace: true });
    };
    lead();
    window.addEventListener("hashchange", lead);
    return () => window.removeEventListener("hashchange", lead);
  }, [navigate]);
  return (
    <Frame title="Alerts">
      <Failures errors={[managed.error, sent.error]} below={groups.error} />
      <Loaded query={groups}>
        {({ data }) => <List groups={data} managed={managed.data} together={together.data ?? nothing} sent={sent.data} />}
      </Loaded>
    </Frame>
  );
}

const nothing: Group[] = [];
const states = ["firing", "pending", "inactive", "unknown"].map((s) => ({ value: s, label: s, kind: stateKinds[s]! }));
const stateOf = ({ rule }: RuleOf) => rule.state ?? "unknown";
const managedText = (m: ManagedAlert) =>
  Object.entries({ ...m.labels, ...m.annotations })
    .map(([k, v]) => `${k}=${v}`)
    .join(" ");

/** What the rows look up of the Alertmanager; undefined = it has not answered yet. */
interface Fates {
  known?: FateIndex;
  byFingerprint: (fingerprint: string) => ManagedAlert | undefined;
  together: Map<string, string[]>;
  sent: Map<string, Notification[]>;
  /** The replicas whose rules have an alert firing, where those here do not. */
  elsewhere: Record<string, string[]>;
}

interface Known {
  groups: RuleGroups;
  managed: ManagedAlert[] | undefined;
  together: Group[];
  sent: Notifications | undefined;
}

function List({ groups, managed, together, sent }: Known) {
  const rules = useMemo(() => allRules(groups, "alerting"), [groups]);
  const filter = useFilter(rules, "state", stateOf, ruleText);
  const { search, chosen, shown } = filter;
  const fates = useMemo<Fates>(() => {
    const by = new Map((managed ?? []).map((m) => [m.fingerprint, m]));
    return {
      known: managed && fateIndex(managed),
      byFingerprint: (f) => by.get(f),
      together: groupIndex(together),
      sent: sentIndex(sent),
      elsewhere: sent?.elsewhere ?? {},
    };
  }, [managed, together, sent]);
  const findOthers = useMemo(() => {
    if (!managed || !fates.known) return () => [];
    const ours = rules.flatMap((r) => r.rule.alerts ?? []);
    return searchIndex(foreign(managed, ours, fates.known), managedText);
  }, [managed, fates, rules]);
  const [folded, setFolded] = useState<ReadonlySet<string>>(new Set());
  const fold = useCallback((key: string) => {
    setFolded((old) => {
      const next = new Set(old);
      if (!next.delete(key)) next.add(key);
      return next;
    });
  }, []);
  const instances = useMemo(() => instancesOf(rules), [rules]);
  const rows = useMemo<AnyRow[]>(() => {
    const ours = ownRows(shown, instances, search, folded);
    const theirs = chosen.length === 0 || chosen.includes("firing") ? findOthers(search) : [];
    const byRules = theirs.filter((m) => m.fingerprint in fates.elsewhere);
    const posted = theirs.filter((m) => !(m.fingerprint in fates.elsewhere));
    return [...ours, ...foreignRows("By the rules of other replicas", byRules), ...foreignRows("Posted by others", posted)];
  }, [shown, instances, search, folded, chosen, findOthers, fates]);
  return (
    <>
      <FilterBar
        filter={filter}
        search="Search by name, group, expression or label"
        label="State"
        states={states.filter((s) => s.value !== "unknown" || filter.count(s.value) > 0)}
      />
      {rows.length === 0 ? (
        <Empty>{rules.length === 0 ? "The configuration names no alerting rules." : "No alert is like that."}</Empty>
      ) : (
        <VirtualList items={rows} estimate={80} itemKey={keyOf}>
          {(r) => <Row row={r} fates={fates} onFold={fold} />}
        </VirtualList>
      )}
    </>
  );
}

type ForeignRow = { others: number; title: string } | { managed: ManagedAlert };
type AnyRow = OwnRow | ForeignRow;

function foreignRows(title: string, alerts: ManagedAlert[]): ForeignRow[] {
  return alerts.length === 0 ? [] : [{ others: alerts.length, title }, ...alerts.map((managed) => ({ managed }))];
}

function keyOf(row: AnyRow): string {
  if ("key" in row) return row.key;
  if ("managed" in row) return row.managed.fingerprint;
  return "others" in row ? row.title : `${row.group.file}\0${row.group.name}`;
}

function Row({ row, fates, onFold }: { row: AnyRow; fates: Fates; onFold: (key: string) => void }) {
  if ("rule" in row) return <AlertRule head={row} onFold={onFold} />;
  if ("alert" in row) return <Alert alert={row.alert} fates={fates} />;
  if ("managed" in row) return <Foreign alert={row.managed} fates={fates} />;
  if ("others" in row)
    return (
      <h2 className={css.head}>
        {row.title}
        <span className={css.hint}>{plural(row.others, "alert")} that no rule here has firing</span>
      </h2>
    );
  return (
    <h2 className={css.head}>
      {row.group.name}
      <span className={css.hint}>{row.group.file}</span>
    </h2>
  );
}

function AlertRule({ head, onFold }: { head: RuleHead; onFold: (key: string) => void }) {
  const r = head.rule;
  const state = r.state ?? "unknown";
  const act = head.folded ? "Show" : "Hide";
  const count = head.found < head.of ? `${formatCount(head.found)} of ${plural(head.of, "alert")}` : plural(head.of, "alert");
  return (
    <div className={css.row}>
      <div className={css.line}>
        <State kind={stateKinds[state] ?? "quiet"}>{state}</State>
        <strong className={css.grow}>{r.name}</strong>
        {head.of > 0 && (
          <button
            type="button"
            className={css.more}
            aria-expanded={!head.folded}
            aria-label={`${act} ${count} of ${r.name}`}
            onClick={() => onFold(head.key)}
          >
            {act} {count}
          </button>
        )}
      </div>
      <Link href={queryHref(r.query)} className={css.code}>
        <code>{r.query}</code>
      </Link>
      {r.lastError && <div className={css.error}>{r.lastError}</div>}
    </div>
  );
}

function Alert({ alert: a, fates }: { alert: PrometheusAlert; fates: Fates }) {
  const managed = fates.known && managedOf(a.labels, fates.known);
  return (
    <div className={`${css.row} ${css.nested}`}>
      <div className={css.line}>
        <State kind={stateKinds[a.state] ?? "quiet"}>{a.state}</State>
        <span>
          since <Ago at={a.activeAt} />
        </span>
        <span className={css.hint}>value {formatValue(a.value)}</span>
        {a.state === "firing" && fates.known && <Fate alert={managed} fates={fates} />}
        <SilenceLink labels={silenceable(a.labels, managed)} />
      </div>
      {a.state === "firing" && managed && <Sent alert={managed} notifications={fates.sent.get(managed.fingerprint)} />}
      <LabelList labels={a.labels} without={["alertname"]} />
      <Annotations annotations={a.annotations} />
    </div>
  );
}

function Foreign({ alert: a, fates }: { alert: ManagedAlert; fates: Fates }) {
  const from = fates.elsewhere[a.fingerprint];
  return (
    <div className={css.row}>
      <div className={css.line}>
        <State kind="bad">firing</State>
        <strong className={css.grow}>{a.labels.alertname ?? "without a name"}</strong>
        <span>
          since <Ago at={a.startsAt} />
        </span>
        {from && <span>by the rules of {from.join(", ")}</span>}
        <Fate alert={a} fates={fates} />
        <SilenceLink labels={a.labels} />
      </div>
      <Sent alert={a} notifications={fates.sent.get(a.fingerprint)} />
      <LabelList labels={a.labels} without={["alertname"]} />
      <Annotations annotations={a.annotations ?? {}} />
    </div>
  );
}

function Fate({ alert: m, fates }: { alert: ManagedAlert | undefined; fates: Fates }) {
  const silences = m?.status.silencedBy ?? [];
  if (silences.length > 0)
    return (
      <span>
        <State kind="quiet">silenced</State> by{" "}
        {silences.map((id, i) => (
          <span key={id}>
            {i > 0 && ", "}
            <Link href={`/silences?id=${id}`} className={css.more}>
              silence {id.slice(0, 8)}
            </Link>
          </span>
        ))}
      </span>
    );
  const groups = m?.status.state === "active" ? fates.together.get(m.fingerprint) : undefined;
  return (
    <span className={css.hint}>
      {becameOf(m, fates.byFingerprint)}
      {groups && ` (${groups.join("; ")})`}
    </span>
  );
}

function SilenceLink({ labels }: { labels: Labels }) {
  return (
    <Link href={silenceHref(labels)} className={css.more} aria-label={`Silence ${formatSeries(labels)}`}>
      Silence
    </Link>
  );
}

function Annotations({ annotations }: { annotations: Labels }) {
  return Object.entries(annotations).map(([k, v]) => {
    const link = linkOf(v);
    return (
      <div key={k} className={css.hint}>
        {k}:{" "}
        {link ? (
          <a href={link} target="_blank" rel="noreferrer noopener" className={css.more}>
            {v}
          </a>
        ) : (
          v
        )}
      </div>
    );
  });
}
