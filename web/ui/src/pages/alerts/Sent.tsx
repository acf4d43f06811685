import type { ManagedAlert } from "../../api/alertmanager";
import { Ago } from "../../components/Time";
import css from "../pages.module.css";
import { type Notification, receiverOf, toldOf } from "./sent";

/** A line for each receiver: when it was told of the alert and by which replica, or why it was not. */
export function Sent({ alert, notifications }: { alert: ManagedAlert; notifications: Notification[] | undefined }) {
  return notifications?.map((n) => {
    const told = toldOf(n, notifications, alert);
    return (
      <div key={`${n.group_key} ${n.receiver} ${n.integration} ${n.index}`}>
        {told && (
          <div className={css.hint}>
            {told.what}
            {told.at && (
              <>
                {" "}
                <Ago at={told.at} />
              </>
            )}
            {told.next && `${told.at ? " " : "; "}${told.next}`}
          </div>
        )}
        {n.failure && (
          <div className={css.error}>
            This replica cannot send it to {receiverOf(n, notifications)}, since <Ago at={n.failure.since} />: {n.failure.error}
          </div>
        )}
      </div>
    );
  });
}
