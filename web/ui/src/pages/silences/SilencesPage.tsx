import { Button, Modal, VisuallyHidden } from "@mantine/core";
import { IconPlus } from "@tabler/icons-react";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { Link } from "wouter";
import type { ManagedAlert, Silence } from "../../api/alertmanager";
import { type ApiError, requestJSON } from "../../api/client";
import { useJSON } from "../../api/hooks";
import { Frame } from "../../app/Frame";
import { FilterBar, useFilter } from "../../components/Filter";
import { LabelList } from "../../components/LabelList";
import { Failure, Loaded } from "../../components/Loaded";
import { Empty, type Kind, Notice, State } from "../../components/Notice";
import { Ago } from "../../components/Time";
import { VirtualList } from "../../components/VirtualList";
import { plural } from "../../lib/format";
import { readStored } from "../../lib/settings";
import { useParam } from "../../lib/urlstate";
import css from "../pages.module.css";
import { authorKey, SilenceForm } from "./SilenceForm";
import { draftOf, formatMatcher, newDraft, parseMatchers, silenceText, sortSilences } from "./silences";

export default function SilencesPage() {
  const [fresh] = useParam("new");
  const [edit] = useParam("edit");
  const [again] = useParam("again");
  const silences = useJSON<Silence[]>("alertmanager/api/v2/silences", { refresh: 10_000 });
  if (fresh !== "") {
    const matchers = parseMatchers(fresh);
    return (
      <Frame title="New silence">
        {matchers === null && <Notice kind="warn">The matchers in the address cannot be read: {fresh}</Notice>}
        <SilenceForm key={fresh} start={newDraft(matchers ?? [], readStored(authorKey, ""))} />
      </Frame>
    );
  }
  const id = edit || again;
  return (
    <Frame
      title={edit ? "Edit silence" : again ? "New silence" : "Silences"}
      actions={
        !id && (
          <Button component={Link} href="/silences?new={}" size="xs" leftSection={<IconPlus size={15} aria-hidden />}>
            New silence
          </Button>
        )
      }
    >
      <Loaded query={silences}>
        {(all) => {
          if (!id) return <List all={all} />;
          const s = all.find((one) => one.id === id);
          if (!s) return <Notice kind="warn">There is no silence {id}. What is over is forgotten after some days.</Notice>;
          return <SilenceForm key={id} start={draftOf(again ? { ...s, status: { state: "expired" } } : s, readStored(authorKey, ""))} />;
        }}
      </Loaded>
    </Frame>
  );
}

const kinds: Record<Silence["status"]["state"], Kind> = { active: "info", pending: "warn", expired: "quiet" };
const states = (["active", "pending", "expired"] as const).map((s) => ({ value: s, label: s, kind: kinds[s] }));
const stateOf = (s: Silence) => s.status.state;

const idOf = (s: Silence) => s.id;

function List({ all }: { all: Silence[] }) {
  const [id, setID] = useParam("id");
  const alerts = useJSON<ManagedAlert[]>("alertmanager/api/v2/alerts", { refresh: 10_000 });
  const sorted = useMemo(() => sortSilences(all), [all]);
  const filter = useFilter(sorted, "state", stateOf, silenceText);
  const { search, chosen, found } = filter;
  const [expiring, setExpiring] = useState<Silence | null>(null);
  // What is over is history: it is shown when it is asked for, or when nothing else was found.
  const inForce = found.filter((s) => s.status.state !== "expired");
  const shown = id
    ? all.filter((s) => s.id === id)
    : chosen.length > 0
      ? filter.shown
      : inForce.length > 0 || search === ""
        ? inForce
        : found;
  const silenced = useMemo(() => {
    const by = new Map<string, ManagedAlert[]>();
    for (const a of alerts.data ?? []) for (const s of a.status.silencedBy) by.set(s, [...(by.get(s) ?? []), a]);
    return by;
  }, [alerts.data]);
  return (
    <>
      {id ? (
        <div className={css.bar}>
          <span className={css.hint}>The silence {id}</span>
          <button type="button" className={css.more} onClick={() => setID("", "push")}>
            Show all silences
          </button>
        </div>
      ) : (
        <FilterBar filter={filter} search="Search by matcher, author, comment or ID" label="State" states={states} />
      )}
      {alerts.error && <Failure error={alerts.error} />}
      {shown.length === 0 ? (
        <Empty>
          {id
            ? "There is no such silence. What is over is forgotten after some days."
            : all.length === 0
              ? "There are no silences."
              : search === "" && chosen.length === 0
                ? "No silence is in force or to come. Choose “expired” to see those that are over."
                : "No silence is like that."}
        </Empty>
      ) : (
        <VirtualList items={shown} estimate={96} itemKey={idOf}>
          {(s) => <Item silence={s} alerts={silenced.get(s.id) ?? []} known={alerts.data !== undefined} onExpire={() => setExpiring(s)} />}
        </VirtualList>
      )}
      {expiring && <Expire silence={expiring} onClose={() => setExpiring(null)} />}
    </>
  );
}

function Item({ silence: s, alerts, known, onExpire }: { silence: Silence; alerts: ManagedAlert[]; known: boolean; onExpire: () => void }) {
  const [open, setOpen] = useState(false);
  const state = s.status.state;
  return (
    <div className={css.row}>
      <div className={css.line}>
        <State kind={kinds[state]}>{state}</State>
        <code className={css.grow}>{s.matchers.map(formatMatcher).join(", ")}</code>
        <span className={css.hint}>
          {state === "pending" && (
            <>
              starts <Ago at={s.startsAt} />,{" "}
            </>
          )}
          {state === "expired" ? "ended " : "ends "}
          <Ago at={s.endsAt} />
        </span>
      </div>
      <div>{s.comment}</div>
      <div className={css.line}>
        <span className={css.hint}>
          by {s.createdBy || "nobody"}, changed <Ago at={s.updatedAt} />
        </span>
        {state === "active" &&
          known &&
          (alerts.length === 0 ? (
            <span className={css.hint}>silences no alert now</span>
          ) : (
            <button type="button" className={css.more} aria-expanded={open} onClick={() => setOpen(!open)}>
              silences {plural(alerts.length, "alert")}
            </button>
          ))}
        <Link href={`/silences?id=${s.id}`} className={css.more}>
          Link<VisuallyHidden component="span"> to silence {s.id}</VisuallyHidden>
        </Link>
        {state === "expired" ? (
          <Link href={`/silences?again=${s.id}`} className={css.more}>
            Re-create<VisuallyHidden component="span"> silence {s.id}</VisuallyHidden>
          </Link>
        ) : (
          <>
            <Link href={`/silences?edit=${s.id}`} className={css.more}>
              Edit<VisuallyHidden component="span"> silence {s.id}</VisuallyHidden>
            </Link>
            <button type="button" className={css.more} onClick={onExpire}>
              Expire<VisuallyHidden component="span"> silence {s.id}</VisuallyHidden>
            </button>
          </>
        )}
      </div>
      {open && alerts.map((a) => <LabelList key={a.fingerprint} labels={a.labels} />)}
    </div>
  );
}

function Expire({ silence: s, onClose }: { silence: Silence; onClose: () => void }) {
  const queries = useQueryClient();
  const expire = useMutation<void, ApiError>({
    mutationFn: () => requestJSON(`alertmanager/api/v2/silence/${encodeURIComponent(s.id)}`, { method: "DELETE" }),
    onSuccess: () => {
      void queries.invalidateQueries();
      onClose();
    },
  });
  return (
    <Modal opened onClose={onClose} title="Expire this silence?" closeButtonProps={{ "aria-label": "Close" }}>
      <p>
        <code>{s.matchers.map(formatMatcher).join(", ")}</code>
      </p>
      <p>Alerts that it silences are notified of again.</p>
      {expire.error && <Failure error={expire.error} />}
      <div className={css.bar}>
        <Button color="red.9" loading={expire.isPending} onClick={() => expire.mutate()} data-autofocus>
          Expire
        </Button>
        <Button variant="default" onClick={onClose}>
          Keep it
        </Button>
      </div>
    </Modal>
  );
}
