import { usePrometheus } from "../../api/hooks";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import { Empty, State } from "../../components/Notice";
import css from "../pages.module.css";

interface Discovery {
  activeAlertmanagers: { url: string }[];
  droppedAlertmanagers: { url: string }[];
}

export default function AlertmanagersPage() {
  const found = usePrometheus<Discovery>("alertmanagers", { refresh: 30_000 });
  return (
    <Frame title="Alertmanagers">
      <Loaded query={found}>
        {({ data: { activeAlertmanagers: active, droppedAlertmanagers: dropped } }) =>
          active.length + dropped.length === 0 ? (
            <Empty>Alerts of rules are sent to no Alertmanager.</Empty>
          ) : (
            <>
              <p className={css.hint}>Alerts of rules go to each of these.</p>
              <table className={css.table}>
                <thead>
                  <tr>
                    <th>State</th>
                    <th>Address</th>
                  </tr>
                </thead>
                <tbody>
                  {active.map((a) => (
                    <tr key={a.url}>
                      <td>
                        <State kind="well">active</State>
                      </td>
                      <td>
                        <code>{a.url}</code>
                      </td>
                    </tr>
                  ))}
                  {dropped.map((a) => (
                    <tr key={a.url}>
                      <td>
                        <State kind="quiet">dropped</State>
                      </td>
                      <td>
                        <code>{a.url}</code>
                      </td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </>
          )
        }
      </Loaded>
    </Frame>
  );
}
