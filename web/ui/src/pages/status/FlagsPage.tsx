import { useMemo } from "react";
import { usePrometheus } from "../../api/hooks";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import { Empty } from "../../components/Notice";
import { SearchInput } from "../../components/SearchInput";
import { searchIndex } from "../../lib/search";
import { useParam } from "../../lib/urlstate";
import css from "../pages.module.css";
import { type FlagSort, sortFlags } from "./find";

export default function FlagsPage() {
  const flags = usePrometheus<Record<string, string>>("status/flags");
  return (
    <Frame title="Flags">
      <Loaded query={flags}>{({ data }) => <List flags={data} />}</Loaded>
    </Frame>
  );
}

function List({ flags }: { flags: Record<string, string> }) {
  const [search, setSearch] = useParam("search");
  const [sort, setSort] = useParam("sort", "name");
  const find = useMemo(() => searchIndex(Object.entries(flags), ([k, v]) => `--${k} ${v}`), [flags]);
  const found = sortFlags(find(search), sort as FlagSort);
  const heading = (by: "name" | "value", text: string) => (
    <th aria-sort={sort === by ? "ascending" : sort === `-${by}` ? "descending" : undefined}>
      <button type="button" className={css.sort} onClick={() => setSort(sort === by ? `-${by}` : by)}>
        {text}
        <span aria-hidden>{sort === by ? " ▲" : sort === `-${by}` ? " ▼" : ""}</span>
      </button>
    </th>
  );
  return (
    <>
      <div className={css.bar}>
        <SearchInput value={search} onChange={setSearch} label="Search by name or value" />
      </div>
      {found.length === 0 ? (
        <Empty>No flag is like that.</Empty>
      ) : (
        <table className={css.table}>
          <thead>
            <tr>
              {heading("name", "Flag")}
              {heading("value", "Value")}
            </tr>
          </thead>
          <tbody>
            {found.map(([k, v]) => (
              <tr key={k}>
                <td>
                  <code>--{k}</code>
                </td>
                <td>
                  <code>{v}</code>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </>
  );
}
