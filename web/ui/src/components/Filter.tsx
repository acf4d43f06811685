import { type ReactNode, useMemo } from "react";
import { searchIndex } from "../lib/search";
import { useParam, useParamList } from "../lib/urlstate";
import pages from "../pages/pages.module.css";
import { Choice } from "./Choice";
import type { Kind } from "./Notice";
import { SearchInput } from "./SearchInput";

/** What of a long list is looked for, by words and by state; both are in the address. */
export interface Filter<T> {
  search: string;
  setSearch: (search: string) => void;
  chosen: string[];
  setChosen: (states: string[]) => void;
  /** What has the words. */
  found: T[];
  /** What has one of the chosen states, too; none chosen is all. */
  shown: T[];
  /** How many of what was found are in a state. */
  count: (state: string) => number;
}

/** text and stateOf are functions of their own, not made anew each time. */
export function useFilter<T>(items: readonly T[], param: string, stateOf: (item: T) => string, text: (item: T) => string): Filter<T> {
  const [search, setSearch] = useParam("search");
  const [chosen, setChosen] = useParamList(param);
  const find = useMemo(() => searchIndex(items, text), [items, text]);
  const found = useMemo(() => find(search), [find, search]);
  const shown = useMemo(() => (chosen.length === 0 ? found : found.filter((i) => chosen.includes(stateOf(i)))), [found, chosen, stateOf]);
  const counts = useMemo(() => {
    const by = new Map<string, number>();
    for (const i of found) by.set(stateOf(i), (by.get(stateOf(i)) ?? 0) + 1);
    return by;
  }, [found, stateOf]);
  return { search, setSearch, chosen, setChosen, found, shown, count: (state) => counts.get(state) ?? 0 };
}

export interface StateOption {
  value: string;
  label: string;
  kind: Kind;
}

/** The fields of a filter; children stand before them. */
export function FilterBar<T>({
  filter: f,
  search,
  label,
  states,
  children,
}: {
  filter: Filter<T>;
  /** What the search looks through. */
  search: string;
  label: string;
  states: readonly StateOption[];
  children?: ReactNode;
}) {
  return (
    <div className={pages.bar}>
      {children}
      <SearchInput value={f.search} onChange={f.setSearch} label={search} />
      <Choice label={label} chosen={f.chosen} onChange={f.setChosen} options={states.map((s) => ({ ...s, count: f.count(s.value) }))} />
    </div>
  );
}
