import { useEffect, useRef } from "react";

export interface Shortcut {
  key: string;
  what: string;
  run: () => void;
}

function typing(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement &&
    (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName) || target.getAttribute("role") === "textbox")
  );
}

/** Single keys, only while nobody types and no dialog is open. */
export function useShortcuts(shortcuts: Shortcut[], on: boolean): void {
  const latest = useRef(shortcuts);
  latest.current = shortcuts;
  useEffect(() => {
    if (!on) return;
    const listen = (e: KeyboardEvent) => {
      if (e.ctrlKey || e.metaKey || e.altKey || e.defaultPrevented || typing(e.target)) return;
      if (document.querySelector('[role="dialog"], [role="menu"]')) return;
      const found = latest.current.find((s) => s.key === e.key);
      if (!found) return;
      e.preventDefault();
      found.run();
    };
    window.addEventListener("keydown", listen);
    return () => window.removeEventListener("keydown", listen);
  }, [on]);
}

/** Puts the focus into the page's search field, or the first expression, if it has one. */
export function focusSearch(): void {
  document.querySelector<HTMLElement>("[data-search], .cm-content")?.focus();
}
