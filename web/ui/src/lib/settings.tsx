// What a person chose, kept by their browser.

import { createContext, type ReactNode, useCallback, useContext, useMemo, useState } from "react";

export interface Settings {
  utc: boolean;
  history: boolean;
  autocomplete: boolean;
  highlight: boolean;
  linter: boolean;
  warnings: boolean;
  infos: boolean;
  shortcuts: boolean;
}

const defaults: Settings = {
  utc: false,
  history: true,
  autocomplete: true,
  highlight: true,
  linter: true,
  warnings: true,
  infos: true,
  shortcuts: true,
};

const key = "tocsin.settings";

/** Local storage can be off or full: then what was chosen lasts as long as the page. */
export function readStored<T>(name: string, fallback: T): T {
  try {
    const text = localStorage.getItem(name);
    return text === null ? fallback : (JSON.parse(text) as T);
  } catch {
    return fallback;
  }
}

export function writeStored(name: string, value: unknown): void {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // See above.
  }
}

interface Value {
  settings: Settings;
  set: (change: Partial<Settings>) => void;
}

const Context = createContext<Value>({ settings: defaults, set: () => {} });

export function SettingsProvider({ children }: { children: ReactNode }) {
  const [settings, setSettings] = useState<Settings>(() => ({ ...defaults, ...readStored<Partial<Settings>>(key, {}) }));
  const set = useCallback((change: Partial<Settings>) => {
    setSettings((old) => {
      const next = { ...old, ...change };
      writeStored(key, next);
      return next;
    });
  }, []);
  const value = useMemo(() => ({ settings, set }), [settings, set]);
  return <Context.Provider value={value}>{children}</Context.Provider>;
}

export function useSettings(): Value {
  return useContext(Context);
}
