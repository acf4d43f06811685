import { Title } from "@mantine/core";
import { type ReactNode, useEffect, useRef } from "react";
import { useCluster } from "./cluster";
import css from "./shell.module.css";

// The first page was asked for by address: the focus stays where the browser put it.
let navigated = false;

/** What every page is in: its title on the tab and as the one heading, which has the focus after navigation. */
export function Frame({ title, actions, children }: { title: string; actions?: ReactNode; children: ReactNode }) {
  const heading = useRef<HTMLHeadingElement>(null);
  const { self } = useCluster();
  const name = self?.name;
  useEffect(() => {
    document.title = [title, name, "Tocsin"].filter(Boolean).join(" · ");
  }, [title, name]);
  useEffect(() => {
    if (navigated) heading.current?.focus({ preventScroll: true });
    navigated = true;
  }, []);
  return (
    <div className={css.page}>
      <div className={css.title}>
        <Title order={1} ref={heading} tabIndex={-1}>
          {title}
        </Title>
        {actions && <div className={css.actions}>{actions}</div>}
      </div>
      {children}
    </div>
  );
}
