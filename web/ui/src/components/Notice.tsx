import { IconAlertTriangle, IconCircleCheck, IconCircleX, IconInfoCircle } from "@tabler/icons-react";
import type { ReactNode } from "react";
import css from "./components.module.css";

export type Kind = "well" | "warn" | "bad" | "info" | "quiet";

const icons = { well: IconCircleCheck, warn: IconAlertTriangle, bad: IconCircleX, info: IconInfoCircle, quiet: IconInfoCircle };

/** A sentence that matters, with its icon: colour alone says nothing to many. */
export function Notice({ kind, title, children }: { kind: Kind; title?: string; children?: ReactNode }) {
  const Icon = icons[kind];
  return (
    <div className={`${css.notice} ${css[kind]}`} role={kind === "bad" ? "alert" : "status"}>
      <Icon size={18} stroke={1.8} aria-hidden />
      <div>
        {title && <strong>{title}</strong>}
        {title && children && "\n"}
        {children}
      </div>
    </div>
  );
}

/** A state as a word on a coloured ground. */
export function State({ kind, children }: { kind: Kind; children: ReactNode }) {
  return <span className={`${css.badge} ${css[kind]}`}>{children}</span>;
}

export function Empty({ children }: { children: ReactNode }) {
  return <div className={css.empty}>{children}</div>;
}
