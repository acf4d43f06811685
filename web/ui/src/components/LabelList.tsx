import type { Labels } from "../lib/format";
import css from "./components.module.css";

/** Labels as chips; with onPick they are buttons. */
export function LabelList({
  labels,
  without = [],
  onPick,
}: {
  labels: Labels;
  without?: string[];
  onPick?: (name: string, value: string) => void;
}) {
  const shown = Object.entries(labels).filter(([k]) => !without.includes(k));
  return (
    <div className={css.labels}>
      {shown.map(([k, v]) => {
        const text = (
          <>
            <b>{k}=</b>
            {v}
          </>
        );
        return onPick ? (
          <button type="button" key={k} className={css.label} onClick={() => onPick(k, v)}>
            {text}
          </button>
        ) : (
          <span key={k} className={css.label}>
            {text}
          </span>
        );
      })}
    </div>
  );
}
