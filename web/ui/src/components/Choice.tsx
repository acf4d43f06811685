import css from "./components.module.css";
import type { Kind } from "./Notice";

export interface Option {
  value: string;
  label: string;
  kind: Kind;
  count: number;
}

/** States to show, each with how many there are; none chosen is all. */
export function Choice({
  label,
  options,
  chosen,
  onChange,
}: {
  label: string;
  options: Option[];
  chosen: string[];
  onChange: (chosen: string[]) => void;
}) {
  return (
    <div role="group" aria-label={label} className={css.choice}>
      {options.map((o) => {
        const on = chosen.includes(o.value);
        return (
          <button
            type="button"
            key={o.value}
            aria-pressed={on}
            className={`${css.option} ${css[o.kind]}`}
            onClick={() => onChange(on ? chosen.filter((c) => c !== o.value) : [...chosen, o.value])}
          >
            {o.count} {o.label}
          </button>
        );
      })}
    </div>
  );
}
