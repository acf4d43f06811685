import { useMemo, useState } from "react";
import { useJSON } from "../../api/hooks";
import { FilterBar, useFilter } from "../../components/Filter";
import { LabelList } from "../../components/LabelList";
import { Loaded } from "../../components/Loaded";
import { Empty, State } from "../../components/Notice";
import { Ago, Time } from "../../components/Time";
import pageCSS from "../pages.module.css";
import css from "./cluster.module.css";
import { eventKind, eventKinds, eventOf, eventText, type MeshEvent } from "./events";

/** What happened in the mesh, as this replica saw it. */
export function EventSection() {
  const events = useJSON<{ events: MeshEvent[] }>("api/tocsin/v1/mesh/events", { refresh: 5000 });
  return (
    <section className={css.section} aria-label="Events">
      <h2 className={pageCSS.head}>
        What happened
        <span className={pageCSS.hint}>as this replica saw it since it started</span>
      </h2>
      <Loaded query={events}>{(e) => <List events={e.events} />}</Loaded>
    </section>
  );
}

const mostListed = 20;

function List({ events }: { events: MeshEvent[] }) {
  const filter = useFilter(events, "event", eventOf, eventText);
  const kinds = useMemo(() => eventKinds(events), [events]);
  const [more, setMore] = useState(false);
  const listed = more ? filter.shown : filter.shown.slice(0, mostListed);
  if (events.length === 0) return <Empty>Nothing has happened yet.</Empty>;
  return (
    <>
      <FilterBar filter={filter} search="Search by replica, text or detail" label="Kind of event" states={kinds} />
      {listed.length === 0 && <Empty>No event is like that.</Empty>}
      {listed.map((e) => (
        <div key={`${e.time} ${e.event} ${e.member ?? ""} ${e.text}`} className={pageCSS.row}>
          <div className={pageCSS.line}>
            <State kind={eventKind(e)}>{e.event}</State>
            {e.member && <strong>{e.member}</strong>}
            <span>{e.text}</span>
            <span className={pageCSS.hint}>
              <Time at={e.time} />, <Ago at={e.time} />
            </span>
          </div>
          {e.details && <LabelList labels={e.details} />}
        </div>
      ))}
      {filter.shown.length > listed.length && (
        <button type="button" className={pageCSS.more} onClick={() => setMore(true)}>
          Show all {filter.shown.length}
        </button>
      )}
    </>
  );
}
